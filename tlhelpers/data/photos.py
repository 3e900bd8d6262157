"""CIFAR-10, MNIST and EMNIST from disk, or downloaded once.

They are looked for below `cache_dir()`: in torchvision's own layout (`torchvision/`), CIFAR-10 also as
a folder of image files (`images/cifar10/`).  `fetch` downloads, because it goes on where it broke off;
torchvision knows addresses and checksums, and reads.
"""

import gzip
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from tlhelpers.data.examples import Examples, Splits
from tlhelpers.data.folders import read_folder
from tlhelpers.files import Remote, atomic, fetch
from tlhelpers.runtime import cache_dir


def _root() -> Path:
    return cache_dir() / "torchvision"


def _published(archive: Path, md5: str) -> Path:
    """The archive, if its bytes are the published ones: then what it unpacks to is known as well.

    Raises:
        OSError: they are not.
    """
    from torchvision.datasets.utils import check_integrity

    if not check_integrity(archive, md5):
        raise OSError(f"{archive} is not the published file (its md5 is not {md5}); remove it, so that it is fetched")
    return archive


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Errors of the readers of torchvision, which seldom name the file, with its place and what to do."""
    try:
        yield
    except Exception as error:  # a reader may raise anything when a file is damaged
        raise OSError(f"{folder} cannot be read ({error}); remove it, so that it is fetched again") from error


def _torchvision_splits(name: str, train, test, *, transposed: bool = False, base: int = 0) -> Splits:
    """Two data sets of torchvision as three parts; images [N, H, W] or [N, H, W, 3] become [N, C, H, W]."""
    learning = _examples(f"{name}/train", train, transposed=transposed, base=base)
    testing = _examples(f"{name}/test", test, transposed=transposed, base=base)
    order = torch.randperm(len(learning), generator=torch.Generator().manual_seed(0))
    held_out = learning.take(order[: len(testing)])  # as much validation as test
    validation = Examples(f"{name}/validation", held_out.x, held_out.y, held_out.classes, held_out.indices)
    return Splits(learning.take(order[len(testing) :]), validation, testing)


def _examples(name: str, data, *, transposed: bool, base: int) -> Examples:
    x = torch.as_tensor(np.asarray(data.data))
    x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2)
    x = x.transpose(2, 3) if transposed else x
    y = torch.as_tensor(data.targets).long() - base
    classes = tuple(title.split(" - ")[0] for title in data.classes[base:])  # MNIST says "3 - three"
    return Examples(name, x.contiguous(), y, classes, torch.arange(len(y)))


def _cifar10_images() -> Path:
    return cache_dir() / "images" / "cifar10"


def _cifar10_files() -> list[Path]:
    if _cifar10_images().is_dir():
        return sorted(path for path in _cifar10_images().rglob("*") if path.is_file())
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity, extract_archive

    folder = _root() / CIFAR10.base_folder
    files = [(folder / name, md5) for name, md5 in CIFAR10.train_list + CIFAR10.test_list]
    if not all(check_integrity(path, md5) for path, md5 in files):
        archive = fetch(Remote(CIFAR10.url, f"md5:{CIFAR10.tgz_md5}", 170_498_071), _root() / CIFAR10.filename)
        extract_archive(_published(archive, CIFAR10.tgz_md5), _root())
    return sorted(folder.iterdir())


def cifar10() -> Splits:
    """CIFAR-10 (Krizhevsky 2009): photographs 32x32 of 10 classes."""
    if _cifar10_images().is_dir():
        return read_folder(_cifar10_images())
    from torchvision.datasets import CIFAR10

    _cifar10_files()
    with _named(_root() / CIFAR10.base_folder):
        # torchvision compares every file with its md5 before it unpickles it.
        return _torchvision_splits("cifar10", CIFAR10(_root(), train=True), CIFAR10(_root(), train=False))


def _mnist_files() -> list[Path]:
    from torchvision.datasets import MNIST

    files = []
    for packed, md5 in MNIST.resources:
        archive = _root() / "MNIST" / "raw" / packed
        file = archive.with_suffix("")
        if not file.exists():
            fetch(Remote(MNIST.mirrors[0] + packed, f"md5:{md5}"), archive)
            with gzip.open(_published(archive, md5)) as stream, atomic(file) as temporary:
                temporary.write_bytes(stream.read())
        files.append(file)
    return files


def mnist() -> Splits:
    """MNIST (LeCun et al. 1998): handwritten digits 28x28, one channel."""
    from torchvision.datasets import MNIST

    _mnist_files()
    with _named(_root() / "MNIST"):
        return _torchvision_splits("mnist", MNIST(_root(), train=True), MNIST(_root(), train=False))


def _emnist_files() -> list[Path]:
    """Only the letters are unpacked; torchvision's own download unpacks all six variants."""
    from torchvision.datasets import EMNIST

    raw = _root() / "EMNIST" / "raw"
    names = [f"emnist-letters-{split}" for split in ("train", "test")]
    files = [raw / f"{name}-{kind}-ubyte" for name in names for kind in ("images-idx3", "labels-idx1")]
    if not all(path.exists() for path in files):
        archive = fetch(Remote(EMNIST.url, f"md5:{EMNIST.md5}", 561_753_746), raw / "gzip.zip")
        with zipfile.ZipFile(_published(archive, EMNIST.md5)) as packed:
            for path in files:
                with gzip.open(packed.open(f"gzip/{path.name}.gz")) as stream, atomic(path) as temporary:
                    temporary.write_bytes(stream.read())
    return files


def emnist_letters() -> Splits:
    """EMNIST letters (Cohen et al. 2017, arXiv:1702.05373): 26 classes, upper and lower case together.

    The files hold every image transposed, and labels from 1 to 26; here they are upright, from 0.
    """
    from torchvision.datasets import EMNIST

    _emnist_files()
    with _named(_root() / "EMNIST"):
        train = EMNIST(_root(), split="letters", train=True)
        test = EMNIST(_root(), split="letters", train=False)
        return _torchvision_splits("emnist-letters", train, test, transposed=True, base=1)


FILES: dict[str, Callable[[], list[Path]]] = {
    "cifar10": _cifar10_files,
    "mnist": _mnist_files,
    "emnist-letters": _emnist_files,
}


def data_files(name: str) -> list[Path]:
    """The files of a data set of `FILES`, downloaded if they are not there; nothing is read from them."""
    return FILES[name]()
