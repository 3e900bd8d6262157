"""A student learns from a teacher: its softened answers, its features, or its attention.

The teacher of an objective is part of it: `fit` moves it to the device and keeps it in checkpoints.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tlhelpers.modules import listening
from tlhelpers.objectives.supervised import Batch, Objective, check_labels


class FrozenTeacher(nn.Module):
    """A teacher that answers and does not change: eval mode whatever was called, no gradient.

    It answers as the network did when it was given: by a copy, which takes as much memory again.  The network
    itself is left as it is and may go on learning.

    Attributes:
        network: the copy.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def _frozen(teacher: nn.Module) -> FrozenTeacher:
    """Objectives that are given one `FrozenTeacher` share it, and ask it once."""
    return teacher if isinstance(teacher, FrozenTeacher) else FrozenTeacher(teacher)


class Distillation(nn.Module):
    """See `distillation`."""

    def __init__(self, teacher: nn.Module, *, temperature: float, alpha: float) -> None:
        super().__init__()
        self.teacher = _frozen(teacher)
        if not temperature > 0 or not 0 <= alpha <= 1:
            raise ValueError(f"temperature={temperature} must be above 0, and alpha={alpha} in [0, 1]")
        self.temperature = temperature
        self.alpha = alpha

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        x, y = batch
        teacher = self.teacher(x)
        student = model(x)
        return distillation_loss(student, teacher, y, temperature=self.temperature, alpha=self.alpha)


def distillation(teacher: nn.Module, *, temperature: float, alpha: float) -> Distillation:
    """alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T)) + (1 - alpha) * cross-entropy.

    Hinton, Vinyals & Dean 2015, arXiv:1503.02531.  The KL is a mean over all N examples, the
    cross-entropy over the labelled ones: y int64 [N] is -1 for the others.  (`Examples` hold labels only;
    `DataLoader(TensorDataset(x, y))` gives such batches.)  With alpha = 1 labels are not read.

    Logs "soft_loss", "agreement" (same answer as the teacher), and for alpha < 1 "hard_loss" and
    "accuracy", both 0 in a batch without labels.

    Raises:
        ValueError: T <= 0, alpha outside [0, 1]; when called, other classes than the teacher's, or (on a CPU) a
            label outside -1..C-1.
    """
    return Distillation(teacher, temperature=temperature, alpha=alpha)


def distillation_loss(
    student: Tensor, teacher: Tensor, y: Tensor | None, *, temperature: float, alpha: float
) -> dict[str, Tensor]:
    """What `distillation` computes, from the logits [N, C] of both: for a teacher that has answered already.

    With alpha = 1 there need be no labels (None).
    """
    _check_shapes(student, teacher, "give the student a head for the teacher's classes")
    p = (teacher / temperature).log_softmax(1)
    q = (student / temperature).log_softmax(1)
    soft = temperature**2 * F.kl_div(q, p, reduction="batchmean", log_target=True)
    agreement = (student.argmax(1) == teacher.argmax(1)).float().mean()
    logged = {"loss": soft, "soft_loss": soft, "agreement": agreement}
    if alpha == 1:
        return logged
    check_labels(student, y, lowest=-1)
    labelled = (y >= 0).sum().clamp(min=1)
    hard = F.cross_entropy(student, y, ignore_index=-1, reduction="sum") / labelled
    accuracy = (student.argmax(1) == y).sum() / labelled
    return {**logged, "loss": alpha * soft + (1 - alpha) * hard, "hard_loss": hard, "accuracy": accuracy}


class Matched(nn.Module):
    """`objective` plus beta * MSE of what the student's and the teacher's layer give, seen through two views.

    See `feature_match` and `attention_transfer`.
    """

    def __init__(
        self,
        objective: Objective,
        teacher: nn.Module,
        *,
        layers: tuple[str, str],
        view_student: Callable[[Tensor], Tensor],
        view_teacher: Callable[[Tensor], Tensor],
        beta: float,
        name: str,
    ) -> None:
        super().__init__()
        self.teacher = _frozen(teacher)
        if not beta >= 0:
            raise ValueError(f"beta is {beta}; it must be at least 0")
        self.objective = objective
        self.layers = layers
        self.view_student = view_student
        self.view_teacher = view_teacher
        self.beta = beta
        self.name = name

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        student_layer, teacher_layer = self.layers
        with listening(model, student_layer) as mine, listening(self.teacher.network, teacher_layer) as theirs:
            logged = self.objective(model, batch)
            if not theirs:  # a distillation has asked already
                self.teacher(batch[0])
        if not mine or not theirs:
            whose, layer = ("teacher", teacher_layer) if mine else ("student", student_layer)
            raise ValueError(f"the {whose}'s layer {layer!r} does not run; choose one that takes part in its answer")
        student = self.view_student(mine[0])
        teacher = self.view_teacher(theirs[0].detach())
        _check_shapes(student, teacher, "choose another layer or regressor")
        distance = F.mse_loss(student, teacher)
        return {**logged, "loss": logged["loss"] + self.beta * distance, self.name: distance}


def feature_match(
    objective: Objective, teacher: nn.Module, *, layers: tuple[str, str], regressor: nn.Module, beta: float
) -> Matched:
    """`objective` plus beta * MSE(regressor(student's features), teacher's) (FitNets, Romero 2015, arXiv:1412.6550).

    `layers` are names in `named_modules()` of the student and of the teacher.  The regressor brings the
    student's features to the teacher's shape: nn.Linear for [N, D], a 1x1 nn.Conv2d for [N, C, H, W]; it
    learns too, by `objective.parameters()`.  Logs "feature_loss".

    Raises:
        ValueError: beta < 0; when called, no such layer, one that does not run or gives no tensor, or other shapes.
    """
    return Matched(
        objective,
        teacher,
        layers=layers,
        view_student=regressor,
        view_teacher=_as_it_is,
        beta=beta,
        name="feature_loss",
    )


def attention_transfer(objective: Objective, teacher: nn.Module, *, layers: tuple[str, str], beta: float) -> Matched:
    """`objective` plus beta * MSE(attention_map(student's features), attention_map(teacher's)).

    Zagoruyko & Komodakis 2017, arXiv:1612.03928, as in their code.  Features [N, C, H, W] may differ in
    C only.  Layers and errors as for `feature_match`.  Logs "attention_loss".
    """
    return Matched(
        objective,
        teacher,
        layers=layers,
        view_student=attention_map,
        view_teacher=attention_map,
        beta=beta,
        name="attention_loss",
    )


def _as_it_is(features: Tensor) -> Tensor:
    return features


def attention_map(features: Tensor) -> Tensor:
    """Squares summed over channels, as vectors of length 1: [N, C, H, W] -> [N, H * W]."""
    if features.ndim != 4:
        raise ValueError(f"an attention map needs [N, C, H, W], not {list(features.shape)}; take a convolutional layer")
    return F.normalize(features.float().square().sum(1).flatten(1))


def _check_shapes(student: Tensor, teacher: Tensor, remedy: str) -> None:
    if student.shape != teacher.shape:
        raise ValueError(f"the student gives {list(student.shape)}, the teacher {list(teacher.shape)}; {remedy}")
