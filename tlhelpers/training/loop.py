"""The loop.  It never changes: what is learnt is the objective's business, what may move is the optimizer's."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from tlhelpers.data.examples import Examples
from tlhelpers.data.loaders import TensorLoader
from tlhelpers.models.surgery import train_mode
from tlhelpers.objectives.supervised import Objective, classification
from tlhelpers.runtime import pick_device
from tlhelpers.training.checkpoint import Checkpoint, stop_button
from tlhelpers.training.device import autocast, mixed_precision, to_device
from tlhelpers.training.distributed import Team
from tlhelpers.training.history import Means, RunState
from tlhelpers.training.schedules import Rates, with_progress

LOOK_EVERY = 50  # steps after which a GPU is asked whether a loss was not finite; asking waits for it


def fit(
    model: nn.Module,
    loaders: tuple[Iterable, Iterable | None],
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    schedule: Callable[[float], float] | None = None,
    clip_norm: float | None = None,
    device: torch.device | None = None,
    on_epoch: Callable[[dict], None] | None = None,
    checkpoint: str | Path | None = None,
    accumulate: int = 1,
    best: str = "validation_loss",
) -> list[dict]:
    """Train a model, and leave it with the weights of its best epoch.

    On a CPU this gives the same weights, to the last bit, as the loop that everyone writes by hand:

        for epoch in range(epochs):
            model.train()
            for x, y in train_loader:
                progress = (step + 0.5) / total_steps
                for group, rate in zip(optimizer.param_groups, first_rates):
                    group["lr"] = rate * schedule(progress)
                loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
                optimizer.step()
                step += 1

    Args:
        model: trained in place.  Frozen parts (`models.freeze`) stay bit-equal, buffers included.
        loaders: (train, validation); each has a length and yields batches, as a rule (x, y);
            tensors may also be nested in tuples and dicts.  With None for validation the weights of
            the last epoch stay.
        objective: `(model, batch) -> {"loss": scalar, ...}`; see `tlhelpers/objectives/supervised.py`.
        optimizer: over the parameters that may move: the model's (`models.param_groups`), and those of the
            objective if it has any.
        epochs: passes over the training loader.
        schedule: factor on every learning rate as a function of progress in [0, 1], such as
            `warmup_cosine()`; constant when None.
        clip_norm: largest allowed norm of the whole gradient.
        device: the accelerator if there is one when None.
        on_epoch: called with the record of every epoch, in every process.  It may freeze and unfreeze, and add
            groups to the optimizer.
        checkpoint: a file that keeps the run after every epoch.  The same call again, after a crash or
            in a new kernel, goes on from there and ends as if nothing had happened (on a CPU bit-equal;
            `on_epoch` hears what is new, and again an epoch in which it broke off itself).  Ctrl-C, the stop
            button, then ends the run at the next step: it is kept, and what there is so far is returned.
            Without a schedule, and without `progress` in the objective, `epochs` may grow; everything else must
            be as before.  The file has up to four times the size of the
            weights (Adam keeps two numbers each, and the best weights are there too; a teacher comes on
            top), and the one before stays beside it.  Data, and what a function holds that is no module,
            are not kept.  A shuffled `DataLoader` inside a `JointLoader` needs a generator of its own, or the
            rest of an interrupted epoch has other batches.  With several processes the first one writes, and
            Ctrl-C loses the epoch under way.
        accumulate: work on every batch in so many pieces, which takes less memory.  The step is the same, up
            to rounding, if the loss is a mean over the examples of a batch.  It is not for what else is
            computed over a batch: BatchNorm, a distance between two domains, a mean over the labelled examples.
        best: the number of a record whose lowest value tells the best epoch.  Where the loss is a sum that
            changes its meaning or holds more than the task, name the task's: "validation_task_loss" of
            `l2_sp`, "validation_source_loss" of `dann`.

    Returns:
        One dict per epoch: epoch (from 1), lr (of the first group, at the end), seconds, and every
        number of the objective as train_* and validation_*: the mean over batches, weighted by the length of the
        first tensor of each.  What an objective has learnt itself is left as in the best epoch, too.

    Raises:
        ValueError: epochs or accumulate below 1, an empty loader, no parameter to train, an optimizer that lacks a
            parameter of the objective or holds one of neither model nor objective; a number for `best` that is not
            logged; a training loader that gives other than its length; a batch of one example for BatchNorm, or
            one that cannot be cut; a checkpoint that is of another run, damaged, or more than tensors and plain
            values.
        FloatingPointError: a loss, or the number for `best`, is not finite; the message names the first such step
            or epoch.  After both errors model and objective have the best weights so far, or else those of
            before this epoch.
        OSError: the checkpoint cannot be written at the start.  Later that is a warning, and the run goes on.
    """
    train_loader, validation_loader = loaders
    _check(loaders, model, objective, optimizer, epochs, accumulate)
    _check_best(best, validation_loader)
    device = device or pick_device()
    _move(model, objective, device)
    team = Team(device)
    rates = Rates(optimizer, schedule, total_steps=epochs * len(train_loader))
    scaler = torch.amp.GradScaler(device.type, enabled=mixed_precision(device) is torch.float16)
    run = RunState(model, objective, optimizer, scaler, rates, loaders, best)
    saved = Checkpoint(checkpoint, run, {"epochs": epochs, "clip_norm": clip_norm}, team)
    stopping = stop_button(checkpoint is not None and team.size == 1)

    with rates, _bar(run, epochs, team) as bar, stopping as stop, _failing_well(run):
        while len(run.history) < epochs and not stop():
            # 1. Learn from every batch once; after an interruption, from those that are left.
            train = train_one_epoch(
                model,
                run.remaining_batches(),
                objective,
                optimizer,
                rates=rates,
                scaler=scaler,
                clip_norm=clip_norm,
                device=device,
                accumulate=accumulate,
                epoch=len(run.history) + 1,
                step=run.steps,
                means=run.means,
                stop=stop,
            )
            if run.epoch_is_whole:
                # 2. Look at the validation part.
                validation = None
                if validation_loader is not None:
                    validation = evaluate(model, validation_loader, objective, device=device)
                # 3. Record the epoch, and keep its weights if they are the best so far.
                record = run.end_epoch(train, validation)
                bar.update()
                if on_epoch is not None:
                    on_epoch(record)
            # 4. Save, to go on from here one day.
            saved.save()
        if len(run.history) < epochs:
            print(f"Stopped after {run}. The same call again goes on from there: {checkpoint}.")
    run.restore(run.best_weights)
    return run.history


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
    accumulate: int = 1,
    epoch: int = 1,
    step: int = 0,
    means: Means | None = None,
    stop: Callable[[], bool] | None = None,
) -> dict[str, float]:
    """One pass over the loader; returns the means of what the objective logs.

    Model and objective must lie on `device`.

    Args:
        rates: sets the learning rates of every step; they stay as they are when None.
        scaler: of the loss, for float16 on older GPUs.
        epoch: its number, for messages.
        step: how many of its steps were taken before, for messages.
        means: goes on counting in these.
        stop: ends the pass after the step in which it says so.

    See `fit` for the rest.
    """
    device = device or pick_device()
    scaler = scaler or torch.amp.GradScaler(device.type, enabled=False)
    means = means or Means()
    team = Team(device)
    watch = _LossWatch(device, epoch)
    trainable = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    scheduled = with_progress(objective)
    train_mode(model)
    if isinstance(objective, nn.Module):
        train_mode(objective)
    team.begin_epoch()
    forward = team.joined(objective, model)
    precision = autocast(device)
    for number, batch in enumerate(loader, start=step + 1):
        # 1. Set the learning rates of this step, and tell the objective how far the run is.
        if rates is not None:
            progress = rates.advance()
            for part in scheduled:
                part.progress = progress
        # 2. Forward and backward, piece by piece if the batch is cut; gradients add up.
        optimizer.zero_grad()
        pieces = team.share(to_device(batch, device), accumulate)
        for piece in pieces:
            with precision:
                logged = forward(piece.batch, piece is pieces[-1])
            watch.look(logged, number)
            loss = logged["loss"] if piece.weight == 1 else logged["loss"] * piece.weight
            scaler.scale(loss).backward()
            means.add(logged, piece.examples)
        # 3. Clip the gradient.
        if clip_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(trainable, clip_norm)
        # 4. Step.
        scaler.step(optimizer)
        scaler.update()
        if stop is not None and stop():
            break
    watch.report()
    team.total(means)
    team.same_buffers(model, objective)
    return means.result()


def evaluate(
    model: nn.Module, loader: Iterable, objective: Objective | None = None, *, device: torch.device | None = None
) -> dict[str, float]:
    """Means over all examples of what the objective logs, in eval mode and without gradients.

    Args:
        objective: as for `fit`; `classification()`, so "loss" and "accuracy" of `model(x)`, when None.

    The training flags of model and objective are put back afterwards.  With several processes, call it in
    all of them.

    Raises:
        ValueError: the loader is empty.
    """
    device = device or pick_device()
    objective = objective or classification()
    _move(model, objective, device)
    means = Means()
    team = Team(device)
    with _eval_mode(model, objective), torch.inference_mode(), autocast(device):
        for batch in loader:
            for piece in team.share(to_device(batch, device), accumulate=1):
                means.add(objective(model, piece.batch), piece.examples)
    team.total(means)
    return means.result()


def accuracy(model: nn.Module, examples: Examples, *, device: torch.device | None = None) -> float:
    """The part of the examples that a classifier, [N, ...] -> [N, C], gets right."""
    return evaluate(model, TensorLoader(examples, 256, device=device), device=device)["accuracy"]


class _LossWatch:
    """Notices a loss that is not finite: at once on a CPU; on a GPU within `LOOK_EVERY` steps, without waiting.

    Attributes:
        every: losses that are looked at together.
        unseen: (step, loss) of those that nobody has looked at.
    """

    def __init__(self, device: torch.device, epoch: int) -> None:
        self.epoch = epoch
        self.every = 1 if device.type == "cpu" else LOOK_EVERY
        self.unseen: list[tuple[int, Tensor]] = []

    def look(self, logged: dict[str, Tensor], step: int) -> None:
        if "loss" not in logged:
            raise ValueError(f"the objective returned {sorted(logged)}; it must have an entry 'loss'")
        if self.every == 1:
            self._check(step, logged["loss"].item())
            return
        self.unseen.append((step, logged["loss"].detach()))
        if len(self.unseen) >= self.every:
            self.report()

    def report(self) -> None:
        """Wait for the device, and raise if a loss was not finite."""
        if not self.unseen:
            return
        steps, losses = zip(*self.unseen, strict=True)
        self.unseen = []
        for step, loss in zip(steps, torch.stack(losses).tolist(), strict=True):  # one wait for all
            self._check(step, loss)

    def _check(self, step: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} in epoch {self.epoch}, step {step}; lower the learning rate, "
                "set clip_norm=1.0, or look for NaN in the inputs"
            )


@contextmanager
def _failing_well(run: RunState) -> Iterator[None]:
    """After numbers that cannot be, put the last good weights back; explain what BatchNorm says of one example."""
    try:
        yield
    except (FloatingPointError, ValueError) as error:
        run.restore(run.last_good)
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"the batch of epoch {len(run.history) + 1}, step {run.steps}, or a piece of it, has 1 example, from which "
            "BatchNorm cannot learn; take another batch_size, leave the last batch out, or lower accumulate"
        ) from error


def _move(model: nn.Module, objective: Objective, device: torch.device) -> None:
    model.to(device)
    if isinstance(objective, nn.Module):
        objective.to(device)


def _bar(run: RunState, epochs: int, team: Team) -> tqdm:
    delay = 2 if team.rank == 0 else math.inf  # one bar for all processes
    return tqdm(total=epochs, initial=len(run.history), desc="fit", unit="epoch", delay=delay, leave=False)


@contextmanager
def _eval_mode(model: nn.Module, objective: Objective) -> Iterator[None]:
    roots = [module for module in (model, objective) if isinstance(module, nn.Module)]
    flags = [(part, part.training) for root in roots for part in root.modules()]
    for root in roots:
        root.eval()
    try:
        yield
    finally:
        for part, training in flags:
            part.training = training


def _check_best(best: str, validation_loader: Iterable | None) -> None:
    """Refuse a number that no record will have, or whose lowest value is not the best."""
    if validation_loader is None and best != "validation_loss":
        raise ValueError(f"best={best!r} needs a validation loader; without one, the last weights stay")
    if not best.startswith("validation_") or best.endswith("accuracy"):
        raise ValueError(f"best={best!r} must be a loss of the validation, such as 'validation_loss': the lowest wins")


def _check(
    loaders: tuple[Iterable, Iterable | None],
    model: nn.Module,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    accumulate: int,
) -> None:
    """Refuse what cannot work, before anything is done."""
    if epochs < 1 or accumulate < 1:
        raise ValueError(f"epochs={epochs} and accumulate={accumulate} must be at least 1")
    for name, loader in zip(("training", "validation"), loaders, strict=True):
        if loader is not None and len(loader) == 0:
            raise ValueError(f"the {name} loader is empty: it needs at least one batch (is drop_last set?)")
    moving = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    if not any(parameter.requires_grad for parameter in moving):
        raise ValueError("the optimizer holds no trainable parameter; unfreeze the head or part of the body first")
    own = dict(objective.named_parameters()) if isinstance(objective, nn.Module) else {}
    missing = [name for name, parameter in own.items() if parameter.requires_grad and parameter not in moving]
    if missing:
        raise ValueError(
            f"the optimizer does not hold {missing[:3]} of the objective, which would never learn; make it over "
            "[*model.parameters(), *objective.parameters()]"
        )
    strangers = moving - set(model.parameters()) - set(own.values())
    if strangers:
        shapes = [list(parameter.shape) for parameter in strangers][:3]
        raise ValueError(
            f"the optimizer holds {len(strangers)} parameters {shapes} of neither model nor objective; if they belong "
            "to the objective, make it an nn.Module that owns them"
        )
