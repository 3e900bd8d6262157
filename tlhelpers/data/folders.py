"""A folder of image files per class, as people have them, read into memory.

Images are kept as uint8, an eighth of what float32 plus a copy would take; loaders scale them to [0, 1].
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tlhelpers.data.examples import Examples, Splits

MAX_PIXELS = 50_000_000  # per image; a few kilobytes can unpack to gigabytes
HELD_OUT = 0.2  # share of the training images that becomes validation (and test) where the source has none
SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}


@dataclass
class Reading:
    """What became of the files of a folder.

    Attributes:
        images: uint8 [3, S, S] each, or [3, H, W] when no size was asked for.
        labels: index of the class of each.
        unreadable: file -> why it cannot be used.
        changed: file -> what it was before it became RGB.
        low, high: smallest and largest width and height before resizing.
    """

    images: list[Tensor] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    low: tuple[int, int] = (10**9, 10**9)
    high: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        lines = [f"{len(self.images)} images from {self.low[0]}x{self.low[1]} to {self.high[0]}x{self.high[1]} pixels"]
        for title, files in (("not usable", self.unreadable), ("turned into RGB", self.changed)):
            shown = [f"  {name}: {why}" for name, why in list(files.items())[:10]]
            if len(files) > 10:
                shown.append(f"  ... and {len(files) - 10} more (all: tlhelpers.data.folders.examine)")
            lines += [f"{len(files)} {title}:", *shown] if files else []
        return "\n".join(lines)


def read_folder(folder: Path, *, image_size: int | None = None, skip_unreadable: bool = False) -> Splits:
    """A data set from `folder/CLASS/FILE`, or `folder/train/CLASS/FILE` with `test` and perhaps `validation`.

    The classes are the names of the folders in alphabetical order.  `train` is a class like any other while it
    holds no folders; if it does, `train`, `validation` (or `val`, `valid`) and `test` are parts.  Missing parts
    are drawn from the training images, the same share of every class; files with equal content stay in one part.

    Args:
        image_size: the shorter side is brought to it and the centre cut out, so that nothing is
            distorted.  None keeps the files as they are, which must then be of one size.
        skip_unreadable: leave out, and name, files that cannot be decoded, 16-bit images, and images
            of more than 50 million pixels.

    Raises:
        ValueError: no such folder, no class or only one, a class without images, parts without `train` or with
            different classes, unreadable files, or images of several sizes.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give one that holds a folder of images per class")
    places = {
        split: next((folder / name for name in names if (folder / name).is_dir()), None)
        for split, names in SPLIT_FOLDERS.items()
    }
    if not _folders(folder / "train"):
        if orphans := [place for place in places.values() if place and _folders(place)]:
            raise ValueError(f"{orphans[0]} holds folders, as a part does, but {folder / 'train'} holds none; add them")
        places = {"train": folder, "validation": None, "test": None}
    classes = _classes(places["train"])
    reading = {}
    for split, place in places.items():
        if place is not None:
            if _classes(place) != classes:
                raise ValueError(f"{place} holds the classes {_classes(place)}, training {classes}; make them equal")
            reading[split] = _read(place, classes, image_size)
            print(f"{place}: {reading[split]}")
    broken = [name for files in reading.values() for name in files.unreadable]
    if broken and not skip_unreadable:
        raise ValueError(
            f"{len(broken)} files cannot be used ({', '.join(broken[:3])}, ...); they are listed above; "
            "remove them or pass skip_unreadable=True"
        )
    parts = {split: _examples(f"{folder.name}/{split}", files, classes) for split, files in reading.items()}
    for split in ("test", "validation"):
        if split not in parts:
            parts["train"], parts[split] = _hold_out(parts["train"], f"{folder.name}/{split}")
    return Splits(parts["train"], parts["validation"], parts["test"])


def examine(folder: Path) -> Reading:
    """What becomes of every file below a folder: an image of its own size, or in `unreadable` with the reason."""
    reading = Reading()
    _read_files(reading, folder, folder, 0, None)
    return reading


def _classes(folder: Path) -> tuple[str, ...]:
    names = _folders(folder)
    if len(names) < 2:
        raise ValueError(f"{folder} holds {len(names)} folders; a classifier needs one per class, at least two")
    return names


def _folders(folder: Path) -> tuple[str, ...]:
    """Names of the folders in a folder, in alphabetical order; none where there is no such folder."""
    if not folder.is_dir():
        return ()
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")))


def _read(folder: Path, classes: tuple[str, ...], image_size: int | None) -> Reading:
    reading = Reading()
    for label, name in enumerate(classes):
        before = len(reading.images)
        _read_files(reading, folder, folder / name, label, image_size)
        if len(reading.images) == before:
            raise ValueError(f"{folder / name} holds no usable image {reading.unreadable or ''}; add some or remove it")
    return reading


def _read_files(reading: Reading, folder: Path, place: Path, label: int, image_size: int | None) -> None:
    """Add all files below `place` to `reading`, under their names from `folder` on."""
    for path in sorted(p for p in place.rglob("*") if not p.is_dir() and not p.name.startswith(".")):
        short = str(path.relative_to(folder))
        try:
            image, size, was = decode(path, image_size)
        except Exception as error:  # a decoder may raise anything when a file is damaged
            reading.unreadable[short] = f"{type(error).__name__}: {error}"
            continue
        reading.images.append(image)
        reading.labels.append(label)
        reading.low = tuple(map(min, reading.low, size))
        reading.high = tuple(map(max, reading.high, size))
        if was != "RGB":
            reading.changed[short] = was


def decode(path: Path, image_size: int | None) -> tuple[Tensor, tuple[int, int], str]:
    """An image file as uint8 [3, H, W], its (width, height) in the file, and what it was ("RGB" if nothing else).

    Raises:
        ValueError: not a regular file, more than 50 million pixels, or more than 8 bits per channel.
        Exception: whatever the decoder raises when the file is damaged.
    """
    from PIL import Image, ImageOps

    if not path.is_file():  # opening a pipe would wait for ever
        raise ValueError("not a file, or a link that leads nowhere")
    with Image.open(path) as file:
        size, was = file.size, file.mode
        if size[0] * size[1] > MAX_PIXELS:
            raise ValueError(f"{size[0]}x{size[1]} pixels; at most {MAX_PIXELS:,} are decoded")
        if was.startswith(("I", "F")):
            raise ValueError(f"mode {was} has more than 8 bits per channel; scale it to 8 bits first")
        if getattr(file, "is_animated", False):
            was = "animated, its first frame is used"
        if image_size is not None and file.format == "JPEG":
            file.draft("RGB", (image_size, image_size))  # decodes at a half, a quarter or an eighth: much faster
        image = ImageOps.exif_transpose(file).convert("RGB")
    if image_size is not None:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), size, was


def _examples(name: str, reading: Reading, classes: tuple[str, ...]) -> Examples:
    shapes = {tuple(image.shape[1:]) for image in reading.images}
    if len(shapes) > 1:
        raise ValueError(f"the images have {len(shapes)} sizes, {min(shapes)} to {max(shapes)}; give image_size=128")
    x, y = torch.stack(reading.images), torch.tensor(reading.labels)
    return Examples(name, x, y, classes, torch.arange(len(y)))


def _hold_out(examples: Examples, name: str) -> tuple[Examples, Examples]:
    """Split off a share of every class; equal images go to one side."""
    generator = torch.Generator().manual_seed(0)
    first: dict[bytes, int] = {}
    twin = torch.tensor([first.setdefault(image.numpy().tobytes(), i) for i, image in enumerate(examples.x)])
    held_out = []
    for label in range(len(examples.classes)):
        originals = ((examples.y == label) & (twin == torch.arange(len(twin)))).nonzero().flatten()
        if len(originals) < 2:
            raise ValueError(f"class {examples.classes[label]!r} has {len(originals)} different image; give at least 3")
        wanted = max(1, round(HELD_OUT * len(originals)))
        held_out.append(originals[torch.randperm(len(originals), generator=generator)[:wanted]])
    out = torch.isin(twin, torch.cat(held_out))
    rest = examples.take((~out).nonzero().flatten())
    taken = examples.take(out.nonzero().flatten())
    return rest, Examples(name, taken.x, taken.y, taken.classes, taken.indices)
