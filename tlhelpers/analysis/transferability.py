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


def proxy_a_distance(source: Tensor, target: Tensor, *, seed: int = 0) -> float:
    """2 * (1 - 2 * e), where e is the held-out error of a classifier that tells the domains apart.

    0 means that no linear classifier can (the score is cut off there), 2 that it never errs
    (Ben-David et al. 2010, "A theory of learning from different domains").  Both samples are cut to
    the size of the smaller one, half of each is held out, and the error is averaged over exchanging
    the halves.

    Args:
        source, target: features [N, D] and [M, D].
        seed: of the random halves.

    Raises:
        ValueError: other shapes, different D, fewer than 4 rows in one of them, or NaN.
    """
    check_domains(source, target, least=4)
    n = min(len(source), len(target)) // 2 * 2
    generator = torch.Generator().manual_seed(seed)
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
    """Squared maximum mean discrepancy with a Gaussian kernel, the unbiased estimate.

    Gretton et al. 2012, "A kernel two-sample test", equation 3, with
    k(a, b) = exp(-||a - b||^2 / (2 * bandwidth^2)).  Around 0 for two samples of one distribution,
    and, being unbiased, sometimes below.

    Args:
        source, target: features [N, D] and [M, D].
        bandwidth: of the kernel; the median distance between different rows of both when None.

    Raises:
        ValueError: other shapes, different D, fewer than 2 rows in one of them, NaN, or a bandwidth <= 0.
    """
    return float(squared_mmd(source.double(), target.double(), bandwidth=bandwidth))


def squared_mmd(source: Tensor, target: Tensor, *, bandwidth: float | None = None) -> Tensor:
    """`mmd_distance` as a tensor, with gradients to both samples (none through a bandwidth of None)."""
    check_domains(source, target, least=2)
    n, m = len(source), len(target)
    both = torch.cat([source, target])
    both = both - both.detach().mean(0)  # distances stay, and lose fewer digits to cancellation
    squared = torch.cdist(both, both).square()  # [N + M, N + M]
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
    """Refuse samples of features that are not [N, D] and [M, D] of one floating type, at least `least` rows, no NaN."""
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1]:
        raise ValueError(f"features must be [N, D] and [M, D], not {list(source.shape)} and {list(target.shape)}")
    if source.dtype != target.dtype or not source.is_floating_point():
        raise ValueError(f"features {source.dtype} and {target.dtype} must be of one floating type; use .float()")
    if min(len(source), len(target)) < least:
        raise ValueError(f"{len(source)} and {len(target)} rows are too few; give at least {least} of each domain")
    for name, x in [("source", source), ("target", target)]:
        if x.is_cpu and not torch.isfinite(x).all():  # on a GPU, looking would wait at every step
            raise ValueError(f"the {name} features hold NaN or infinity; look at the inputs and at the learning rate")


def h_score(features: Tensor, labels: Tensor) -> float:
    """Variance between classes measured in units of the variance of the features; at most C - 1.

    (1 - a) * tr(S_a^-1 B): B is the covariance of the class means, S_a = (1 - a) * S + a * tr(S) / D * I
    that of all features, with the shrinkage a of Ledoit & Wolf (scikit-learn).  Bao et al. 2019, "An
    information-theoretic approach to transferability in task transfer learning", as regularised by
    Ibrahim et al. 2021, arXiv:2110.06893.  Without shrinkage the score is C - 1 for any labels, also
    random ones, as soon as N <= D.

    Args:
        features: [N, D].  Columns that are constant add nothing.
        labels: int64 [N].

    Raises:
        ValueError: NaN, all features constant, labels of another type or length, one class only, or
            fewer samples than classes.
    """
    x, y = _check_features(features, labels)
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

    Tran, Nguyen & Hassner 2019, arXiv:1908.08142.  From -log(C), when they say nothing, to 0.

    Args:
        source_labels: int64 [N], labels of the same inputs in the source task, as a rule predicted.
        labels: int64 [N].

    Raises:
        ValueError: labels of another type or length, one class only, or fewer samples than classes.
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
        raise ValueError("the features hold NaN or infinity; look at the inputs and at the body's transform")
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
        raise ValueError(f"{n} samples are too few for {int(y.max()) + 1} classes; give at least one of each")
    return y
