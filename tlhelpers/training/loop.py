"""The loop.  It never changes: what is learnt is the objective's business, what may move is the optimizer's."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from tlhelpers.training.checkpoint import Checkpoint, stop_button
from tlhelpers.training.distributed import Team
from tlhelpers.training.progress import Means, Run
from tlhelpers.runtime import autocast, mixed_precision, pick_device, to_device
from tlhelpers.training.schedules import Rates, warmup_cosine
from tlhelpers.models.surgery import train_mode

__all__ = ["evaluate", "fit", "train_one_epoch", "warmup_cosine"]

Objective = Callable[[nn.Module, tuple[Tensor, Tensor]], dict[str, Tensor]]


def fit(
    model: nn.Module,
    loaders: tuple[Iterable, Iterable | None],
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    schedule: Callable[[float], float] | None = None,
    clip_norm: float | None = None,
    monitor: str = "validation_loss",
    patience: int | None = None,
    device: torch.device | None = None,
    on_epoch: Callable[[dict], None] | None = None,
    checkpoint: str | Path | None = None,
    accumulate: int = 1,
) -> list[dict]:
    """Train a model, and leave it with the weights of its best epoch.

    Args:
        model: trained in place.  Frozen parts (`surgery.freeze`) stay bit-equal, buffers included.
        loaders: (train, validation); each has a length and yields batches, as a rule (x, y);
            tensors may also be nested in tuples and dicts.  With None for validation the weights of
            the last epoch stay.
        objective: `(model, batch) -> {"loss": scalar, ...}`; see `tlhelpers/objectives/supervised.py`.
        optimizer: over the parameters that may move (`surgery.param_groups`).
        epochs: passes over the training loader.
        schedule: factor on every learning rate as a function of progress in [0, 1], such as
            `warmup_cosine()`; constant when None.
        clip_norm: largest allowed norm of the whole gradient.
        monitor: the logged value that says which epoch is best; less is better if it ends in "loss".
        patience: stop after this many epochs without a new best.
        device: the accelerator if there is one when None.
        on_epoch: called with the record of every epoch, in every process.
        checkpoint: a file that keeps the run after every epoch.  The same call again, after a crash or
            in a new kernel, goes on from there and ends as if nothing had happened (on a CPU bit-equal;
            `on_epoch` hears only what is new).  Ctrl-C, the stop button, then ends the run at the next
            step: it is kept, and what there is so far is returned.  Without a schedule `epochs` may
            grow; everything else must be as before.  The file has up to four times the size of the
            weights (Adam keeps two numbers each, and the best weights are there too), and the one
            before stays beside it.  Data, and what an objective holds beyond its `state`, are not kept.
            With several processes the first one writes, and Ctrl-C loses the epoch under way.
        accumulate: work on every batch in so many pieces, which takes less memory and gives the same
            step up to rounding, but for BatchNorm, which sees one piece at a time
            (`distributed.halve_until_it_fits` finds how many are needed).

    Returns:
        One dict per epoch: epoch (from 1), lr (of the first group, at the end), seconds, and every
        number of the objective as train_* and validation_*, averaged over examples.

    Raises:
        ValueError: epochs or accumulate below 1, an empty loader, no parameter to train, a `monitor` that is
            not logged; a checkpoint that is of another run, damaged, or more than tensors and plain values.
        FloatingPointError: the loss is not finite; the message names epoch and step.
        OSError: the checkpoint cannot be written at the start.  Later that is a warning, and the run goes on.
    """
    train_loader, validation_loader = loaders
    device = device or pick_device()
    _check(train_loader, validation_loader, optimizer, epochs, accumulate)
    model.to(device)
    scaler = torch.amp.GradScaler(device.type, enabled=mixed_precision(device) is torch.float16)
    rates = Rates(optimizer, schedule, epochs * len(train_loader))
    run, team = Run(model, objective, optimizer, scaler, rates, loaders), Team(device)
    choices = {"epochs": epochs, "clip_norm": clip_norm, "monitor": monitor, "patience": patience}
    kept = Checkpoint(checkpoint, run, choices, team) if checkpoint is not None else None
    try:
        with _bar(run, epochs, team) as bar, stop_button(kept is not None and team.size == 1) as stop:
            while len(run.history) < epochs and not run.has_waited(patience) and not stop():
                began = time.perf_counter() - run.seconds
                train = train_one_epoch(
                    model,
                    run.begin_epoch() if kept else train_loader,
                    objective,
                    optimizer,
                    rates=rates,
                    scaler=scaler,
                    clip_norm=clip_norm,
                    device=device,
                    epoch=len(run.history) + 1,
                    accumulate=accumulate,
                    means=run.means,
                    stop=stop,
                )
                run.seconds = time.perf_counter() - began
                if run.means.steps == len(train_loader):
                    _end_epoch(run, train, monitor, device, began)
                    bar.update()
                    if on_epoch is not None:
                        on_epoch(run.history[-1])
                if kept:
                    kept.save()
            if stop():
                print(f"Stopped after {run}. The same call again goes on from there: {checkpoint}.")
    finally:
        rates.restore()
    return run.finish()


def _bar(run: Run, epochs: int, team: Team) -> tqdm:
    delay = 2 if team.rank == 0 else math.inf  # one bar for all processes
    return tqdm(total=epochs, initial=len(run.history), desc="fit", unit="epoch", delay=delay, leave=False)


def _end_epoch(run: Run, train: dict[str, float], monitor: str, device: torch.device, began: float) -> None:
    """Validate, and record the epoch."""
    record = {"epoch": len(run.history) + 1, "lr": run.optimizer.param_groups[0]["lr"], **_prefixed("train", train)}
    score = None
    if run.loaders[1] is not None:
        record |= _prefixed("validation", evaluate(run.model, run.loaders[1], run.objective, device=device))
        score = _score(record, monitor)
    run.end_epoch(record | {"seconds": time.perf_counter() - began}, score)


def train_one_epoch(
    model: nn.Module,
    loader: Iterable,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    *,
    rates: Rates | None = None,
    scaler: torch.amp.GradScaler | None = None,
    clip_norm: float | None = None,
    device: torch.device | None = None,
    epoch: int = 1,
    accumulate: int = 1,
    means: Means | None = None,
    stop: Callable[[], bool] | None = None,
) -> dict[str, float]:
    """One pass over the loader, or what `means` leaves of it; returns the means of what the objective logs.

    Ends after a step when `stop()` says so.  See `fit` for the rest.
    """
    device = device or pick_device()
    scaler = scaler or torch.amp.GradScaler(device.type, enabled=False)
    trainable = [p for group in optimizer.param_groups for p in group["params"]]
    means, team = means or Means(), Team(device)
    train_mode(model)
    team.begin_epoch()
    forward = team.joined(objective, model, trainable)
    for step, batch in enumerate(loader, start=means.steps + 1):
        optimizer.zero_grad()
        pieces = team.share(to_device(batch, device), accumulate)
        for k, (piece, part, examples) in enumerate(pieces, start=1):
            with autocast(device, mixed_precision(device)):
                logged = forward(piece, k == len(pieces))
            # Reading a value waits for the GPU, so there the check is made now and then only.
            if device.type == "cpu" or step % 50 == 0 or step == len(loader):
                _check_loss(logged, epoch, step)
            scaler.scale(logged["loss"] if part is None else logged["loss"] * part).backward()
            means.add(logged, examples)
        if clip_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(trainable, clip_norm)
        if rates is not None:
            rates.advance()
        scaler.step(optimizer)
        scaler.update()
        means.steps = step
        if stop is not None and stop():
            break
    team.total(means)
    team.same_buffers(model)
    return means.result()


def evaluate(
    model: nn.Module, loader: Iterable, objective: Objective | None = None, *, device: torch.device | None = None
) -> dict[str, float]:
    """Means over all examples of what the objective logs, in eval mode and without gradients.

    Args:
        objective: as for `fit`; cross-entropy ("loss") and "accuracy" of `model(x)` when None.

    The model's training flags are put back afterwards.  With several processes, call it in all of them.

    Raises:
        ValueError: the loader is empty.
    """
    device = device or pick_device()
    model.to(device)
    means, team = Means(), Team(device)
    with _eval_mode(model), torch.inference_mode(), autocast(device, mixed_precision(device)):
        for batch in loader:
            for piece, _, examples in team.share(to_device(batch, device), 1):
                means.add((objective or _cross_entropy)(model, piece), examples)
    team.total(means)
    return means.result()


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    flags = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in flags:
            part.training = training


def _cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    x, y = batch
    logits = model(x)
    return {"loss": F.cross_entropy(logits, y), "accuracy": (logits.argmax(1) == y).float().mean()}


def _check(train_loader, validation_loader, optimizer, epochs: int, accumulate: int) -> None:
    if epochs < 1 or accumulate < 1:
        raise ValueError(f"epochs={epochs} and accumulate={accumulate} must be at least 1")
    for name, loader in [("training", train_loader), ("validation", validation_loader)]:
        if loader is not None and len(loader) == 0:
            raise ValueError(f"the {name} loader is empty: it needs at least one batch (is drop_last set?)")
    if not any(p.requires_grad for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("the optimizer holds no trainable parameter; unfreeze the head or part of the body first")


def _check_loss(logged: dict[str, Tensor], epoch: int, step: int) -> None:
    if "loss" not in logged:
        raise ValueError(f"the objective returned {sorted(logged)}; it must have an entry 'loss'")
    loss = logged["loss"].item()
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss} in epoch {epoch}, step {step}; lower the learning rate, "
            "set clip_norm=1.0, or look for NaN in the inputs"
        )


def _prefixed(prefix: str, numbers: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in numbers.items()}


def _score(record: dict, monitor: str) -> float:
    if monitor not in record:
        raise ValueError(f"monitor={monitor!r} is not logged; choose one of {sorted(record)}")
    return record[monitor] if monitor.endswith("loss") else -record[monitor]
