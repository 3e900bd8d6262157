"""CIFAR-10, MNIST and EMNIST from disk, or downloaded once.

They are looked for below `cache_dir()`: in torchvision's own layout (`torchvision/`), CIFAR-10 also as
a folder of image files (`images/cifar10/`).
"""

import gzip
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from tlhelpers.data.examples import Part, Splits
from tlhelpers.files import Remote, fetch
from tlhelpers.data.folders import read_folder
from tlhelpers.runtime import cache_dir

MOST_UNPACKED = 400_000_000  # bytes of one archive; CIFAR-10, the largest, has 186 million


def _torchvision_splits(name: str, train, test, *, transposed: bool = False, base: int = 0) -> Splits:
    """Two data sets of torchvision as three parts; images [N, H, W] or [N, H, W, 3] become [N, C, H, W]."""
    parts = []
    for split, data in (("train", train), ("test", test)):
        x = torch.as_tensor(np.asarray(data.data))
        x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2)
        x = x.transpose(2, 3) if transposed else x
        y = torch.as_tensor(data.targets).long() - base
        classes = tuple(title.split(" - ")[0] for title in data.classes[base:])  # MNIST says "3 - three"
        parts.append(Part(f"{name}/{split}", x.contiguous(), y, classes, torch.arange(len(y))))
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(parts[0]), generator=generator)
    cut = len(parts[1])  # as much validation as test
    validation = parts[0].take(order[:cut])
    validation = Part(f"{name}/validation", validation.x, validation.y, validation.classes, validation.indices)
    return Splits(parts[0].take(order[cut:]), validation, parts[1])


def _root() -> Path:
    return cache_dir() / "torchvision"


def _check_sizes(packed: tarfile.TarFile, archive: Path) -> None:
    total = 0
    for member in packed:  # its header comes first, so that an enormous member is known before it is unpacked
        total += member.size
        if total > MOST_UNPACKED:
            raise ValueError(f"{archive} unpacks to more than {MOST_UNPACKED:,} bytes; it is not the published file")


def _unpacked(stream: BinaryIO, archive: Path) -> bytes:
    """All that a gzip stream holds, if that is no more than `MOST_UNPACKED`."""
    with gzip.open(stream) as packed:
        content = packed.read(MOST_UNPACKED + 1)
    if len(content) > MOST_UNPACKED:
        raise ValueError(f"{archive} unpacks to more than {MOST_UNPACKED:,} bytes; it is not the published file")
    return content


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Errors of the readers of torchvision, which seldom name the file, with its place and what to do."""
    try:
        yield
    except Exception as error:  # a reader may raise anything when a file is damaged
        raise OSError(f"{folder} cannot be read ({error}); remove it, so that it is fetched again") from error


def _cifar10_files() -> list[Path]:
    folder = cache_dir() / "images" / "cifar10"
    if folder.is_dir():
        return sorted(p for p in folder.rglob("*") if p.is_file())
    from torchvision.datasets import CIFAR10

    if not (_root() / CIFAR10.base_folder).is_dir():
        archive = fetch(Remote(CIFAR10.url, f"md5:{CIFAR10.tgz_md5}", 170_498_071), _root() / CIFAR10.filename)
        with tarfile.open(archive) as packed, tempfile.TemporaryDirectory(dir=_root()) as aside:
            _check_sizes(packed, archive)
            packed.extractall(aside, filter="data")  # refuses names and links that lead out of the folder
            os.replace(Path(aside) / CIFAR10.base_folder, _root() / CIFAR10.base_folder)
    return sorted((_root() / CIFAR10.base_folder).iterdir())


def cifar10() -> Splits:
    """CIFAR-10 (Krizhevsky 2009): photographs 32x32 of 10 classes."""
    if "images" in _cifar10_files()[0].parts:
        return read_folder(cache_dir() / "images" / "cifar10")
    from torchvision.datasets import CIFAR10

    with _named(_root() / CIFAR10.base_folder):
        # torchvision compares every file with its md5 before it unpickles it.
        return _torchvision_splits("cifar10", CIFAR10(_root(), train=True), CIFAR10(_root(), train=False))


def _mnist_files() -> list[Path]:
    from torchvision.datasets import MNIST

    files = []
    for packed, md5 in MNIST.resources:
        raw = _root() / "MNIST" / "raw" / packed
        if not raw.with_suffix("").exists():
            with fetch(Remote(MNIST.mirrors[0] + packed, f"md5:{md5}"), raw).open("rb") as stream:
                _write(raw.with_suffix(""), _unpacked(stream, raw))
        files.append(raw.with_suffix(""))
    return files


def mnist() -> Splits:
    """MNIST (LeCun et al. 1998): handwritten digits 28x28, one channel."""
    from torchvision.datasets import MNIST

    _mnist_files()
    with _named(_root() / "MNIST"):
        return _torchvision_splits("mnist", MNIST(_root(), train=True), MNIST(_root(), train=False))


def _emnist_files() -> list[Path]:
    from torchvision.datasets import EMNIST

    raw = _root() / "EMNIST" / "raw"
    files = [raw / f"emnist-letters-{s}-{k}-ubyte" for s in ("train", "test") for k in ("images-idx3", "labels-idx1")]
    if not all(path.exists() for path in files):
        archive = fetch(Remote(EMNIST.url, f"md5:{EMNIST.md5}", 561_753_746), raw / "gzip.zip")
        with zipfile.ZipFile(archive) as packed:
            for path in files:
                with packed.open(f"gzip/{path.name}.gz") as stream:
                    _write(path, _unpacked(stream, archive))
    return files


def emnist_letters() -> Splits:
    """EMNIST letters (Cohen et al. 2017, arXiv:1702.05373): 26 classes, upper and lower case together.

    The files hold every image transposed, and labels from 1 to 26; here they are upright, from 0.
    """
    from torchvision.datasets import EMNIST

    _emnist_files()
    with _named(_root() / "EMNIST"):
        parts = [EMNIST(_root(), split="letters", train=train) for train in (True, False)]
        return _torchvision_splits("emnist-letters", *parts, transposed=True, base=1)


def _write(path: Path, content: bytes) -> None:
    """A whole file or none."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.chmod(temporary, 0o644)  # mkstemp lets only its owner read, but a room may share the folder
    os.replace(temporary, path)


FILES = {"cifar10": _cifar10_files, "mnist": _mnist_files, "emnist-letters": _emnist_files}
PHOTOS: dict[str, Callable[[], Splits]] = {"cifar10": cifar10, "mnist": mnist, "emnist-letters": emnist_letters}


def data_files(name: str) -> list[Path]:
    """The files of a data set of `PHOTOS`, downloaded if they are not there; nothing is read from them."""
    return FILES[name]()
