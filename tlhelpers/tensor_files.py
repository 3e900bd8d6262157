"""A tensor in a file: whole and as it was written, or not there at all."""

import hashlib
import os
from pathlib import Path

from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


def keep_tensor(path: Path, x: Tensor) -> None:
    """Write a tensor of the CPU with its sha256; the file takes its name when it is complete and on the disk.

    Several processes may write one file at once, one after the other; what a killed one left is written over.

    Raises:
        OSError, SafetensorError: it cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        aside = path.with_suffix(".part")
        try:
            save_file({"x": x}, aside, {"sha256": _digest(x)})
            aside.chmod(0o644)  # safetensors lets only its owner read, but a room may share the folder
            with aside.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def kept_tensor(path: Path, rows: int) -> Tensor:
    """The tensor in a file of `keep_tensor`.

    Raises:
        ValueError: it is not what was written, or not as long as `rows`.
        OSError, SafetensorError: the file cannot be read.
    """
    with safe_open(path, "pt") as file:
        x, written = file.get_tensor("x"), (file.metadata() or {}).get("sha256")
    if _digest(x) != written or len(x) != rows:
        raise ValueError(f"it does not hold the {rows} rows that were written")
    return x


def _digest(x: Tensor) -> str:
    return hashlib.sha256(x.contiguous().numpy().data).hexdigest()
