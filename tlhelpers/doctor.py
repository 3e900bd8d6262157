"""Checks of a machine: can the course run here, and if not, what is to be done.

The doctor must be able to speak when torch is broken, so it lies above all rooms, which import torch, and
imports them inside the checks that need them.
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path

HOSTS = ("download.pytorch.org", "huggingface.co")
LEAST_GB = 2  # of memory and of disk; a page takes up to 1.6 (its limit in the tests), JupyterLab the rest


def doctor() -> int:
    """Print one line per check and a closing sentence; 0 if the course can run, else 1."""
    problems = 0
    for name, check in CHECKS.items():
        try:
            line = check()
            good = True
        except Exception as error:  # a check that breaks is a finding too
            line = str(error) or type(error).__name__
            good = False
        problems += not good
        print(f"{'ok' if good else 'NO':<3}{name:<16}{line}")
    if problems:
        print(f"{problems} of {len(CHECKS)} checks failed: mend the lines marked NO, then run this again.")
    else:
        print("This machine is ready: make lab, or jupyter lab notebooks/00_start_here.ipynb.")
    return int(problems > 0)


def _python() -> str:
    return sys.version.split()[0]


def _packages() -> str:
    from packaging.requirements import Requirement

    requirements = [Requirement(text) for text in metadata.requires("tlhelpers") or []]
    wrong = []
    for needed in (r for r in requirements if r.marker is None or r.marker.evaluate({"extra": "lab"})):
        try:
            version = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            version = None
        if version is None or not needed.specifier.contains(version, prereleases=True):
            wrong.append(f"{needed.name}{needed.specifier} (have {version})")
    if wrong:
        raise RuntimeError(f"install or upgrade: {', '.join(wrong)}")
    return f"torch {metadata.version('torch')}, transformers {metadata.version('transformers')}"


def _run(code: str) -> str:
    """Output of a fresh interpreter, so that a crash in a library is a finding, not our end."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    return done.stdout.strip()


@cache
def _what_torch_says() -> str:
    """ "" when it can be imported, by an interpreter of its own: a broken build can end the process that tries."""
    try:
        return _run("import torch")
    except RuntimeError as error:
        return str(error)


def _torch_loads() -> None:
    if error := _what_torch_says():
        raise RuntimeError(f"not checked, because torch cannot be imported ({error})")


def _torch_pair() -> str:
    try:
        return _run("import torch, torchvision; torchvision.ops.nms; print('torchvision', torchvision.__version__)")
    except RuntimeError as error:
        raise RuntimeError(f"{error}; torch and torchvision must fit: install both anew from one index") from None


def _device() -> str:
    _torch_loads()
    device = _run("from tlhelpers.runtime import device_name, pick_device; print(device_name(pick_device()))")
    if device == "cpu" and shutil.which("nvidia-smi"):
        driver = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        cards = driver.stdout.strip()
        if driver.returncode == 0 and cards:
            raise RuntimeError(f"torch does not see {cards}; update the driver, or install torch anew")
    return device if device != "cpu" else "cpu (all pages run; the full profile is slow)"


def _memory() -> str:
    _torch_loads()
    from tlhelpers.runtime import memory_bytes

    size = memory_bytes(free=True)
    if size is None:
        return "unknown on this system"
    free = size / 1e9
    if free < LEAST_GB:
        raise RuntimeError(f"{free:.1f} GB free; a page and JupyterLab take up to {LEAST_GB} GB: close other kernels")
    return f"{free:.1f} GB free"


def _disk() -> str:
    _torch_loads()
    from tlhelpers.runtime import cache_dir

    place = next(p for p in (cache_dir(), *cache_dir().parents) if p.exists())
    free = shutil.disk_usage(place).free / 1e9
    if free < LEAST_GB:
        raise RuntimeError(f"{free:.1f} GB free at {place}; set TLHELPERS_CACHE to a larger disk")
    return f"{free:.0f} GB free at {place}"


def _writing() -> str:
    _torch_loads()
    from tlhelpers.runtime import cache_dir

    for folder in (Path.cwd(), cache_dir()):
        place = next(p for p in (folder, *folder.parents) if p.exists())
        if not os.access(place, os.W_OK):
            raise RuntimeError(f"{place} cannot be written; set TLHELPERS_CACHE, or start from a folder of your own")
    return f"{Path.cwd()} and {cache_dir()}"


def _shipped() -> str:
    _torch_loads()
    from tlhelpers.models.backbones import load_backbone
    from tlhelpers.models.glyphnet import SHIPPED

    for name in SHIPPED:
        load_backbone(name)
    return f"{len(SHIPPED)} shipped bodies with the right sha256"


def _caches() -> str:
    _torch_loads()
    from tlhelpers.models.photo_nets import CUTS, photo_weights
    from tlhelpers.runtime import torch_home

    here = [name for name in CUTS if (torch_home() / "hub" / "checkpoints" / photo_weights(name)[1].name).exists()]
    return f"for the full profile: {', '.join(here) or 'nothing yet'} (python -m tlhelpers prefetch)"


def _network() -> str:
    _torch_loads()
    from tlhelpers.runtime import is_offline

    if is_offline():
        return "offline, as the environment asks; the quick profile needs none"
    reached = []
    for host in HOSTS:
        try:
            socket.create_connection((host, 443), timeout=3).close()
            reached.append(host)
        except OSError:
            continue
    return f"reaches {', '.join(reached)}" if reached else "none; the quick profile needs none"


def _kernel() -> str:
    if importlib.util.find_spec("ipykernel") is None:
        raise RuntimeError("ipykernel is missing; pip install 'tlhelpers[lab]'")
    from jupyter_client.kernelspec import KernelSpecManager

    command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    ours = not Path(command).is_absolute() or (Path(command).exists() and os.path.samefile(command, sys.executable))
    if not ours:
        raise RuntimeError(f"the kernel python3 starts {command}, not {sys.executable}; python -m ipykernel install")
    return "python3 starts this Python"


CHECKS: dict[str, Callable[[], str]] = {
    "Python": _python,
    "packages": _packages,
    "torch pair": _torch_pair,
    "device": _device,
    "memory": _memory,
    "disk": _disk,
    "write access": _writing,
    "shipped weights": _shipped,
    "caches": _caches,
    "network": _network,
    "kernel": _kernel,
}
