"""Where the code runs: device, precision, threads, seeds, caches, and the quick or the full profile.

Nothing in here imports torchvision or transformers, so that `setup()` costs what `import torch` costs.
"""

import contextlib
import ctypes
import os
import platform
import random
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

PROFILES = ("quick", "full")


@dataclass(frozen=True)
class Machine:
    """What `setup` found, and what it chose.

    Attributes:
        device: where models and batches live.
        profile: "quick" (data and weights from inside the package) or "full" (real ones).
        reason: why this profile, in words.
        cores: CPU cores that this process may use.
    """

    device: torch.device
    profile: str
    reason: str
    cores: int


def setup(seed: int = 0) -> Machine:
    """Prepare a page: seed everything, set the thread count, choose device and profile, and say so.

    From then on a NameError in a notebook is followed by a word on which cells to run, and after
    every cell the memory that it has freed goes back to the system (Linux).

    Raises:
        ValueError: `TLHELPERS_PROFILE` is set to something other than quick or full, or `TLHELPERS_SEED`
            to something other than a whole number.
    """
    # peft still reads an attribute that transformers has renamed; nothing that a learner could mend.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()) is not None:
        _explain_missing_names(shell)
        _give_memory_back(shell)
    seed_everything(seed)
    cores = available_cores()
    if "OMP_NUM_THREADS" not in os.environ:  # whoever set that has already decided
        torch.set_num_threads(cores)
    device = pick_device()
    profile, reason = _choose_profile(device)
    other = PROFILES[1 - PROFILES.index(profile)]
    print(f"{profile} profile on {device.type} with {torch.get_num_threads()} thread(s): {reason}.")
    print(f"To change it, set TLHELPERS_PROFILE={other} and restart the kernel.")
    if shifted(0):
        print(f"TLHELPERS_SEED shifts every seed by {shifted(0)}.")
    return Machine(device, profile, reason, cores)


def _explain_missing_names(shell) -> None:
    """In a notebook, say below a NameError which cells to run; its traceback stays."""

    def explain(shell, kind, error, traceback, tb_offset=None) -> None:
        shell.showtraceback((kind, error, traceback), tb_offset=tb_offset)
        name = error.name or "this name"
        print(
            f"If a cell further up makes {name!r}, run the cells above first: menu Run, 'Run All Above Selected Cell'."
        )

    shell.set_custom_exc((NameError,), explain)


def _give_memory_back(shell) -> None:
    """After every cell, return what it has freed to the system.

    The C library keeps freed tensors of up to 32 MB for later: about 120 MiB on a page that trains a
    transformer, where Binder ends a kernel at 2 GB.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # glibc has it
    if trim is None:
        return

    def after_cell(_result) -> None:
        trim(0)

    after_cell.__qualname__ = _give_memory_back.__qualname__
    for old in [f for f in shell.events.callbacks["post_run_cell"] if f.__qualname__ == after_cell.__qualname__]:
        shell.events.unregister("post_run_cell", old)  # the cell with `setup()` was run again
    shell.events.register("post_run_cell", after_cell)


def _choose_profile(device: torch.device) -> tuple[str, str]:
    asked = os.environ.get("TLHELPERS_PROFILE")
    if asked is not None:
        if asked not in PROFILES:
            raise ValueError(f"TLHELPERS_PROFILE is {asked!r}; set it to 'quick' or 'full', or unset it")
        return asked, "TLHELPERS_PROFILE says so"
    if device.type == "cpu":
        return "quick", "there is no GPU, and everything this profile needs is inside the package"
    return "full", f"there is a {device.type} device"


def pick_device() -> torch.device:
    """The accelerator if one works here, else the CPU; of several processes, each has an accelerator of its own."""
    # `current_accelerator()` answers "cuda" for a CUDA build without a GPU, so ask `is_available` first.
    # `accelerate launch --cpu` sets the variable, and LOCAL_RANK.
    if torch.accelerator.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() != "true":
        kind, rank = torch.accelerator.current_accelerator().type, os.environ.get("LOCAL_RANK")
        return torch.device(kind) if rank is None else torch.device(kind, int(rank))
    return torch.device("cpu")


def available_cores() -> int:
    """CPU cores that this process may use, at least 1.

    A container (Binder: 1 CPU on a large host) is limited by a quota that `os.cpu_count()` ignores;
    one thread per host core under a quota of one core is many times slower than one thread.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, -(-int(quota) // int(period)))  # rounded up
    return max(1, cores)


def shifted(seed: int) -> int:
    """`seed`, plus 1000 for every unit of `TLHELPERS_SEED`: a page that counts seeds from 0 then meets none of them.

    Whatever draws at random (batches, few-shot subsets, splits of messages, `seed_everything`) asks here; what a
    data set *is* (its drawings, the placement of its digits) does not, so that data stay the same.

    Raises:
        ValueError: `TLHELPERS_SEED` is not a whole number.
    """
    asked = os.environ.get("TLHELPERS_SEED") or "0"
    try:
        return seed + 1000 * int(asked)
    except ValueError:
        raise ValueError(f"TLHELPERS_SEED is {asked!r}; set it to a whole number, or unset it") from None


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices); `TLHELPERS_SEED` shifts it."""
    seed = shifted(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def mixed_precision(device: torch.device) -> torch.dtype | None:
    """The reduced type in which this device multiplies faster, or None to stay in float32.

    bfloat16 where the hardware has it (its range equals float32's, so no loss scaling is needed),
    float16 on older CUDA cards such as the T4, nothing on a CPU.
    """
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    """`torch.autocast` for `dtype`, or a context that does nothing when dtype is None."""
    return torch.autocast(device.type, dtype=dtype) if dtype is not None else contextlib.nullcontext()


def to_device(batch, device: torch.device):
    """A batch with all its tensors on `device`: a tensor, or tuples, lists and dicts of such, nested at will."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    return tuple(to_device(value, device) for value in batch)


def batch_size(batch) -> int:
    """Number of examples in a batch: the length of the first tensor in it.

    Raises:
        ValueError: the batch is empty.
    """
    while not isinstance(batch, torch.Tensor):
        if len(batch) == 0:
            raise ValueError("the batch is empty; the loader must yield at least one tensor")
        batch = next(iter(batch.values() if isinstance(batch, Mapping) else batch))
    return len(batch)


def is_offline() -> bool:
    """True when the learner or the ecosystem forbids downloads: one of these variables is set and not 0."""
    names = ("TLHELPERS_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "0").lower() not in ("", "0", "false", "no", "off") for name in names)


def cache_dir() -> Path:
    """`TLHELPERS_CACHE`, or `~/.cache/tlhelpers`.  The folder need not exist yet."""
    return Path(os.environ.get("TLHELPERS_CACHE") or Path.home() / ".cache" / "tlhelpers").expanduser()


def torch_home() -> Path:
    """`TORCH_HOME` as torch understands it: where torch and torchvision keep downloaded weights."""
    return Path(torch.hub.get_dir()).parent


def describe_machine() -> dict[str, str]:
    """Python, packages, cores, memory and device of this machine, in printing order."""
    device = pick_device()
    facts = {"Python": f"{platform.python_version()} on {platform.system()}"}
    for package in ("torch", "torchvision", "transformers", "scikit-learn", "matplotlib", "ipywidgets"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    facts["CPU cores"] = f"{available_cores()} ({torch.get_num_threads()} torch threads)"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        facts["memory"] = f"{gib:.1f} GiB"
    facts["device"] = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    return facts
