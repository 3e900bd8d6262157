"""The loop.  It never changes: what is learnt is the objective's business, what may move is the optimizer's."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from tlhelpers.runtime import autocast, batch_size, mixed_precision, pick_device, to_device
from tlhelpers.surgery import train_mode

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
) -> list[dict]:
    """Train a model, and leave it with the weights of its best epoch.

    Args:
        model: trained in place.  Frozen parts (`surgery.freeze`) stay bit-equal, buffers included.
        loaders: (train, validation); each has a length and yields batches, as a rule (x, y);
            tensors may also be nested in tuples and dicts.  With None for validation the weights of
            the last epoch stay.
        objective: `(model, batch) -> {"loss": scalar, ...}`; see `tlhelpers/objectives.py`.
        optimizer: over the parameters that may move (`surgery.param_groups`).
        epochs: passes over the training loader.
        schedule: factor on every learning rate as a function of progress in [0, 1], such as
            `warmup_cosine()`; constant when None.
        clip_norm: largest allowed norm of the whole gradient.
        monitor: the logged value that says which epoch is best; less is better if it ends in "loss".
        patience: stop after this many epochs without a new best.
        device: the accelerator if there is one when None.
        on_epoch: called with the record of every epoch.

    Returns:
        One dict per epoch: epoch (from 1), lr (of the first group, at the end), seconds, and every
        number of the objective as train_* and validation_*, averaged over examples.

    Raises:
        ValueError: epochs below 1, an empty loader, no parameter to train, a `monitor` that is not logged.
        FloatingPointError: the loss is not finite; the message names epoch and step.
    """
    train_loader, validation_loader = loaders
    device = device or pick_device()
    _check(train_loader, validation_loader, optimizer, epochs)
    model.to(device)
    scaler = torch.amp.GradScaler(device.type, enabled=mixed_precision(device) is torch.float16)
    rates = Rates(optimizer, schedule, epochs * len(train_loader))
    history: list[dict] = []
    best, best_weights = math.inf, None
    try:
        for epoch in tqdm(range(1, epochs + 1), desc="fit", unit="epoch", delay=2, leave=False):
            began = time.perf_counter()
            train = train_one_epoch(
                model,
                train_loader,
                objective,
                optimizer,
                rates=rates,
                scaler=scaler,
                clip_norm=clip_norm,
                device=device,
                epoch=epoch,
            )
            record = {"epoch": epoch, "lr": optimizer.param_groups[0]["lr"], **_prefixed("train", train)}
            if validation_loader is not None:
                record |= _prefixed("validation", evaluate(model, validation_loader, objective, device=device))
                score = _score(record, monitor)
                if score < best:
                    best, best_epoch = score, epoch
                    best_weights = copy.deepcopy(model.state_dict())
            history.append(record | {"seconds": time.perf_counter() - began})
            if on_epoch is not None:
                on_epoch(history[-1])
            if best_weights is not None and patience is not None and epoch - best_epoch >= patience:
                break
    finally:
        rates.restore()
    if best_weights is not None:
        model.load_state_dict(best_weights)
    model.eval()
    return history


class Rates:
    """The learning rates of an optimizer, step by step: their first values times `schedule(progress)`.

    Progress is taken at the middle of a step, so that no step is lost at a factor of 0.  A plain
    number says where the run is, which makes it easy to continue one.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, schedule: Callable[[float], float] | None, total_steps: int
    ) -> None:
        self.optimizer, self.schedule, self.total_steps, self.step = optimizer, schedule, total_steps, 0
        self.first = [group["lr"] for group in optimizer.param_groups]

    def advance(self) -> None:
        """Set the rates of the next step."""
        factor = self.schedule((self.step + 0.5) / self.total_steps) if self.schedule is not None else 1.0
        for group, rate in zip(self.optimizer.param_groups, self.first, strict=True):
            group["lr"] = rate * factor
        self.step += 1

    def restore(self) -> None:
        """Put the first rates back, so that the optimizer can be used for another run."""
        for group, rate in zip(self.optimizer.param_groups, self.first, strict=True):
            group["lr"] = rate


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
) -> dict[str, float]:
    """One pass over the loader; returns the means of what the objective logs.  See `fit`."""
    device = device or pick_device()
    scaler = scaler or torch.amp.GradScaler(device.type, enabled=False)
    trainable = [p for group in optimizer.param_groups for p in group["params"]]
    means = _Means()
    train_mode(model)
    for step, batch in enumerate(loader, start=1):
        batch = to_device(batch, device)
        with autocast(device, mixed_precision(device)):
            logged = objective(model, batch)
        # Reading a value waits for the GPU, so there the check is made now and then only.
        if device.type == "cpu" or step % 50 == 0 or step == len(loader):
            _check_loss(logged, epoch, step)
        optimizer.zero_grad()
        scaler.scale(logged["loss"]).backward()
        if clip_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(trainable, clip_norm)
        if rates is not None:
            rates.advance()
        scaler.step(optimizer)
        scaler.update()
        means.add(logged, batch_size(batch))
    return means.result()


def evaluate(
    model: nn.Module, loader: Iterable, objective: Objective | None = None, *, device: torch.device | None = None
) -> dict[str, float]:
    """Means over all examples of what the objective logs, in eval mode and without gradients.

    Args:
        objective: as for `fit`; cross-entropy ("loss") and "accuracy" of `model(x)` when None.

    The model's training flags are put back afterwards.

    Raises:
        ValueError: the loader is empty.
    """
    device = device or pick_device()
    model.to(device)
    means = _Means()
    with _eval_mode(model), torch.inference_mode(), autocast(device, mixed_precision(device)):
        for batch in loader:
            batch = to_device(batch, device)
            means.add((objective or _cross_entropy)(model, batch), batch_size(batch))
    return means.result()


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


class _Means:
    """Running means weighted by examples; sums stay on the device until `result`."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.examples = 0

    def add(self, logged: dict[str, Tensor], n: int) -> None:
        self.examples += n
        for name, value in logged.items():
            self.sums[name] = self.sums.get(name, 0) + torch.as_tensor(value).detach().float() * n

    def result(self) -> dict[str, float]:
        if self.examples == 0:
            raise ValueError("the loader gave no batch; it must hold at least one example")
        return {name: float(total) / self.examples for name, total in self.sums.items()}


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


def _check(train_loader, validation_loader, optimizer, epochs: int) -> None:
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; it must be at least 1")
    for name, loader in [("training", train_loader), ("validation", validation_loader)]:
        if loader is not None and len(loader) == 0:
            raise ValueError(f"the {name} loader is empty: it needs at least one batch (is drop_last set?)")
    if not any(p.requires_grad for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("the optimizer holds no trainable parameter; unfreeze the head or part of the body first")


def _check_loss(logged: dict[str, Tensor], epoch: int, step: int) -> None:
    if "loss" not in logged:
        raise ValueError(f"the objective returned {sorted(logged)}; it must have an entry 'loss'")
    if not torch.isfinite(logged["loss"]):
        raise FloatingPointError(
            f"the loss is {float(logged['loss'].detach())} in epoch {epoch}, step {step}; lower the learning rate, "
            "set clip_norm=1.0, or look for NaN in the inputs"
        )


def _prefixed(prefix: str, numbers: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in numbers.items()}


def _score(record: dict, monitor: str) -> float:
    if monitor not in record:
        raise ValueError(f"monitor={monitor!r} is not logged; choose one of {sorted(record)}")
    return record[monitor] if monitor.endswith("loss") else -record[monitor]
