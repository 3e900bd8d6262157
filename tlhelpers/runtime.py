"""What the environment decides: device, cores, quick or full profile, seeds, offline or not, and the cache folders.

Every room may ask here.  Nothing in here imports torchvision or transformers: asking costs what `import torch` costs.
"""

import contextlib
import os
import random
from pathlib import Path

import numpy as np
import torch

PROFILES = ("quick", "full")
SHIFT = 100_000  # per unit of TLHELPERS_SEED: far wider than the seeds of pages (from 0) and of tuning (from 1000)


def choose_profile(device: torch.device) -> tuple[str, str]:
    """The profile, quick or full, and the reason for it in words: `TLHELPERS_PROFILE` if set, else by the device.

    Raises:
        ValueError: `TLHELPERS_PROFILE` is set to something other than quick or full.
    """
    profile = os.environ.get("TLHELPERS_PROFILE")
    if profile is not None:
        if profile not in PROFILES:
            raise ValueError(f"TLHELPERS_PROFILE is {profile!r}; set it to 'quick' or 'full', or unset it")
        return profile, "TLHELPERS_PROFILE says so"
    if device.type == "cpu":
        return "quick", "there is no GPU, and everything this profile needs is inside the package"
    return "full", f"there is a {device.type} device"


def pick_device() -> torch.device:
    """The accelerator if one works here, else the CPU; of several processes, each has an accelerator of its own."""
    # `current_accelerator()` answers "cuda" for a CUDA build without a GPU, so ask `is_available` first.
    # `accelerate launch --cpu` sets the variable, and LOCAL_RANK.
    if torch.accelerator.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() != "true":
        kind = torch.accelerator.current_accelerator().type
        rank = os.environ.get("LOCAL_RANK")
        return torch.device(kind) if rank is None else torch.device(kind, int(rank))
    return torch.device("cpu")


def device_name(device: torch.device) -> str:
    """The name of a graphics card, or the kind of any other device, such as "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def memory_bytes(*, free: bool = False) -> int | None:
    """Memory of this machine, or what of it a program can still get; None where the system does not tell (Windows)."""
    name = "SC_AVPHYS_PAGES" if free else "SC_PHYS_PAGES"
    if name not in getattr(os, "sysconf_names", ()):
        return None
    size = os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    if free:  # Linux fills free memory with copies of files, and knows what it can give up
        with contextlib.suppress(OSError):
            lines = Path("/proc/meminfo").read_text().splitlines()
            size = next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), size)
    return size


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
    """`seed`, plus `SHIFT` for every unit of `TLHELPERS_SEED`, so that no draw of one unit is met in another.

    Whatever draws at random (batches, few-shot subsets, splits of messages, `seed_everything`) asks here; what a
    data set *is* (its drawings, the placement of its digits) does not, so that data stay the same.

    Raises:
        ValueError: `TLHELPERS_SEED` is not a whole number.
    """
    shift = os.environ.get("TLHELPERS_SEED") or "0"
    try:
        return seed + SHIFT * int(shift)
    except ValueError:
        raise ValueError(f"TLHELPERS_SEED is {shift!r}; set it to a whole number, or unset it") from None


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices); `TLHELPERS_SEED` shifts it."""
    seed = shifted(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


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
