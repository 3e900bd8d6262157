import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import CPU, differing, slope, toy_examples, toy_model, weights_of

from tlhelpers.data import JointLoader, TensorLoader
from tlhelpers.objectives import (
    classification,
    dann,
    dann_lambda,
    gradient_cosine,
    multitask,
    project_conflicting,
    uncertainty_weighted,
)
from tlhelpers.training import fit


def two_headed(shared=False):
    """A body [N, 4] -> [N, 6] with BatchNorm, and heads [N, 3] for source and target."""
    model = toy_model()
    heads = {"source": model.head, "target": model.head if shared else nn.Linear(6, 3)}
    return nn.ModuleDict({"body": model.body, "heads": nn.ModuleDict(heads)})


def two_batches(n=10, m=6):
    source = toy_examples(n)
    target = toy_examples(30).take(torch.arange(20, 20 + m))
    return {"source": (source.x, source.y), "target": (target.x + 1, target.y)}


def two_loaders(steps=20):
    examples = toy_examples()
    loaders = {"source": TensorLoader(examples, 8, device=CPU)}
    loaders["target"] = TensorLoader(examples.take(torch.arange(4)), 4, device=CPU)
    return JointLoader(loaders, steps=steps)


def constant(value):
    return lambda model, batch: {"loss": torch.as_tensor(value)}


def with_log_variances(objective, values):
    with torch.no_grad():
        for task, value in values.items():
            objective.log_variances[task].fill_(value)
    return objective


def test_multitask_is_the_weighted_sum_in_value_and_gradient():
    model = two_headed().eval()
    batch = two_batches()
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
    model = two_headed(shared=True).eval()
    batch = two_batches()
    assert len(list(model.heads.parameters())) == 2
    both = multitask({"source": 1.0, "target": 1.0})(model, batch)["loss"]
    one = multitask({"source": 1.0})(model, batch)["loss"]
    assert not torch.allclose(slope(both, model.heads["source"].weight), slope(one, model.heads["source"].weight))


def test_a_task_of_weight_0_leaves_no_trace_in_training_and_is_scored_in_evaluation():
    model = two_headed()
    batch = two_batches()
    alone = copy.deepcopy(model)
    objective = multitask({"source": 1.0, "target": 0.0})
    torch.manual_seed(1)
    logged = objective(model.train(), batch)
    torch.manual_seed(1)
    multitask({"source": 1.0})(alone.train(), batch)
    assert differing(weights_of(alone), model) == []
    assert "target_loss" not in logged
    batch["target"][0].fill_(math.nan)
    scored = objective(model.eval(), batch)
    assert scored["target_loss"].isnan()
    assert torch.equal(scored["loss"], scored["source_loss"])  # 0 times NaN would be NaN


def test_a_task_may_bring_its_own_objective():
    logged = multitask({"source": 1.0, "target": 2.0}, {"target": constant(5.0)})(two_headed().eval(), two_batches())
    assert torch.allclose(logged["loss"], logged["source_loss"] + 10)


def test_multitask_learns_through_fit_from_a_joint_loader():
    model = two_headed()
    joint = two_loaders()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    objective = multitask({"source": 1.0, "target": 0.5})
    history = fit(model, (joint, joint), objective, optimizer, epochs=3, device=CPU)
    assert history[-1]["validation_loss"] < history[0]["validation_loss"]
    assert history[-1]["train_target_accuracy"] > 0.5


@pytest.mark.parametrize("weights", [{"source": 1.0, "target": -0.1}, {"source": 0.0}, {}, {"source": math.nan}])
def test_weights_that_cannot_be_meant_are_refused(weights):
    with pytest.raises(ValueError, match=r"the weights are .*; each must be at least 0, and one of them above"):
        multitask(weights)


def test_a_missing_batch_head_or_weight_is_named():
    objective = multitask({"source": 1.0, "target": 1.0})
    x, y = two_batches()["source"]
    with pytest.raises(ValueError, match=r"the batch is \['source'\], without task 'target'; JointLoader yields"):
        objective(two_headed(), {"source": (x, y)})
    with pytest.raises(ValueError, match="the batch is tuple, without task 'source'"):
        objective(two_headed(), (x, y))
    with pytest.raises(ValueError, match=r"heads for \['source', 'target'\], not for task 'third'; add one"):
        multitask({"third": 1.0})(two_headed(), {"third": (x, y)})
    for make in (lambda objectives: multitask({"source": 1.0}, objectives), one_task_weighted):
        with pytest.raises(ValueError, match=r"objective for \['targte'\], which have no weight"):
            make({"targte": classification()})


def one_task_weighted(objectives):
    return uncertainty_weighted(["source"], objectives)


# objectives inside objectives


def test_what_the_objective_of_a_task_learns_belongs_to_the_whole():
    discriminator = nn.Linear(6, 1)
    inner = dann(discriminator)
    for outer in (multitask({"source": 1.0}, {"source": inner}), one_task_weighted({"source": inner})):
        assert set(discriminator.parameters()) <= set(outer.parameters())


def test_fit_tells_an_objective_inside_a_multitask_how_far_the_run_is():
    inner = dann(nn.Linear(6, 1))
    objective = multitask({"source": 1.0}, {"source": inner})
    examples = toy_examples()
    both = {"source": (examples.x, examples.y), "target": (examples.x + 1, examples.y)}
    model = two_headed()
    optimizer = torch.optim.SGD([*model.parameters(), *objective.parameters()], lr=0.1)
    history = fit(model, ([{"source": both}], None), objective, optimizer, epochs=4, device=CPU)
    expected = [dann_lambda((step + 0.5) / 4) for step in range(4)]
    assert [record["train_source_lambda"] for record in history] == pytest.approx(expected, rel=1e-6)


# uncertainty weighting


def test_uncertainty_weighting_follows_its_formula_in_value_and_gradient():
    objective = uncertainty_weighted(["source", "target"], {"source": constant(0.3), "target": constant(4.0)})
    s = with_log_variances(objective, {"source": 0.7, "target": -1.2}).log_variances
    logged = objective(two_headed(), two_batches())
    expected = (0.3 * math.exp(-0.7) + 0.7) / 2 + (4 * math.exp(1.2) - 1.2) / 2
    assert float(logged["loss"].detach()) == pytest.approx(expected, rel=1e-6)
    for task, loss in [("source", 0.3), ("target", 4.0)]:
        precision = math.exp(-float(s[task].detach()))
        assert float(slope(logged["loss"], s[task])) == pytest.approx((1 - loss * precision) / 2, rel=1e-5)
        assert float(logged[f"{task}_weight"].detach()) == pytest.approx(precision / 2)


def test_the_best_log_variance_is_the_logarithm_of_the_loss():
    losses = {"source": 0.2, "target": 3.0}
    objective = uncertainty_weighted(losses, {task: constant(loss) for task, loss in losses.items()})
    s = with_log_variances(objective, {task: math.log(loss) for task, loss in losses.items()}).log_variances
    best = objective(two_headed(), two_batches())["loss"]
    assert float(best.detach()) == pytest.approx(sum(1 + math.log(loss) for loss in losses.values()) / 2, rel=1e-6)
    assert all(abs(float(slope(best, p))) < 1e-6 for p in s.values())
    for move in (-0.1, 0.1):
        with torch.no_grad():
            s["target"] += move
            assert objective(two_headed(), two_batches())["loss"] > best
            s["target"] -= move


def test_the_log_variances_are_0_at_first_and_learn_through_fit():
    model = two_headed()
    objective = uncertainty_weighted(["source", "target"])
    assert [s.item() for s in objective.parameters()] == [0, 0]
    optimizer = torch.optim.SGD([*model.parameters(), *objective.parameters()], lr=0.2)
    history = fit(model, (two_loaders(), None), objective, optimizer, epochs=3, device=CPU)
    # The losses fall below 1, and the variances follow: both weights grow from 1/2.
    assert all(s.item() < 0 for s in objective.parameters())
    assert history[-1]["train_target_weight"] > history[0]["train_target_weight"] > 0.5


def test_uncertainty_weighting_without_tasks_is_refused():
    with pytest.raises(ValueError, match="there is no task to weigh; give the names of at least one"):
        uncertainty_weighted([])


# gradients of two tasks


def test_pcgrad_of_two_conflicting_vectors_is_as_computed_by_hand():
    g1 = torch.tensor([1.0, 0.0])
    g2 = torch.tensor([-1.0, 1.0])
    first, second = project_conflicting(g1, g2)
    assert torch.allclose(first, torch.tensor([0.5, 0.5]))
    assert torch.allclose(second, torch.tensor([0.0, 1.0]))
    for scale in (1, 1e-10, 1e-30):
        assert gradient_cosine(scale * g1, g2) == pytest.approx(-1 / math.sqrt(2))
        assert gradient_cosine(scale * g2, scale * g2) == pytest.approx(1)


def test_pcgrad_leaves_no_conflict_with_the_other_task_and_agreeing_gradients_alone():
    g1 = torch.randn(20)
    g2 = torch.randn(20) - 2 * g1
    first, second = project_conflicting(g1, g2)
    assert abs(gradient_cosine(first, g2)) < 1e-6
    assert abs(gradient_cosine(second, g1)) < 1e-6
    agreeing = project_conflicting(g1, -g2)
    assert agreeing[0] is g1
    assert torch.equal(agreeing[1], -g2)
    assert gradient_cosine(g1, torch.zeros(20)) == 0


@pytest.mark.parametrize("compare", [project_conflicting, gradient_cosine])
def test_gradients_that_are_not_two_equal_vectors_are_refused(compare):
    with pytest.raises(ValueError, match=r"gradients .*\[3\] and .*\[4\] must be \[P\].*flatten"):
        compare(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match=r"\[2, 2\]"):
        compare(torch.zeros(2, 2), torch.zeros(2, 2))
