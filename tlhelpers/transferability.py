"""How far apart are two domains?  Scores from features alone."""

import torch
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
        ValueError: other shapes, different D, or fewer than 4 rows in one of them.
    """
    _check(source, target, least=4)
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
        ValueError: other shapes, different D, fewer than 2 rows in one of them, or a bandwidth <= 0.
    """
    _check(source, target, least=2)
    n, m = len(source), len(target)
    both = torch.cat([source, target]).double()
    squared = torch.cdist(both, both).square()  # [N + M, N + M]
    if bandwidth is None:
        bandwidth = float(squared[tuple(torch.triu_indices(n + m, n + m, offset=1))].median().sqrt())
    if bandwidth <= 0:
        raise ValueError(f"the bandwidth is {bandwidth}; it must be positive (are all rows equal?)")
    kernel = torch.exp(-squared / (2 * bandwidth**2))
    within_source = (kernel[:n, :n].sum() - n) / (n * (n - 1))  # the diagonal is n ones
    within_target = (kernel[n:, n:].sum() - m) / (m * (m - 1))
    return float(within_source + within_target - 2 * kernel[:n, n:].mean())


def _check(source: Tensor, target: Tensor, *, least: int) -> None:
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1]:
        raise ValueError(f"features must be [N, D] and [M, D], not {list(source.shape)} and {list(target.shape)}")
    if min(len(source), len(target)) < least:
        raise ValueError(f"{len(source)} and {len(target)} rows are too few; give at least {least} of each domain")
