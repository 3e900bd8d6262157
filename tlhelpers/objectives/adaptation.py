"""Objectives against a shift of domain, with labels in the source only.

As objectives they take a model with children `body`, to features [N, D], and `head`; a batch is
{"source": (x, y), "target": (x, y)} (see `data.JointLoader`), of which the target's y is never read.
Both domains go through the body in one pass: BatchNorm in training sees their mixture, as its running
statistics will.  All log "accuracy" and "source_loss", both of the source.
"""

import copy
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from tlhelpers.modules import modes_kept
from tlhelpers.objectives.supervised import Batch, Objective, classification


def coral(weight: float) -> Objective:
    """Source classification plus weight * `coral_distance` of the features (Deep CORAL); logs "coral".

    Raises:
        ValueError: weight < 0; when called, a domain missing from the batch or with fewer than 2 examples, or
            (looked for on a CPU only) NaN features or a label that does not fit the head.
    """
    return _aligned("coral", coral_distance, weight)


def coral_distance(source: Tensor, target: Tensor) -> Tensor:
    """||C_s - C_t||_F^2 / (4 D^2) for the covariances (N - 1 below) of features [N, D] and [M, D].

    Sun & Saenko 2016, arXiv:1607.01719.

    Raises:
        ValueError: other shapes, different D, fewer than 2 rows in one of them, or NaN (looked for on a CPU only).
    """
    check_domains(source, target, least=2)
    difference = _covariance(source) - _covariance(target)
    return difference.square().sum() / (4 * source.shape[1] ** 2)


def coral_transform(source: Tensor, target: Tensor, *, regularisation: float = 1.0) -> Tensor:
    """Source features [N, D] with the mean and covariance of target features [M, D]: whitened, then coloured.

    (x - mean_s) (C_s + r I)^(-1/2) (C_t + r I)^(1/2) + mean_t for each row x; r = 1 in Sun, Feng &
    Saenko 2016, arXiv:1511.05547, for features of variance 1.  The smaller r, the closer the match.

    Returns new source features [N, D]: a classifier trained on them is used on `target`.

    Raises:
        ValueError: as `coral_distance`, or r <= 0.
    """
    check_domains(source, target, least=2)
    if not regularisation > 0:
        raise ValueError(
            f"regularisation is {regularisation}; it must be above 0, or few samples could not be whitened"
        )
    s = source.double()
    t = target.double()
    whiten = _power(_covariance(s), regularisation, -0.5)
    colour = _power(_covariance(t), regularisation, 0.5)
    return ((s - s.mean(0)) @ whiten @ colour + t.mean(0)).to(source.dtype)


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return centred.T @ centred / (len(x) - 1)


def _power(covariance: Tensor, ridge: float, exponent: float) -> Tensor:
    """(covariance + ridge * I)^exponent."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * (values.clamp(min=0) + ridge) ** exponent @ vectors.T  # rounding can make a 0 negative


def mmd(weight: float, *, bandwidth: float | None = None) -> Objective:
    """Source classification plus weight * `squared_mmd` of the features; logs "mmd".

    After Long et al. 2015, arXiv:1502.02791, with one Gaussian kernel at the last layer.

    Args:
        bandwidth: of the kernel; the median distance within each batch when None.

    Raises:
        ValueError: as `coral`, or a bandwidth <= 0.
    """
    if bandwidth is not None and not bandwidth > 0:
        raise ValueError(f"the bandwidth is {bandwidth}; it must be positive, or None for the median distance")
    return _aligned("mmd", lambda source, target: squared_mmd(source, target, bandwidth=bandwidth), weight)


def squared_mmd(source: Tensor, target: Tensor, *, bandwidth: float | None = None) -> Tensor:
    """Squared maximum mean discrepancy with a Gaussian kernel, the unbiased estimate, as a scalar tensor.

    Gretton et al. 2012, "A kernel two-sample test", equation 3, with
    k(a, b) = exp(-||a - b||^2 / (2 * bandwidth^2)).  Around 0 for two samples of one distribution, and,
    being unbiased, sometimes below.  Gradients go to both samples, none through a bandwidth of None.

    Args:
        source, target: features [N, D] and [M, D].
        bandwidth: of the kernel; the median distance between different rows of both when None.

    Raises:
        ValueError: as `coral_distance`, or a bandwidth <= 0.
    """
    check_domains(source, target, least=2)
    n = len(source)
    m = len(target)
    both = torch.cat([source, target])
    # Squared differences: the default, a difference of squares, has no digits left for near rows among far ones.
    squared = torch.cdist(both, both, compute_mode="donot_use_mm_for_euclid_dist").square()  # [N + M, N + M]
    if bandwidth is None:
        # float() waits for a GPU; the gradient leaves the bandwidth alone.
        bandwidth = float(squared.detach()[tuple(torch.triu_indices(n + m, n + m, offset=1))].median().sqrt())
    if not bandwidth > 0:
        raise ValueError(f"the bandwidth is {bandwidth}; it must be positive (are all rows equal?)")
    kernel = torch.exp(-squared / (2 * bandwidth**2))
    within_source = (kernel[:n, :n].sum() - n) / (n * (n - 1))  # the diagonal is n ones
    within_target = (kernel[n:, n:].sum() - m) / (m * (m - 1))
    return within_source + within_target - 2 * kernel[:n, n:].mean()


def check_domains(source: Tensor, target: Tensor, *, least: int) -> None:
    """Refuse features that are not [N, D] and [M, D], of one floating type, `least` rows or more; on a CPU, NaN too."""
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1]:
        raise ValueError(f"features must be [N, D] and [M, D], not {list(source.shape)} and {list(target.shape)}")
    if source.dtype != target.dtype or not source.is_floating_point():
        raise ValueError(f"features {source.dtype} and {target.dtype} must be of one floating type; use .float()")
    if min(len(source), len(target)) < least:
        raise ValueError(f"{len(source)} and {len(target)} rows are too few; give at least {least} of each domain")
    for name, x in [("source", source), ("target", target)]:
        if x.is_cpu and not torch.isfinite(x).all():  # on a GPU, looking would wait at every step
            raise ValueError(f"the {name} features hold NaN or infinity; look at the inputs and at the learning rate")


class DomainAdversarial(nn.Module):
    """See `dann`.

    Attributes:
        progress: of the run, in [0, 1]; `fit` sets it before every step.
    """

    def __init__(self, discriminator: nn.Module, *, weight: float) -> None:
        super().__init__()
        _check_weight(weight)
        self.discriminator = discriminator
        self.weight = weight
        self.progress = 0.0

    def forward(self, model: nn.Module, batch: dict[str, Batch]) -> dict[str, Tensor]:
        strength = self.weight * dann_lambda(self.progress)
        source, target, logged = _both(model, batch)
        features = reverse_gradient(torch.cat([source, target]), strength)
        logits = self.discriminator(features)
        if logits.shape != (len(features), 1):
            raise ValueError(f"the discriminator gives {list(logits.shape)}; it must end in nn.Linear(..., 1)")
        is_source = (torch.arange(len(features), device=features.device) < len(source)).float()
        loss = F.binary_cross_entropy_with_logits(logits[:, 0].float(), is_source)
        right = ((logits[:, 0] > 0) == (is_source == 1)).float().mean()
        logged |= {"domain_loss": loss, "domain_accuracy": right, "lambda": torch.tensor(strength)}
        return {**logged, "loss": logged["source_loss"] + loss}


def dann(discriminator: nn.Module, *, weight: float = 1.0) -> DomainAdversarial:
    """Source classification plus the loss of a discriminator whose gradient to the body is reversed.

    Ganin et al. 2016, arXiv:1505.07818.  The discriminator learns at full strength to tell source (1)
    from target (0); the body gets -lambda times its gradient, lambda = weight * dann_lambda(progress).

    Args:
        discriminator: features [N, D] -> logits [N, 1]; it learns by `objective.parameters()`.

    Logs "domain_loss", "domain_accuracy" and "lambda".  The loss holds that of the discriminator, which rises
    where the domains meet; best="validation_source_loss" lets `fit` compare epochs by the task's.

    Raises:
        ValueError: weight < 0; when called, as `coral`, or logits of another shape.
    """
    return DomainAdversarial(discriminator, weight=weight)


def dann_lambda(progress: float) -> float:
    """2 / (1 + exp(-10 p)) - 1 for progress p in [0, 1]: from 0 to 0.9999 (Ganin et al. 2016, section 5.2.2)."""
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is {progress}; it must be in [0, 1]: steps done by steps in all")
    return math.tanh(5 * progress)


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)  # returning x itself would hide the function from autograd

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """x itself, whose gradient comes back multiplied by -strength."""
    return _Reversal.apply(x, strength)


def adabn(model: nn.Module, loader: Iterable[Batch]) -> None:
    """Replace the statistics of every BatchNorm by those of target inputs (Li et al. 2018, arXiv:1603.04779).

    One pass over (x, y), y not read; the mean over batches of their means and variances, so let them be
    equally large and mixed.  Weights and training flags stay; frozen parts get new statistics too.  After an
    error the statistics are those of before.

    Raises:
        ValueError: no BatchNorm that keeps statistics, no batch, one of a single example, or NaN inputs.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms or len(loader) == 0:
        raise ValueError(f"{len(norms)} BatchNorm layers and {len(loader)} batches; adabn needs at least one of each")
    before = [(norm, norm.momentum, copy.deepcopy(norm.state_dict())) for norm in norms]
    with modes_kept(model), torch.no_grad():
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # every batch counts the same
        # By hooks, because a frozen part returns to eval mode when it runs; ours come after its own.
        hooks = [norm.register_forward_pre_hook(_keep_learning) for norm in norms]
        try:
            for x, _ in loader:
                if len(x) < 2 or not torch.isfinite(x).all():
                    raise ValueError(f"a batch of {len(x)} target inputs is too small or holds NaN; give 2 or more")
                model(x.to(norms[0].running_mean.device))
        except BaseException:
            for norm, _, state in before:
                norm.load_state_dict(state)
            raise
        finally:
            for hook in hooks:
                hook.remove()
            for norm, momentum, _ in before:
                norm.momentum = momentum


def _keep_learning(norm: nn.Module, _inputs: tuple) -> None:
    norm.training = True


def _check_weight(weight: float) -> None:
    if not weight >= 0:
        raise ValueError(f"the weight is {weight}; it must be at least 0")


def _aligned(name: str, distance: Callable[[Tensor, Tensor], Tensor], weight: float) -> Objective:
    _check_weight(weight)

    def objective(model: nn.Module, batch: dict[str, Batch]) -> dict[str, Tensor]:
        source, target, logged = _both(model, batch)
        with torch.autocast(source.device.type, enabled=False):  # a covariance of bfloat16 is too coarse
            gap = distance(source.float(), target.float())
        return {**logged, "loss": logged["source_loss"] + weight * gap, name: gap}

    return objective


def _both(model: nn.Module, batch: dict[str, Batch]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Features of source and target, and what source classification logs."""
    sizes = {name: len(batch[name][0]) if name in batch else 0 for name in ("source", "target")}
    if min(sizes.values()) < 2:
        raise ValueError(f"the batch holds {sizes} examples; at least 2 of each are needed (JointLoader yields both)")
    x, y = batch["source"]
    target_x, _ = batch["target"]
    features = model.body(torch.cat([x, target_x]))
    source = features[: len(x)]
    target = features[len(x) :]
    check_domains(source, target, least=2)
    logged = classification()(model.head, (source, y))
    return source, target, {"source_loss": logged["loss"], "accuracy": logged["accuracy"]}
