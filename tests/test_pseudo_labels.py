import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch.nn import functional as F

from tlhelpers.analysis import (
    Features,
    class_prototypes,
    fit_probe,
    nearest_prototype,
    self_training,
    spherical_kmeans,
)

CENTRES = torch.eye(3, 6) * 4


def clusters(per_class: int = 30, *, shift: float = 0.0) -> Features:
    """Three clouds in six dimensions, moved along a direction that all share."""
    y = torch.arange(3).repeat(per_class)
    return Features(CENTRES[y] + torch.randn(len(y), 6) + shift, y)


# prototypes


def test_a_prototype_is_the_mean_of_unit_rows_brought_to_length_1():
    source = Features(torch.tensor([[3.0, 0.0], [0.0, 5.0], [-2.0, 0.0]]), torch.tensor([0, 0, 1]))
    expected = torch.tensor([[math.sqrt(0.5), math.sqrt(0.5)], [-1.0, 0.0]])
    assert torch.allclose(class_prototypes(source), expected)
    assert nearest_prototype(torch.tensor([[9.0, 1.0], [-0.1, 0.0]]), expected).tolist() == [0, 1]


def test_prototypes_do_not_see_the_length_of_a_row():
    source, factors = clusters(), torch.rand(90, 1) + 0.5
    longer = Features(source.x * factors, source.y)
    assert torch.allclose(class_prototypes(source), class_prototypes(longer), atol=1e-6)
    start = class_prototypes(source)
    assert torch.equal(nearest_prototype(source.x, start), nearest_prototype(longer.x, 7 * start))


@pytest.mark.parametrize(
    "labels",
    [torch.zeros(4).long(), torch.tensor([0, 2, 2, 0]), torch.tensor([5, 6, 7, 8])],
    ids=["one class", "a class missing", "fewer samples than classes"],
)
def test_prototypes_need_an_example_of_every_class(labels):
    with pytest.raises(ValueError, match="every class needs an example"):
        class_prototypes(Features(torch.rand(4, 3), labels))


# k-means


def test_one_pass_of_k_means_is_as_computed_by_hand():
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.1]])
    moved = spherical_kmeans(rows, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), passes=1)
    second = F.normalize(rows[1] / 2 + F.normalize(rows[2], dim=0), dim=0)
    assert torch.allclose(moved, torch.stack([torch.tensor([1.0, 0.0]), second]))


def test_k_means_lowers_its_own_error_at_every_pass_and_then_stands_still():
    target, start = clusters(shift=2.0).x, F.normalize(torch.randn(3, 6))
    errors = []
    for passes in range(1, 8):
        best = (F.normalize(target) @ spherical_kmeans(target, start, passes=passes).T).max(1).values
        errors.append(float((1 - best).sum()))
    assert all(later <= before + 1e-4 for before, later in pairwise(errors))
    end = spherical_kmeans(target, start, passes=50)
    assert torch.allclose(spherical_kmeans(target, end), end, atol=1e-5)


def test_k_means_finds_the_clusters_that_scikit_learn_finds_on_rows_of_length_1():
    target, start = clusters(), class_prototypes(clusters(shift=1.0))
    unit = F.normalize(target.x)
    theirs = KMeans(3, init=start.numpy(), n_init=1).fit(unit.numpy()).labels_
    ours = nearest_prototype(target.x, spherical_kmeans(target.x, start))
    assert np.mean(ours.numpy() == theirs) > 0.98


def test_k_means_from_source_prototypes_undoes_a_shift_and_keeps_the_names_of_the_classes():
    source, target = clusters(), clusters(shift=3.0)
    moved = target.x + 5 * F.one_hot(torch.tensor(0), 6)  # towards class 0
    start = class_prototypes(source)
    before = (nearest_prototype(moved, start) == target.y).float().mean()
    after = (nearest_prototype(moved, spherical_kmeans(moved, start)) == target.y).float().mean()
    assert after > before + 0.2
    assert after > 0.9


def test_a_prototype_that_no_row_chooses_stays_where_it_is():
    start = F.normalize(torch.tensor([[1.0, 0.1], [0.0, 1.0], [-1.0, -1.0]]))
    rows = torch.rand(20, 2) + 0.1
    assert torch.allclose(spherical_kmeans(rows, start)[2], start[2])


def test_k_means_refuses_what_it_cannot_cluster():
    start = torch.eye(3)
    for rows, words in [
        (torch.rand(2, 3), "2 rows for 3 clusters"),
        (torch.zeros(0, 3), "3 and 0 rows are too few"),
        (torch.full((5, 3), math.nan), "the target features hold NaN"),
        (torch.rand(5, 4), "must be"),
    ]:
        with pytest.raises(ValueError, match=words):
            spherical_kmeans(rows, start)
    with pytest.raises(ValueError, match="passes=0"):
        spherical_kmeans(torch.rand(5, 3), start, passes=0)


# self-training


def test_without_a_confident_row_self_training_is_the_probe_on_the_source():
    source, target = clusters(), clusters(shift=1.0)
    taught = self_training(source, target.x, confidence=1.0, rounds=2)
    plain = fit_probe(source)
    assert taught.confident == (0, 0)
    assert torch.allclose(taught.probe.weight, plain.weight)


def test_self_training_never_asks_for_labels_and_helps_where_the_confident_are_right():
    source, target = clusters(60), clusters(60)
    scale = torch.tensor([1.0, 1.0, 1.0, 0.2, 0.2, 0.2])
    tilted = target.x * scale + 0.35 * target.x.roll(3, 1)  # class information also where the source has none
    labelled = Features(tilted, target.y)
    before = fit_probe(source).score(labelled)
    taught = self_training(source, tilted, confidence=0.8)
    assert taught.probe.score(labelled) >= before
    assert len(taught.confident) == 5
    assert taught.confident[-1] >= taught.confident[0] > 0


def test_self_training_refuses_an_empty_domain_one_class_nan_and_settings_out_of_range():
    source, target = clusters(), clusters().x
    with pytest.raises(ValueError, match="90 and 0 rows are too few"):
        self_training(source, target[:0])
    with pytest.raises(ValueError, match="single class"):
        self_training(Features(source.x, torch.zeros(90).long()), target)
    with pytest.raises(ValueError, match="the target features hold NaN"):
        self_training(source, target * math.nan)
    for wrong in ({"confidence": 0.0}, {"confidence": 1.1}, {"rounds": 0}):
        with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
            self_training(source, target, **wrong)
