import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import mutual_info_score
from torch.nn import functional as F

from tlhelpers.analysis import h_score, leep, logme, mmd_distance, nce
from tlhelpers.objectives import squared_mmd


def sample(n, d, classes=3, shift=0.0):
    y = torch.arange(n) % classes
    return torch.randn(n, d) + shift * F.one_hot(y, max(d, classes))[:, :d], y


def dense_log_evidence(x, target):
    """The maximum over a and b of log N(target; 0, I / b + x x^T / a), found on the dense covariance."""
    gram, eye = x @ x.T, np.eye(len(x))

    def negative(logs):
        covariance = np.exp(logs[0]) * eye + np.exp(logs[1]) * gram
        return -multivariate_normal(np.zeros(len(x)), covariance).logpdf(target)

    starts = [(-1.0, -4.0), (-3.0, -1.0), (-6.0, -3.0)]
    bounds = [(-14.0, 5.0), (-14.0, 8.0)]
    return max(-minimize(negative, start, method="L-BFGS-B", bounds=bounds).fun for start in starts)


@pytest.mark.parametrize(("n", "d"), [(30, 6), (12, 25), (12, 12)])
@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_logme_is_the_maximum_of_the_dense_marginal_likelihood(n, d, shift):
    x, y = sample(n, d, shift=shift)
    dense = [dense_log_evidence(x.double().numpy(), (y == c).double().numpy()) for c in range(3)]
    assert logme(x, y) == pytest.approx(np.mean(dense) / n, abs=1e-4)


def test_logme_of_random_labels_is_low_with_fewer_samples_than_features():
    x, y = torch.randn(60, 200), torch.randint(3, (60,))
    assert logme(x, y) == pytest.approx(-0.87, abs=0.03)


def test_logme_of_features_that_say_nothing_is_that_of_a_plain_normal_distribution():
    y = torch.arange(40) % 2
    x = torch.linspace(-1, 1, 20).repeat_interleave(2).unsqueeze(1)  # orthogonal to both columns of labels
    assert logme(x, y) == pytest.approx(-0.5 * (math.log(2 * math.pi * 0.5) + 1))


def test_logme_prefers_features_that_know_the_classes_and_is_blind_to_rotation_and_scale():
    good, y = sample(60, 8, shift=3.0)
    turned = good @ torch.linalg.qr(torch.randn(8, 8)).Q * 7
    assert logme(good, y) > logme(torch.randn(60, 8), y) + 0.2
    assert logme(turned, y) == pytest.approx(logme(good, y), abs=1e-5)


def test_logme_stays_finite_for_features_that_fit_the_labels_exactly():
    y = torch.arange(30) % 3
    assert 5 < logme(F.one_hot(y).float(), y) < 50


def test_h_score_follows_its_definition_with_the_shrunk_covariance():
    x, y = sample(40, 6, shift=1.0)
    rows = x.double().numpy()
    covariance, shrinkage = ledoit_wolf(rows)
    means = np.stack([rows[y.numpy() == c].mean(0) for c in y.tolist()])
    expected = (1 - shrinkage) * np.trace(np.linalg.inv(covariance) @ np.cov(means.T, bias=True))
    assert h_score(x, y) == pytest.approx(expected, rel=1e-8)


def test_h_score_of_one_feature_is_the_part_of_its_variance_between_classes():
    x, y = sample(30, 1, shift=2.0)
    between = torch.stack([x[y == c].mean() for c in y.tolist()]).var(correction=0)
    assert h_score(x, y) == pytest.approx(float(between / x.var(correction=0)), rel=1e-5)


def test_h_score_of_random_labels_is_far_below_c_minus_1_with_fewer_samples_than_features():
    x, y = torch.randn(60, 200), torch.randint(3, (60,))
    assert 0 < h_score(x, y) < 0.4
    assert 1.8 < h_score(x + 20 * F.one_hot(y, 200), y) < 2


@pytest.mark.parametrize(("score", "value"), [(h_score, 0.0), (h_score, 0.1), (logme, 0.0)])
def test_constant_columns_add_nothing(score, value):  # to LogME, which has no bias, any other constant does
    x, y = sample(40, 5, shift=2.0)
    assert score(torch.cat([x, torch.full((40, 30), value)], dim=1), y) == pytest.approx(score(x, y))


def test_nce_is_mutual_information_minus_the_entropy_of_the_labels():
    y, z = torch.randint(3, (50,)), torch.randint(5, (50,))
    p = torch.bincount(y) / 50
    entropy = -float((p * p.log()).sum())
    assert nce(z, y) == pytest.approx(mutual_info_score(z.numpy(), y.numpy()) - entropy, abs=1e-6)


def test_nce_is_0_for_labels_that_follow_from_the_source_and_minus_their_entropy_for_unrelated_ones():
    y = torch.arange(12) % 3
    assert nce(y + 4, y) == pytest.approx(0.0, abs=1e-12)
    assert nce(torch.arange(12) // 6, y) == pytest.approx(-math.log(3))
    rare = torch.tensor([0] * 9 + [1] * 3)
    assert nce(torch.zeros(12, dtype=torch.long), rare) == pytest.approx(0.75 * math.log(0.75) + 0.25 * math.log(0.25))


def test_leep_equals_the_double_loop():
    theta, y = torch.randn(20, 4).softmax(1), torch.randint(3, (20,))
    p, total = theta.tolist(), 0.0
    for i in range(20):
        likelihood = 0.0
        for z in range(4):
            together = sum(p[j][z] for j in range(20) if y[j] == y[i])
            likelihood += together / sum(row[z] for row in p) * p[i][z]
        total += math.log(likelihood)
    assert leep(theta, y) == pytest.approx(total / 20, abs=1e-6)


def test_leep_of_certain_probabilities_is_nce():
    z, y = torch.randint(4, (30,)), torch.randint(3, (30,))
    assert leep(F.one_hot(z, 6).float(), y) == pytest.approx(nce(z, y), abs=1e-12)


@pytest.mark.parametrize("rows", [torch.ones(6, 3), torch.full((6, 3), -1.0), torch.full((6, 3), math.nan)])
def test_leep_refuses_logits_in_place_of_probabilities(rows):
    with pytest.raises(ValueError, match=r"source_probabilities \[6, 3\] must be .* use logits.softmax\(1\)"):
        leep(rows, torch.arange(6) % 2)


@pytest.mark.parametrize("score", [logme, h_score])
@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.ones(6, 3), "all 6 rows of the features are equal; a body that tells nothing apart"),
        (torch.tensor([[1.0, math.nan]]).repeat(6, 1), "hold NaN or infinity; look at the inputs"),
        (torch.rand(6, 3, 2), r"must be \[N, D\], not \[6, 3, 2\]; flatten"),
    ],
)
def test_features_without_a_score_are_refused(score, features, message):
    with pytest.raises(ValueError, match=message):
        score(features, torch.arange(6) % 2)


@pytest.mark.parametrize(
    "score",
    [
        logme,
        h_score,
        lambda x, y: leep(x.softmax(1), y),
        lambda x, y: nce(x.argmax(1), y),
    ],
)
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(6).long(), r"labels are \[0\]; give samples of at least 2 of the classes"),
        (torch.arange(6) - 1, r"labels are \[-1, 0, 1, 2, 3, 4\]"),
        (torch.tensor([0, 1, 2, 3, 4, 9]), "6 samples are too few for 10 classes; give at least one of each"),
        (torch.tensor([7, 8]).repeat(3), "run up to 8, but 6 samples .* or number those that there are from 0"),
        (torch.arange(6).float(), r"must be int64 \[6\], one per sample, not torch.float32 \[6\]"),
        (torch.arange(5), r"must be int64 \[6\], one per sample, not torch.int64 \[5\]"),
    ],
)
def test_labels_without_a_score_are_refused(score, labels, message):
    with pytest.raises(ValueError, match=message):
        score(torch.randn(6, 3), labels)


def test_nce_names_the_source_labels_when_those_are_wrong():
    with pytest.raises(ValueError, match=r"source_labels must be int64 \[6\]"):
        nce(torch.rand(6), torch.arange(6) % 2)


@pytest.mark.parametrize("bandwidth", [None, 1.3])
def test_squared_mmd_is_mmd_distance_with_a_gradient(bandwidth):
    a, b = torch.randn(8, 3).double().requires_grad_(), torch.randn(5, 3).double() + 1
    value = squared_mmd(a, b, bandwidth=bandwidth)
    assert float(value.detach()) == mmd_distance(a.detach(), b, bandwidth=bandwidth)
    if bandwidth is not None:  # against a difference quotient
        (slope,) = torch.autograd.grad(value, a)
        with torch.no_grad():
            step = 1e-5 * torch.randn_like(a)
            rise = squared_mmd(a + step, b, bandwidth=bandwidth) - squared_mmd(a - step, b, bandwidth=bandwidth)
        assert float((slope * step).sum()) == pytest.approx(float(rise) / 2, rel=1e-6)


def test_squared_mmd_tells_near_rows_apart_among_far_ones():
    far = 100 * (-1.0) ** torch.arange(40)[:, None].expand(40, 64)
    a, b = (far + 0.01 * torch.randn(40, 64) for _ in range(2))
    assert float(squared_mmd(a, b, bandwidth=0.1)) == pytest.approx(mmd_distance(a, b, bandwidth=0.1), abs=1e-4)


def test_squared_mmd_keeps_its_digits_far_from_the_origin():
    a, b = torch.randn(40, 8), torch.randn(40, 8) + 0.2
    assert float(squared_mmd(a + 1000, b + 1000)) == pytest.approx(mmd_distance(a, b), abs=1e-4)


def test_features_that_hold_nan_have_no_distance():
    broken = torch.tensor([[math.nan, 0.0]]).repeat(5, 1)
    with pytest.raises(ValueError, match="the target features hold NaN or infinity; look at"):
        mmd_distance(torch.rand(5, 2), broken)
