"""How far a run of `fit` is: everything it needs, besides the call itself, to go on where it stopped."""

import copy
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from tlhelpers.training.schedules import Rates


class Means:
    """Running means weighted by examples; sums stay on the device until `result`.

    Attributes:
        steps: batches so far, which the loop counts.
        examples: examples so far.
        sums: per name, the sum over examples (0-d float32).
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = self.examples = 0

    def add(self, logged: dict[str, Tensor], n: int) -> None:
        """Count n examples, of which `logged` holds the means."""
        self.examples += n
        for name, value in logged.items():
            value = torch.as_tensor(value).detach()
            if name not in self.sums:
                self.sums[name] = torch.zeros((), device=value.device)
            self.sums[name].add_(value, alpha=n)

    def result(self) -> dict[str, float]:
        """The means.

        Raises:
            ValueError: nothing was counted.
        """
        if self.examples == 0:
            raise ValueError("the loader gave no batch; it must hold at least one example")
        return {name: float(total) / self.examples for name, total in self.sums.items()}


@dataclass
class Run:
    """One run of `fit`: the objects that it changes, and how far it is.

    Attributes:
        history: the records of the finished epochs.
        best: the lowest score so far, of epoch `best_epoch`, which left `best_weights`.
        means, seconds: of the epoch under way; no steps between epochs.
    """

    model: nn.Module
    objective: object
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    rates: Rates
    loaders: tuple[Iterable, Iterable | None]
    history: list[dict] = field(default_factory=list)
    best: float = math.inf
    best_epoch: int = 0
    best_weights: dict[str, Tensor] | None = None
    means: Means = field(default_factory=Means)
    seconds: float = 0.0
    start: dict = field(default_factory=dict)

    def __str__(self) -> str:
        steps = f" and {self.means.steps} of {len(self.loaders[0])} steps" if self.means.steps else ""
        return f"{len(self.history)} epoch(s){steps}"

    def plan(self) -> dict:
        """What must be the same for a run to be continued, in words and numbers."""
        tensors = [*self.model.named_parameters(), *self.model.named_buffers()]
        model = {name: f"{t.dtype} {list(t.shape)} trainable={t.requires_grad}" for name, t in tensors}
        groups = {}
        for k, (group, rate) in enumerate(zip(self.optimizer.param_groups, self.rates.first, strict=True)):
            settings = {name: str(value) for name, value in group.items() if name not in ("params", "lr")}
            groups[f"group {k}"] = {"lr": float(rate), "parameters": len(group["params"]), **settings}
        schedule = self.rates.schedule
        return {
            "steps per epoch": len(self.loaders[0]),
            "schedule": schedule and [float(schedule(part)) for part in (0.05, 0.25, 0.5, 0.75, 0.95)],
            "optimizer": {"kind": type(self.optimizer).__name__, **groups},
            "model": model,
        }

    def begin_epoch(self) -> Iterable:
        """The batches of the epoch that are still to come."""
        if self.means.steps == 0:
            self.start = _outside_state(self.loaders)
            return self.loaders[0]
        now = random_states()
        _set_outside_state(self.loaders, self.start)
        return _Rest(self.loaders[0], self.means.steps, now)

    def end_epoch(self, record: dict, score: float | None) -> None:
        """Keep the record of a finished epoch, and the weights if its score (less is better) is the best so far."""
        self.history.append(record)
        self.means, self.seconds = Means(), 0.0
        if score is not None and score < self.best:
            self.best, self.best_epoch = score, record["epoch"]
            self.best_weights = copy.deepcopy(self.model.state_dict())

    def has_waited(self, patience: int | None) -> bool:
        """True when the last `patience` epochs brought no new best."""
        return patience is not None and 0 < self.best_epoch <= len(self.history) - patience

    def finish(self) -> list[dict]:
        """Leave the model with its best weights in eval mode; the history."""
        if self.best_weights is not None:
            self.model.load_state_dict(self.best_weights)
        self.model.eval()
        return self.history

    def state(self) -> dict:
        """All of it as tensors and plain values."""
        if self.means.steps == 0:
            self.start = _outside_state(self.loaders)
        return {
            "model": dict(self.model.state_dict()),
            "outside": self._outside_parameters(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "objective": dict(getattr(self.objective, "state", {})),
            "step": self.rates.step,
            "history": self.history,
            "best": (self.best, self.best_epoch, self.best_weights and dict(self.best_weights)),
            "means": vars(self.means),
            "seconds": self.seconds,
            "start": self.start,
            "random": random_states(),
        }

    def load_state(self, state: dict) -> None:
        """Go to where `state` was taken; the objects must be like those it was taken from."""
        self.model.load_state_dict(state["model"])
        with torch.no_grad():
            for parameter, saved in zip(self._outside_parameters(), state["outside"], strict=True):
                parameter.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        getattr(self.objective, "state", {}).update(state["objective"])
        self.rates.step, self.history, self.seconds = state["step"], state["history"], state["seconds"]
        self.best, self.best_epoch, self.best_weights = state["best"]
        device = next(p.device for group in self.optimizer.param_groups for p in group["params"])
        sums = {name: torch.as_tensor(total).to(device) for name, total in state["means"]["sums"].items()}
        vars(self.means).update(state["means"] | {"sums": sums})
        self.start = state["start"]
        _set_outside_state(self.loaders, self.start)
        set_random_states(state["random"])

    def _outside_parameters(self) -> list[Tensor]:
        """What the optimizer moves outside the model, such as the discriminator of an objective."""
        inside = {id(p) for p in self.model.parameters()}
        return [p for group in self.optimizer.param_groups for p in group["params"] if id(p) not in inside]


class _Rest:
    """A loader without the first batches of its next pass, which an interrupted epoch has seen."""

    def __init__(self, loader: Iterable, seen: int, states: dict) -> None:
        self.loader, self.seen, self.states = loader, seen, states

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator:
        batches = iter(self.loader)
        for _ in range(self.seen):
            next(batches)
        set_random_states(self.states)
        yield from batches


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


def _outside_state(loaders: tuple[Iterable, Iterable | None]) -> dict:
    """What decides the batches of the next passes."""
    return {"loaders": [_position(loader) for loader in loaders], "random": random_states()}


def _set_outside_state(loaders: tuple[Iterable, Iterable | None], state: dict) -> None:
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
