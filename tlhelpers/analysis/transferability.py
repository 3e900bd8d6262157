"""How far apart are two domains, and how well will a source serve a target?  Scores without training.

The last four look at one source and the labels of the target: more is better, for one target and
many sources.  They are computed in float64.
"""

import math

import torch
from scipy.optimize import minimize_scalar
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from tlhelpers.objectives.adaptation import check_domains, squared_mmd
from tlhelpers.runtime import shifted


def proxy_a_distance(source: Tensor, target: Tensor, *, seed: int = 0) -> float:
    """2 * (1 - 2 * e), where e is the held-out error of a classifier that tells the domains apart.

    0 means that no linear classifier can (the score is cut off there), 2 that it never errs
    (Ben-David et al. 2010, "A theory of learning from different domains").  Both samples are cut to
    the size of the smaller one, half of each is held out, and the error is averaged over exchanging
    the halves.

    Args:
        source, target: features [N, D] and [M, D].
        seed: of the random halves; `TLHELPERS_SEED` shifts it.

    Raises:
        ValueError: other shapes, different D, fewer than 4 rows in one of them, or NaN.
    """
    check_domains(source, target, least=4)
    n = min(len(source), len(target)) // 2 * 2
    generator = torch.Generator().manual_seed(shifted(seed))
    halves = [x[torch.randperm(len(x), generator=generator)[:n]].chunk(2) for x in (source, target)]
    folds = [torch.cat([halves[0][i], halves[1][i]]).numpy() for i in range(2)]
    domain = torch.arange(2).repeat_interleave(n // 2).numpy()
    errors = []
    for here, there in [(0, 1), (1, 0)]:
        scaler = StandardScaler().fit(folds[here])
        with threadpool_limits(1):
            classifier = LogisticRegression(C=0.1, max_iter=1000).fit(scaler.transform(folds[here]), domain)
        errors.append(1 - classifier.score(scaler.transform(folds[there]), domain))
    return max(0.0, 2 * (1 - 2 * sum(errors) / 2))


def mmd_distance(source: Tensor, target: Tensor, *, bandwidth: float | None = None) -> float:
    """`objectives.squared_mmd` as a number, computed in float64; arguments and errors as there."""
    return float(squared_mmd(source.double(), target.double(), bandwidth=bandwidth))


def h_score(features: Tensor, labels: Tensor) -> float:
    """Variance between classes measured in units of the variance of the features; at most C - 1.

    (1 - a) * tr(S_a^-1 B): B is the covariance of the class means, S_a = (1 - a) * S + a * tr(S) / D * I
    that of all features, with the shrinkage a of Ledoit & Wolf (scikit-learn).  Bao et al. 2019, "An
    information-theoretic approach to transferability in task transfer learning", as regularised by
    Ibrahim et al. 2021, arXiv:2110.06893.  Without shrinkage the score is C - 1 for any labels, also
    random ones, as soon as N <= D.

    Args:
        features: [N, D].  Constant columns, which would count in D and in the shrinkage, are left out.
        labels: int64 [N].

    Raises:
        ValueError: NaN, all features constant, labels of another type or length, one class only, or
            a label that is N or more.
    """
    x, y = _check_features(features, labels)
    x = x[:, (x != x[0]).any(0)]
    x = x - x.mean(0)
    with threadpool_limits(1):
        fit = LedoitWolf(assume_centered=True).fit(x.numpy())
    means = torch.stack([x[y == label].mean(0) for label in y.unique()])
    counts = y.unique(return_counts=True)[1].double()
    between = (means.T * (counts / len(x))) @ means  # [D, D]
    precision = torch.linalg.pinv(torch.from_numpy(fit.covariance_), hermitian=True)
    return (1 - float(fit.shrinkage_)) * float((precision * between).sum())  # both are symmetric


def nce(source_labels: Tensor, labels: Tensor) -> float:
    """Negative conditional entropy -H(Y | Z) in nats: how well labels follow from those of the source.

    Tran, Nguyen & Hassner 2019, arXiv:1908.08142.  From -H(Y), when they say nothing, to 0; H(Y) is log(C)
    for classes of equal size.

    Args:
        source_labels: int64 [N], labels of the same inputs in the source task, as a rule predicted.
        labels: int64 [N].

    Raises:
        ValueError: labels of another type or length, one class only, or one that is N or more.
    """
    y = _check_labels(labels, len(source_labels))
    z = _check_labels(source_labels, len(labels), name="source_labels", least=1)
    joint = torch.zeros(int(y.max()) + 1, int(z.max()) + 1, dtype=torch.float64)
    joint.index_put_((y, z), torch.tensor(1 / len(y), dtype=torch.float64), accumulate=True)
    return float(torch.xlogy(joint, joint / joint.sum(0).clamp(min=1e-300)).sum())


def leep(source_probabilities: Tensor, labels: Tensor) -> float:
    """Mean log-likelihood of the labels under p(y | x) = sum over z of P(y | z) * p(z | x); at most 0.

    Nguyen et al. 2020, arXiv:2002.12462.  P(y | z) is counted with the same p(z | x); for
    probabilities that are all 0 or 1, this is `nce`.

    Args:
        source_probabilities: p(z | x) [N, Z], the softmax of the source model's head.
        labels: int64 [N].

    Raises:
        ValueError: as `nce`, or rows that are not probabilities.
    """
    theta = source_probabilities.detach().cpu().double()
    if theta.ndim != 2 or not ((theta >= 0).all() and ((theta.sum(1) - 1).abs() < 1e-3).all()):
        raise ValueError(
            f"source_probabilities {list(theta.shape)} must be [N, Z] with rows that are at least 0 and sum to 1; "
            "use logits.softmax(1)"
        )
    y = _check_labels(labels, len(theta))
    joint = torch.zeros(int(y.max()) + 1, theta.shape[1], dtype=torch.float64).index_add_(0, y, theta)  # [C, Z]
    conditional = joint / joint.sum(0).clamp(min=1e-300)
    return float((conditional[y] * theta).sum(1).log().mean())


def logme(features: Tensor, labels: Tensor) -> float:
    """Log evidence of a Bayesian linear regression onto the labels, per sample, averaged over classes.

    You et al. 2021, arXiv:2102.11005: for the 0/1 targets y of each class, the maximum over a and b of
    log N(y; 0, I / b + F F^T / a) / N.  In the basis of the singular vectors of F this depends on the
    ratio b / a and on b, the best b of each ratio is known, and the ratio is searched on a grid and
    refined.  Right for N < D too, where the authors' code drops a term.

    Args:
        features: F, [N, D], used as they are: no centring, no bias.
        labels: int64 [N]; classes without a sample are passed over.

    Raises:
        ValueError: as `h_score`.
    """
    x, y = _check_features(features, labels)
    left, singular, _ = torch.linalg.svd(x, full_matrices=False)  # [N, K], [K]
    scores = [_log_evidence(left, singular.square(), (y == label).double()) for label in y.unique()]
    return sum(scores) / len(scores) / len(x)


def _log_evidence(left: Tensor, eigenvalues: Tensor, target: Tensor) -> float:
    """Maximum over a, b of log N(target; 0, I / b + F F^T / a), where F F^T = left * eigenvalues * left^T."""
    n, along = len(target), left.T @ target
    outside = (target - left @ along).square().sum()  # what no weight can explain
    relative = eigenvalues / eigenvalues.max()

    def log_evidence(log_ratio: Tensor) -> Tensor:
        """For ratios [R] of the prior to the noise variance, in units of the largest eigenvalue."""
        spread = 1 + log_ratio.exp().unsqueeze(-1) * relative  # [R, K], in units of 1 / b
        b = n / (outside + (along.square() / spread).sum(-1))  # the best one
        return (n * (b.log() - math.log(2 * math.pi) - 1) - spread.log().sum(-1)) / 2

    # Features that fit a class without any error have no best ratio; the ends of the grid keep the score finite.
    grid = torch.linspace(math.log(1e-10), math.log(1e10), 181, dtype=torch.float64)
    best = int(log_evidence(grid).argmax())
    low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, 180)])
    refined = minimize_scalar(lambda t: -float(log_evidence(grid.new_tensor(t))), bounds=(low, high), method="bounded")
    return max(-float(refined.fun), float(log_evidence(grid[best])))


def _check_features(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    x = features.detach().cpu().double()
    if x.ndim != 2:
        raise ValueError(f"features must be [N, D], not {list(x.shape)}; flatten or average them first")
    y = _check_labels(labels, len(x))
    if not torch.isfinite(x).all():
        raise ValueError("the features hold NaN or infinity; look at the inputs and at the body's normalisation")
    if (x == x[0]).all():
        raise ValueError(f"all {len(x)} rows of the features are equal; a body that tells nothing apart has no score")
    return x, y


def _check_labels(labels: Tensor, n: int, *, name: str = "labels", least: int = 2) -> Tensor:
    if labels.dtype != torch.int64 or labels.shape != (n,):
        raise ValueError(f"{name} must be int64 [{n}], one per sample, not {labels.dtype} {list(labels.shape)}")
    y = labels.detach().cpu()
    if n == 0 or int(y.min()) < 0 or len(y.unique()) < least:
        raise ValueError(f"{name} are {y.unique().tolist()}; give samples of at least {least} of the classes 0, 1, ...")
    if least > 1 and n <= int(y.max()):
        raise ValueError(
            f"the labels run up to {int(y.max())}, but {n} samples are too few for {int(y.max()) + 1} classes; give at "
            "least one of each, or number those that there are from 0"
        )
    return y
