"""What a run of `fit` has logged and learnt so far: all it needs, besides the call itself, to go on."""

import copy
import math
import random
import time
from collections.abc import Iterable, Iterator
from ctypes import c_float
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from tlhelpers.training.schedules import Rates


class Means:
    """Running means weighted by examples.

    On a GPU the sums stay there until `result`, because reading a number would wait for the device.

    Attributes:
        steps: batches so far, which the loop counts.
        examples: examples so far.
        sums: per name, the sum over examples: a number, or a 0-d tensor on a GPU.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float | Tensor] = {}
        self.steps = 0
        self.examples = 0

    def add(self, logged: dict[str, Tensor], examples: int) -> None:
        """Count so many examples, of which `logged` holds the means."""
        self.examples += examples
        for name, value in logged.items():
            # In float32 a share times its number is whole again; rounding is faster than three operations of torch.
            if isinstance(value, Tensor) and value.is_cpu:
                value = c_float(value.item() * examples).value
            elif isinstance(value, Tensor):
                value = value.detach().float() * examples
            else:
                value = value * examples
            self.sums[name] = self.sums.get(name, 0.0) + value

    def result(self) -> dict[str, float]:
        """The means.

        Raises:
            ValueError: nothing was counted.
        """
        if self.examples == 0:
            raise ValueError("the loader gave no batch; it must hold at least one example")
        return {name: float(total) / self.examples for name, total in self.sums.items()}


@dataclass
class RunState:
    """One run of `fit`: the objects that it changes, and how far it is.

    Attributes:
        history: the records of the finished epochs.
        best_loss: the lowest validation loss so far, which belongs to `best_weights`.
        means: of the epoch under way; no steps between epochs.
        seconds: that earlier calls have spent on the epoch under way.
        epoch_start: what decided the batches of the epoch under way.
    """

    model: nn.Module
    objective: object
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    rates: Rates
    loaders: tuple[Iterable, Iterable | None]
    history: list[dict] = field(default_factory=list)
    best_loss: float = math.inf
    best_weights: dict[str, Tensor] | None = None
    means: Means = field(default_factory=Means)
    seconds: float = 0.0
    epoch_start: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._clock = time.perf_counter()

    def __str__(self) -> str:
        steps = f" and {self.means.steps} of {len(self.loaders[0])} steps" if self.means.steps else ""
        return f"{len(self.history)} epoch(s){steps}"

    def remaining_batches(self) -> Iterator:
        """The batches of this epoch: all of them, or those that an interrupted epoch has left."""
        self._clock = time.perf_counter() - self.seconds
        batches = self.loaders[0]
        if self.means.steps == 0:
            yield from batches
            return
        now = random_states()
        set_batch_order(self.loaders, self.epoch_start)
        batches = iter(batches)
        for _ in range(self.means.steps):
            next(batches)
        set_random_states(now)
        yield from batches

    @property
    def epoch_is_whole(self) -> bool:
        """Every batch of the epoch under way was learnt from."""
        return self.means.steps == len(self.loaders[0])

    def end_epoch(self, train: dict[str, float], validation: dict[str, float] | None) -> dict:
        """Record a finished epoch, and keep the weights if they are the best so far; returns the record."""
        record = {"epoch": len(self.history) + 1, "lr": self.optimizer.param_groups[0]["lr"]}
        record |= {f"train_{name}": value for name, value in train.items()}
        if validation is not None:
            record |= {f"validation_{name}": value for name, value in validation.items()}
            if validation["loss"] < self.best_loss:
                self.best_loss = validation["loss"]
                self.best_weights = copy.deepcopy(self.model.state_dict())
        self.history.append(record | {"seconds": time.perf_counter() - self._clock})
        self.means = Means()
        self.seconds = 0.0
        return self.history[-1]

    def restore_best(self) -> None:
        """Put the best weights so far back into the model, if there are any, and leave it in eval mode."""
        if self.best_weights is not None:
            self.model.load_state_dict(self.best_weights)
        self.model.eval()

    def plan(self) -> dict:
        """What must be the same for a run to be continued, in words and numbers."""
        groups = {}
        for k, (group, rate) in enumerate(zip(self.optimizer.param_groups, self.rates.first, strict=True)):
            settings = {name: str(value) for name, value in group.items() if name not in ("params", "lr")}
            groups[f"group {k}"] = {"lr": float(rate), "parameters": len(group["params"]), **settings}
        schedule = self.rates.schedule
        _, validation = self.loaders
        return {
            "steps per epoch": len(self.loaders[0]),
            "validation steps": None if validation is None else len(validation),
            "schedule": schedule and [float(schedule(part)) for part in (0.05, 0.25, 0.5, 0.75, 0.95)],
            "optimizer": {"kind": type(self.optimizer).__name__, **groups},
            "model": _tensors_of(self.model),
            "objective": _tensors_of(self.objective) if isinstance(self.objective, nn.Module) else {},
        }

    def state(self) -> dict:
        """All of it as tensors and plain values."""
        if self.means.steps == 0:  # between two epochs: the next one begins as things are now
            self.epoch_start = batch_order(self.loaders)
        else:
            self.seconds = time.perf_counter() - self._clock
        return {
            "model": dict(self.model.state_dict()),
            "objective": self._objective_state(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.rates.step,
            "history": self.history,
            "best": (self.best_loss, self.best_weights and dict(self.best_weights)),
            "means": vars(self.means),
            "seconds": self.seconds,
            "epoch_start": self.epoch_start,
            "random": random_states(),
        }

    def load_state(self, state: dict) -> None:
        """Go to where `state` was taken; the objects must be like those it was taken from."""
        self.model.load_state_dict(state["model"])
        if isinstance(self.objective, nn.Module):
            self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.rates.step = state["step"]
        self.history = state["history"]
        self.best_loss, self.best_weights = state["best"]
        device = next(self.model.parameters()).device
        sums = state["means"]["sums"]
        sums = {name: total.to(device) if isinstance(total, Tensor) else total for name, total in sums.items()}
        vars(self.means).update(state["means"] | {"sums": sums})
        self.seconds = state["seconds"]
        self.epoch_start = state["epoch_start"]
        set_batch_order(self.loaders, self.epoch_start)
        set_random_states(state["random"])

    def _objective_state(self) -> dict:
        return dict(self.objective.state_dict()) if isinstance(self.objective, nn.Module) else {}


def _tensors_of(module: nn.Module) -> dict[str, str]:
    """Parameters and buffers, in words."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: f"{t.dtype} {list(t.shape)} trainable={t.requires_grad}" for name, t in tensors}


def random_states() -> dict:
    """The states of Python's, NumPy's and torch's generators (all devices) as tensors and plain values."""
    name, keys, *rest = np.random.get_state()
    states = {"python": random.getstate(), "numpy": [name, keys.tolist(), *rest], "torch": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state_all()} if torch.cuda.is_available() else {})


def set_random_states(states: dict) -> None:
    """Undo all drawing since `random_states`; those of CUDA only on as many cards as there were."""
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if len(states.get("cuda", [])) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(states["cuda"])


def batch_order(loaders: tuple[Iterable, Iterable | None]) -> dict:
    """What decides the batches of the next passes."""
    return {"loaders": [_position(loader) for loader in loaders], "random": random_states()}


def set_batch_order(loaders: tuple[Iterable, Iterable | None], state: dict) -> None:
    """Put back what `batch_order` noted."""
    for loader, position in zip(loaders, state["loaders"], strict=True):
        _set_position(loader, position)
    set_random_states(state["random"])


def _position(loader: Iterable | None) -> dict:
    """Passes done (`data.TensorLoader`), states of generators (`DataLoader`), and so on inside a `JointLoader`."""
    return {
        "epoch": getattr(loader, "epoch", None),
        "generators": [generator.get_state() for generator in _generators(loader)],
        "loaders": [_position(inner) for inner in getattr(loader, "loaders", {}).values()],
    }


def _set_position(loader: Iterable | None, position: dict) -> None:
    if position["epoch"] is not None:
        loader.epoch = position["epoch"]
    for generator, state in zip(_generators(loader), position["generators"], strict=True):
        generator.set_state(state)
    for inner, place in zip(getattr(loader, "loaders", {}).values(), position["loaders"], strict=True):
        _set_position(inner, place)


def _generators(loader: Iterable | None) -> list[torch.Generator]:
    owners = (loader, getattr(loader, "sampler", None))
    return [owner.generator for owner in owners if getattr(owner, "generator", None) is not None]
