import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import CPU, differing, slope, toy_batch, toy_examples, toy_model, weights_of

from tlhelpers.data import TensorLoader
from tlhelpers.objectives import (
    FrozenTeacher,
    attention_transfer,
    classification,
    distillation,
    distillation_loss,
    feature_match,
)
from tlhelpers.objectives.distillation import attention_map
from tlhelpers.training import fit

# the teacher


def test_a_frozen_teacher_gives_what_the_network_gives_in_eval_mode_and_no_gradient():
    network = toy_model()
    teacher = FrozenTeacher(network).train()
    x, _ = toy_batch()
    assert not any(part.training for part in teacher.modules())
    answer = teacher(x.requires_grad_())
    assert not answer.requires_grad
    assert torch.equal(answer, network.eval()(x))


def test_a_frozen_teacher_has_memory_of_its_own_and_changes_nothing_about_the_network():
    network = toy_model()
    network.head.requires_grad_(False)
    network.body.eval()
    modes = [part.training for part in network.modules()]
    teacher = FrozenTeacher(network)
    copies = teacher.network.state_dict()
    assert copies.keys() == network.state_dict().keys()
    assert all(own.data_ptr() != copies[name].data_ptr() for name, own in network.state_dict().items())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert [p.requires_grad for p in network.parameters()] == [True] * 6 + [False] * 2
    assert [part.training for part in network.modules()] == modes


def test_a_network_may_learn_from_what_it_was_before():
    model = toy_model()
    before = weights_of(model)
    loader = TensorLoader(toy_examples(), 8, device=CPU)
    objective = distillation(model, temperature=2.0, alpha=0.5)
    fit(model, (loader, None), objective, torch.optim.SGD(model.parameters(), lr=0.2), epochs=1, device=CPU)
    assert differing(before, objective.teacher.network) == []
    assert {"body.norm.running_mean", "head.weight"} <= set(differing(before, model))


def test_through_fit_the_student_learns_and_teacher_and_network_stay_bit_equal_and_as_they_were():
    network = toy_model()
    student = toy_model()
    before = weights_of(network)
    objective = distillation(network, temperature=2.0, alpha=1.0)
    loader = TensorLoader(toy_examples(), 8, device=CPU)
    optimizer = torch.optim.SGD([*student.parameters(), *objective.parameters()], lr=0.2, weight_decay=0.1)
    history = fit(student, (loader, loader), objective, optimizer, epochs=5, device=CPU)
    assert history[-1]["validation_soft_loss"] < history[0]["validation_soft_loss"]
    assert differing(before, network) == differing(before, objective.teacher.network) == []
    assert not any(p.requires_grad for p in objective.parameters())
    assert all(p.requires_grad for p in network.parameters())
    assert all(part.training for part in network.modules())
    assert all(p.grad is None for p in [*network.parameters(), *objective.parameters()])


@pytest.mark.parametrize(
    "inner", [lambda teacher: distillation(teacher, temperature=2.0, alpha=1.0), lambda _: classification()]
)
def test_a_frozen_teacher_is_asked_once_per_batch_by_two_objectives_and_by_one(inner):
    calls = []
    network = toy_model()
    network.register_forward_pre_hook(lambda *_: calls.append(1))  # a copy takes it along
    teacher = FrozenTeacher(network)
    objective = feature_match(inner(teacher), teacher, layers=("body", "body"), regressor=nn.Identity(), beta=1.0)
    objective(toy_model(), toy_batch())
    assert calls == [1]


# distillation


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_distillation_is_its_closed_form_in_value_and_gradient(alpha):
    teacher = nn.Linear(5, 5)
    T = 3.0
    x = torch.randn(8, 5, requires_grad=True)
    y = torch.arange(8) % 5
    y[:3] = -1
    loss = distillation(teacher, temperature=T, alpha=alpha)(nn.Identity(), (x, y))["loss"]
    p = (teacher(x) / T).softmax(1).detach()
    q = (x / T).softmax(1)
    soft = T**2 * (p * (p.log() - q.log())).sum() / 8
    hard = -x.log_softmax(1)[torch.arange(3, 8), y[3:]].mean()
    assert torch.allclose(loss, alpha * soft + (1 - alpha) * hard, atol=1e-6)
    from_labels = torch.cat([torch.zeros(3, 5), x[3:].softmax(1) - F.one_hot(y[3:], 5)]) / 5
    expected = alpha * T * (q - p) / 8 + (1 - alpha) * from_labels
    assert torch.allclose(slope(loss, x), expected, atol=1e-6)


def test_a_teacher_that_has_answered_already_gives_the_same_numbers():
    network = toy_model().eval()
    student = toy_model().eval()
    x, y = toy_batch()
    asked = distillation(network, temperature=3.0, alpha=0.4)(student, (x, y))
    answered = distillation_loss(student(x), network(x).detach(), y, temperature=3.0, alpha=0.4)
    assert asked.keys() == answered.keys()
    assert all(torch.equal(asked[name], answered[name]) for name in asked)


def test_at_a_high_temperature_the_gradient_is_the_centred_difference_of_logits():
    teacher = nn.Linear(6, 6).double()
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    loss = distillation(teacher, temperature=200.0, alpha=1.0)(nn.Identity(), (x, None))["loss"]
    gap = (x - x.mean(1, keepdim=True) - teacher(x) + teacher(x).mean(1, keepdim=True)).detach()
    error = (slope(loss, x) - gap / (6 * 4)).norm() / (gap / (6 * 4)).norm()
    assert error < 0.01


def test_a_student_equal_to_its_teacher_has_nothing_to_learn_from_it():
    network = toy_model().eval()
    x, _ = toy_batch()
    logged = distillation(network, temperature=4.0, alpha=1.0)(copy.deepcopy(network), (x, None))
    assert float(logged["soft_loss"].detach()) == pytest.approx(0.0, abs=1e-6)
    assert logged["agreement"] == 1
    assert set(logged) == {"loss", "soft_loss", "agreement"}


def test_a_batch_without_any_label_has_a_finite_loss():
    x = torch.randn(4, 3)
    logged = distillation(nn.Linear(3, 3), temperature=2.0, alpha=0.5)(nn.Identity(), (x, torch.full((4,), -1)))
    assert torch.allclose(logged["loss"], logged["soft_loss"] / 2)
    assert logged["hard_loss"] == logged["accuracy"] == 0


@pytest.mark.parametrize(("temperature", "alpha"), [(0.0, 0.5), (-1.0, 0.5), (2.0, -0.1), (2.0, 1.1), (math.nan, 0.5)])
def test_a_temperature_or_alpha_out_of_range_is_named(temperature, alpha):
    with pytest.raises(ValueError, match=rf"temperature={temperature} must be above 0, and alpha={alpha} in"):
        distillation(nn.Identity(), temperature=temperature, alpha=alpha)


def test_a_teacher_of_other_classes_and_labels_below_minus_1_are_refused():
    objective = distillation(nn.Linear(3, 7), temperature=2.0, alpha=0.5)
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"student gives \[4, 3\], the teacher \[4, 7\]; give the student a head"):
        objective(nn.Linear(3, 3), (x, torch.zeros(4).long()))
    with pytest.raises(ValueError, match=r"from -2 to -2, but the head has 7 outputs, for labels -1..6; renumber"):
        objective(nn.Linear(3, 7), (x, torch.full((4,), -2)))


# layers of student and teacher


def hooks_of(model):
    return [hook for part in model.modules() for hook in part._forward_hooks]


def test_feature_match_is_the_mean_squared_difference_in_value_and_gradient():
    student = toy_model().eval()
    network = toy_model().eval()
    network.body.norm = nn.ReLU(inplace=True)  # which writes over what the layer before it has given
    x, y = toy_batch()
    regressor = nn.Linear(6, 8)
    objective = feature_match(
        classification(), network, layers=("body.last", "body.first"), regressor=regressor, beta=0.7
    )
    logged = objective(student, (x, y))
    difference = regressor(student.body(x)) - network.body.first(x)
    assert torch.allclose(logged["feature_loss"], difference.square().mean())
    assert torch.allclose(logged["loss"], F.cross_entropy(student(x), y) + 0.7 * difference.square().mean())
    expected = 0.7 * 2 * difference.T @ student.body(x) / difference.numel()
    assert torch.allclose(slope(logged["loss"], regressor.weight), expected, atol=1e-6)
    logged["loss"].backward()
    assert all(p.grad is None for p in [*network.parameters(), *objective.teacher.parameters()])


def test_the_regressor_is_all_that_a_feature_match_has_to_learn_and_it_learns_through_fit():
    network = toy_model()
    student = toy_model()
    before = weights_of(network)
    regressor = nn.Linear(6, 8)
    objective = feature_match(
        classification(), network, layers=("body.last", "body.first"), regressor=regressor, beta=0.7
    )
    assert {p for p in objective.parameters() if p.requires_grad} == set(regressor.parameters())
    first = weights_of(regressor)
    loader = TensorLoader(toy_examples(), 8, device=CPU)
    optimizer = torch.optim.SGD([*student.parameters(), *objective.parameters()], lr=0.1)
    history = fit(student, (loader, loader), objective, optimizer, epochs=4, device=CPU)
    assert differing(first, regressor) == ["weight", "bias"]
    assert history[-1]["validation_feature_loss"] < history[0]["validation_feature_loss"]
    assert differing(before, network) == differing(before, objective.teacher.network) == []


def test_attention_transfer_compares_directions_of_maps_in_value_and_gradient():
    student = nn.Sequential(nn.Identity())
    network = nn.Sequential(nn.Conv2d(3, 5, 1))
    x = torch.randn(4, 3, 6, 6, requires_grad=True)
    plain = lambda model, batch: {"loss": model(batch[0]).sum() * 0}  # noqa: E731
    logged = attention_transfer(plain, network, layers=("0", "0"), beta=2.0)(student, (x, None))
    mine, theirs = (z.square().sum(1).flatten(1) for z in (x, network(x).detach()))
    distance = ((2 - 2 * F.cosine_similarity(mine, theirs)) / 36).mean()
    assert torch.allclose(logged["attention_loss"], distance, atol=1e-7)
    assert torch.allclose(slope(logged["loss"], x), slope(2 * distance, x), atol=1e-7)


def test_attention_maps_are_blind_to_scale_and_to_the_order_of_channels():
    x = torch.randn(2, 3, 4, 5)
    assert torch.allclose(attention_map(7 * x[:, [2, 0, 1]]), attention_map(x), atol=1e-6)
    assert torch.allclose(attention_map(x).norm(dim=1), torch.ones(2))


def test_no_hook_remains_even_after_an_error():
    student = toy_model()
    network = toy_model()
    x, y = toy_batch()
    objective = feature_match(classification(), network, layers=("body", "body"), regressor=nn.Identity(), beta=1.0)
    objective(student, (x, y))
    with pytest.raises(RuntimeError):
        objective(student, (torch.zeros(2, 99), y))
    assert hooks_of(student) == hooks_of(network) == hooks_of(objective) == []


def test_layers_that_do_not_exist_or_do_not_fit_are_named():
    student = toy_model()
    network = toy_model()
    batch = toy_batch()
    plain = classification()
    for net in (student, network):
        net.head.unused = nn.Linear(1, 1)

    def match(mine, theirs):
        feature_match(plain, network, layers=(mine, theirs), regressor=nn.Identity(), beta=1.0)(student, batch)

    for layers, words in {
        ("body", "block9"): r"no layer called 'block9'; named_modules\(\) has body, head, and others",
        ("body.first.weight", "body"): r"no layer called 'body.first.weight'; named_modules\(\) has body.first,",
        ("head.unused", "body"): "the student's layer 'head.unused' does not run; choose one that takes part",
        ("body", "head.unused"): "the teacher's layer 'head.unused' does not run; choose one that takes part",
        ("body", "body.norm"): r"gives \[24, 6\], the teacher \[24, 8\]; choose another layer or regressor",
    }.items():
        with pytest.raises(ValueError, match=words):
            match(*layers)
    with pytest.raises(ValueError, match=r"needs \[N, C, H, W\], not \[24, 6\]; take a convolutional layer"):
        attention_transfer(plain, network, layers=("body", "body"), beta=1.0)(student, batch)
    two = nn.Sequential(nn.GRU(4, 3))
    with pytest.raises(ValueError, match=r"layer '0' \(GRU\) gives a tuple; take one that gives a tensor"):
        attention_transfer(lambda model, batch: model(batch[0]), network, layers=("0", "body"), beta=1.0)(two, batch)
    with pytest.raises(ValueError, match=r"beta is -1; it must be at least 0"):
        attention_transfer(plain, network, layers=("body", "body"), beta=-1)
