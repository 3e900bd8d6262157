"""Labelled data: parts and splits, few-shot subsets, checks, and batches from data resident on the device."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, repeat

import torch
from torch import Tensor

from tlhelpers.analysis.diagnose import overlap
from tlhelpers.runtime import pick_device, shifted


@dataclass(frozen=True)
class Part:
    """Some labelled examples of a data set, held in memory.

    Attributes:
        name: data set and split, such as "digits/train".
        x: inputs [N, ...], for images [N, C, H, W] float32 in [0, 1] unless a transform changed that,
            or uint8 for photographs, which loaders scale to [0, 1] batch by batch.
        y: labels int64 [N] in 0..len(classes)-1.
        classes: the names of the classes.
        indices: int64 [N], the rows of the data set that these are.
        transform: `repr` of what was done to x after loading.

    Raises:
        ValueError: no examples, lengths that differ, labels of another type or outside 0..C-1.
    """

    name: str
    x: Tensor
    y: Tensor
    classes: tuple[str, ...]
    indices: Tensor = field(repr=False)
    transform: str = "None"

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

    def take(self, rows: Tensor) -> "Part":
        """The examples at positions `rows` (int64 [M]) as a part of its own."""
        return replace(self, x=self.x[rows], y=self.y[rows], indices=self.indices[rows])

    def mapped(self, transform: Callable[[Tensor], Tensor]) -> "Part":
        """The same examples with `transform` applied to all inputs at once."""
        return replace(self, x=transform(self.x), transform=f"{self.transform} -> {transform!r}")


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set: learn on `train`, choose on `validation`, score once on `test`.

    Raises:
        ValueError: a class has no training example, or the parts name different classes.
    """

    train: Part
    validation: Part
    test: Part

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
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    warnings, seen = [], {}
    for split, part in parts.items():
        n = len(part)
        counts = torch.bincount(part.y, minlength=len(part.classes))
        low, high = float(part.x.min()), float(part.x.max())
        chance = int(counts.max()) / n
        print(f"{split:<11}{n:>7,} x {list(part.x.shape[1:])}, values {low:.3g} to {high:.3g}, chance {chance:.1%}")
        print(f"{'':<11}{', '.join(f'{name} {n}' for name, n in zip(part.classes, counts.tolist(), strict=True))}")
        missing = [name for name, n in zip(part.classes, counts.tolist(), strict=True) if n == 0]
        warnings += [f"{split} has no example of {', '.join(missing)}"] if missing else []
        warnings += [f"{split} holds one class only: every classifier is right"] if chance == 1 else []
        warnings += [f"{split}: all inputs are equal"] if low == high else []
        for other, earlier in seen.items():
            shared = len(overlap(earlier.x, part.x))
            warnings += [f"{shared} inputs of {split} are in {other} too: the score will flatter"] if shared else []
        seen[split] = part
    print("\n".join(f"! {warning}" for warning in warnings) or "nothing suspicious")
    return warnings


def few_shot(part: Part, labels_per_class: int, *, seed: int) -> Part:
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
    for label, name in enumerate(part.classes):
        members = (part.y == label).nonzero().flatten()
        if len(members) < labels_per_class:
            raise ValueError(
                f"{labels_per_class} labels per class asked for, but class {name!r} of {part.name} has "
                f"{len(members)} examples; ask for at most that many"
            )
        rows.append(members[torch.randperm(len(members), generator=generator)[:labels_per_class]])
    return part.take(torch.cat(rows))


class TensorLoader:
    """Batches from a part that lies on the device as one tensor; augmentation runs on whole batches.

    For data that fits in memory this does the work of `torch.utils.data.DataLoader` without touching
    single examples.  The k-th pass over the loader gives the same batches for the same seed, whatever
    else draws random numbers; set `epoch` to continue from a later pass.

    Args:
        part: what to iterate over.
        batch_size: examples per batch; the last one may be smaller.
        shuffle: a fresh order every pass.
        steps: batches per pass; None means one visit of every example.  With few labels, many small
            passes cost more than they teach: `steps=60` draws 60 full batches from as many
            shuffled visits as it takes.
        augment: `(images, generator) -> images`, such as `augment.Jitter`.
        transform: applied to the images last, such as the normalisation of a backbone.
        seed: of order and augmentation.
        device: where the batches are wanted; the accelerator if there is one when None.

    Raises:
        ValueError: batch_size or steps below 1.
    """

    def __init__(
        self,
        part: Part,
        batch_size: int = 32,
        *,
        shuffle: bool = False,
        steps: int | None = None,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        if batch_size < 1 or (steps is not None and steps < 1):
            raise ValueError(f"batch_size={batch_size} and steps={steps} must be at least 1")
        self.part, self.batch_size, self.shuffle, self.steps = part, batch_size, shuffle, steps
        self.augment, self.transform, self.seed, self.epoch = augment, transform, seed, 0
        self.device = device or pick_device()
        self.x, self.y = part.x.to(self.device), part.y.to(self.device)

    def __len__(self) -> int:
        return self.steps or math.ceil(len(self.part) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator(self.device).manual_seed(shifted(self.seed) * 1_000_003 + self.epoch)
        self.epoch += 1
        for rows in self._order(generator).split(self.batch_size):
            x, y = as_float(self.x[rows]), self.y[rows]
            x = self.augment(x, generator) if self.augment else x
            yield (self.transform(x) if self.transform else x), y

    def _order(self, generator: torch.Generator) -> Tensor:
        """Row numbers in the order of one pass."""
        n = len(self.part)
        wanted = self.steps * self.batch_size if self.steps else n
        if not self.shuffle:
            return torch.arange(wanted, device=self.device) % n
        visits = [torch.randperm(n, generator=generator, device=self.device) for _ in range(math.ceil(wanted / n))]
        return torch.cat(visits)[:wanted]


class JointLoader:
    """Batches {task: (x, y)} for objectives over several tasks or domains; each cycles through its own loader.

    Every pass starts all loaders anew, and a short one again and again within it.

    Args:
        loaders: per task, anything with a length that yields batches.
        steps: batches per pass; as many as the longest loader has when None.

    Raises:
        ValueError: no loader, an empty one, or steps below 1.
    """

    def __init__(self, loaders: dict[str, Iterable], *, steps: int | None = None) -> None:
        batches = {task: len(loader) for task, loader in loaders.items()}
        if not batches or 0 in batches.values() or (steps is not None and steps < 1):
            raise ValueError(f"loaders of {batches} batches and steps={steps}: give at least one, with 1 or more each")
        self.loaders, self.steps = loaders, steps

    def __len__(self) -> int:
        return self.steps or max(len(loader) for loader in self.loaders.values())

    def __iter__(self) -> Iterator[dict]:
        streams = {task: chain.from_iterable(repeat(loader)) for task, loader in self.loaders.items()}
        for _ in range(len(self)):
            yield {task: next(stream) for task, stream in streams.items()}


def make_loaders(
    train: Part,
    validation: Part | None = None,
    *,
    batch_size: int = 32,
    steps: int | None = None,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    device: torch.device | None = None,
) -> tuple[TensorLoader, TensorLoader | None]:
    """The pair of loaders that `fit` takes: shuffled and augmented for training, plain for validation."""
    learning = TensorLoader(
        train, batch_size, shuffle=True, steps=steps, augment=augment, transform=transform, seed=seed, device=device
    )
    if validation is None:
        return learning, None
    return learning, TensorLoader(validation, 256, transform=transform, device=device)
