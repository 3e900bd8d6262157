"""What is optimised: the objective of a supervised task, and of one that must not drift from its start.

An objective is a callable `(model, batch) -> dict` with a scalar tensor under "loss"; the other entries are
numbers to log.  `batch` is whatever the loader yields, a pair `(x, y)` unless said otherwise.

An objective with parameters or state (a discriminator, log variances, a teacher) is an `nn.Module`: `fit`
moves it to the device and keeps it in checkpoints, and `objective.parameters()` go to the optimizer like
any others.  An nn.Module whose strength changes during a run has an attribute `progress` in [0, 1], which
`fit` sets before every step (by hand: `objective.progress = (step + 0.5) / steps`).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = tuple[Tensor, Tensor]
Objective = Callable[[nn.Module, Batch], dict[str, Tensor]]

NO_LABEL = -(2**31)  # torch leaves out examples with this label: without it those with -100, and nobody would notice


def classification(*, label_smoothing: float = 0.0) -> Objective:
    """Cross-entropy of `model(x)` [N, C] against labels y int64 [N]; logs the accuracy.

    Raises (when called):
        ValueError: the logits are not [N, C], or (on a CPU) a label does not fit the head.  A GPU would have to be
            waited for at every step; there torch stops later, with a "device-side assert".
    """

    def objective(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        x, y = batch
        logits = model(x)
        check_shapes(logits, y)
        try:
            loss = F.cross_entropy(logits, y, label_smoothing=label_smoothing, ignore_index=NO_LABEL)
        except IndexError:  # torch has looked at every label (on a CPU); which one was it?
            check_labels(logits, y)
            raise
        return {"loss": loss, "accuracy": (logits.argmax(1) == y).mean(dtype=torch.float32)}

    return objective


def check_shapes(logits: Tensor, y: Tensor) -> None:
    """Refuse logits that are not [N, C] and labels y that are not [N], with a ValueError."""
    if logits.ndim != 2 or y.ndim != 1 or len(y) != len(logits):
        raise ValueError(
            f"logits {list(logits.shape)} and labels {list(y.shape)} do not match: the model must give "
            "[N, C] for labels [N]"
        )


def check_labels(logits: Tensor, y: Tensor, lowest: int = 0) -> None:
    """Refuse other shapes, and labels outside `lowest`..C-1 (on a CPU), with a ValueError."""
    check_shapes(logits, y)
    # On a GPU, looking at a value would wait for the device at every step; `Examples` has checked the labels.
    if not y.is_cpu:
        return
    first, last = (int(end) for end in y.aminmax())
    if first < lowest or last >= logits.shape[1]:
        raise ValueError(
            f"labels run from {first} to {last}, but the head has {logits.shape[1]} outputs, "
            f"for labels {lowest}..{logits.shape[1] - 1}; renumber the labels, or attach a head of the right size"
        )


class L2SP(nn.Module):
    """See `l2_sp`."""

    def __init__(
        self, objective: Objective, body: nn.Module, *, alpha: float, head: nn.Module | None, beta: float
    ) -> None:
        super().__init__()
        if alpha < 0 or beta < 0:
            raise ValueError(f"alpha={alpha} and beta={beta} must not be negative")
        self.objective = objective
        self.alpha = alpha
        self.beta = beta
        # In lists, because body and head belong to the model and not to this module.
        self.held = [parameter for parameter in body.parameters() if parameter.requires_grad]
        self.shrunk = list(head.parameters()) if head is not None else []
        if not self.held:
            raise ValueError("the body has no trainable parameter to hold back; unfreeze some of it first")
        for number, parameter in enumerate(self.held):
            self.register_buffer(f"start_{number}", parameter.detach().clone())

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logged = self.objective(model, batch)
        starts = (getattr(self, f"start_{number}") for number in range(len(self.held)))
        distance = sum(((w - w0) ** 2).sum() for w, w0 in zip(self.held, starts, strict=True))
        size = sum((v**2).sum() for v in self.shrunk)
        loss = logged["loss"] + self.alpha / 2 * distance + self.beta / 2 * size
        return {**logged, "loss": loss, "task_loss": logged["loss"], "drift": distance.detach().sqrt()}


def l2_sp(
    objective: Objective, body: nn.Module, *, alpha: float, head: nn.Module | None = None, beta: float = 0.0
) -> L2SP:
    """`objective` plus a pull of the body towards its starting point.

    Adds alpha/2 * ||w - w0||^2 over the trainable parameters of `body`, where w0 is their value at
    the time of this call, and beta/2 * ||v||^2 over those of `head` (Li, Grandvalet & Davoine 2018,
    arXiv:1802.01483).  Set the optimizer's weight_decay to 0, or both act.

    Logs "drift", ||w - w0||, and the loss of `objective` as "task_loss", by which `fit` can tell the best epoch.

    Raises:
        ValueError: alpha or beta is negative, or the body has no trainable parameter.
    """
    return L2SP(objective, body, alpha=alpha, head=head, beta=beta)
