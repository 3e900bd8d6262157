import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import slope, toy_batch, toy_model

from tlhelpers.models import freeze
from tlhelpers.objectives import classification, l2_sp


def gradients(model, loss):
    return torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classification_is_cross_entropy_in_value_and_gradient_and_logs_the_accuracy(smoothing):
    x = torch.randn(6, 3, requires_grad=True)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    logged = classification(label_smoothing=smoothing)(nn.Identity(), (x, y))
    target = (1 - smoothing) * F.one_hot(y, 3) + smoothing / 3
    closed_form = -(target * x.log_softmax(1)).sum(1).mean()
    assert torch.allclose(logged["loss"], closed_form)
    assert torch.equal(logged["loss"], F.cross_entropy(x, y, label_smoothing=smoothing))
    assert torch.allclose(slope(logged["loss"], x), (x.softmax(1) - target) / 6, atol=1e-6)
    assert logged["accuracy"] == (x.argmax(1) == y).float().mean()


# -100 is the label that torch's cross-entropy leaves out without a word.
@pytest.mark.parametrize(("label", "span"), [(21, "0 to 21"), (10, "0 to 10"), (-1, "-1 to 9"), (-100, "-100 to 9")])
def test_a_label_that_does_not_fit_the_head_names_both(label, span):
    batch = torch.zeros(4, 5), torch.tensor([0, label, 3, 9])
    with pytest.raises(ValueError, match=rf"from {span}, but the head has 10 outputs.*attach a head of the right size"):
        classification()(nn.Linear(5, 10), batch)


@pytest.mark.parametrize("y", [torch.zeros(4, 1).long(), torch.zeros(3).long()])
def test_labels_of_another_shape_are_refused(y):
    with pytest.raises(ValueError, match=r"do not match: the model must give \[N, C\]"):
        classification()(nn.Linear(5, 10), (torch.zeros(4, 5), y))


def test_l2_sp_adds_the_closed_form_value_and_gradient_for_body_and_head():
    model = toy_model().eval()
    batch = toy_batch()
    plain = classification()
    objective = l2_sp(plain, model.body, alpha=0.3, head=model.head, beta=0.7)
    start = [p.detach().clone() for p in model.body.parameters()]
    with torch.no_grad():
        for p in model.body.parameters():
            p.add_(torch.randn_like(p))
    moved = [p.detach() - w0 for p, w0 in zip(model.body.parameters(), start, strict=True)]
    head = [p.detach() for p in model.head.parameters()]

    logged = objective(model, batch)
    bare = plain(model, batch)
    distance = sum(d.square().sum() for d in moved)
    assert torch.allclose(logged["drift"], distance.sqrt())
    expected = bare["loss"] + 0.15 * distance + 0.35 * sum(v.square().sum() for v in head)
    assert torch.allclose(logged["loss"], expected)
    pull = [0.3 * d for d in moved] + [0.7 * v for v in head]
    slopes = zip(gradients(model, logged["loss"]), gradients(model, bare["loss"]), pull, strict=True)
    assert all(torch.allclose(got, plain_one + extra, atol=1e-5) for got, plain_one, extra in slopes)


def test_l2_sp_holds_back_only_what_may_move():
    model = toy_model()
    freeze(model.body.first)
    objective = l2_sp(lambda *_: {"loss": torch.zeros(())}, model.body, alpha=2.0)
    with torch.no_grad():
        model.body.first.weight.add_(100)
        model.body.last.bias.add_(1)
    assert torch.allclose(objective(model, ())["loss"], torch.tensor(6.0))


def test_l2_sp_owns_the_starting_point_where_it_costs_nothing_and_no_parameter_of_the_model():
    model = toy_model().eval()
    batch = toy_batch()
    objective = l2_sp(classification(), model.body, alpha=9.0, head=model.head)
    assert list(objective.parameters()) == []
    for start, parameter in zip(objective.state_dict().values(), model.body.parameters(), strict=True):
        assert torch.equal(start, parameter)
    logged = objective(model, batch)
    assert logged["loss"] == classification()(model, batch)["loss"]
    assert logged["drift"] == 0
    assert set(logged) == {"loss", "task_loss", "accuracy", "drift"}


def test_l2_sp_refuses_a_negative_weight_and_a_frozen_body():
    model = toy_model()
    with pytest.raises(ValueError, match=r"alpha=-0.1 and beta=0.0 must not be negative"):
        l2_sp(classification(), model.body, alpha=-0.1)
    freeze(model.body)
    with pytest.raises(ValueError, match="unfreeze some of it first"):
        l2_sp(classification(), model.body, alpha=0.1)
