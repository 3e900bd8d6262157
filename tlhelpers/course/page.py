"""What every page begins and ends with: `setup`, the claims that it makes about itself, and what machine it ran on."""

import ctypes
import os
import platform
import sys
import warnings
from dataclasses import dataclass
from importlib import metadata

import matplotlib.pyplot as plt
import torch

from tlhelpers.course.plots import STYLE
from tlhelpers.runtime import (
    PROFILES,
    available_cores,
    choose_profile,
    device_name,
    memory_bytes,
    pick_device,
    seed_everything,
    shifted,
)

_claims: list[tuple[str, float, str]] = []  # text, value and bound of every claim of this kernel, for `claims_table`


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
    """Prepare a page: seed everything, set thread count and the look of figures, choose device and profile, and say so.

    From then on a NameError in a notebook is followed by a word on which cells to run, and after
    every cell the memory that it has freed goes back to the system (Linux).

    Raises:
        ValueError: `TLHELPERS_PROFILE` is set to something other than quick or full, or `TLHELPERS_SEED`
            to something other than a whole number.
    """
    # peft still reads an attribute that transformers has renamed; nothing that a learner could mend.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()) is not None:
        shell.set_custom_exc((NameError,), _explain_missing_name)
        if _can_trim_memory():
            shell.events.register("post_run_cell", _give_memory_back)  # a second time changes nothing
    seed_everything(seed)
    plt.style.use(STYLE)
    cores = available_cores()
    if "OMP_NUM_THREADS" not in os.environ:  # whoever set that has already decided
        torch.set_num_threads(cores)
    device = pick_device()
    profile, reason = choose_profile(device)
    other = PROFILES[1 - PROFILES.index(profile)]
    print(f"{profile} profile on {device.type} with {torch.get_num_threads()} thread(s): {reason}.")
    print(f"To change it, set TLHELPERS_PROFILE={other} and restart the kernel.")
    if shifted(0):
        print(f"TLHELPERS_SEED shifts every seed by {shifted(0)}.")
    return Machine(device, profile, reason, cores)


def _explain_missing_name(shell, kind, error, traceback, tb_offset=None) -> None:
    """Show a NameError as ever, and say below it which cells to run (a handler of IPython)."""
    shell.showtraceback((kind, error, traceback), tb_offset=tb_offset)
    name = error.name or "this name"
    print(f"If a cell further up makes {name!r}, run the cells above first: menu Run, 'Run All Above Selected Cell'.")


def _can_trim_memory() -> bool:
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim")  # glibc has it, musl has not


def _give_memory_back(_result) -> None:
    """Return to the system what a cell has freed (a callback of IPython).

    The C library keeps freed tensors of up to 32 MB for later: about 120 MiB on a page that trains a
    transformer, where Binder ends a kernel at 2 GB.
    """
    ctypes.CDLL(None).malloc_trim(0)


def claim(text: str, value: float, *, at_least: float | None = None, at_most: float | None = None) -> None:
    """Assert a statement of the page, and print it with the number that carries it.

    Raises:
        AssertionError: the value is outside its bounds (or NaN): the statement is not true here.
        ValueError: no bound is given, so nothing could fail.
    """
    if at_least is None and at_most is None:
        raise ValueError(f"the claim {text!r} has no bound; give at_least or at_most")
    value = float(value)
    limits = [("at least", at_least), ("at most", at_most)]
    bound = " and ".join(f"{words} {limit:.4g}" for words, limit in limits if limit is not None)
    high_enough = at_least is None or value >= at_least
    low_enough = at_most is None or value <= at_most
    if not (high_enough and low_enough):  # written so that NaN fails
        raise AssertionError(f"not true here: {text}: {value:.4g}, but the page claims {bound}")
    _claims.append((text, value, bound))
    print(f"\N{CHECK MARK} {text}: {value:.4g} ({bound})")


def claims_table() -> None:
    """Print every claim made so far in this kernel with its number and its bound."""
    width = max((len(text) for text, _, _ in _claims), default=0)
    for text, value, bound in _claims:
        print(f"{text:<{width}}  {value:>8.4g}  {bound}")


def describe_machine() -> dict[str, str]:
    """Python, packages, cores, memory and device of this machine, in printing order."""
    facts = {"Python": f"{platform.python_version()} on {platform.system()}"}
    for package in ("torch", "torchvision", "transformers", "scikit-learn", "matplotlib", "ipywidgets"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    facts["CPU cores"] = f"{available_cores()} ({torch.get_num_threads()} torch threads)"
    if (memory := memory_bytes()) is not None:
        facts["memory"] = f"{memory / 2**30:.1f} GiB"
    facts["device"] = device_name(pick_device())
    return facts
