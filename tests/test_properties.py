"""What must hold for any input: hypothesis draws it, and an oracle or a law of mathematics judges what comes out.

`HYPOTHESIS_PROFILE=large` (make test-faults) draws ten times as many.  At the end: numbers that are none, and wrong
uses whose message must say what was wrong and what to do.
"""

import itertools
import math
import os
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy.spatial.distance import cdist, pdist
from scipy.special import log_softmax, rel_entr
from torch import Tensor, nn
from torch.nn import functional as F
from toys import CPU, toy_backbone, toy_examples, toy_images, toy_model

from tlhelpers.analysis import (
    Features,
    class_prototypes,
    extract_features,
    fit_knn,
    fit_probe,
    h_score,
    input_shift,
    leep,
    logme,
    mmd_distance,
    nce,
    nearest_prototype,
    proxy_a_distance,
    self_training,
    spherical_kmeans,
)
from tlhelpers.course import plots, scorebook
from tlhelpers.data import (
    Examples,
    Jitter,
    JointLoader,
    TensorLoader,
    crop_to_ink,
    few_shot,
    length_order,
    overlap,
    random_flip,
    read_table,
    trimmed,
)
from tlhelpers.models import Normalize, freeze, interpolate_weights, mean_pool, param_groups
from tlhelpers.objectives import (
    adabn,
    coral_distance,
    coral_transform,
    dann_lambda,
    distillation_loss,
    gradient_cosine,
    project_conflicting,
    reverse_gradient,
    squared_mmd,
)
from tlhelpers.training import accuracy, evaluate, warmup_cosine
from tlhelpers.training.device import batch_size

MORE = 10 if os.environ.get("HYPOTHESIS_PROFILE") == "large" else 1
# The same inputs in every run, and no file that remembers failures.
thorough = settings(max_examples=50 * MORE, derandomize=True, deadline=None, database=None)
slow = settings(thorough, max_examples=15 * MORE)

# what is drawn

SEEDS = st.integers(0, 2**31)
NUMBERS = st.integers(-64, 64).map(lambda eighths: eighths / 8)  # float32 holds them, and their products, exactly
FACTORS = st.sampled_from([0.25, 0.5, 2.0, 8.0])
UNIT = st.floats(0, 1, width=32)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> Tensor:
    """Normally distributed float64, without ties."""
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def rotation(seed: int, d: int) -> Tensor:
    """An orthogonal matrix [d, d]."""
    return torch.linalg.qr(normal(seed, d, d)).Q


@st.composite
def matrices(draw, n: int, d: int) -> Tensor:
    """Float64 [n, d] of few values: equal rows, constant columns and zeros occur."""
    return torch.tensor(draw(st.lists(NUMBERS, min_size=n * d, max_size=n * d)), dtype=torch.float64).reshape(n, d)


@st.composite
def domains(draw, least: int = 2) -> tuple[Tensor, Tensor]:
    """Features of two domains, [N, D] and [M, D]."""
    n = draw(st.integers(least, 7))
    m = draw(st.integers(least, 7))
    d = draw(st.integers(1, 4))
    return draw(matrices(n, d)), draw(matrices(m, d))


@st.composite
def clouds(draw, least: int = 12) -> Features:
    """Features of three classes in general position, with every class there."""
    seed = draw(SEEDS)
    n = draw(st.integers(least, 40))
    d = draw(st.integers(2, 6))
    y = torch.arange(n) % 3
    centres = draw(st.sampled_from([0.0, 1.0, 3.0])) * normal(seed + 1, 3, d)
    return Features(normal(seed, n, d) + centres[y], y)


LABELS = st.lists(st.integers(0, 2), min_size=4, max_size=30).filter(lambda y: len(set(y)) > 1)


# distances between domains


@thorough
@given(domains(), FACTORS)
def test_coral_is_what_numpy_says_and_grows_with_the_fourth_power(pair, factor):
    source, target = pair
    distance = float(coral_distance(source, target))
    difference = np.cov(source.T.numpy()) - np.cov(target.T.numpy())
    assert distance == pytest.approx(float((difference**2).sum()) / (4 * source.shape[1] ** 2), rel=1e-9, abs=1e-12)
    assert float(coral_distance(target, source)) == pytest.approx(distance, rel=1e-9)
    assert float(coral_distance(source + 3, target - 2)) == pytest.approx(distance, rel=1e-9, abs=1e-12)
    assert float(coral_distance(factor * source, factor * target)) == pytest.approx(factor**4 * distance, rel=1e-9)


@thorough
@given(domains(), st.sampled_from([0.01, 1.0]))
def test_coral_transform_leaves_a_domain_that_matches_already_and_moves_every_mean(pair, regularisation):
    source, target = pair
    same = coral_transform(source, source, regularisation=regularisation)
    torch.testing.assert_close(same, source, rtol=1e-6, atol=1e-6)
    moved = coral_transform(source, target, regularisation=regularisation)
    torch.testing.assert_close(moved.mean(0), target.mean(0), rtol=1e-6, atol=1e-6)


@thorough
@given(domains(), FACTORS)
def test_mmd_is_what_scipy_says_and_does_not_see_units(pair, bandwidth):
    source, target = pair
    distance = float(squared_mmd(source, target, bandwidth=bandwidth))

    def kernel(a, b):
        return np.exp(-cdist(a, b, "sqeuclidean") / (2 * bandwidth**2))

    def within(x):
        return kernel(x, x)[~np.eye(len(x), dtype=bool)].mean()

    expected = within(source) + within(target) - 2 * kernel(source, target).mean()
    assert distance == pytest.approx(expected, abs=1e-6)
    assert float(squared_mmd(target, source, bandwidth=bandwidth)) == pytest.approx(distance, abs=1e-9)
    bent = float(squared_mmd(4 * source + 1, 4 * target + 1, bandwidth=4 * bandwidth))
    assert bent == pytest.approx(distance, abs=1e-6)


@thorough
@given(domains(), FACTORS)
def test_the_bandwidth_is_the_median_distance_which_makes_mmd_blind_to_scale(pair, factor):
    source, target = pair
    distances = np.sort(pdist(torch.cat(pair).numpy()))
    median = distances[(len(distances) - 1) // 2]  # the lower one of two, as torch takes it
    assume(median > 0)
    distance = mmd_distance(source, target)
    assert distance == pytest.approx(mmd_distance(source, target, bandwidth=median), abs=1e-5)
    assert mmd_distance(factor * source, factor * target) == pytest.approx(distance, abs=1e-5)


@slow
@given(SEEDS, st.integers(8, 40), st.integers(1, 4), FACTORS)
def test_the_a_distance_lies_in_0_to_2_and_does_not_see_units(seed, n, d, factor):
    source = normal(seed, n, d)
    target = normal(seed + 1, n + 3, d) + normal(seed + 2, d)
    distance = proxy_a_distance(source, target)
    assert 0 <= distance <= 2
    units = torch.where(torch.arange(d) % 2 == 0, factor, -1.0)  # also a change of sign
    assert proxy_a_distance(source * units + 5, target * units + 5) == pytest.approx(distance, abs=1e-9)
    far = torch.full((d,), 1e3, dtype=torch.float64)
    assert proxy_a_distance(source, target + far) == 2
    assert proxy_a_distance(torch.ones(8, d), torch.ones(8, d)) == 0  # nothing to tell apart: an error of one half


# scores of a source


@slow
@given(clouds(), SEEDS, FACTORS)
def test_h_score_and_logme_are_blind_to_rotation_scale_and_the_names_of_classes(features, seed, factor):
    x, y = features.x, features.y
    turned = factor * x @ rotation(seed, x.shape[1])
    names = torch.tensor([2, 0, 1])
    for score in (h_score, logme):
        value = score(x, y)
        assert score(turned, y) == pytest.approx(value, abs=1e-3)
        assert score(2.0**30 * x, y) == pytest.approx(value, abs=1e-3)
        assert score(x, names[y]) == pytest.approx(value, abs=1e-6)
    assert -1e-9 <= h_score(x, y) <= 2 + 1e-9  # C - 1


@slow
@given(clouds(), SEEDS)
def test_features_that_know_the_classes_never_score_less_than_they_did(features, seed):
    x, y = features.x, features.y
    knowing = x + 30 * F.one_hot(y, max(3, x.shape[1]))[:, : x.shape[1]]
    shuffled = y[torch.randperm(len(y), generator=generator(seed))]
    assume(not torch.equal(shuffled, y))
    assert h_score(knowing, y) > h_score(knowing, shuffled)


def conditional_entropy(y: list[int], z: list[int]) -> float:
    """H(Y | Z) in nats, counted pair by pair."""
    pairs = Counter(zip(y, z, strict=True))
    marginal = Counter(z)
    return -sum(count / len(y) * math.log(count / marginal[b]) for (_, b), count in pairs.items())


@thorough
@given(LABELS, st.data())
def test_nce_is_a_conditional_entropy_and_forgetting_source_classes_never_helps(y, data):
    z = data.draw(st.lists(st.integers(0, 5), min_size=len(y), max_size=len(y)))
    coarser = data.draw(st.lists(st.integers(0, 2), min_size=6, max_size=6))
    score = nce(torch.tensor(z), torch.tensor(y))
    assert score == pytest.approx(-conditional_entropy(y, z), abs=1e-9)
    assert -math.log(3) - 1e-9 <= score <= 1e-9
    merged = torch.tensor([coarser[label] for label in z])
    assert nce(merged, torch.tensor(y)) <= score + 1e-9
    assert nce(torch.tensor(z + z), torch.tensor(y + y)) == pytest.approx(score, abs=1e-9)


@thorough
@given(LABELS, SEEDS, st.integers(1, 5))
def test_leep_is_a_log_likelihood_and_a_source_that_says_nothing_gives_the_entropy(y, seed, classes):
    labels = torch.tensor(y)
    theta = (3 * normal(seed, len(y), classes)).softmax(1)
    score = leep(theta, labels)
    assert score <= 1e-12
    order = torch.randperm(classes, generator=generator(seed))
    assert leep(theta[:, order], 2 - labels) == pytest.approx(score, abs=1e-9)
    nothing = theta[:1].expand(len(y), -1)
    assert leep(nothing, labels) == pytest.approx(-conditional_entropy(y, [0] * len(y)), abs=1e-9)


# gradients, losses and schedules


@thorough
@given(domains(least=2), FACTORS)
def test_projected_gradients_are_the_nearest_that_do_not_conflict(pair, factor):
    g1 = pair[0].flatten()[:2]
    g2 = pair[1].flatten()[:2]
    assume(len(g1) == len(g2) == 2 and g1.any() and g2.any())
    p1, p2 = project_conflicting(g1, g2)
    assert float(p1 @ g2) >= -1e-9
    assert float(p2 @ g1) >= -1e-9
    if float(g1 @ g2) >= 0:
        assert torch.equal(p1, g1) and torch.equal(p2, g2)
    else:  # what was taken away lies along the other gradient, so nothing nearer is free of conflict
        assert float(p1 @ (g1 - p1)) == pytest.approx(0, abs=1e-9)
        assert torch.linalg.matrix_rank(torch.stack([g1 - p1, g2])) == 1
    longer, other = project_conflicting(factor * g1, g2)
    torch.testing.assert_close(longer, factor * p1)
    torch.testing.assert_close(other, p2)
    cosine = gradient_cosine(g1, g2)
    assert cosine == pytest.approx(float(g1 @ g2) / math.hypot(*g1.tolist()) / math.hypot(*g2.tolist()), abs=1e-9)
    assert gradient_cosine(-factor * g1, g2) == pytest.approx(-cosine, abs=1e-9)


@thorough
@given(matrices(4, 3), matrices(4, 3), st.lists(st.integers(-1, 2), min_size=4, max_size=4), FACTORS, UNIT)
def test_distillation_is_what_scipy_says_and_does_not_see_what_a_softmax_does_not(student, teacher, y, t, alpha):
    y = torch.tensor(y)
    logged = distillation_loss(student, teacher, y, temperature=t, alpha=alpha)
    p = np.exp(log_softmax(teacher.numpy() / t, axis=1))
    q = np.exp(log_softmax(student.numpy() / t, axis=1))
    soft = t**2 * float(rel_entr(p, q).sum()) / 4
    hard = 0.0
    rows = [i for i in range(4) if y[i] >= 0]
    if rows:
        hard = -float(log_softmax(student.numpy(), axis=1)[rows, y[rows]].mean())
    assert float(logged["soft_loss"]) == pytest.approx(soft, rel=1e-6, abs=1e-9)
    assert float(logged["loss"]) == pytest.approx(alpha * soft + (1 - alpha) * hard, rel=1e-6, abs=1e-9)
    moved = distillation_loss(student + 7, teacher - 5, y, temperature=t, alpha=alpha)
    assert float(moved["loss"]) == pytest.approx(float(logged["loss"]), rel=1e-6, abs=1e-9)
    itself = distillation_loss(teacher + 2, teacher, y, temperature=t, alpha=1.0)
    assert float(itself["loss"]) == pytest.approx(0, abs=1e-9)


@thorough
@given(UNIT, UNIT, st.sampled_from([0.0, 0.1, 0.5, 0.9]))
def test_a_warm_cosine_rises_then_falls_and_lambda_only_rises(p, q, warmup):
    early, late = sorted([p, q])
    factor = warmup_cosine(warmup)
    assert 0 <= factor(early) <= 1
    if late <= warmup:
        assert factor(early) <= factor(late) + 1e-12
    if early >= warmup:
        assert factor(early) >= factor(late) - 1e-12
    assert factor(1.0) == pytest.approx(0, abs=1e-12)
    assert factor(warmup) == pytest.approx(1)
    assert dann_lambda(early) <= dann_lambda(late)
    assert dann_lambda(p) == pytest.approx(2 / (1 + math.exp(-10 * p)) - 1, abs=1e-12)


@thorough
@given(matrices(3, 2), NUMBERS)
def test_a_reversed_gradient_is_the_gradient_times_minus_its_strength(x, strength):
    x.requires_grad_()
    (plain,) = torch.autograd.grad((x**2).sum(), x)  # of either sign
    reversed_x = reverse_gradient(x, strength)
    assert torch.equal(reversed_x, x)
    (gradient,) = torch.autograd.grad((reversed_x**2).sum(), x)
    assert torch.equal(gradient, -strength * plain)


# prototypes and clusters


@thorough
@given(matrices(6, 3), SEEDS, FACTORS)
def test_a_prototype_is_a_direction_whatever_the_order_and_length_of_rows(x, seed, factor):
    y = torch.tensor([0, 1, 0, 1, 2, 2])
    prototypes = class_prototypes(Features(x, y))
    for label in range(3):
        rows = [row / row.norm() if row.norm() > 0 else row for row in x[y == label]]
        mean = torch.stack(rows).mean(0)
        expected = mean / mean.norm() if mean.norm() > 1e-6 else prototypes[label]
        torch.testing.assert_close(prototypes[label], expected)
    order = torch.randperm(6, generator=generator(seed))
    again = class_prototypes(Features(factor * x[order], y[order]))
    assume((prototypes.norm(dim=1) > 0.9).all())  # where directions cancel, rounding decides
    torch.testing.assert_close(again, prototypes, rtol=1e-6, atol=1e-6)


@thorough
@given(clouds(), SEEDS)
def test_k_means_never_gets_worse_turns_with_its_features_and_keeps_the_names(features, seed):
    x = features.x
    d = x.shape[1]
    start = normal(seed, 3, d)
    ends = spherical_kmeans(x, start)

    def likeness(prototypes):
        return float((F.normalize(x) @ F.normalize(prototypes).T).max(1).values.sum())

    assert likeness(ends) >= likeness(start) - 1e-9
    torch.testing.assert_close(ends.norm(dim=1), torch.ones(3, dtype=torch.float64))
    lengths = normal(seed + 2, len(x), 1).abs() + 0.1
    torch.testing.assert_close(spherical_kmeans(x * lengths, start), ends, rtol=1e-6, atol=1e-6)
    turn = rotation(seed + 1, d)
    torch.testing.assert_close(spherical_kmeans(x @ turn, start @ turn), ends @ turn, rtol=1e-6, atol=1e-6)
    names = torch.tensor([2, 0, 1])
    assert torch.equal(spherical_kmeans(x, start[names]), ends[names])
    assert torch.equal(nearest_prototype(x, ends[names]).apply_(lambda c: [2, 0, 1][c]), nearest_prototype(x, ends))


# classifiers on features


@slow
@given(clouds(), SEEDS, FACTORS)
def test_a_probe_does_not_see_units_and_its_layer_decides_as_it_does(features, seed, factor):
    d = features.x.shape[1]
    units = torch.where(torch.arange(d) % 2 == 0, factor, 1.0)
    offset = normal(seed, d)
    fresh = normal(seed + 1, 20, d)
    probe = fit_probe(features)
    other = fit_probe(Features(features.x * units + offset, features.y))
    torch.testing.assert_close(other.weight * units, probe.weight, rtol=1e-3, atol=1e-3)
    assert torch.equal(other.predict(fresh * units + offset), probe.predict(fresh))
    assert torch.equal(probe.as_layer()(fresh.float()).argmax(1), probe.predict(fresh))
    predicted = probe.predict(features.x)
    assert probe.score(features) == pytest.approx(np.mean(predicted.numpy() == features.y.numpy()))


@slow
@given(clouds(), SEEDS, st.integers(1, 5))
def test_neighbours_are_those_of_a_loop_and_a_row_is_its_own(features, seed, k):
    x, y = features.x, features.y
    assert fit_knn(features).score(features) == 1
    fresh = normal(seed, 10, x.shape[1])
    lengths = normal(seed + 1, 10, 1).abs() + 0.1
    predicted = fit_knn(features, k=k).predict(fresh)
    assert torch.equal(fit_knn(features, k=k).predict(fresh * lengths), predicted)
    for row, label in zip(fresh, predicted, strict=True):
        nearest = F.cosine_similarity(row[None], x).topk(k).indices
        votes = torch.bincount(y[nearest], minlength=3)
        assert votes[label] == votes.max()


# images


@thorough
@given(SEEDS, st.integers(2, 10), st.integers(0, 18), st.integers(0, 18), st.integers(0, 18), st.integers(0, 18))
def test_a_crop_is_the_box_of_the_ink_wherever_it_lies(seed, side, top, left, lower, further):
    ink = torch.rand(side, side, generator=generator(seed))
    ink[0, 0] = ink[-1, -1] = 1.0
    canvas = torch.zeros(2, 1, 28, 28)
    canvas[0, 0, top : top + side, left : left + side] = ink
    canvas[1, 0, lower : lower + side, further : further + side] = ink
    crops = crop_to_ink(canvas, size=side)
    torch.testing.assert_close(crops, ink.expand(2, 1, side, side), rtol=0, atol=1e-4)


@thorough
@given(SEEDS, st.integers(1, 4), FACTORS)
def test_normalising_is_undone_by_its_own_numbers_and_standardises_by_those_of_the_data(seed, channels, std):
    images = torch.rand(5, channels, 4, 4, generator=generator(seed))
    mean = [0.1 * channel for channel in range(channels)]
    normal_images = Normalize(mean, std)(images)
    for channel in range(channels):
        torch.testing.assert_close(normal_images[:, channel] * std + mean[channel], images[:, channel])
    by_channel = images.transpose(0, 1).flatten(1)
    standard = Normalize(by_channel.mean(1).tolist(), by_channel.std(1).tolist())(images).transpose(0, 1).flatten(1)
    torch.testing.assert_close(standard.mean(1), torch.zeros(channels), rtol=0, atol=1e-5)
    torch.testing.assert_close(standard.std(1), torch.ones(channels), rtol=0, atol=1e-4)
    count = torch.randint(256, (2, channels, 3, 3), generator=generator(seed), dtype=torch.uint8)
    torch.testing.assert_close(Normalize(mean, std)(count), Normalize(mean, std)(count / 255))


@thorough
@given(SEEDS, st.integers(1, 6), st.integers(4, 16))
def test_a_jitter_of_nothing_changes_nothing_and_any_stays_in_range(seed, n, side):
    images = torch.rand(n, 2, side, side, generator=generator(seed))
    torch.testing.assert_close(Jitter(size=side)(images, generator(seed)), images, rtol=0, atol=1e-4)
    wild = Jitter(size=9, degrees=180, scale=(0.3, 2.0), shear=1.0, bend=0.3, coarse=(2, 5), fade=0.9, noise=1.0)
    varied = wild(images, generator(seed))
    assert varied.shape == (n, 2, 9, 9)
    assert 0 <= float(varied.min()) <= float(varied.max()) <= 1
    assert torch.equal(wild(images, generator(seed)), varied)
    assert torch.equal(random_flip(random_flip(images, generator(seed)), generator(seed)), images)


@thorough
@given(SEEDS, st.integers(1, 4), FACTORS, NUMBERS)
def test_input_shift_reads_off_a_change_of_units(seed, channels, factor, offset):
    reference = normal(seed, 6, channels, 3)
    shift, scale = input_shift(factor * reference + offset, reference)
    mean = reference.transpose(0, 1).flatten(1).mean(1)
    std = reference.transpose(0, 1).flatten(1).std(1)
    torch.testing.assert_close(scale, torch.full((channels,), factor, dtype=torch.float64))
    torch.testing.assert_close(shift, ((factor - 1) * mean + offset) / std)


# examples and batches


def numbered(y: list[int]) -> Examples:
    """Examples whose input is their row number."""
    rows = torch.arange(len(y))
    return Examples("drawn", rows.float()[:, None], torch.tensor(y), tuple("abcdef"), rows)


@thorough
@given(st.lists(st.integers(2, 6), min_size=6, max_size=6), SEEDS, st.data())
def test_few_shots_are_balanced_nested_and_taken_from_the_examples(counts, seed, data):
    y = [label for label, count in enumerate(counts) for _ in range(count)]
    examples = numbered(data.draw(st.permutations(y)))
    few = data.draw(st.integers(1, min(counts)))
    more = data.draw(st.integers(few, min(counts)))
    small = few_shot(examples, few, seed=seed)
    large = few_shot(examples, more, seed=seed)
    assert torch.bincount(small.y).tolist() == [few] * 6
    assert set(small.indices.tolist()) <= set(large.indices.tolist())
    assert len(set(large.indices.tolist())) == 6 * more
    for x, label in small:
        assert label == examples.y[int(x)]
    rows = torch.tensor(data.draw(st.permutations(range(len(large)))))
    assert torch.equal(large.take(rows).take(rows).indices, large.indices[rows[rows]])


@thorough
@given(st.integers(1, 30), st.integers(1, 33), st.booleans(), SEEDS)
def test_every_pass_of_a_loader_visits_every_example_once(n, size, shuffle, seed):
    loader = TensorLoader(numbered([0] * n), size, shuffle=shuffle, seed=seed, device=CPU)
    passes = [[x.flatten().tolist() for x, _ in loader] for _ in range(3)]
    for batches in passes:
        assert len(batches) == len(loader)
        assert [len(batch) for batch in batches[:-1]] == [size] * (len(loader) - 1)
        assert sorted(itertools.chain(*batches)) == list(range(n))
    later = TensorLoader(numbered([0] * n), size, shuffle=shuffle, seed=seed, device=CPU)
    later.epoch = 2
    assert [x.flatten().tolist() for x, _ in later] == passes[2]


@thorough
@given(st.integers(1, 30), st.integers(1, 33), st.integers(1, 12), st.booleans(), SEEDS)
def test_a_number_of_steps_visits_no_example_twice_more_than_another(n, size, steps, shuffle, seed):
    loader = TensorLoader(numbered([0] * n), size, shuffle=shuffle, steps=steps, seed=seed, device=CPU)
    batches = [x.flatten().tolist() for x, _ in loader]
    assert [len(batch) for batch in batches] == [size] * steps
    visits = Counter(itertools.chain(*batches))
    assert max(visits.values()) - min(visits[row] for row in range(n)) <= 1


@thorough
@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.one_of(st.none(), st.integers(1, 12)))
def test_a_joint_loader_cycles_each_task_on_its_own(lengths, steps):
    loaders = {f"task {number}": list(range(length)) for number, length in enumerate(lengths)}
    joint = JointLoader(loaders, steps=steps)
    expected = {task: itertools.cycle(loader) for task, loader in loaders.items()}
    batches = list(joint)
    assert len(batches) == len(joint) == (steps or max(lengths))
    for batch in batches:
        assert batch == {task: next(stream) for task, stream in expected.items()}


@thorough
@given(domains())
def test_overlap_is_that_of_python_sets(pair):
    train, test = pair
    seen = {tuple(row) for row in (train + 0.0).tolist()}
    expected = [number for number, row in enumerate(test.tolist()) if tuple(row) in seen]
    assert overlap(train + 0.0, test).tolist() == expected  # + 0.0, because -0.0 has other bytes than 0.0


@thorough
@given(st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=6), st.integers(0, 4), SEEDS)
@example([[]], 0, 0)
def test_padding_is_cut_off_kept_out_of_means_and_sorted_by(texts, more, seed):
    longest = max(map(len, texts))
    ids = torch.tensor([text + [0] * (longest + more - len(text)) for text in texts]).reshape(len(texts), -1)
    assert trimmed(ids).shape == (len(texts), longest)
    assert torch.equal(trimmed(ids), ids[:, :longest])
    order = length_order(ids).tolist()
    assert order == sorted(range(len(texts)), key=lambda row: len(texts[row]))
    hidden = normal(seed, len(texts), longest + more, 3)
    pooled = mean_pool(hidden, ids != 0)
    for row, text in enumerate(texts):
        expected = hidden[row, : len(text)].mean(0) if text else torch.zeros(3, dtype=torch.float64)
        torch.testing.assert_close(pooled[row], expected)


# models


@thorough
@given(matrices(2, 3), matrices(2, 3), matrices(4, 3), UNIT)
def test_between_two_linear_models_lies_the_mean_of_their_answers(first, second, x, alpha):
    a, b = (nn.Linear(3, 2, bias=False).double() for _ in range(2))
    a.load_state_dict({"weight": first})
    b.load_state_dict({"weight": second})
    between = nn.Linear(3, 2, bias=False).double()
    between.load_state_dict(interpolate_weights(a.state_dict(), b.state_dict(), alpha))
    torch.testing.assert_close(between(x), (1 - alpha) * a(x) + alpha * b(x))
    back = interpolate_weights(b.state_dict(), a.state_dict(), 1 - alpha)
    torch.testing.assert_close(between.weight.detach(), back["weight"])


class Body(nn.Sequential):
    """Children of all kinds, and a parameter of its own, as a vision transformer's class token."""

    KINDS = (
        lambda: nn.Linear(2, 2),
        lambda: nn.BatchNorm1d(2),
        lambda: nn.ReLU(),
        lambda: nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))),
    )

    def __init__(self, kinds: list[int], own: bool) -> None:
        super().__init__(OrderedDict((f"child{number}", self.KINDS[kind]()) for number, kind in enumerate(kinds)))
        if own:
            self.token = nn.Parameter(torch.zeros(2))


@thorough
@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.booleans(), st.data())
def test_every_trainable_parameter_is_in_one_group_and_rates_fall_towards_the_input(kinds, own, data):
    body = Body(kinds, own)
    head = nn.Linear(2, 2)
    for parameter in body.parameters():
        parameter.requires_grad_(data.draw(st.booleans()))
    scale = data.draw(st.sampled_from([0.1, 0.5, 1.0]))
    decay = data.draw(st.sampled_from([0.3, 1.0]))
    groups = param_groups(body, head, lr=0.2, body_scale=scale, layer_decay=decay)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    trainable = [p for p in [*body.parameters(), *head.parameters()] if p.requires_grad]
    assert sorted(grouped) == sorted(map(id, trainable))
    rates = [group["lr"] for group in groups]
    assert rates == sorted(rates)
    assert rates[-1] == 0.2
    places = [name for name, child in body.named_children() if list(child.parameters())]
    if len(places) == 1 and not own:  # what only wraps one other is looked into
        inside = dict(body.get_submodule(places[0]).named_children())
        places = [f"{places[0]}.{name}" for name in inside] or places
    for group in groups:
        if group["name"].startswith("body."):
            depth = len(places) - 1 - places.index(group["name"].removeprefix("body."))
            assert group["lr"] == pytest.approx(0.2 * scale * decay**depth)


@thorough
@given(SEEDS, st.integers(2, 6), st.integers(1, 4), FACTORS, NUMBERS, st.booleans())
def test_adabn_takes_the_statistics_of_the_target_and_so_undoes_a_change_of_units(seed, size, n, factor, offset, cold):
    batches = [(normal(seed + number, size, 3), torch.zeros(size).long()) for number in range(n)]
    model = nn.Sequential(nn.BatchNorm1d(3, eps=1e-14), nn.Linear(3, 2)).double()
    if cold:
        freeze(model)
    adabn(model, batches)
    rows = torch.stack([x for x, _ in batches])
    torch.testing.assert_close(model[0].running_mean, rows.mean(dim=(0, 1)))
    torch.testing.assert_close(model[0].running_var, rows.var(dim=1).mean(0))
    answers = model.eval()(rows[0])
    adabn(model, [(factor * x + offset, y) for x, y in batches])
    torch.testing.assert_close(model.eval()(factor * rows[0] + offset), answers, rtol=1e-6, atol=1e-6)


@slow
@given(st.integers(1, 24), st.integers(1, 24), SEEDS)
def test_features_and_scores_do_not_depend_on_how_examples_are_batched(first, second, seed):
    torch.manual_seed(seed)
    body, images = toy_backbone(), toy_images()
    one, other = (extract_features(body, images, batch_size=size, device=CPU).x for size in (first, second))
    torch.testing.assert_close(one, other)
    model, examples = toy_model(), toy_examples()
    one, other = (evaluate(model, TensorLoader(examples, n, device=CPU), device=CPU) for n in (first, second))
    assert one == pytest.approx(other, rel=1e-5)
    right = model.eval()(examples.x).argmax(1) == examples.y
    assert accuracy(model, examples, device=CPU) == pytest.approx(float(right.float().mean()))


# the scorebook

BOOKS = st.dictionaries(st.sampled_from(["05.q1", "05.q2", "06.q1"]), st.datetimes().map(str), max_size=3)


@thorough
@given(BOOKS, BOOKS, BOOKS)
def test_books_are_merged_in_any_order_and_as_often_as_one_likes(a, b, c):
    both = scorebook.merged(a, b)
    assert both == scorebook.merged(b, a) == scorebook.merged(both, a)
    assert scorebook.merged(both, c) == scorebook.merged(a, scorebook.merged(b, c))
    assert both.keys() == a.keys() | b.keys()
    assert all(both[name] <= book[name] for book in (a, b) for name in book)


# numbers that are none

TAKES_FEATURES = {
    "coral_distance": coral_distance,
    "coral_transform": coral_transform,
    "squared_mmd": squared_mmd,
    "mmd_distance": mmd_distance,
    "proxy_a_distance": proxy_a_distance,
    "h_score": lambda x, _: h_score(x, torch.arange(len(x)) % 2),
    "logme": lambda x, _: logme(x, torch.arange(len(x)) % 2),
    "class_prototypes": lambda x, _: class_prototypes(Features(x, torch.arange(len(x)) % 2)),
    "nearest_prototype": nearest_prototype,
    "spherical_kmeans": lambda x, y: spherical_kmeans(x, y[:2]),
    "self_training": lambda x, y: self_training(Features(y, torch.arange(len(y)) % 2), x),
    "fit_probe": lambda x, _: fit_probe(Features(x, torch.arange(len(x)) % 2)),
    "fit_knn": lambda x, _: fit_knn(Features(x, torch.arange(len(x)) % 2)),
    "Probe.predict": lambda x, y: fit_probe(Features(y, torch.arange(len(y)) % 2)).predict(x),
}


@pytest.mark.fault_table
@pytest.mark.parametrize("name", TAKES_FEATURES)
def test_a_number_that_is_none_is_refused_wherever_it_stands(name, fault_row):
    drawn = []
    refused = []

    @settings(slow)
    @given(SEEDS, st.integers(0, 23), st.sampled_from([math.nan, math.inf, -math.inf]))
    def trial(seed, place, bad):
        x = normal(seed, 8, 3).float()
        x.view(-1)[place] = bad
        drawn.append(place)
        with pytest.raises(ValueError, match="NaN or infinity; look at"):
            TAKES_FEATURES[name](x, normal(seed + 1, 8, 3).float())
        refused.append(place)

    try:
        trial()
    finally:  # a failure shows in the table, too
        fault_row("NaN or infinity in one place of the features", "refused, and said", len(drawn), len(refused))


# wrong uses: what was wrong, and what to do


def figure():
    return Figure().subplots()


def empty_table(folder):
    path = folder / "empty.tsv"
    path.touch()
    return read_table(path)


WRONG = [
    (lambda _: warmup_cosine(1.0), r"warmup is a part of the run in \[0, 1\), not 1\.0"),
    (lambda _: dann_lambda(1.5), r"progress is 1\.5; it must be in \[0, 1\]: steps done by steps in all"),
    (lambda _: batch_size(()), "the batch is empty; the loader must yield at least one tensor"),
    (lambda _: crop_to_ink(torch.rand(2, 3, 8, 8)), r"\[2, 3, 8, 8\] at size=16: give float \[N, 1, H, W\]"),
    (lambda _: crop_to_ink(torch.rand(2, 1, 8, 8), size=0), "at size=0: give .* a size above 0"),
    (lambda _: Jitter(size=0)(torch.rand(1, 1, 8, 8), generator(0)), "at size=0: give uint8 or float"),
    (lambda _: Jitter()(torch.ones(1, 1, 8, 8).long(), generator(0)), r"images torch\.int64 .* give uint8 or float"),
    (lambda _: mean_pool(torch.rand(2, 5, 3), torch.ones(2, 4)), r"mask \[2, 4\] must be float \[N, L, D\] and \[N, L"),
    (empty_table, r"empty\.tsv is empty; give a file with one example per line"),
    (
        lambda _: nearest_prototype(torch.rand(4, 3).double(), torch.rand(2, 3)),
        r"features torch\.float32 and torch\.float64 must be of one floating type; use \.float\(\)",
    ),
    (
        lambda _: coral_distance(torch.ones(4, 3).long(), torch.ones(4, 3).long()),
        r"must be of one floating type; use \.float\(\)",
    ),
    (
        lambda _: plots.plot_confusion(figure(), np.array([0, 1]), np.array([0, 3]), "abc"),
        r"2 true and 2 predicted labels must be equally many whole numbers, at least one, in 0\.\.2",
    ),
    (lambda _: plots.plot_embedding(figure(), {"digits": np.zeros((4, 3))}), r"'digits' are \[4, 3\]; they must be \["),
]


@pytest.mark.fault_table
def test_a_wrong_use_is_refused_with_what_was_wrong_and_what_to_do(tmp_path, fault_row):
    for use, message in WRONG:
        with pytest.raises(ValueError, match=message):
            use(tmp_path)
    fault_row("wrong use of a public function", "an error with the value and the remedy", len(WRONG), len(WRONG))
