"""Batches from examples that lie on the device as one tensor, for one task or for several at once."""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, repeat

import torch
from torch import Tensor

from tlhelpers.data.examples import Examples, as_float
from tlhelpers.runtime import pick_device, shifted

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


class TensorLoader:
    """Batches from examples that lie on the device as one tensor; augmentation runs on whole batches.

    For data that fits in memory this does the work of `torch.utils.data.DataLoader` without touching
    single examples.  The k-th pass over the loader gives the same batches for the same seed, whatever
    else draws random numbers; set `epoch` to continue from a later pass.

    Args:
        examples: what to iterate over; uint8 images come out as float32 in [0, 1].
        batch_size: examples per batch; the last one may be smaller.
        shuffle: a fresh order every pass.
        steps: batches per pass; None means one visit of every example.  With few labels, many small
            passes cost more than they teach: `steps=60` draws 60 full batches from as many
            shuffled visits as it takes.
        augment: `(images, generator) -> images`, such as `augment.Jitter`.
        seed: of order and augmentation.
        device: where the batches are wanted; the accelerator if there is one when None.

    Raises:
        ValueError: batch_size or steps below 1.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int = 32,
        *,
        shuffle: bool = False,
        steps: int | None = None,
        augment: Augmentation | None = None,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        if batch_size < 1 or (steps is not None and steps < 1):
            raise ValueError(f"batch_size={batch_size} and steps={steps} must be at least 1")
        self.examples = examples
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.steps = steps
        self.augment = augment
        self.seed = seed
        self.device = device or pick_device()
        self.epoch = 0
        self.x = examples.x.to(self.device)
        self.y = examples.y.to(self.device)

    def __len__(self) -> int:
        return self.steps or math.ceil(len(self.examples) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator(self.device).manual_seed(shifted(self.seed) * 1_000_003 + self.epoch)
        self.epoch += 1
        for rows in self._order(generator).split(self.batch_size):
            x = as_float(self.x[rows])
            if self.augment is not None:
                x = self.augment(x, generator)
            yield x, self.y[rows]

    def _order(self, generator: torch.Generator) -> Tensor:
        """Row numbers in the order of one pass."""
        n = len(self.examples)
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
        self.loaders = loaders
        self.steps = steps

    def __len__(self) -> int:
        return self.steps or max(len(loader) for loader in self.loaders.values())

    def __iter__(self) -> Iterator[dict]:
        streams = {task: chain.from_iterable(repeat(loader)) for task, loader in self.loaders.items()}
        for _ in range(len(self)):
            yield {task: next(stream) for task, stream in streams.items()}


def make_loaders(
    train: Examples,
    validation: Examples | None = None,
    *,
    batch_size: int = 32,
    steps: int | None = None,
    augment: Augmentation | None = None,
    seed: int = 0,
    device: torch.device | None = None,
) -> tuple[TensorLoader, TensorLoader | None]:
    """The pair of loaders that `fit` takes: shuffled and augmented for training, plain for validation."""
    learning = TensorLoader(train, batch_size, shuffle=True, steps=steps, augment=augment, seed=seed, device=device)
    if validation is None:
        return learning, None
    return learning, TensorLoader(validation, 256, device=device)
