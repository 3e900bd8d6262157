"""What is optimised: one factory per method of transfer.

An objective is a callable `(model, batch) -> dict` with a scalar tensor under "loss"; the other
entries are numbers to log.  `batch` is whatever the loader yields, a pair `(x, y)` in this course.
"""

from collections.abc import Callable

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


def _check_labels(logits: Tensor, y: Tensor) -> None:
    if logits.ndim != 2 or y.shape != logits.shape[:1]:
        raise ValueError(
            f"logits {list(logits.shape)} and labels {list(y.shape)} do not match: the model must give "
            "[N, C] for labels [N]"
        )
    # On a GPU, looking at a value would wait for the device at every step; `Part` has checked the labels.
    if y.is_cpu and (int(y.min()) < 0 or int(y.max()) >= logits.shape[1]):
        raise ValueError(
            f"labels run from {int(y.min())} to {int(y.max())}, but the head has {logits.shape[1]} outputs, "
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
