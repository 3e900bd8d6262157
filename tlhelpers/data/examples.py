"""Labelled data in memory: examples, splits, few-shot subsets, and a look at what is suspicious."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from tlhelpers.runtime import shifted


@dataclass(frozen=True)
class Examples:
    """Some labelled examples of a data set, held in memory.

    Attributes:
        name: data set and split, such as "digits/train".
        x: inputs [N, ...], for images [N, C, H, W] float32 in [0, 1] unless a transform changed that,
            or uint8 for photographs, which loaders and bodies scale to [0, 1] batch by batch.
        y: labels int64 [N] in 0..len(classes)-1.
        classes: the names of the classes.
        indices: int64 [N], the rows of the data set that these are.
        history: what was done to x after loading, one `repr` after the other.

    Raises:
        ValueError: no examples, lengths that differ, labels of another type or outside 0..C-1.
    """

    name: str
    x: Tensor
    y: Tensor
    classes: tuple[str, ...]
    indices: Tensor = field(repr=False)
    history: str = ""

    def __post_init__(self) -> None:
        if len(self.x) == 0:
            raise ValueError(f"{self.name} is empty: it needs at least one example")
        if not len(self.x) == len(self.y) == len(self.indices):
            raise ValueError(
                f"{self.name}: {len(self.x)} inputs, {len(self.y)} labels, {len(self.indices)} indices; "
                "they must be equally many"
            )
        if self.y.dtype != torch.int64 or self.y.ndim != 1:
            raise ValueError(f"{self.name}: labels must be int64 [N], not {self.y.dtype} {list(self.y.shape)}")
        low, high = int(self.y.min()), int(self.y.max())
        if low < 0 or high >= len(self.classes):
            raise ValueError(
                f"{self.name}: labels run from {low} to {high}, outside 0..{len(self.classes) - 1} "
                f"for {len(self.classes)} classes; renumber them or name all classes"
            )

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i], self.y[i]

    def take(self, rows: Tensor) -> "Examples":
        """The examples at positions `rows` (int64 [M]) as examples of their own."""
        return replace(self, x=self.x[rows], y=self.y[rows], indices=self.indices[rows])

    def mapped(self, transform: Callable[[Tensor], Tensor]) -> "Examples":
        """The same examples with `transform` applied to all inputs at once."""
        return replace(self, x=transform(self.x), history=f"{self.history} -> {transform!r}")


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set: learn on `train`, choose on `validation`, score once on `test`.

    Raises:
        ValueError: a class has no training example, or the parts name different classes.
    """

    train: Examples
    validation: Examples
    test: Examples

    def __post_init__(self) -> None:
        if not self.train.classes == self.validation.classes == self.test.classes:
            raise ValueError(f"the parts of {self.train.name} do not share one list of classes")
        counts = torch.bincount(self.train.y, minlength=len(self.classes))
        missing = [self.classes[i] for i in (counts == 0).nonzero().flatten().tolist()]
        if missing:
            raise ValueError(f"{self.train.name} has no example of {missing}; add some or drop the class")

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes


def as_float(x: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]; everything else as it is."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


def check_dataset(splits: Splits) -> list[str]:
    """Print classes, counts, chance level and ranges of a data set; return what is suspicious, in words."""
    warnings: list[str] = []
    earlier: dict[str, Examples] = {}
    for split, examples in (("train", splits.train), ("validation", splits.validation), ("test", splits.test)):
        counts = torch.bincount(examples.y, minlength=len(examples.classes)).tolist()
        per_class = dict(zip(examples.classes, counts, strict=True))
        low = float(examples.x.min())
        high = float(examples.x.max())
        chance = max(counts) / len(examples)
        shape = list(examples.x.shape[1:])
        print(f"{split:<11}{len(examples):>7,} x {shape}, values {low:.3g} to {high:.3g}, chance {chance:.1%}")
        print(f"{'':<11}{', '.join(f'{name} {count}' for name, count in per_class.items())}")
        missing = [name for name, count in per_class.items() if count == 0]
        if missing:
            warnings.append(f"{split} has no example of {', '.join(missing)}")
        if chance == 1:
            warnings.append(f"{split} holds one class only: every classifier is right")
        if low == high:
            warnings.append(f"{split}: all inputs are equal")
        for other, seen in earlier.items():
            if shared := _in_common(seen.x, examples.x):
                warnings.append(f"{shared} inputs of {split} are in {other} too: the score will flatter")
        earlier[split] = examples
    print("\n".join(f"! {warning}" for warning in warnings) or "nothing suspicious")
    return warnings


def _in_common(x: Tensor, other: Tensor) -> int:
    """How many rows of `other` are in `x` too; padding is no part of a text."""
    if x.dtype == other.dtype == torch.int64 and x.ndim == other.ndim == 2:  # ids of texts, padded with 0 at the end
        length = max(x.shape[1], other.shape[1])
        x, other = (F.pad(ids, (0, length - ids.shape[1])) for ids in (x, other))
    if x.shape[1:] != other.shape[1:] or x.dtype != other.dtype:
        return 0
    return len(overlap(x, other))


def few_shot(examples: Examples, labels_per_class: int, *, seed: int) -> Examples:
    """A random subset with the same number of labels for every class.

    Draws with one seed are nested: the first 5 labels per class include the 2 drawn with that seed,
    so curves over the number of labels are paired.

    Raises:
        ValueError: fewer than 1 label per class, or more than some class has.
    """
    if labels_per_class < 1:
        raise ValueError(f"labels_per_class is {labels_per_class}; it must be at least 1")
    generator = torch.Generator().manual_seed(shifted(seed))
    rows = []
    for label, name in enumerate(examples.classes):
        members = (examples.y == label).nonzero().flatten()
        if len(members) < labels_per_class:
            raise ValueError(
                f"{labels_per_class} labels per class asked for, but class {name!r} of {examples.name} has "
                f"{len(members)} examples; ask for at most that many"
            )
        rows.append(members[torch.randperm(len(members), generator=generator)[:labels_per_class]])
    return examples.take(torch.cat(rows))


def overlap(train_x: Tensor, test_x: Tensor) -> Tensor:
    """Rows of `test_x` [M, ...] whose content is also in `train_x` [N, ...], int64 [K], by hash.

    Exact copies only: a resized or re-encoded copy has another hash.

    Raises:
        ValueError: rows of different shape or type, which could never be equal.
    """
    if train_x.shape[1:] != test_x.shape[1:] or train_x.dtype != test_x.dtype:
        raise ValueError(
            f"rows {list(train_x.shape[1:])} {train_x.dtype} and {list(test_x.shape[1:])} {test_x.dtype} can never "
            "be equal; compare both before any transform"
        )
    seen = {_digest(row) for row in train_x}
    return torch.tensor([i for i, row in enumerate(test_x) if _digest(row) in seen], dtype=torch.int64)


def _digest(row: Tensor) -> bytes:
    return hashlib.sha256(row.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes()).digest()
