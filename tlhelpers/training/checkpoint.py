"""Stop and resume: the state of a run in one file that is never half written, and that cannot run code.

The file is what `torch.save` writes: a zip of tensors with a CRC-32 each.  It is read with
`torch.load(..., weights_only=True)`, which knows tensors and plain values and nothing else.
"""

import os
import re
import shutil
import signal
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch

from tlhelpers.files import atomic
from tlhelpers.training.distributed import Team
from tlhelpers.training.history import RunState

FORMAT = "tlhelpers checkpoint 3"


class Damaged(Exception):
    """A file that is not whole."""


class Checkpoint:
    """The file that keeps a run, and the one before it (PATH.previous).

    Args:
        path: where; its folder is made.  With None nothing is kept.
        run: what to keep.
        choices: the arguments of `fit` that must be the same for a run to be continued, "epochs" among them.
        team: the processes of the run; the first one writes.

    If there is a file, the run goes to where it was; else its start is kept, so that a folder that
    cannot be written shows at once.

    Raises:
        ValueError: damaged (and the previous file too), no checkpoint, unsafe, or of another run.
        OSError: the file cannot be written.
    """

    def __init__(self, path: str | Path | None, run: RunState, choices: dict, team: Team) -> None:
        self.path = None if path is None else Path(path)
        self.run = run
        if self.path is None:
            return
        self.plan = choices | run.plan()
        self.writes = team.rank == 0
        state = _read_latest(self.path)
        team.wait()  # nobody writes before all have read
        if state is None:
            self._begin()
            return
        _check_same_plan(self.path, state, self.plan)
        run.load_state(state)
        if self.writes:
            print(f"Continuing from {self.path} after {run}.")
        else:  # the first process has counted them
            run.means.sums = {}
            run.means.examples = 0

    def _begin(self) -> None:
        try:
            if self.writes:
                write(self.path, self._state())
        except OSError as error:
            raise OSError(
                f"the checkpoint {self.path} cannot be written: {error}. Free some space, or give a path in a "
                "folder that can be written"
            ) from error

    def save(self) -> None:
        """Keep the run as it is now.  If that fails, warn: training matters more than its copy."""
        if self.path is None or not self.writes:
            return
        try:
            write(self.path, self._state())
        except OSError as error:
            warnings.warn(
                f"the checkpoint {self.path} could not be written after {self.run}: {error}. "
                "The run goes on, and the file of before is still there; free some space or make the folder "
                "writable, and the next epoch is kept again",
                stacklevel=3,
            )

    def _state(self) -> dict:
        return {"format": FORMAT, "plan": self.plan, **self.run.state()}


def write(path: Path, state: dict) -> None:
    """Replace a checkpoint: written beside it, read back, and only then renamed; the old one becomes PATH.previous.

    At every moment there is a whole file under PATH.

    Raises:
        OSError: no space, no permission, or the disk gives back something else.
        ValueError: the state holds something other than tensors and plain values.
    """
    with atomic(path, temporary=_beside(path, "partial")) as temporary:
        with temporary.open("wb") as file:
            sink = _Sink(file)
            try:
                torch.save(state, sink)
            except RuntimeError as error:  # torch's words when a write fails; the reason is in the sink
                raise sink.error or error from None
        try:
            read(temporary, into_memory=False)
        except Damaged as error:
            raise OSError(
                f"what was written to {temporary} cannot be read back ({error}); is the disk failing?"
            ) from None
        except ValueError as error:
            raise ValueError(
                f"this run cannot be kept in {path}: model, objective, optimizer or records hold more than tensors and "
                f"plain values, {_forbidden(error.__cause__)}; make it plain, or go without a checkpoint"
            ) from None
        _keep_as_previous(path)


def _keep_as_previous(path: Path) -> None:
    """Give the file a second name, which it keeps when a new file takes the first."""
    previous = _beside(path, "previous")
    previous.unlink(missing_ok=True)
    if not path.exists():
        return
    try:
        os.link(path, previous)
    except OSError:  # a file system without links
        with atomic(previous) as temporary:
            shutil.copyfile(path, temporary)


def read(path: Path, *, into_memory: bool = True) -> dict:
    """The state in a checkpoint, on the CPU, after every checksum in it was compared.

    Raises:
        Damaged: the file is not whole, or not of this kind.
        ValueError: it holds more than tensors and plain values; nothing of it was run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                # One wrong bit here makes a folder of a tensor: torch would read nothing, and not say so.
                if entry.compress_type != zipfile.ZIP_STORED or entry.external_attr != 0:
                    raise Damaged(f"torch would not have written {entry.filename} like this")
            if bad := archive.testzip():
                raise Damaged(f"the checksum of {bad} is wrong")
    except (OSError, Damaged) as error:
        raise (error if isinstance(error, Damaged | PermissionError) else Damaged(str(error))) from None
    except Exception as error:  # zipfile raises half a dozen kinds for a file that is not whole
        raise Damaged(str(error)) from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=not into_memory)
    except UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: it holds more than tensors and plain values, and could run code. Nothing of it "
            f"was run. Delete it if you do not know where it is from. (It holds {_forbidden(error)}.)"
        ) from error
    except Exception as error:  # torch, too
        raise Damaged(str(error)) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} was not written by fit(..., checkpoint=...); give another path")
    return state


def _forbidden(error: Exception | None) -> str:
    """The name of what `weights_only` refused, from the middle of torch's advice."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    return named[1] if named else "of a kind that torch does not name"


def _read_latest(path: Path) -> dict | None:
    """The state to continue from; None for a fresh start."""
    if not path.exists():
        return None
    try:
        return read(path)
    except Damaged as error:
        reason = error
    previous = _beside(path, "previous")
    try:
        state = read(previous)
    except Damaged:
        raise ValueError(
            f"{path} is damaged or no checkpoint ({reason}), and there is no {previous.name} in its place. "
            "Delete the file to start anew, or give another path"
        ) from None
    print(f"{path} is damaged ({reason}); taking {previous.name}, which is one save older.")
    return state


def _check_same_plan(path: Path, state: dict, plan: dict) -> None:
    """Refuse to continue a run with other settings, and say with which."""
    done = len(state["history"])
    old = _flat(state["plan"])
    new = _flat(plan)
    if done > new["epochs"]:
        raise ValueError(f"{path} holds {done} epochs, more than epochs={new['epochs']}; give another path")
    if all(flat["schedule"] is None and not flat["progress"] for flat in (old, new)):
        old["epochs"] = new["epochs"]  # no step depends on it: a longer run begins like a shorter one
    different = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if not different:
        return
    lines = [f"  {name}: {old.get(name)} in the file, {new.get(name)} here" for name in different[:5]]
    lines += [f"  and {len(different) - 5} more"] if len(different) > 5 else []
    if "epochs" in different:
        lines.append("  (Schedule or objective follow the progress: all steps would have been others.)")
    lines.append("Repeat the call that wrote the file, or start anew with another path or after deleting it.")
    raise ValueError("\n".join([f"{path} belongs to another run:", *lines]))


def _flat(plan: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} as {"a b": 1}."""
    flat = {}
    for name, value in plan.items():
        flat |= _flat(value, f"{prefix}{name} ") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


@contextmanager
def stop_button(active: bool) -> Iterator[Callable[[], bool]]:
    """Within it, the first Ctrl-C (the notebook's stop button) is only noted; the second interrupts as ever.

    Yields a function that says whether it was pressed.  Does nothing when not active, outside the
    main thread, or where the program has its own way with Ctrl-C.
    """
    pressed = False

    def note(_number, _frame) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    active = active and threading.current_thread() is threading.main_thread()
    active = active and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if active:
        signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        if active:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class _Sink:
    """A file for `torch.save` that remembers why a write failed: torch's own message does not say."""

    def __init__(self, file) -> None:
        self.file, self.error = file, None

    def write(self, data) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f"{path.name}.{ending}")
