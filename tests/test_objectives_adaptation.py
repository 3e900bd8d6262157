import math
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import CPU, differing, slope, toy_examples, toy_model, weights_of

from tlhelpers.analysis import mmd_distance
from tlhelpers.data import JointLoader, TensorLoader
from tlhelpers.models import freeze
from tlhelpers.objectives import (
    adabn,
    coral,
    coral_distance,
    coral_transform,
    dann,
    dann_lambda,
    mmd,
    reverse_gradient,
    squared_mmd,
)
from tlhelpers.training import fit


def through():
    """A model with body and head that changes nothing, so that features and logits can be written down."""
    return nn.Sequential(OrderedDict(body=nn.Identity(), head=nn.Identity()))


def trained(model, loaders, objective, *, epochs=2, lr=0.1):
    """The history of a run of `fit` over model and objective."""
    own = objective.parameters() if isinstance(objective, nn.Module) else []
    optimizer = torch.optim.SGD([*model.parameters(), *own], lr=lr)
    return fit(model, loaders, objective, optimizer, epochs=epochs, device=CPU)


def joint_loader():
    """Batches of 12, whose target has NaN for labels."""
    examples = toy_examples()
    unlabelled = [(examples.x + 1, torch.full((24,), math.nan))]
    return JointLoader({"source": TensorLoader(examples, 12, device=CPU), "target": unlabelled})


# CORAL


def test_coral_distance_is_its_closed_form_in_value_and_gradient():
    source = torch.randn(9, 4).double().requires_grad_()
    target = torch.randn(7, 4).double() * 2
    gap = torch.cov(source.T) - torch.cov(target.T)
    value = coral_distance(source, target)
    assert torch.allclose(value, gap.square().sum() / (4 * 16))
    centred = source - source.mean(0)
    assert torch.allclose(slope(value, source), centred @ gap / (16 * 8))


def test_coral_distance_sees_no_shift_of_the_mean():
    x = torch.randn(20, 3)
    assert float(coral_distance(x, x + 5)) == pytest.approx(0.0, abs=1e-8)


def test_coral_transform_gives_the_source_the_mean_and_covariance_of_the_target():
    source = torch.randn(50, 4).double() @ torch.randn(4, 4).double() + 3
    target = torch.randn(40, 4).double() @ torch.randn(4, 4).double() - 1
    moved = coral_transform(source, target, regularisation=1e-9)
    assert torch.allclose(moved.mean(0), target.mean(0))
    assert torch.allclose(torch.cov(moved.T), torch.cov(target.T), atol=1e-6)
    assert torch.allclose(coral_transform(source, source), source)


def test_coral_transform_of_one_feature_with_regularisation_is_as_computed_by_hand():
    source = torch.tensor([[0.0], [2.0]])  # variance 2
    target = torch.tensor([[5.0], [11.0]])  # variance 18
    factor = math.sqrt((18 + 1) / (2 + 1))
    assert torch.allclose(coral_transform(source, target), torch.tensor([[8 - factor], [8 + factor]]))


def test_coral_transform_works_with_fewer_samples_than_features():
    assert torch.isfinite(coral_transform(torch.randn(3, 50), torch.randn(4, 50), regularisation=1e-3)).all()
    with pytest.raises(ValueError, match=r"regularisation is 0; it must be above 0"):
        coral_transform(torch.randn(9, 2), torch.randn(9, 2), regularisation=0)


@pytest.mark.parametrize("distance", [coral_distance, coral_transform])
def test_features_that_cannot_be_aligned_are_refused(distance):
    with pytest.raises(ValueError, match=r"must be \[N, D\] and \[M, D\], not \[8, 3\] and \[8, 4\]"):
        distance(torch.rand(8, 3), torch.rand(8, 4))
    with pytest.raises(ValueError, match="8 and 1 rows are too few; give at least 2"):
        distance(torch.rand(8, 3), torch.rand(1, 3))
    with pytest.raises(ValueError, match="the source features hold NaN"):
        distance(torch.full((8, 3), math.nan), torch.rand(8, 3))


# objectives against a shift


def shifted():
    """Batches whose x are the features and, in `through`, the logits; the target's y cannot be labels."""
    source = torch.randn(9, 3, requires_grad=True)
    target = torch.randn(6, 3, requires_grad=True)
    y = torch.arange(9) % 3
    return source, target, {"source": (source, y), "target": (target + 0.5, torch.full((6,), 99))}


@pytest.mark.parametrize(
    ("objective", "name", "distance"),
    [
        (coral(3.0), "coral", lambda s, t: coral_distance(s, t)),
        (mmd(3.0, bandwidth=1.5), "mmd", lambda s, t: torch.tensor(mmd_distance(s, t, bandwidth=1.5)).float()),
        (mmd(3.0), "mmd", lambda s, t: torch.tensor(mmd_distance(s, t)).float()),
    ],
)
def test_alignment_adds_its_weighted_distance_to_the_loss_on_the_source(objective, name, distance):
    source, target, batch = shifted()
    with torch.autocast("cpu", torch.bfloat16):  # of which the distance takes no notice: 8 bits are too coarse for it
        logged = objective(through(), batch)
    with torch.no_grad():
        assert torch.allclose(logged["source_loss"], F.cross_entropy(*batch["source"]))
        assert torch.allclose(logged[name], distance(source, target + 0.5), atol=1e-6)
        assert torch.allclose(logged["loss"], logged["source_loss"] + 3 * logged[name])
    assert slope(logged["loss"], target).abs().sum() > 0
    assert set(logged) == {"loss", "source_loss", "accuracy", name}


@pytest.mark.parametrize("make", [lambda: coral(1.0), lambda: mmd(1.0), lambda: dann(nn.Linear(6, 1))])
def test_alignment_never_reads_the_labels_of_the_target_and_learns_through_fit(make):
    joint = joint_loader()
    history = trained(toy_model(), (joint, joint), make())
    assert history[-1]["validation_source_loss"] < history[0]["validation_source_loss"]


@pytest.mark.parametrize("make", [lambda: coral(1.0), lambda: mmd(1.0), lambda: dann(nn.Linear(3, 1))])
def test_an_empty_unlabelled_set_and_nan_features_are_refused(make):
    _, _, batch = shifted()
    for empty in ({"source": batch["source"]}, {**batch, "target": (torch.zeros(0, 3), torch.zeros(0))}):
        with pytest.raises(ValueError, match=r"the batch holds \{'source': 9, 'target': 0\} examples; at least 2"):
            make()(through(), empty)
    with pytest.raises(ValueError, match="the target features hold NaN"):
        make()(through(), {**batch, "target": (torch.full((6, 3), math.nan), None)})


@pytest.mark.parametrize("make", [coral, mmd, lambda weight: dann(nn.Linear(3, 1), weight=weight)])
def test_a_negative_weight_is_refused(make):
    with pytest.raises(ValueError, match=r"-0\.5.* must be at least 0"):
        make(-0.5)


def test_mmd_refuses_a_bandwidth_that_is_not_positive():
    with pytest.raises(ValueError, match="the bandwidth is 0; it must be positive, or None"):
        mmd(1.0, bandwidth=0)
    with pytest.raises(ValueError, match=r"the bandwidth is 0; it must be positive \(are all rows equal\?\)"):
        squared_mmd(torch.randn(4, 2), torch.randn(4, 2), bandwidth=0)


# DANN


def test_the_reversal_changes_no_value_and_multiplies_the_gradient_by_minus_lambda():
    x = torch.randn(5, 3, requires_grad=True)
    weight = torch.randn(5, 3)
    assert torch.equal(reverse_gradient(x, 0.7), x)
    assert torch.equal(slope((reverse_gradient(x, 0.7) * weight).sum(), x), -0.7 * weight)


def test_dann_teaches_the_discriminator_forwards_and_the_features_backwards():
    source, target, batch = shifted()
    discriminator = nn.Linear(3, 1)
    objective = dann(discriminator, weight=2.0)
    objective.progress = 0.05
    logged = objective(through(), batch)
    logits = discriminator(torch.cat([source, target + 0.5]))[:, 0]
    is_source = torch.tensor([1.0] * 9 + [0.0] * 6)
    domain = F.binary_cross_entropy_with_logits(logits, is_source)
    assert torch.allclose(logged["domain_loss"], domain)
    assert torch.allclose(logged["loss"], logged["source_loss"] + domain)
    assert logged["domain_accuracy"] == ((logits > 0) == (is_source > 0)).float().mean()
    strength = 2.0 * dann_lambda(0.05)
    assert float(logged["lambda"]) == pytest.approx(strength)
    assert torch.allclose(slope(logged["loss"], discriminator.weight), slope(domain, discriminator.weight))
    assert torch.allclose(slope(logged["loss"], target), -strength * slope(domain, target), atol=1e-8)


def test_lambda_follows_the_schedule_of_the_paper():
    for p in (0.0, 0.1, 0.5, 1.0):
        assert dann_lambda(p) == pytest.approx(2 / (1 + math.exp(-10 * p)) - 1)
    with pytest.raises(ValueError, match=r"progress is 1\.2; it must be in \[0, 1\]"):
        dann_lambda(1.2)


def test_fit_tells_dann_how_far_the_run_is_before_every_step():
    seen = []
    objective = dann(nn.Linear(6, 1), weight=2.0)
    objective.register_forward_pre_hook(lambda module, _: seen.append((module.training, module.progress)))
    joint = joint_loader()  # 2 steps
    history = trained(toy_model(), (joint, joint), objective, epochs=3)
    middles = [(step + 0.5) / 6 for step in range(6)]
    assert [progress for training, progress in seen if training] == pytest.approx(middles)
    assert [progress for training, progress in seen if not training] == pytest.approx(
        [p for p in middles[1::2] for _ in range(2)]  # an evaluation stays where training is
    )
    lambdas = [2 * dann_lambda(p) for p in middles]
    expected = [(first + second) / 2 for first, second in zip(lambdas[::2], lambdas[1::2], strict=True)]
    assert [record["train_lambda"] for record in history] == pytest.approx(expected, rel=1e-6)


def test_outside_a_run_dann_stays_at_its_start_where_the_body_hears_nothing_from_the_domains():
    _, target, batch = shifted()
    logged = dann(nn.Linear(3, 1))(through(), batch)
    assert logged["lambda"] == 0
    assert slope(logged["loss"], target).abs().sum() == 0


def test_a_discriminator_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"gives \[15, 2\]; it must end in nn.Linear\(..., 1\)"):
        dann(nn.Linear(3, 2))(through(), shifted()[2])


# AdaBN


def test_adabn_takes_mean_and_variance_from_the_target_and_touches_nothing_else():
    model = toy_model()
    x = torch.randn(40, 4) * 3 + 2
    model.head.eval()
    before = weights_of(model)
    flags = [part.training for part in model.modules()]
    adabn(model, [(x, None)])
    seen = model.body.first(x)
    assert torch.allclose(model.body.norm.running_mean, seen.mean(0), atol=1e-5)
    assert torch.allclose(model.body.norm.running_var, seen.var(0), rtol=1e-4)
    assert set(differing(before, model)) == {f"body.norm.{n}" for n in ("running_mean", "running_var")} | {
        "body.norm.num_batches_tracked"
    }
    assert [part.training for part in model.modules()] == flags
    assert model.body.norm.momentum == 0.1


def test_adabn_counts_batches_alike_and_reaches_a_frozen_body_which_then_stays_frozen():
    model = toy_model()
    batches = [torch.randn(8, 4), torch.randn(8, 4) + 4]
    freeze(model.body)
    adabn(model, [(x, None) for x in batches])
    assert torch.allclose(model.body.norm.running_mean, model.body.first(torch.cat(batches)).mean(0), atol=1e-5)
    before = weights_of(model)
    model.train()(batches[0])
    assert differing(before, model) == []


def test_adabn_undoes_a_shift_of_the_input_to_a_body_that_starts_with_batchnorm():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    x = torch.randn(50, 4)
    adabn(model, [(x, None)])
    plain = model.eval()(x)
    adabn(model, [(5 * x - 2, None)])
    assert torch.allclose(model.eval()(5 * x - 2), plain, atol=1e-4)


def test_adabn_without_norms_batches_or_usable_inputs_says_so():
    x = torch.randn(6, 4)
    with pytest.raises(ValueError, match="0 BatchNorm layers and 1 batches; adabn needs at least one of each"):
        adabn(nn.Linear(4, 3), [(x, None)])
    with pytest.raises(ValueError, match="1 BatchNorm layers and 0 batches"):
        adabn(toy_model(), [])
    model = toy_model().eval()
    model.body.norm.running_mean.normal_()
    before = weights_of(model)
    for broken in (x[:1], x * math.nan):
        with pytest.raises(ValueError, match=r"a batch of \d target inputs is too small or holds NaN; give 2 or more"):
            adabn(model, [(x, None), (broken, None)])
        assert differing(before, model) == []  # what was known of the source is not lost
        assert not model.body.norm.training
