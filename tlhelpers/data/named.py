"""Named data sets.  The quick ones need no file and no network: drawn, or shipped with scikit-learn."""

import difflib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from tlhelpers.data.augment import Jitter
from tlhelpers.data.examples import Part, Splits
from tlhelpers.data.folders import read_folder
from tlhelpers.data.glyphs import ALL_CLASSES, FONTS, LETTER_CLASSES, draw_masters
from tlhelpers.data.messages import load_messages, load_sst2, split_messages
from tlhelpers.data.photos import PHOTOS

# How printed characters are bent, moved and worn, in pretraining and in the held-out parts alike.
GLYPH_JITTER = Jitter(degrees=15, scale=(0.6, 1.1), shear=0.3, bend=0.06, coarse=(9, 20), fade=0.4, noise=0.04)
# Where a handwritten digit lies on its canvas: reduced, turned a little, anywhere.
DIGIT_PLACEMENT = Jitter(degrees=12, scale=(0.65, 1.0))
# Gentle variation of target images while training on them; it bends what is there, it moves little.
TARGET_JITTER = Jitter(degrees=10, scale=(0.8, 1.1), shear=0.2, bend=0.05)

VALIDATION_FONTS = (6, 18)  # DejaVu Sans Mono Oblique, Computer Modern sans: no image of these in training
TEST_FONTS = (11, 14)  # DejaVu Serif Bold Italic, STIX Italic
TRAIN_FONTS = tuple(f for f in range(len(FONTS)) if f not in VALIDATION_FONTS + TEST_FONTS)

WRITER_BLOCKS = (900, 1200)  # rows before the first are training, up to the second validation, then test


def glyph_masters(classes: tuple[str, ...] = ALL_CLASSES) -> Part:
    """Clean 48x48 drawings in the training fonts, to be varied by `GLYPH_JITTER` while training."""
    x, y = draw_masters(classes, fonts=TRAIN_FONTS)
    return Part("glyphs/masters", x, y, classes, torch.arange(len(x)))


def _glyphs(classes: tuple[str, ...]) -> Splits:
    """Printed characters 32x32, each part in fonts of its own: 100 / 20 / 40 images per class."""
    parts = []
    for seed, (split, fonts, per_class) in enumerate(
        [("train", TRAIN_FONTS, 100), ("validation", VALIDATION_FONTS, 20), ("test", TEST_FONTS, 40)]
    ):
        generator = torch.Generator().manual_seed(seed)
        x, y = draw_masters(classes, fonts=fonts)
        rows = torch.cat([_draw_rows(y == label, per_class, generator) for label in range(len(classes))])
        # Jitter blurs the first half of what it gets: in order of class, that would mark the classes.
        rows = rows[torch.randperm(len(rows), generator=generator)]
        images = GLYPH_JITTER(x[rows], generator)
        parts.append(Part(f"glyphs/{split}", images, y[rows], classes, torch.arange(len(rows))))
    return Splits(*parts)


def _draw_rows(members: Tensor, n: int, generator: torch.Generator) -> Tensor:
    rows = members.nonzero().flatten()
    return rows[torch.randint(len(rows), (n,), generator=generator)]


@lru_cache(maxsize=1)
def _placed_digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 handwritten digits on 32x32 canvases, in the order of its file."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy(digits.images).float().unsqueeze(1) / 16  # [1797, 1, 8, 8], ink 0..16
    large = F.interpolate(small, (32, 32), mode="bicubic", align_corners=False).clamp(0, 1)
    return DIGIT_PLACEMENT(large, torch.Generator().manual_seed(0)), torch.from_numpy(digits.target).long()


def _digits(order: Tensor, name: str) -> Splits:
    x, y = _placed_digits()
    blocks = torch.tensor_split(order, WRITER_BLOCKS)
    classes = tuple("0123456789")
    names = (f"{name}/{split}" for split in ("train", "validation", "test"))
    return Splits(*(Part(part, x[rows], y[rows], classes, rows) for part, rows in zip(names, blocks, strict=True)))


def _digits_by_writer() -> Splits:
    # The file was written writer by writer, so contiguous blocks share few or no writers.  A random
    # split leaks them: see "digits-random-split" and page 01.
    return _digits(torch.arange(1797), "digits")


def _digits_at_random() -> Splits:
    return _digits(torch.randperm(1797, generator=torch.Generator().manual_seed(0)), "digits-random-split")


DATASETS: dict[str, Callable[[], Splits]] = {
    "glyphs": lambda: _glyphs(ALL_CLASSES),
    "glyph-letters": lambda: _glyphs(LETTER_CLASSES),
    "glyph-digits": lambda: _glyphs(tuple("0123456789")),
    "digits": _digits_by_writer,
    "digits-random-split": _digits_at_random,
    **PHOTOS,
    "intents": lambda: split_messages(load_messages()),
    "sst2": load_sst2,
}


def load_dataset(
    name: str,
    *,
    transform: Callable[[Tensor], Tensor] | None = None,
    image_size: int | None = None,
    skip_unreadable: bool = False,
) -> Splits:
    """A data set by name, split into train, validation and test.

    Args:
        name: a key of `DATASETS`.  "digits" is the target of the quick world: real handwriting
            (UCI optdigits, Alpaydin & Kaynak 1998, as shipped with scikit-learn), 900 / 300 / 597
            images in blocks of writers.  "glyphs" is its source: printed characters.  "cifar10",
            "mnist" and "emnist-letters" are read from disk, or downloaded once.  "folder:PATH" are
            your own images, a folder per class (`folders.read_folder`).  "intents" and "sst2" are texts
            (`tlhelpers/data/messages.py`), as token ids [N, L].
        transform: applied to all images [N, C, H, W] of a part at once.
        image_size, skip_unreadable: of `folders.read_folder`, for "folder:PATH" only.

    Raises:
        ValueError: no such data set (the message names the nearest), or a folder that cannot be used.
        OSError: files that are not there and cannot be downloaded.
    """
    if name.startswith("folder:"):
        folder = Path(name.removeprefix("folder:")).expanduser()
        splits = read_folder(folder, image_size=image_size, skip_unreadable=skip_unreadable)
    elif name in DATASETS:
        splits = DATASETS[name]()
    else:
        near = difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.4) or list(DATASETS)
        raise ValueError(f"no data set called {name!r}; did you mean {' or '.join(map(repr, near))}, or 'folder:PATH'?")
    if transform is None:
        return splits
    return Splits(*(part.mapped(transform) for part in (splits.train, splits.validation, splits.test)))


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
    found = line.any(dim=1)
    first = torch.where(found, line.float().argmax(dim=1), 0)
    last = torch.where(found, length - line.flip(1).float().argmax(dim=1), length)
    return first.float(), last.float()
