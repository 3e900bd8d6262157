"""What is optimised: one factory per method of transfer; those against a shift of domain are in `alignment`.

An objective is a callable `(model, batch) -> dict` with a scalar tensor under "loss"; the other
entries are numbers to log.  `batch` is whatever the loader yields, a pair `(x, y)` unless said otherwise.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = tuple[Tensor, Tensor]
Objective = Callable[[nn.Module, Batch], dict[str, Tensor]]


def classification(*, label_smoothing: float = 0.0) -> Objective:
    """Cross-entropy of `model(x)` [N, C] against labels y int64 [N]; logs the accuracy.

    Raises (when called):
        ValueError: the logits are not [N, C], or a label does not fit the head.
    """

    def objective(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        x, y = batch
        logits = model(x)
        _check_labels(logits, y)
        loss = F.cross_entropy(logits, y, label_smoothing=label_smoothing)
        return {"loss": loss, "accuracy": (logits.argmax(1) == y).float().mean()}

    return objective


def _check_labels(logits: Tensor, y: Tensor, lowest: int = 0) -> None:
    if logits.ndim != 2 or y.shape != logits.shape[:1]:
        raise ValueError(
            f"logits {list(logits.shape)} and labels {list(y.shape)} do not match: the model must give "
            "[N, C] for labels [N]"
        )
    # On a GPU, looking at a value would wait for the device at every step; `Part` has checked the labels.
    if not y.is_cpu:
        return
    first, last = (int(end) for end in y.aminmax())
    if first < lowest or last >= logits.shape[1]:
        raise ValueError(
            f"labels run from {first} to {last}, but the head has {logits.shape[1]} outputs, "
            f"for labels 0..{logits.shape[1] - 1}; attach a head of the right size"
        )


def l2_sp(
    objective: Objective, body: nn.Module, *, alpha: float, head: nn.Module | None = None, beta: float = 0.0
) -> Objective:
    """`objective` plus a pull of the body towards its starting point.

    Adds alpha/2 * ||w - w0||^2 over the trainable parameters of `body`, where w0 is their value at
    the time of this call, and beta/2 * ||v||^2 over those of `head` (Li, Grandvalet & Davoine 2018,
    arXiv:1802.01483).  Set the optimizer's weight_decay to 0, or both act.

    Logs "drift", ||w - w0||.

    Raises:
        ValueError: alpha or beta is negative, or the body has no trainable parameter.
    """
    if alpha < 0 or beta < 0:
        raise ValueError(f"alpha={alpha} and beta={beta} must not be negative")
    start = [(p, p.detach().clone()) for p in body.parameters() if p.requires_grad]
    if not start:
        raise ValueError("the body has no trainable parameter to hold back; unfreeze some of it first")

    def penalised(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logged = objective(model, batch)
        distance = sum(((p - w0.to(p.device)) ** 2).sum() for p, w0 in start)
        size = sum((p**2).sum() for p in head.parameters()) if head is not None else torch.zeros(())
        loss = logged["loss"] + alpha / 2 * distance + beta / 2 * size
        return {**logged, "loss": loss, "drift": distance.detach().sqrt()}

    return penalised


def multitask(weights: dict[str, float], objectives: dict[str, Objective] | None = None) -> Objective:
    """Sum over tasks t of weights[t] * L_t, such as L_S + lambda * L_T (Caruana 1997, "Multitask Learning").

    The model has children `body` and `heads` (nn.ModuleDict, a head per task; a shared head is one
    module under two names), a batch is {task: (x, y)}, see `data.JointLoader`.  Tasks run one after
    the other, so BatchNorm in training normalises each with its own statistics.

    A task of weight 0 is left out of training, but scored in evaluation.  Tasks without an objective
    of their own get `classification()`.  Logs all they log as "source_loss", "source_accuracy", ...

    Raises:
        ValueError: a negative weight, none above 0, an objective without a weight; when called, a task
            without a batch or without a head.
    """
    if not all(weight >= 0 for weight in weights.values()) or not any(weights.values()):
        raise ValueError(f"the weights are {weights}; each must be at least 0, and one of them above")
    chosen = _one_each(weights, objectives)

    def objective(model: nn.Module, batch: dict[str, Batch]) -> dict[str, Tensor]:
        running = {task: chosen[task] for task, weight in weights.items() if weight > 0 or not model.training}
        logged = _run_tasks(model, batch, running)
        return {**logged, "loss": sum(weights[task] * logged[f"{task}_loss"] for task in running)}

    return objective


def uncertainty_weighted(log_variances: nn.ParameterDict, objectives: dict[str, Objective] | None = None) -> Objective:
    """Learnt weights: sum over tasks t of (exp(-s_t) * L_t + s_t) / 2 with s_t = log(sigma_t^2).

    Kendall, Gal & Cipolla 2018, arXiv:1705.07115, with the half of their Gaussian likelihood for
    every task: the best s_t at a fixed L_t is log(L_t).  (For a classifier they drop the half before
    L_t, which makes it log(2 * L_t).)  The s_t, such as nn.ParameterDict({"source": torch.zeros(()), ...}),
    go to the optimizer too.  Batches, logs and errors as for `multitask`, and exp(-s_t) / 2 as
    "source_weight", ...  Choose epochs by one task's loss: the sum changes its meaning.
    """
    if not len(log_variances):
        raise ValueError("log_variances is empty; give one scalar per task, such as torch.zeros(())")
    chosen = _one_each(log_variances, objectives)

    def objective(model: nn.Module, batch: dict[str, Batch]) -> dict[str, Tensor]:
        logged = _run_tasks(model, batch, chosen)
        factors = {task: torch.exp(-s) / 2 for task, s in log_variances.items()}
        loss = sum(factors[task] * logged[f"{task}_loss"] + s / 2 for task, s in log_variances.items())
        return {**logged, **{f"{task}_weight": factor for task, factor in factors.items()}, "loss": loss}

    return objective


def _one_each(tasks: Iterable[str], objectives: dict[str, Objective] | None) -> dict[str, Objective]:
    if unknown := sorted(set(objectives or {}) - set(tasks)):
        raise ValueError(f"there is an objective for {unknown}, which have no weight; the tasks are {sorted(tasks)}")
    return {task: classification() for task in tasks} | (objectives or {})


def _run_tasks(model: nn.Module, batch: dict[str, Batch], objectives: dict[str, Objective]) -> dict[str, Tensor]:
    logged = {}
    for task, objective in objectives.items():
        if not isinstance(batch, dict) or task not in batch:
            found = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
            raise ValueError(f"the batch is {found}, without task {task!r}; JointLoader yields a dict with all tasks")
        if task not in model.heads:
            raise ValueError(f"the model has heads for {sorted(model.heads)}, not for task {task!r}; add one")
        path = nn.Sequential(OrderedDict(body=model.body, head=model.heads[task]))
        path.training = model.training  # of this container only; the parts keep their own
        logged |= {f"{task}_{name}": value for name, value in objective(path, batch[task]).items()}
    return logged


def distillation(teacher: nn.Module, *, temperature: float, alpha: float) -> Objective:
    """alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T)) + (1 - alpha) * cross-entropy.

    Hinton, Vinyals & Dean 2015, arXiv:1503.02531.  The KL is a mean over all N examples, the
    cross-entropy over the labelled ones: y int64 [N] is -1 for the others.  With alpha = 1 labels are
    not read.  The teacher runs in eval mode, whatever was called, and gets no gradient.

    Logs "soft_loss", "agreement" (same answer as the teacher), and for alpha < 1 "hard_loss" and
    "accuracy", both 0 in a batch without labels.

    Raises:
        ValueError: T <= 0, alpha outside [0, 1]; when called, other classes than the teacher's, or wrong labels.
    """
    if not temperature > 0 or not 0 <= alpha <= 1:
        raise ValueError(f"temperature={temperature} must be above 0, and alpha={alpha} in [0, 1]")

    def objective(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        theirs, mine = _ask(teacher, batch[0]), model(batch[0])
        _check_shapes(mine, theirs, "give the student a head for the teacher's classes")
        p, q = (theirs / temperature).log_softmax(1), (mine / temperature).log_softmax(1)
        soft = temperature**2 * F.kl_div(q, p, reduction="batchmean", log_target=True)
        logged = {"loss": soft, "soft_loss": soft, "agreement": (mine.argmax(1) == theirs.argmax(1)).float().mean()}
        if alpha == 1:
            return logged
        _check_labels(mine, y := batch[1], lowest=-1)
        hard = F.cross_entropy(mine, y, ignore_index=-1, reduction="sum") / (y >= 0).sum().clamp(min=1)
        accuracy = (mine.argmax(1) == y).sum() / (y >= 0).sum().clamp(min=1)
        return {**logged, "loss": alpha * soft + (1 - alpha) * hard, "hard_loss": hard, "accuracy": accuracy}

    return objective


def feature_match(
    objective: Objective, teacher: nn.Module, *, layers: tuple[str, str], regressor: nn.Module, beta: float
) -> Objective:
    """`objective` plus beta * MSE(regressor(student's features), teacher's) (FitNets, Romero 2015, arXiv:1412.6550).

    `layers` are names in `named_modules()` of the student and of the teacher.  The regressor brings the
    student's features to the teacher's shape: nn.Linear for [N, D], a 1x1 nn.Conv2d for [N, C, H, W];
    the optimizer needs its parameters too.  Logs "feature_loss".

    Raises:
        ValueError: beta < 0; when called, no such layer, or other shapes.
    """
    views = lambda x: regressor.to(x.device)(x), lambda x: x
    return _matched(objective, teacher, layers, views, beta, "feature_loss")


def attention_transfer(objective: Objective, teacher: nn.Module, *, layers: tuple[str, str], beta: float) -> Objective:
    """`objective` plus beta * MSE(attention_map(student's features), attention_map(teacher's)).

    Zagoruyko & Komodakis 2017, arXiv:1612.03928, as in their code.  Features [N, C, H, W] may differ in
    C only.  Layers and errors as for `feature_match`.  Logs "attention_loss".
    """
    return _matched(objective, teacher, layers, (attention_map, attention_map), beta, "attention_loss")


def attention_map(features: Tensor) -> Tensor:
    """Squares summed over channels, as vectors of length 1: [N, C, H, W] -> [N, H * W]."""
    if features.ndim != 4:
        raise ValueError(f"an attention map needs [N, C, H, W], not {list(features.shape)}; take a convolutional layer")
    return F.normalize(features.float().square().sum(1).flatten(1))


def _matched(objective, teacher, layers: tuple[str, str], views: tuple[Callable, Callable], beta: float, name: str):
    if not beta >= 0:
        raise ValueError(f"beta is {beta}; it must be at least 0")

    def matched(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        with _listening(model, layers[0]) as mine, _listening(teacher, layers[1]) as theirs:
            logged = objective(model, batch)
            if not theirs:  # a distillation has asked already
                _ask(teacher, batch[0])
        seen, goal = views[0](mine[0]), views[1](theirs[0].detach())
        _check_shapes(seen, goal, "choose another layer or regressor")
        distance = F.mse_loss(seen, goal)
        return {**logged, "loss": logged["loss"] + beta * distance, name: distance}

    return matched


@torch.no_grad()
def _ask(teacher: nn.Module, x: Tensor) -> Tensor:
    return teacher.to(x.device).eval()(x)


def _check_shapes(student: Tensor, teacher: Tensor, remedy: str) -> None:
    if student.shape != teacher.shape:
        raise ValueError(f"the student gives {list(student.shape)}, the teacher {list(teacher.shape)}; {remedy}")


@contextmanager
def _listening(module: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """A list that fills with the outputs of a layer; the hook is gone afterwards, whatever happens."""
    layers = dict(module.named_modules())
    if layer not in layers:
        raise ValueError(f"no layer called {layer!r}; there are {', '.join(filter(None, layers))}")
    caught: list[Tensor] = []
    hook = layers[layer].register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    try:
        yield caught
    finally:
        hook.remove()
