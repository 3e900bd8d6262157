"""What a run of `fit` has logged and learnt so far: all it needs, besides the call itself, to go on."""

import copy
import math
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from tlhelpers.models.surgery import hold, is_held
from tlhelpers.training.schedules import Rates, with_progress


class Means:
    """Running means weighted by examples.

    On a GPU the sums stay there until `result`, because reading a number would wait for the device.

    Attributes:
        examples: examples so far.
        sums: per name, the sum over examples: a number, or a 0-d tensor on a GPU.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float | Tensor] = {}
        self.examples = 0

    def add(self, logged: dict[str, Tensor], examples: int) -> None:
        """Count so many examples, of which `logged` holds the means.

        Raises:
            ValueError: a tensor that is no single number.
        """
        self.examples += examples
        for name, value in logged.items():
            if isinstance(value, Tensor):
                if value.numel() != 1:
                    raise ValueError(f"the objective logs {name!r} of shape {list(value.shape)}; log its mean instead")
                value = value.item() if value.is_cpu else value.detach().float()
            self.sums[name] = self.sums.get(name, 0.0) + value * examples

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
        best: the number of a record by which epochs are judged; the lowest wins.
        history: the records of the finished epochs.
        best_score: the lowest such number so far, which belongs to `best_weights`.
        best_weights: of the model, and of what the objective learns.
        last_good: the best weights so far; those of before this epoch if there are none.
        means: of the epoch under way.
        steps: of the epoch under way; 0 between epochs.
        seconds: that earlier calls have spent on the epoch under way.
        epoch_start: what decided the batches of the epoch under way.
    """

    model: nn.Module
    objective: object
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    rates: Rates
    loaders: tuple[Iterable, Iterable | None]
    best: str
    history: list[dict] = field(default_factory=list)
    best_score: float = math.inf
    best_weights: dict | None = None
    last_good: dict | None = None
    means: Means = field(default_factory=Means)
    steps: int = 0
    seconds: float = 0.0
    epoch_start: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._clock = time.perf_counter()
        both = {"model": self.model, "objective": self.objective}
        # One module, so that every tensor has a name.
        self.modules = nn.ModuleDict({name: part for name, part in both.items() if isinstance(part, nn.Module)})

    def __str__(self) -> str:
        steps = f" and {self.steps} of {len(self.loaders[0])} steps" if self.steps else ""
        return f"{len(self.history)} epoch(s){steps}"

    def remaining_batches(self) -> Iterator:
        """Begin an epoch, or go on with it: all its batches, or those that an interruption has left.

        Raises:
            ValueError: the loader gives more or fewer batches than its length.
        """
        self._clock = time.perf_counter() - self.seconds
        self.last_good = self.best_weights or self._weights(frozen=False)
        batches = self._batches_after(self.steps) if self.steps else self.loaders[0]
        length = len(self.loaders[0])
        for batch in batches:
            if self.steps == length:
                raise ValueError(f"the training loader gave more than {length} batches, its length; correct __len__")
            self.steps += 1
            yield batch
        if self.steps < length:
            raise ValueError(
                f"the training loader gave {self.steps} batches, its length says {length}; correct __len__"
            )

    def _batches_after(self, steps: int) -> Iterator:
        """The batches of the epoch that began at `epoch_start`, without the first ones."""
        now = random_states()
        set_batch_order(self.loaders, self.epoch_start)
        batches = iter(self.loaders[0])
        for _ in range(steps):
            next(batches, None)
        set_random_states(now)
        return batches

    @property
    def epoch_is_whole(self) -> bool:
        """Every batch of the epoch under way was learnt from."""
        return self.steps == len(self.loaders[0])

    def end_epoch(self, train: dict[str, float], validation: dict[str, float] | None) -> dict:
        """Record a finished epoch, and keep the weights if they are the best so far; returns the record.

        Raises:
            ValueError: the number that says which epoch is best is not logged.
            FloatingPointError: it is not finite.
        """
        record = {"epoch": len(self.history) + 1, "lr": float(self.optimizer.param_groups[0]["lr"])}
        record |= {f"train_{name}": value for name, value in train.items()}
        if validation is not None:
            record |= {f"validation_{name}": value for name, value in validation.items()}
            self._judge(record)
        self.history.append(record | {"seconds": time.perf_counter() - self._clock})
        self.means = Means()
        self.steps = 0
        self.seconds = 0.0
        return self.history[-1]

    def _judge(self, record: dict) -> None:
        if self.best not in record:
            logged = [name for name in record if name.startswith("validation_")]
            raise ValueError(f"best={self.best!r} is not logged; the objective logs {logged}")
        score = record[self.best]
        if not math.isfinite(score):
            raise FloatingPointError(
                f"{self.best} is {score} in epoch {record['epoch']}; look for NaN in the validation inputs, "
                "or lower the learning rate"
            )
        if score < self.best_score:
            self.best_score = score
            self.best_weights = self._weights()

    def _weights(self, *, frozen: bool = True) -> dict:
        """A copy of what belongs together: the model, and what the objective learns.

        Args:
            frozen: with the parameters that do not move now, of which a transformer has many.
        """
        fixed = {name for name, parameter in self.model.named_parameters() if not (frozen or parameter.requires_grad)}
        model = {name: value for name, value in self.model.state_dict().items() if name not in fixed}
        return copy.deepcopy({"model": model, "objective": learning(self.objective)})

    def restore(self, weights: dict | None) -> None:
        """Put such a copy back, if there is one, and leave the model in eval mode."""
        if weights is not None:
            # What the copy leaves out stays as it is; a name that is not in the model is still an error.
            self.model.load_state_dict(self.model.state_dict() | weights["model"])
            own = learning(self.objective)
            for name in own.keys() & weights["objective"].keys():
                own[name].copy_(weights["objective"][name])
        self.model.eval()

    def plan(self) -> dict:
        """What must be the same for a run to be continued, in words and numbers."""
        groups = {}
        for k, (group, rate) in enumerate(zip(self.optimizer.param_groups, self.rates.first, strict=True)):
            settings = {name: str(value) for name, value in group.items() if name not in ("params", "lr")}
            groups[f"group {k}"] = {"lr": float(rate), "parameters": len(group["params"]), **settings}
        schedule = self.rates.schedule
        _, validation = self.loaders
        tensors = [*self.modules.named_parameters(), *self.modules.named_buffers()]
        return {
            "best": self.best,
            "steps per epoch": len(self.loaders[0]),
            "validation steps": None if validation is None else len(validation),
            "schedule": schedule and [float(schedule(part)) for part in (0.05, 0.25, 0.5, 0.75, 0.95)],
            "progress": bool(with_progress(self.objective)),
            "optimizer": {"kind": type(self.optimizer).__name__, **groups},
            "tensors": {name: f"{t.dtype} {list(t.shape)} trainable={t.requires_grad}" for name, t in tensors},
        }

    def state(self) -> dict:
        """All of it as tensors and plain values."""
        if self.steps == 0:  # between two epochs: the next one begins as things are now
            self.epoch_start = batch_order(self.loaders)
        else:
            self.seconds = time.perf_counter() - self._clock
        state = {
            "tensors": self.modules.state_dict(),
            "trainable": [name for name, parameter in self.modules.named_parameters() if parameter.requires_grad],
            "held": [name for name, part in self.modules.named_modules() if is_held(part)],
            "groups": self._groups(),
            "rates": self.rates.first,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.rates.step,
            "history": self.history,
            "best": (self.best_score, self.best_weights),
            "means": vars(self.means),
            "steps": self.steps,
            "seconds": self.seconds,
            "epoch_start": self.epoch_start,
            "random": random_states(),
        }
        return _plain(state)

    def load_state(self, state: dict) -> None:
        """Go to where `state` was taken; the objects must be like those it was taken from."""
        self.modules.load_state_dict(state["tensors"])
        parameters = dict(self.modules.named_parameters())
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in state["trainable"])
        for name, part in self.modules.named_modules():
            if is_held(part) != (name in state["held"]):
                hold(part, not is_held(part))
        for names in state["groups"][len(self.optimizer.param_groups) :]:
            self.optimizer.add_param_group({"params": [parameters[name] for name in names]})
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.rates.first = state["rates"]
        self.rates.step = state["step"]
        self.history = state["history"]
        self.best_score, self.best_weights = state["best"]
        vars(self.means).update(state["means"])
        self.steps = state["steps"]
        self.seconds = state["seconds"]
        self.epoch_start = state["epoch_start"]
        set_batch_order(self.loaders, self.epoch_start)
        set_random_states(state["random"])

    def _groups(self) -> list[list[str]]:
        """The names of the parameters in every group of the optimizer."""
        names = {parameter: name for name, parameter in self.modules.named_parameters()}
        return [[names[parameter] for parameter in group["params"]] for group in self.optimizer.param_groups]


def learning(objective: object) -> dict[str, Tensor]:
    """Parameters and buffers of those modules in an objective that have something to learn: no frozen teacher's."""
    tensors = {}
    for name, part in objective.named_modules() if isinstance(objective, nn.Module) else ():
        if any(parameter.requires_grad for parameter in part.parameters(recurse=False)):
            tensors |= part.named_parameters(name, recurse=False)
            tensors |= part.named_buffers(name, recurse=False)
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _plain(value):
    """The same with NumPy's numbers, such as a rate from np.logspace, as Python's, which a checkpoint can hold."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


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
    """Those of a `DataLoader` and of its samplers, whichever it was given, and of samplers inside them."""
    generators = []
    for owner in (loader, getattr(loader, "batch_sampler", None)):
        while owner is not None:
            generators.append(getattr(owner, "generator", None))
            owner = getattr(owner, "sampler", None)
    return [generator for generator in generators if generator is not None]
