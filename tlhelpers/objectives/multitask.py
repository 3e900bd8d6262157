"""Several tasks at once: a weighted sum of losses, learnt weights, and gradients that (dis)agree.

The model has children `body` and `heads` (nn.ModuleDict, a head per task; a shared head is one module under
two names), a batch is {task: (x, y)}, see `data.JointLoader`.
"""

from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tlhelpers.objectives.supervised import Batch, Objective, classification


class MultiTask(nn.Module):
    """See `multitask`."""

    def __init__(self, weights: dict[str, float], objectives: dict[str, Objective] | None) -> None:
        super().__init__()
        if not all(weight >= 0 for weight in weights.values()) or not any(weights.values()):
            raise ValueError(f"the weights are {weights}; each must be at least 0, and one of them above")
        self.weights = weights
        self.objectives = _one_each(weights, objectives)
        self.parts = _modules_of(self.objectives)

    def forward(self, model: nn.Module, batch: dict[str, Batch]) -> dict[str, Tensor]:
        running = [task for task, weight in self.weights.items() if weight > 0 or not model.training]
        logged = _run_tasks(model, batch, {task: self.objectives[task] for task in running})
        # 0 * NaN is NaN: what weighs nothing is not added at all.
        loss = sum(weight * logged[f"{task}_loss"] for task, weight in self.weights.items() if weight > 0)
        return {**logged, "loss": loss}


def multitask(weights: dict[str, float], objectives: dict[str, Objective] | None = None) -> MultiTask:
    """Sum over tasks t of weights[t] * L_t, such as L_S + lambda * L_T (Caruana 1997, "Multitask Learning").

    Tasks run one after the other, so BatchNorm in training normalises each with its own statistics.
    A task of weight 0 is left out of training, but scored in evaluation.  Tasks without an objective
    of their own get `classification()`.  Logs all they log as "source_loss", "source_accuracy", ...

    Raises:
        ValueError: a negative weight, none above 0, an objective without a weight; when called, a task
            without a batch or without a head.
    """
    return MultiTask(weights, objectives)


class UncertaintyWeighted(nn.Module):
    """See `uncertainty_weighted`.

    Attributes:
        log_variances: s_t per task, nn.ParameterDict of scalars, 0 at first.
    """

    def __init__(self, tasks: Iterable[str], objectives: dict[str, Objective] | None) -> None:
        super().__init__()
        self.log_variances = nn.ParameterDict({task: nn.Parameter(torch.zeros(())) for task in tasks})
        if not len(self.log_variances):
            raise ValueError("there is no task to weigh; give the names of at least one")
        self.objectives = _one_each(self.log_variances, objectives)
        self.parts = _modules_of(self.objectives)

    def forward(self, model: nn.Module, batch: dict[str, Batch]) -> dict[str, Tensor]:
        logged = _run_tasks(model, batch, self.objectives)
        weights = {task: torch.exp(-s) / 2 for task, s in self.log_variances.items()}
        loss = sum(weights[task] * logged[f"{task}_loss"] + s / 2 for task, s in self.log_variances.items())
        return {**logged, **{f"{task}_weight": weight for task, weight in weights.items()}, "loss": loss}


def uncertainty_weighted(tasks: Iterable[str], objectives: dict[str, Objective] | None = None) -> UncertaintyWeighted:
    """Learnt weights: sum over tasks t of (exp(-s_t) * L_t + s_t) / 2 with s_t = log(sigma_t^2).

    Kendall, Gal & Cipolla 2018, arXiv:1705.07115, with the half of their Gaussian likelihood for
    every task: the best s_t at a fixed L_t is log(L_t).  (For a classifier they drop the half before
    L_t, which makes it log(2 * L_t).)  The s_t are `objective.log_variances`; they go to the optimizer with
    `objective.parameters()`.  Batches, logs and errors as for `multitask`, and exp(-s_t) / 2 as
    "source_weight", ...  The sum changes its meaning, so let `fit` compare epochs by a task's loss, such as
    best="validation_source_loss".

    Raises:
        ValueError: no task, or as `multitask`.
    """
    return UncertaintyWeighted(tasks, objectives)


def _one_each(tasks: Iterable[str], objectives: dict[str, Objective] | None) -> dict[str, Objective]:
    if unknown := sorted(set(objectives or {}) - set(tasks)):
        raise ValueError(f"there is an objective for {unknown}, which have no weight; the tasks are {sorted(tasks)}")
    return {task: classification() for task in tasks} | (objectives or {})


def _modules_of(objectives: dict[str, Objective]) -> nn.ModuleList:
    """Those with parameters or state, so that they become part of the objective that uses them."""
    return nn.ModuleList(objective for objective in objectives.values() if isinstance(objective, nn.Module))


def _run_tasks(model: nn.Module, batch: dict[str, Batch], objectives: dict[str, Objective]) -> dict[str, Tensor]:
    logged = {}
    for task, objective in objectives.items():
        if not isinstance(batch, dict) or task not in batch:
            content = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
            raise ValueError(f"the batch is {content}, without task {task!r}; JointLoader yields a dict with all tasks")
        if task not in model.heads:
            raise ValueError(f"the model has heads for {sorted(model.heads)}, not for task {task!r}; add one")
        path = nn.Sequential(OrderedDict(body=model.body, head=model.heads[task]))
        path.training = model.training  # of this container only; the parts keep their own
        logged |= {f"{task}_{name}": value for name, value in objective(path, batch[task]).items()}
    return logged


def gradient_cosine(g1: Tensor, g2: Tensor) -> float:
    """Cosine of the angle between two gradients [P]: below 0 they conflict; 0 also if one of them is 0.

    Raises:
        ValueError: not two vectors of one length.
    """
    _check_gradients(g1, g2)
    a = g1.cpu().double()  # float32 has no squares of tiny gradients
    b = g2.cpu().double()
    norms = a.norm() * b.norm()
    return float(a @ b / norms) if norms > 0 else 0.0


def project_conflicting(g1: Tensor, g2: Tensor) -> tuple[Tensor, Tensor]:
    """PCGrad (Yu et al. 2020, arXiv:2001.06782): take from two gradients [P] the parts against each other.

    If g1.g2 < 0, g1 - (g1.g2 / ||g2||^2) * g2 and likewise g2; otherwise both as they are.  The
    optimizer steps along their sum.

    Raises:
        ValueError: not two vectors of one length.
    """
    _check_gradients(g1, g2)
    dot = g1 @ g2
    if dot >= 0:
        return g1, g2
    return g1 - dot / (g2 @ g2) * g2, g2 - dot / (g1 @ g1) * g1


def _check_gradients(g1: Tensor, g2: Tensor) -> None:
    if g1.ndim != 1 or g1.shape != g2.shape or g1.dtype != g2.dtype or not g1.is_floating_point():
        raise ValueError(
            f"gradients {g1.dtype} {list(g1.shape)} and {g2.dtype} {list(g2.shape)} must be [P], of one floating "
            "type; flatten those of shared weights"
        )
