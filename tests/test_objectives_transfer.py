import copy
import math
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import CPU, differing, toy_model, toy_part, weights_of

from tlhelpers.objectives.adaptation import (
    adabn,
    coral,
    coral_distance,
    coral_transform,
    dann,
    dann_lambda,
    gradient_cosine,
    mmd,
    project_conflicting,
    reverse_gradient,
)
from tlhelpers.data.examples import JointLoader, TensorLoader
from tlhelpers.objectives.supervised import (
    attention_map,
    attention_transfer,
    classification,
    distillation,
    feature_match,
    multitask,
    uncertainty_weighted,
)
from tlhelpers.models.surgery import freeze
from tlhelpers.training.loop import fit
from tlhelpers.analysis.transferability import mmd_distance


def two_headed(shared=False):
    """A body [N, 4] -> [N, 6] with BatchNorm, and heads [N, 3] for source and target."""
    model = toy_model()
    heads = {"source": model.head, "target": model.head if shared else nn.Linear(6, 3)}
    return nn.ModuleDict({"body": model.body, "heads": nn.ModuleDict(heads)})


def two_batches(n=10, m=6):
    target = toy_part(30).take(torch.arange(20, 20 + m))
    return {"source": (toy_part(n).x, toy_part(n).y), "target": (target.x + 1, target.y)}


def constant(value):
    return lambda model, batch: {"loss": torch.as_tensor(value)}


def through():
    """A model with body and head that changes nothing, so that features and logits can be written down."""
    return nn.Sequential(OrderedDict(body=nn.Identity(), head=nn.Identity()))


class Descent:
    """Gradient descent for `fit`; the first optimizer of torch.optim imports for seconds."""

    def __init__(self, model, lr):
        self.param_groups = [{"params": list(model.parameters()), "lr": lr}]

    def zero_grad(self):
        for p in self.param_groups[0]["params"]:
            p.grad = None

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                p -= self.param_groups[0]["lr"] * p.grad


def slope(value, x):
    return torch.autograd.grad(value, x, retain_graph=True)[0]


# multitask


def test_multitask_is_the_weighted_sum_in_value_and_gradient():
    model, batch = two_headed().eval(), two_batches()
    logged = multitask({"source": 1.0, "target": 0.3})(model, batch)
    losses = {}
    for task, (x, y) in batch.items():
        losses[task] = F.cross_entropy(model.heads[task](model.body(x)), y)
        assert torch.allclose(logged[f"{task}_loss"], losses[task])
    assert torch.allclose(logged["loss"], losses["source"] + 0.3 * losses["target"])
    weight = model.body.first.weight
    expected = slope(losses["source"], weight) + 0.3 * slope(losses["target"], weight)
    assert torch.allclose(slope(logged["loss"], weight), expected, atol=1e-7)
    assert set(logged) == {"loss", "source_loss", "source_accuracy", "target_loss", "target_accuracy"}


def test_a_shared_head_is_counted_once_and_hears_both_tasks():
    model, batch = two_headed(shared=True).eval(), two_batches()
    assert len(list(model.heads.parameters())) == 2
    both = multitask({"source": 1.0, "target": 1.0})(model, batch)["loss"]
    one = multitask({"source": 1.0})(model, batch)["loss"]
    assert not torch.allclose(slope(both, model.heads["source"].weight), slope(one, model.heads["source"].weight))


def test_a_task_of_weight_0_leaves_no_trace_in_training_and_is_scored_in_evaluation():
    model, batch = two_headed(), two_batches()
    alone = copy.deepcopy(model)
    objective = multitask({"source": 1.0, "target": 0.0})
    torch.manual_seed(1)
    logged = objective(model.train(), batch)
    torch.manual_seed(1)
    multitask({"source": 1.0})(alone.train(), batch)
    assert differing(weights_of(alone), model) == []
    assert "target_loss" not in logged
    assert "target_accuracy" in objective(model.eval(), batch)


def test_a_task_may_bring_its_own_objective():
    logged = multitask({"source": 1.0, "target": 2.0}, {"target": constant(5.0)})(two_headed().eval(), two_batches())
    assert torch.allclose(logged["loss"], logged["source_loss"] + 10)


def test_multitask_learns_through_fit_from_a_joint_loader():
    part = toy_part()
    loaders = {"source": TensorLoader(part, 8, device=CPU), "target": TensorLoader(part.take(torch.arange(4)), 4)}
    model, joint = two_headed(), JointLoader(loaders, steps=20)
    history = fit(model, (joint, joint), multitask({"source": 1.0, "target": 0.5}), Descent(model, 0.2), epochs=3)
    assert history[-1]["validation_loss"] < history[0]["validation_loss"]
    assert history[-1]["train_target_accuracy"] > 0.5


@pytest.mark.parametrize("weights", [{"source": 1.0, "target": -0.1}, {"source": 0.0}, {}, {"source": math.nan}])
def test_weights_that_cannot_be_meant_are_refused(weights):
    with pytest.raises(ValueError, match=r"the weights are .*; each must be at least 0, and one of them above"):
        multitask(weights)


def test_a_missing_batch_head_or_weight_is_named():
    objective, (x, y) = multitask({"source": 1.0, "target": 1.0}), two_batches()["source"]
    with pytest.raises(ValueError, match=r"the batch is \['source'\], without task 'target'; JointLoader yields"):
        objective(two_headed(), {"source": (x, y)})
    with pytest.raises(ValueError, match="the batch is tuple, without task 'source'"):
        objective(two_headed(), (x, y))
    with pytest.raises(ValueError, match=r"heads for \['source', 'target'\], not for task 'third'; add one"):
        multitask({"third": 1.0})(two_headed(), {"third": (x, y)})
    with pytest.raises(ValueError, match=r"objective for \['targte'\], which have no weight"):
        multitask({"source": 1.0}, {"targte": classification()})


# uncertainty weighting


def test_uncertainty_weighting_follows_its_formula_in_value_and_gradient():
    s = nn.ParameterDict({"source": torch.tensor(0.7), "target": torch.tensor(-1.2)})
    logged = uncertainty_weighted(s, {"source": constant(0.3), "target": constant(4.0)})(two_headed(), two_batches())
    expected = (0.3 * math.exp(-0.7) + 0.7) / 2 + (4 * math.exp(1.2) - 1.2) / 2
    assert float(logged["loss"].detach()) == pytest.approx(expected, rel=1e-6)
    for task, loss in [("source", 0.3), ("target", 4.0)]:
        here = math.exp(-float(s[task].detach()))
        assert float(slope(logged["loss"], s[task])) == pytest.approx((1 - loss * here) / 2, rel=1e-5)
        assert float(logged[f"{task}_weight"].detach()) == pytest.approx(here / 2)


def test_the_best_log_variance_is_the_logarithm_of_the_loss():
    losses = {"source": 0.2, "target": 3.0}
    s = nn.ParameterDict({task: torch.tensor(math.log(loss)) for task, loss in losses.items()})
    objective = uncertainty_weighted(s, {task: constant(loss) for task, loss in losses.items()})
    best = objective(two_headed(), two_batches())["loss"]
    assert float(best.detach()) == pytest.approx(sum(1 + math.log(loss) for loss in losses.values()) / 2, rel=1e-6)
    assert all(abs(float(slope(best, p))) < 1e-6 for p in s.values())
    for move in (-0.1, 0.1):
        with torch.no_grad():
            s["target"] += move
            assert objective(two_headed(), two_batches())["loss"] > best
            s["target"] -= move


def test_uncertainty_weighting_without_tasks_is_refused():
    with pytest.raises(ValueError, match="log_variances is empty; give one scalar per task"):
        uncertainty_weighted(nn.ParameterDict())


# gradients of two tasks


def test_pcgrad_of_two_conflicting_vectors_is_as_computed_by_hand():
    g1, g2 = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    first, second = project_conflicting(g1, g2)
    assert torch.allclose(first, torch.tensor([0.5, 0.5]))
    assert torch.allclose(second, torch.tensor([0.0, 1.0]))
    assert gradient_cosine(g1, g2) == pytest.approx(-1 / math.sqrt(2))


def test_pcgrad_leaves_no_conflict_with_the_other_task_and_agreeing_gradients_alone():
    g1 = torch.randn(20)
    g2 = torch.randn(20) - 2 * g1
    first, second = project_conflicting(g1, g2)
    assert abs(gradient_cosine(first, g2)) < 1e-6
    assert abs(gradient_cosine(second, g1)) < 1e-6
    kept = project_conflicting(g1, -g2)
    assert kept[0] is g1 and torch.equal(kept[1], -g2)
    assert gradient_cosine(g1, torch.zeros(20)) == 0


@pytest.mark.parametrize("compare", [project_conflicting, gradient_cosine])
def test_gradients_that_are_not_two_equal_vectors_are_refused(compare):
    with pytest.raises(ValueError, match=r"gradients .*\[3\] and .*\[4\] must be \[P\].*flatten"):
        compare(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match=r"\[2, 2\]"):
        compare(torch.zeros(2, 2), torch.zeros(2, 2))


# distillation


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_distillation_is_its_closed_form_in_value_and_gradient(alpha):
    teacher, T = nn.Linear(5, 5), 3.0
    x, y = torch.randn(8, 5, requires_grad=True), torch.arange(8) % 5
    y[:3] = -1
    loss = distillation(teacher, temperature=T, alpha=alpha)(nn.Identity(), (x, y))["loss"]
    p, q = (teacher(x) / T).softmax(1).detach(), (x / T).softmax(1)
    soft = T**2 * (p * (p.log() - q.log())).sum() / 8
    hard = -x.log_softmax(1)[torch.arange(3, 8), y[3:]].mean()
    assert torch.allclose(loss, alpha * soft + (1 - alpha) * hard, atol=1e-6)
    from_labels = torch.cat([torch.zeros(3, 5), x[3:].softmax(1) - F.one_hot(y[3:], 5)]) / 5
    expected = alpha * T * (q - p) / 8 + (1 - alpha) * from_labels
    assert torch.allclose(slope(loss, x), expected, atol=1e-6)


def test_at_a_high_temperature_the_gradient_is_the_centred_difference_of_logits():
    teacher, x = nn.Linear(6, 6).double(), torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    loss = distillation(teacher, temperature=200.0, alpha=1.0)(nn.Identity(), (x, None))["loss"]
    gap = (x - x.mean(1, keepdim=True) - teacher(x) + teacher(x).mean(1, keepdim=True)).detach()
    error = (slope(loss, x) - gap / (6 * 4)).norm() / (gap / (6 * 4)).norm()
    assert error < 0.01


def test_the_teacher_stays_as_it_is_whatever_mode_it_was_put_in():
    teacher, student, part = toy_model(), toy_model(), toy_part()
    before = weights_of(teacher)
    teacher.train()
    logged = distillation(teacher, temperature=2.0, alpha=0.5)(student, (part.x, part.y))
    logged["loss"].backward()
    assert differing(before, teacher) == []
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())
    assert student.training


def test_a_student_equal_to_its_teacher_has_nothing_to_learn_from_it():
    teacher, x = toy_model().eval(), toy_part().x
    logged = distillation(teacher, temperature=4.0, alpha=1.0)(copy.deepcopy(teacher), (x, None))
    assert float(logged["soft_loss"].detach()) == pytest.approx(0.0, abs=1e-6)
    assert logged["agreement"] == 1
    assert set(logged) == {"loss", "soft_loss", "agreement"}


def test_a_batch_without_any_label_keeps_a_finite_loss():
    x = torch.randn(4, 3)
    logged = distillation(nn.Linear(3, 3), temperature=2.0, alpha=0.5)(nn.Identity(), (x, torch.full((4,), -1)))
    assert torch.allclose(logged["loss"], logged["soft_loss"] / 2)
    assert logged["hard_loss"] == logged["accuracy"] == 0


@pytest.mark.parametrize(("temperature", "alpha"), [(0.0, 0.5), (-1.0, 0.5), (2.0, -0.1), (2.0, 1.1), (math.nan, 0.5)])
def test_a_temperature_or_alpha_out_of_range_is_named(temperature, alpha):
    with pytest.raises(ValueError, match=rf"temperature={temperature} must be above 0, and alpha={alpha} in"):
        distillation(nn.Identity(), temperature=temperature, alpha=alpha)


def test_a_teacher_of_other_classes_and_labels_below_minus_1_are_refused():
    objective, x = distillation(nn.Linear(3, 7), temperature=2.0, alpha=0.5), torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"student gives \[4, 3\], the teacher \[4, 7\]; give the student a head"):
        objective(nn.Linear(3, 3), (x, torch.zeros(4).long()))
    with pytest.raises(ValueError, match=r"from -2 to -2, but the head has 7 outputs"):
        objective(nn.Linear(3, 7), (x, torch.full((4,), -2)))


# layers of student and teacher


def hooks_of(model):
    return [hook for part in model.modules() for hook in part._forward_hooks]


def test_feature_match_is_the_mean_squared_difference_in_value_and_gradient():
    student, teacher, part = toy_model().eval(), toy_model(), toy_part()
    regressor = nn.Linear(6, 8)
    objective = feature_match(
        classification(), teacher, layers=("body.last", "body.first"), regressor=regressor, beta=0.7
    )
    logged = objective(student, (part.x, part.y))
    difference = regressor(student.body(part.x)) - teacher.body.first(part.x)
    assert torch.allclose(logged["feature_loss"], difference.square().mean())
    assert torch.allclose(logged["loss"], F.cross_entropy(student(part.x), part.y) + 0.7 * difference.square().mean())
    expected = 0.7 * 2 * difference.T @ student.body(part.x) / difference.numel()
    assert torch.allclose(slope(logged["loss"], regressor.weight), expected, atol=1e-6)
    assert all(p.grad is None for p in teacher.parameters())
    assert not teacher.training


def test_attention_transfer_compares_directions_of_maps_in_value_and_gradient():
    student, teacher = nn.Sequential(nn.Identity()), nn.Sequential(nn.Conv2d(3, 5, 1))
    x = torch.randn(4, 3, 6, 6, requires_grad=True)
    plain = lambda model, batch: {"loss": model(batch[0]).sum() * 0}  # noqa: E731
    logged = attention_transfer(plain, teacher, layers=("0", "0"), beta=2.0)(student, (x, None))
    mine, theirs = (z.square().sum(1).flatten(1) for z in (x, teacher(x).detach()))
    distance = ((2 - 2 * F.cosine_similarity(mine, theirs)) / 36).mean()
    assert torch.allclose(logged["attention_loss"], distance, atol=1e-7)
    assert torch.allclose(slope(logged["loss"], x), slope(2 * distance, x), atol=1e-7)


def test_attention_maps_are_blind_to_scale_and_to_the_order_of_channels():
    x = torch.randn(2, 3, 4, 5)
    assert torch.allclose(attention_map(7 * x[:, [2, 0, 1]]), attention_map(x), atol=1e-6)
    assert torch.allclose(attention_map(x).norm(dim=1), torch.ones(2))


def test_the_teacher_is_asked_once_and_no_hook_remains_even_after_an_error():
    calls = []
    student, teacher, part = toy_model(), toy_model(), toy_part()
    teacher.register_forward_pre_hook(lambda *_: calls.append(1))
    inner = distillation(teacher, temperature=2.0, alpha=1.0)
    objective = feature_match(inner, teacher, layers=("body", "body"), regressor=nn.Identity(), beta=1.0)
    objective(student, (part.x, part.y))
    assert calls == [1]
    with pytest.raises(RuntimeError):
        objective(student, (torch.zeros(2, 99), part.y))
    assert hooks_of(student) == hooks_of(teacher) == []


def test_layers_that_do_not_exist_or_do_not_fit_are_named():
    student, teacher, part = toy_model(), toy_model(), toy_part()
    batch, plain = (part.x, part.y), classification()
    with pytest.raises(ValueError, match=r"no layer called 'block9'; there are body, body.first,"):
        feature_match(plain, teacher, layers=("body", "block9"), regressor=nn.Identity(), beta=1.0)(student, batch)
    with pytest.raises(ValueError, match=r"gives \[24, 6\], the teacher \[24, 8\]; choose another layer or regressor"):
        feature_match(plain, teacher, layers=("body", "body.first"), regressor=nn.Identity(), beta=1.0)(student, batch)
    with pytest.raises(ValueError, match=r"needs \[N, C, H, W\], not \[24, 6\]; take a convolutional layer"):
        attention_transfer(plain, teacher, layers=("body", "body"), beta=1.0)(student, batch)
    with pytest.raises(ValueError, match=r"beta is -1; it must be at least 0"):
        attention_transfer(plain, teacher, layers=("body", "body"), beta=-1)


# CORAL


def test_coral_distance_is_its_closed_form_in_value_and_gradient():
    source, target = torch.randn(9, 4).double().requires_grad_(), torch.randn(7, 4).double() * 2
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
    source, target = torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [11.0]])  # variances 2 and 18
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
    source, target = torch.randn(9, 3, requires_grad=True), torch.randn(6, 3, requires_grad=True)
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
    logged = objective(through(), batch)
    with torch.no_grad():
        assert torch.allclose(logged["source_loss"], F.cross_entropy(*batch["source"]))
        assert torch.allclose(logged[name], distance(source, target + 0.5), atol=1e-6)
        assert torch.allclose(logged["loss"], logged["source_loss"] + 3 * logged[name])
    assert slope(logged["loss"], target).abs().sum() > 0
    assert set(logged) == {"loss", "source_loss", "accuracy", name}


@pytest.mark.parametrize("make", [lambda: coral(1.0), lambda: mmd(1.0), lambda: dann(nn.Linear(6, 1), steps=5)])
def test_alignment_never_reads_the_labels_of_the_target_and_learns_through_fit(make):
    part = toy_part()
    unlabelled = [(part.x + 1, torch.full((24,), math.nan))]
    joint, model = JointLoader({"source": TensorLoader(part, 12, device=CPU), "target": unlabelled}), toy_model()
    history = fit(model, (joint, joint), make(), Descent(model, 0.1), epochs=2)
    assert history[-1]["validation_source_loss"] < history[0]["validation_source_loss"]


@pytest.mark.parametrize("make", [lambda: coral(1.0), lambda: mmd(1.0), lambda: dann(nn.Linear(3, 1), steps=5)])
def test_an_empty_unlabelled_set_and_nan_features_are_refused(make):
    _, _, batch = shifted()
    for empty in ({"source": batch["source"]}, {**batch, "target": (torch.zeros(0, 3), torch.zeros(0))}):
        with pytest.raises(ValueError, match=r"the batch holds \{'source': 9, 'target': 0\} examples; at least 2"):
            make()(through(), empty)
    with pytest.raises(ValueError, match="the target features hold NaN"):
        make()(through(), {**batch, "target": (torch.full((6, 3), math.nan), None)})


@pytest.mark.parametrize("make", [coral, mmd, lambda weight: dann(nn.Linear(3, 1), steps=5, weight=weight)])
def test_a_negative_weight_is_refused(make):
    with pytest.raises(ValueError, match=r"-0\.5.* must be at least 0"):
        make(-0.5)


def test_mmd_refuses_a_bandwidth_that_is_not_positive():
    with pytest.raises(ValueError, match="the bandwidth is 0; it must be positive, or None"):
        mmd(1.0, bandwidth=0)


# DANN


def test_the_reversal_changes_no_value_and_multiplies_the_gradient_by_minus_lambda():
    x, weight = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)
    assert torch.equal(reverse_gradient(x, 0.7), x)
    assert torch.equal(slope((reverse_gradient(x, 0.7) * weight).sum(), x), -0.7 * weight)


def test_dann_teaches_the_discriminator_forwards_and_the_features_backwards():
    source, target, batch = shifted()
    discriminator, strength = nn.Linear(3, 1), 2.0 * dann_lambda(0.5 / 10)
    logged = dann(discriminator, steps=10, weight=2.0)(through(), batch)
    logits = discriminator(torch.cat([source, target + 0.5]))[:, 0]
    is_source = torch.tensor([1.0] * 9 + [0.0] * 6)
    domain = F.binary_cross_entropy_with_logits(logits, is_source)
    assert torch.allclose(logged["domain_loss"], domain)
    assert torch.allclose(logged["loss"], logged["source_loss"] + domain)
    assert logged["domain_accuracy"] == ((logits > 0) == (is_source > 0)).float().mean()
    assert torch.allclose(slope(logged["loss"], discriminator.weight), slope(domain, discriminator.weight))
    assert torch.allclose(slope(logged["loss"], target), -strength * slope(domain, target), atol=1e-8)


def test_lambda_follows_the_schedule_of_the_paper():
    for p in (0.0, 0.1, 0.5, 1.0):
        assert dann_lambda(p) == pytest.approx(2 / (1 + math.exp(-10 * p)) - 1)
    with pytest.raises(ValueError, match=r"progress is 1\.2; it must be in \[0, 1\]"):
        dann_lambda(1.2)


def test_lambda_rises_with_training_batches_only_and_then_stays():
    objective, model, (_, _, batch) = dann(nn.Linear(3, 1), steps=2), through(), shifted()
    seen = [float(objective(model.train(mode), batch)["lambda"]) for mode in (True, False, True, True, True)]
    assert seen == pytest.approx([dann_lambda(p) for p in (0.25, 0.75, 0.75, 1.0, 1.0)])


def test_a_discriminator_of_another_shape_and_zero_steps_are_refused():
    with pytest.raises(ValueError, match=r"gives \[15, 2\]; it must end in nn.Linear\(..., 1\)"):
        dann(nn.Linear(3, 2), steps=3)(through(), shifted()[2])
    with pytest.raises(ValueError, match="steps=0 at least 1"):
        dann(nn.Linear(3, 1), steps=0)


# AdaBN


def test_adabn_takes_mean_and_variance_from_the_target_and_touches_nothing_else():
    model, x = toy_model(), torch.randn(40, 4) * 3 + 2
    model.head.eval()
    before, flags = weights_of(model), [part.training for part in model.modules()]
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
    model, batches = toy_model(), [torch.randn(8, 4), torch.randn(8, 4) + 4]
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
    for broken in (x[:1], x * math.nan):
        with pytest.raises(ValueError, match=r"a batch of \d target inputs is too small or holds NaN; give 2 or more"):
            adabn(toy_model(), [(broken, None)])
