"""Named data sets.  The quick ones need no file and no network: drawn, or shipped with scikit-learn."""

import difflib
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from tlhelpers.data.examples import Splits
from tlhelpers.data.folders import read_folder
from tlhelpers.data.glyphs import ALL_CLASSES, LETTER_CLASSES, load_glyphs
from tlhelpers.data.handwriting import digits_at_random, digits_by_writer, mnist_5k
from tlhelpers.data.messages import load_messages, load_sst2, split_messages
from tlhelpers.data.photos import cifar10, emnist_letters, mnist

DATASETS: dict[str, Callable[[], Splits]] = {
    "glyphs": lambda: load_glyphs(ALL_CLASSES),
    "glyph-letters": lambda: load_glyphs(LETTER_CLASSES),
    "glyph-digits": lambda: load_glyphs(tuple("0123456789")),
    "mnist-5k": mnist_5k,
    "digits": digits_by_writer,
    "digits-random-split": digits_at_random,
    "cifar10": cifar10,
    "mnist": mnist,
    "emnist-letters": emnist_letters,
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
        name: a key of `DATASETS`.  "mnist-5k" is the target of the quick world: 5,000 handwritten digits of MNIST as
            published, 3,000 / 500 / 1,500.  "glyphs" is its source: printed characters.  "digits" is the
            second handwriting (UCI optdigits, Alpaydin & Kaynak 1998, as shipped with scikit-learn),
            900 / 300 / 597 images in blocks of writers.  "cifar10", "mnist" (all of it) and
            "emnist-letters" are read from disk, or downloaded once.  "folder:PATH" are your own images, a
            folder per class (`folders.read_folder`).  "intents" and "sst2" are texts
            (`tlhelpers/data/messages.py`), as token ids [N, L].
        transform: applied to all images [N, C, H, W] of a part at once.
        image_size, skip_unreadable: of `folders.read_folder`, for "folder:PATH" only.

    Raises:
        ValueError: no such data set (the message names the nearest), a folder that cannot be used, or an
            option of folders for another data set.
        OSError: files that are not there and cannot be downloaded.
    """
    if name.startswith("folder:"):
        folder = Path(name.removeprefix("folder:")).expanduser()
        splits = read_folder(folder, image_size=image_size, skip_unreadable=skip_unreadable)
    elif name in DATASETS:
        if image_size is not None or skip_unreadable:
            raise ValueError(
                f"{name!r} takes no image_size={image_size} and no skip_unreadable={skip_unreadable}: they are options "
                "of 'folder:PATH'; leave them out"
            )
        splits = DATASETS[name]()
    else:
        near = difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.4) or list(DATASETS)
        raise ValueError(f"no data set called {name!r}; did you mean {' or '.join(map(repr, near))}, or 'folder:PATH'?")
    if transform is None:
        return splits
    return Splits(*(examples.mapped(transform) for examples in (splits.train, splits.validation, splits.test)))
