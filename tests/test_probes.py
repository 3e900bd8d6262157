"""Probes: fitted once, asked often, and the same as scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from tlhelpers.analysis import C_GRID, Features, fit_knn, fit_probe


def clouds(classes=3, n=60, spread=2.0):
    """Overlapping clouds in 5 dimensions of unlike scales."""
    y = torch.arange(n) % classes
    centres = spread * torch.randn(10, 5, generator=torch.Generator().manual_seed(5))[:classes]
    scales = torch.tensor([1.0, 10.0, 0.1, 3.0, 1.0])
    return Features((torch.randn(n, 5) + centres[y]) * scales + 7, y)


@pytest.mark.parametrize("classes", [2, 10])
def test_a_probe_is_scikit_learns_and_its_layer_gives_the_same_probabilities(classes):
    train = clouds(classes, n=100)
    test = clouds(classes)
    oracle = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(train.x, train.y)
    probe = fit_probe(train)
    predictions = probe.predict(test.x)
    assert predictions.dtype == torch.int64
    assert np.array_equal(predictions, oracle.predict(test.x))
    assert probe.score(test) == pytest.approx(oracle.score(test.x, test.y))
    assert 1 / classes < probe.score(test)
    logits = F.linear(test.x, probe.weight, probe.bias)
    assert np.allclose(logits.log_softmax(1), oracle.predict_log_proba(test.x), atol=1e-3)
    assert torch.equal(logits.argmax(1), predictions)


@pytest.mark.parametrize(("fit", "classifier"), [(fit_probe, LogisticRegression), (fit_knn, KNeighborsClassifier)])
def test_a_probe_is_fitted_once_and_answers_often(fit, classifier, monkeypatch):
    train = clouds()
    test = clouds()
    probe = fit(train)
    monkeypatch.setattr(classifier, "fit", lambda *_: pytest.fail("it was fitted again"))
    predictions = probe.predict(test.x)
    assert torch.equal(probe.predict(test.x), predictions)
    assert torch.equal(torch.cat([probe.predict(row) for row in test.x.split(1)]), predictions)
    assert probe.score(test) == pytest.approx(float((predictions == test.y).float().mean()))
    assert probe.score(Features(test.x, predictions)) == 1
    assert probe.score(Features(test.x, predictions + 1)) == 0


@pytest.mark.parametrize("classes", [2, 3])
def test_a_probe_becomes_a_layer_of_its_own_that_decides_alike(classes):
    test = clouds(classes)
    probe = fit_probe(clouds(classes))
    layer = probe.as_layer()
    assert torch.equal(layer(test.x).argmax(1), probe.predict(test.x))
    assert (layer.in_features, layer.out_features) == (5, classes)
    assert all(parameter.requires_grad for parameter in layer.parameters())
    with torch.no_grad():
        layer.weight.zero_()
    assert torch.equal(probe.as_layer().weight, probe.weight)
    assert probe.weight.any()


def test_a_probe_is_the_same_whatever_else_draws_random_numbers():
    train = clouds()
    first = fit_probe(train)
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(fit_probe(train).weight, first.weight)


def test_a_class_without_examples_is_never_the_answer():
    train = clouds(3)
    test = clouds(3)
    some = train.y != 1
    probe = fit_probe(Features(train.x[some], train.y[some]))
    assert probe.weight.shape == (3, 5)
    assert F.linear(test.x, probe.weight, probe.bias).softmax(1)[:, 1].max() < 1e-6
    assert probe.predict(test.x).unique().tolist() == [0, 2]
    assert torch.equal(probe.as_layer()(test.x).argmax(1), probe.predict(test.x))


def test_validation_chooses_the_first_of_the_best_penalties():
    train, validation, test = (clouds(10, n=n, spread=0.6) for n in (40, 200, 50))
    scores = [fit_probe(train, C=C).score(validation) for C in C_GRID]
    chosen = fit_probe(train, validation=validation, C=123.0)
    assert len(set(scores)) > 1
    assert C_GRID[int(np.argmax(scores))] == chosen.C
    assert torch.equal(chosen.predict(test.x), fit_probe(train, C=chosen.C).predict(test.x))
    equal = fit_probe(train, validation=Features(validation.x[:1], torch.tensor([-1])))
    assert C_GRID[0] == equal.C


@pytest.mark.parametrize("k", [1, 5])
def test_nearest_neighbours_give_the_majority_of_the_nearest_by_cosine(k):
    train = clouds(2)
    test = clouds(2)
    similarity = F.normalize(test.x) @ F.normalize(train.x).T
    votes = train.y[similarity.topk(k).indices].mode(1).values
    neighbours = fit_knn(train, k=k)
    assert torch.equal(neighbours.predict(test.x), votes)
    assert neighbours.score(test) == pytest.approx(float((votes == test.y).float().mean()))
    assert neighbours.k == k
    assert torch.equal(neighbours.predict(100 * test.x), votes)


@pytest.mark.parametrize("fit", [fit_probe, fit_knn])
@pytest.mark.parametrize(
    ("train", "message"),
    [
        (Features(torch.rand(6, 5), torch.ones(6).long()), "a single class; a classifier needs at least two"),
        (Features(torch.rand(6, 5), torch.arange(6) % 2 - 1), r"with labels from 0 on"),
        (Features(torch.rand(6, 5), torch.arange(6) / 2), r"labels torch.float32 \[6\] must be .* int64 \[N\]"),
        (Features(torch.rand(6, 5), torch.arange(5)), r"features \[6, 5\] and labels torch.int64 \[5\]"),
        (Features(torch.rand(6), torch.arange(6)), r"features \[6\] .* must be \[N, D\]"),
        (Features(torch.rand(0, 5), torch.arange(0)), r"features \[0, 5\] .* at least one example"),
        (Features(torch.rand(6, 0), torch.arange(6)), r"features \[6, 0\]"),
        (Features(torch.full((6, 5), torch.inf), torch.arange(6)), "hold NaN or infinity; look at the inputs and at"),
    ],
)
def test_features_that_nothing_can_be_learnt_from_are_refused(fit, train, message):
    with pytest.raises(ValueError, match=message):
        fit(train)


@pytest.mark.parametrize("fit", [fit_probe, fit_knn])
@pytest.mark.parametrize("ask", [lambda probe, x: probe.predict(x), lambda probe, x: probe.score(Features(x, x[:, 0]))])
def test_features_that_no_probe_can_judge_are_refused(fit, ask):
    probe = fit(clouds())
    holed = clouds().x
    holed[3, 2] = torch.nan
    with pytest.raises(ValueError, match="the features hold NaN or infinity; look at the inputs"):
        ask(probe, holed)
    with pytest.raises(ValueError, match=r"the features are \[60, 4\]; they must be \[N, 5\], of one body, and not em"):
        ask(probe, holed[:, :4])
    with pytest.raises(ValueError, match=r"the features are \[0, 5\]"):
        ask(probe, holed[:0])


@pytest.mark.parametrize("fit", [fit_probe, fit_knn])
def test_a_score_needs_a_label_for_every_row(fit):
    with pytest.raises(ValueError, match=r"60 features and labels \[59\] must be equally many"):
        fit(clouds()).score(Features(clouds().x, clouds().y[1:]))


def test_validation_features_are_checked_as_others_are():
    with pytest.raises(ValueError, match=r"the features are \[60, 4\]; they must be \[N, 5\]"):
        fit_probe(clouds(), validation=Features(clouds().x[:, :4], clouds().y))


@pytest.mark.parametrize("C", [0.0, -1.0, float("nan")])
def test_a_penalty_that_is_not_positive_is_refused(C):
    with pytest.raises(ValueError, match="C"):
        fit_probe(clouds(), C=C)


@pytest.mark.parametrize("k", [0, 61])
def test_k_beyond_the_training_examples_is_refused(k):
    with pytest.raises(ValueError, match=rf"k is {k}, but there are 60 training examples; choose 1\.\.60"):
        fit_knn(clouds(), k=k)
