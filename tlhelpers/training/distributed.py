"""A batch in pieces: over several processes, on `accelerate`, and over time when it is too large for memory.

Start the same program with `accelerate launch --multi_gpu --num_processes 2 program.py` (on CPUs too:
accelerate starts only one process there without it), on several machines with
`--num_machines`, `--machine_rank` and `--main_process_ip` as well, or in a notebook with
`accelerate.notebook_launcher(function, num_processes=2)`; `fit` and `evaluate` notice it by themselves,
and the group of processes is left when Python ends.
Every process needs the same loaders and takes its share of each batch.  A loss that is a mean over the
examples of a batch is then what one process would have, up to rounding.  What else is computed over a
batch is not: BatchNorm, a distance between two domains, or a mean over the labelled examples sees one
piece at a time.
"""

import atexit
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tlhelpers.training.device import batch_size, like
from tlhelpers.training.history import Means


class Piece(NamedTuple):
    """What one process works on at a time.

    Attributes:
        batch: some of the examples of a batch.
        weight: of their mean loss in the gradient of the whole batch.
        examples: how many they are.
    """

    batch: object
    weight: float
    examples: int


class Team:
    """The processes that train together: one, as a rule.

    Attributes:
        size: how many.
        rank: which of them this is, from 0.
    """

    def __init__(self, device: torch.device) -> None:
        self.size = 1
        self.rank = 0
        if torch.distributed.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) > 1:
            # It takes a second to import, and one process has no use for it.
            from accelerate import Accelerator, DistributedDataParallelKwargs

            # Some objectives leave parameters out, such as the head of a task with weight 0.
            options = DistributedDataParallelKwargs(find_unused_parameters=True)
            if not torch.distributed.is_initialized():
                atexit.register(_end_group)
            self.accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[options])
            self.size = self.accelerator.num_processes
            self.rank = self.accelerator.process_index

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            self.accelerator.wait_for_everyone()

    def begin_epoch(self) -> None:
        """Let all draw what the first draws, so that their loaders agree."""
        if self.size > 1:
            from accelerate.utils import synchronize_rng_states

            synchronize_rng_states(["torch"])

    def joined(self, objective: Callable, model: nn.Module) -> Callable:
        """The objective as `(batch, last) -> dict`; the backward pass of the last piece joins the gradients of all."""
        if self.size == 1:
            return lambda batch, last: objective(model, batch)
        wrapped = self.accelerator.prepare_model(_Step(objective, model))

        def step(batch, last: bool) -> dict[str, Tensor]:
            with nullcontext() if last else wrapped.no_sync():
                return wrapped(batch)

        return step

    def share(self, batch, accumulate: int) -> list[Piece]:
        """The pieces of a batch that this process works on.

        The weights are such that the mean over processes of the sum over pieces is the mean over the
        batch.  A batch of fewer examples than pieces leaves some empty; they are left out, but a
        process takes part in every step, if need be with a weight of 0.

        Raises:
            ValueError: there is something to cut, but not all tensors of the batch have one length.
        """
        total = batch_size(batch)
        if self.size == accumulate == 1:
            return [Piece(batch, 1.0, total)]
        lengths = set(_lengths(batch))
        if lengths != {total}:
            raise ValueError(
                f"the tensors of a batch have {sorted(lengths)} examples and cannot be cut alike; let the loaders give "
                "equally many, or train in one process with accumulate=1"
            )
        mine = cut(batch, self.size * accumulate)[self.rank * accumulate :][:accumulate]
        pieces = [Piece(piece, self.size * batch_size(piece) / total, batch_size(piece)) for piece in mine]
        return [piece for piece in pieces if piece.examples] or [Piece(batch, 0.0, 0)]

    def total(self, means: Means) -> None:
        """Add up what all have counted."""
        if self.size > 1:
            device = self.accelerator.device
            sums = {name: torch.as_tensor(value, device=device).float() for name, value in means.sums.items()}
            examples = torch.tensor(float(means.examples), dtype=torch.float64, device=device)
            everything = self.accelerator.reduce({**sums, "": examples}, "sum")
            means.examples = int(everything.pop(""))
            means.sums = everything

    def same_buffers(self, model: nn.Module, objective: Callable) -> None:
        """Give all the running statistics of the first process."""
        if self.size > 1:
            from accelerate.utils import broadcast

            for module in (model, objective):
                for buffer in module.buffers() if isinstance(module, nn.Module) else ():
                    buffer.copy_(broadcast(buffer))


def _end_group() -> None:
    """Leave the group that a `Team` has begun, before Python ends.

    A thread of the group that drops a tensor while Python ends aborts the process
    (https://github.com/pytorch/pytorch/issues/190489): seldom, after all the work is done.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class _Step(nn.Module):
    """Objective and model in one module: the form that accelerate can wrap."""

    def __init__(self, objective: Callable, model: nn.Module) -> None:
        super().__init__()
        self.objective = objective
        self.model = model

    def forward(self, batch) -> dict[str, Tensor]:
        return self.objective(self.model, batch)


def cut(batch, pieces: int) -> list:
    """A batch (tensors, nested in tuples, lists and dicts) in equal pieces, the first perhaps with one example more."""
    if isinstance(batch, Tensor):
        return list(batch.tensor_split(pieces))
    if isinstance(batch, Mapping):
        parts = {key: cut(value, pieces) for key, value in batch.items()}
        return [{key: part[k] for key, part in parts.items()} for k in range(pieces)]
    return [like(batch, part) for part in zip(*(cut(value, pieces) for value in batch), strict=True)]


def _lengths(batch) -> Iterator[int]:
    """Of all tensors in a batch; 0 of a single number."""
    if isinstance(batch, Tensor):
        yield len(batch) if batch.ndim else 0
        return
    for part in batch.values() if isinstance(batch, Mapping) else batch:
        yield from _lengths(part)
