"""Learning rates over a run."""

import math
from collections.abc import Callable

import torch
from torch import nn


class Rates:
    """The learning rates of an optimizer, step by step: their first values times `schedule(progress)`.

    Progress is taken at the middle of a step, so that no step is lost at a factor of 0.  A plain number
    says where the run is, which makes it easy to continue one.  As a context it puts the first rates back
    at the end, so that the optimizer can be used for another run.  A group that is added on the way, to unfreeze
    gradually, joins at the next step: the rate that it has then is its first.

    Args:
        optimizer: with the first rates in its groups.
        schedule: factor on every rate as a function of progress in [0, 1]; constant when None.
        total_steps: of the whole run.

    Attributes:
        step: number of steps taken.
        first: the first rate of every group.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, schedule: Callable[[float], float] | None, total_steps: int
    ) -> None:
        self.optimizer = optimizer
        self.schedule = schedule
        self.total_steps = total_steps
        self.step = 0
        self.first = [group["lr"] for group in optimizer.param_groups]

    def advance(self) -> float:
        """Set the rates of the next step; returns the progress of the run in its middle."""
        progress = (self.step + 0.5) / self.total_steps
        self.step += 1
        groups = self.optimizer.param_groups
        self.first += [group["lr"] for group in groups[len(self.first) :]]
        if self.schedule is not None:
            factor = self.schedule(progress)
            for group, rate in zip(groups, self.first, strict=True):
                group["lr"] = rate * factor
        return progress

    def __enter__(self) -> "Rates":
        return self

    def __exit__(self, *_error) -> None:
        # A group that was added after the last step still has its first rate.
        for group, rate in zip(self.optimizer.param_groups, self.first, strict=False):
            group["lr"] = rate


def with_progress(objective: Callable) -> list[nn.Module]:
    """The objective and those inside it that want to know how far the run is: modules with a `progress`."""
    parts = objective.modules() if isinstance(objective, nn.Module) else ()
    return [part for part in parts if hasattr(part, "progress")]


def warmup_cosine(warmup: float = 0.1) -> Callable[[float], float]:
    """A schedule: linear rise over the first `warmup` of the steps, then half a cosine down to 0.

    Raises:
        ValueError: warmup outside [0, 1).
    """
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup is a part of the run in [0, 1), not {warmup}")

    def factor(progress: float) -> float:
        if progress < warmup:
            return progress / warmup
        return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))

    return factor
