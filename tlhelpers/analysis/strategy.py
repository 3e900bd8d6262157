"""From a few measurements to a strategy of transfer, with reasons.

The rules are short on purpose: page 08 scores them by regret on sources that they were not written for.
"""

import math
from dataclasses import dataclass

STRATEGIES = ("pixels", "scratch", "probe", "LP-FT", "fine-tune", "fine-tune top", "joint", "distil")
MANY = 10  # labels per class from which a network can be trained
FEW_STEPS = 20  # of training, in batches of 32: below, less than the whole body
SCRATCH_STEPS = 400  # what training from random weights needs before it is worth a look, in batches of 32
MARGIN = 0.02  # a difference in validation accuracy that 300 images can hardly tell from nothing


@dataclass(frozen=True)
class Recommendation:
    """What to do, and why.

    Attributes:
        strategy: one of `STRATEGIES`.
        frozen: stages of the body, counted from the input, that stay as they are in fine-tuning; None for every
            strategy that is not to fine-tune (for "distil" too: how its teacher is tuned is another question).
        reasons: one sentence per rule that was used, in order.
    """

    strategy: str
    frozen: int | None
    reasons: tuple[str, ...]


def recommend(
    labels_per_class: int,
    *,
    probe: float | None,
    pixels: float,
    steps: int = SCRATCH_STEPS,
    source_images: bool = False,
    must_shrink: bool = False,
) -> Recommendation:
    """A strategy for a target with few labels.  A pure function: the same numbers, the same answer.

    Args:
        labels_per_class: of the target.
        probe: validation accuracy of a linear probe on the frozen body; None when there is no body.
        pixels: validation accuracy of a classifier on prepared raw pixels (or other plain inputs).
        steps: of training that can be paid for, in batches of 32; 0 for none.
        source_images: labelled source data are at hand, not only a body.
        must_shrink: the result has to run where the body is too large, and unlabelled target images exist.

    Raises:
        ValueError: fewer than 1 label per class, negative steps, or an accuracy outside 0..1.
    """
    _check(labels_per_class, probe, pixels, steps)
    best = max(pixels, probe or 0.0)
    body = "none" if probe is None else f"{probe:.2f}"
    start = f"{labels_per_class} label(s) per class; probe {body}, pixels {pixels:.2f}, {steps} steps"
    if steps == 0 and must_shrink and probe is not None:
        return Recommendation("pixels", None, (start, "the body is too large, and no steps to copy it"))
    if steps == 0:
        winner = "probe" if probe is not None and probe >= pixels else "pixels"
        return Recommendation(winner, None, (start, f"no training: take the better of the two, {best:.2f}"))
    if probe is None:
        return _without_body(start, labels_per_class, steps, source_images=source_images)
    return _with_body(start, labels_per_class, probe, pixels, steps, must_shrink=must_shrink)


def _without_body(start: str, labels: int, steps: int, *, source_images: bool) -> Recommendation:
    if source_images:
        return Recommendation("joint", None, (start, "source images but no body: learn both tasks at once"))
    if labels >= MANY and steps >= SCRATCH_STEPS:
        return Recommendation("scratch", None, (start, "no source at all, but labels and steps for a network"))
    return Recommendation("pixels", None, (start, "no source, and too few labels or steps for a network"))


def _with_body(
    start: str, labels: int, probe: float, pixels: float, steps: int, *, must_shrink: bool
) -> Recommendation:
    if probe < pixels - MARGIN:
        if labels >= MANY and steps >= SCRATCH_STEPS:
            return Recommendation("scratch", None, (start, "a poor body, but labels and steps for a new network"))
        return Recommendation("pixels", None, (start, "the body tells the classes apart worse than pixels do"))
    if must_shrink:
        return Recommendation("distil", None, (start, "the body is too large: tune it, then let a small one copy it"))
    if steps < FEW_STEPS:
        return Recommendation("fine-tune top", 3, (start, "few steps: let the lower stages stay, which costs less"))
    if labels < MANY or steps < SCRATCH_STEPS:
        return Recommendation("LP-FT", 0, (start, "start from the probe's head: a random one pulls the body astray"))
    return Recommendation("fine-tune", 0, (start, "labels and steps enough for a new head and for the whole body"))


def _check(labels_per_class: int, probe: float | None, pixels: float, steps: int) -> None:
    if labels_per_class < 1:
        raise ValueError(f"labels_per_class is {labels_per_class}; it must be at least 1 (without any, see page 07)")
    if steps < 0:
        raise ValueError(f"steps is {steps}; it must be 0 (no training) or more")
    for name, value in [("probe", probe), ("pixels", pixels)]:
        if value is not None and not (math.isfinite(value) and 0 <= value <= 1):
            raise ValueError(f"{name} is {value}; an accuracy lies in 0..1 (divide per cent by 100)")
