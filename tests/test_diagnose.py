import copy
import math
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import differing, toy_examples, toy_model, weights_of

from tlhelpers.analysis import diagnose
from tlhelpers.models import Normalize, freeze
from tlhelpers.objectives import classification


def batch_of(n=24):
    examples = toy_examples(n)
    return examples.x, examples.y


def two_layers():
    return nn.Sequential(OrderedDict(first=nn.Linear(4, 8), last=nn.Linear(8, 3)))


@pytest.fixture(autouse=True)
def _nothing_given_is_changed(monkeypatch):
    """Every function must leave the model, its flags and the random numbers as they were."""

    def guarded(function):
        def call(*args, **settings):
            models = [a for a in args if isinstance(a, nn.Module)]
            before = [(copy.deepcopy(weights_of(m)), [p.training for p in m.modules()]) for m in models]
            state = torch.random.get_rng_state()
            result = function(*args, **settings)
            assert torch.equal(torch.random.get_rng_state(), state)
            for model, (weights, flags) in zip(models, before, strict=True):
                assert differing(weights, model) == []
                assert [p.training for p in model.modules()] == flags
                assert all(p.grad is None for p in model.parameters())
            return result

        return call

    for name in ("first_loss", "batch_dependence", "saved_graph_bytes", "can_overfit", "missing_gradients"):
        monkeypatch.setattr(diagnose, name, guarded(getattr(diagnose, name)))


# first_loss


@pytest.mark.parametrize("outputs", [3, 1000])
def test_a_head_of_zeros_has_the_logarithm_of_its_outputs_as_first_loss(outputs):
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, outputs))
    nn.init.zeros_(model[1].weight), nn.init.zeros_(model[1].bias)
    loss, expected = diagnose.first_loss(model, batch_of(), classes=3)
    assert loss == pytest.approx(math.log(outputs), abs=1e-5)
    assert expected == math.log(3)


def test_the_first_loss_is_taken_in_eval_mode():
    model, (x, y) = toy_model(), batch_of()
    loss, _ = diagnose.first_loss(model, (x, y), classes=3)
    assert loss == pytest.approx(F.cross_entropy(copy.deepcopy(model).eval()(x), y).item(), abs=1e-6)


def test_first_loss_refuses_labels_that_do_not_fit():
    x, y = batch_of()
    with pytest.raises(ValueError, match=r"outside 0\.\.2; renumber them"):
        diagnose.first_loss(toy_model(), (x, y + 1), classes=3)
    with pytest.raises(ValueError, match=r"gives \[24, 3\] for 4 classes; its head needs one output for each"):
        diagnose.first_loss(toy_model(), (x, y), classes=4)
    with pytest.raises(ValueError, match="needs at least 2"):
        diagnose.first_loss(toy_model(), (x, y), classes=1)


# batch_dependence


def test_batch_dependence_of_a_batchnorm_is_what_its_formula_gives():
    norm, x = nn.BatchNorm1d(1, affine=False, eps=1e-12), torch.tensor([[0.0], [2.0], [10.0], [14.0]])
    whole = (x - 6.5) / x.std(unbiased=False)
    cut = torch.tensor([[-1.0], [1.0], [-1.0], [1.0]])
    expected = float((whole - cut).abs().max() / whole.abs().mean())
    assert diagnose.batch_dependence(norm.train(), x) == pytest.approx(expected, abs=1e-5)


def test_examples_depend_on_each_other_in_training_mode_only():
    x, _ = batch_of()
    assert diagnose.batch_dependence(toy_model().eval(), x, parts=3) < 1e-5
    assert diagnose.batch_dependence(toy_model().train(), x, parts=3) > 0.1


def test_too_few_examples_cannot_be_cut():
    with pytest.raises(ValueError, match="give more examples"):
        diagnose.batch_dependence(toy_model(), batch_of(3)[0])
    with pytest.raises(ValueError, match="into 1 batches"):
        diagnose.batch_dependence(toy_model(), batch_of()[0], parts=1)


# snapshot, changed_tensors


def test_changed_tensors_names_what_moved_and_nothing_else():
    model = toy_model()
    before = diagnose.snapshot(model)
    assert diagnose.changed_tensors(before, model) == []
    with torch.no_grad():
        model.head.bias[0] += 1e-6
    assert diagnose.changed_tensors(before, model) == ["head.bias"]


def test_buffers_count_and_the_snapshot_is_a_copy():
    model = toy_model().requires_grad_(False).train()
    before = diagnose.snapshot(model)
    model(batch_of()[0])
    moved = diagnose.changed_tensors(before, model)
    assert moved == [f"body.norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")]


def test_buffers_that_no_state_dict_has_count_and_nan_equals_itself():
    model = nn.Sequential(Normalize(0.5, 2.0), nn.Linear(4, 2), nn.Linear(4, 2))
    nn.init.constant_(model[1].weight, math.nan)
    model[2].weight = model[1].weight  # one tensor under two names
    before = diagnose.snapshot(model)
    assert diagnose.changed_tensors(before, model) == []
    model[0].mean += 0.1
    nn.init.zeros_(model[1].weight)
    assert diagnose.changed_tensors(before, model) == ["1.weight", "2.weight", "0.mean"]


def test_another_architecture_is_not_compared():
    with pytest.raises(ValueError, match="compare a model with itself"):
        diagnose.changed_tensors(diagnose.snapshot(two_layers()), toy_model())
    with pytest.raises(ValueError, match=r"differ in \['weight'\]"):
        diagnose.changed_tensors(diagnose.snapshot(nn.Linear(3, 2)), nn.Linear(4, 2))


# not_in_optimizer


def test_a_head_attached_after_the_optimizer_was_made_is_found():
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert diagnose.not_in_optimizer(model, optimizer) == []
    model.last = nn.Linear(8, 5)
    assert diagnose.not_in_optimizer(model, optimizer) == ["last.weight", "last.bias"]


def test_frozen_parameters_need_no_optimizer_but_some_must_be_free():
    model = two_layers()
    freeze(model.first)
    assert diagnose.not_in_optimizer(model, torch.optim.SGD(model.last.parameters(), lr=0.1)) == []
    freeze(model)
    with pytest.raises(ValueError, match="no parameter is trainable"):
        diagnose.not_in_optimizer(model, torch.optim.SGD(model.parameters(), lr=0.1))


# missing_gradients


def test_a_part_behind_detach_has_no_gradient():
    model, (x, y) = two_layers(), batch_of()
    assert diagnose.missing_gradients(model, F.cross_entropy(model(x), y)) == []
    cut_off = F.cross_entropy(model.last(model.first(x).detach()), y)
    assert diagnose.missing_gradients(model, cut_off) == ["first.weight", "first.bias"]


def test_a_gradient_of_zeros_is_none_and_the_graph_stays_usable():
    model, (x, _) = two_layers(), batch_of()
    loss = model(x)[:, 0].sum() + 0 * model.first.weight.sum()
    assert diagnose.missing_gradients(model, loss) == []
    dead = (0 * model(x)).sum()
    assert len(diagnose.missing_gradients(model, dead)) == 4
    loss.backward()


def test_a_loss_without_gradient_is_refused():
    model, (x, y) = two_layers(), batch_of()
    with pytest.raises(ValueError, match="was it detached"):
        diagnose.missing_gradients(model, F.cross_entropy(model(x), y).detach())
    with pytest.raises(ValueError, match="unfreeze something"):
        diagnose.missing_gradients(two_layers().requires_grad_(False), F.cross_entropy(model(x), y))


# saved_graph_bytes


def test_the_graph_of_two_linear_layers_is_their_inputs():
    x = torch.randn(10, 4)
    assert diagnose.saved_graph_bytes(two_layers(), x) == 4 * (10 * 4 + 10 * 8)


def test_the_graph_grows_with_the_batch_and_is_empty_without_gradients():
    small, large = (diagnose.saved_graph_bytes(toy_model().eval(), torch.randn(n, 4)) for n in (100, 1000))
    assert 9 < large / small < 10.1
    with torch.no_grad():
        assert diagnose.saved_graph_bytes(toy_model(), torch.randn(8, 4)) == 0


def test_saved_graph_bytes_passes_the_error_of_a_wrong_input_on():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        diagnose.saved_graph_bytes(two_layers(), torch.randn(8, 5))


# input_shift


def test_input_shift_undoes_a_known_change_of_each_channel():
    reference = torch.randn(50, 2, 5, 5)
    x = reference * torch.tensor([2.0, 0.5]).view(2, 1, 1) + torch.tensor([3.0, 0.0]).view(2, 1, 1)
    mean, std = reference.double().mean(dim=(0, 2, 3)), reference.double().transpose(0, 1).flatten(1).std(dim=1)
    shift, scale = diagnose.input_shift(x, reference)
    torch.testing.assert_close(scale, torch.tensor([2.0, 0.5], dtype=torch.float64), rtol=1e-5, atol=1e-5)
    expected = (torch.stack([2 * mean[0] + 3, 0.5 * mean[1]]) - mean) / std
    torch.testing.assert_close(shift, expected, rtol=1e-5, atol=1e-5)


def test_right_inputs_have_no_shift_and_scale_one():
    x = torch.rand(10, 3, 4, 4)
    shift, scale = diagnose.input_shift(x, x.flip(0))
    assert shift.abs().max() < 1e-12 and (scale - 1).abs().max() < 1e-12


def test_input_shift_refuses_other_channels_and_a_constant_reference():
    with pytest.raises(ValueError, match="with the same C"):
        diagnose.input_shift(torch.rand(4, 1, 3, 3), torch.rand(4, 3, 3, 3))
    with pytest.raises(ValueError, match="is constant"):
        diagnose.input_shift(torch.rand(4, 1), torch.ones(4, 1))


# can_overfit


def test_a_model_that_can_learn_overfits_a_batch_and_one_whose_head_is_cut_off_does_not():
    def cut_off(model, batch):
        return classification()(lambda x: model(x).detach() + 0 * model.last.bias, batch)

    assert diagnose.can_overfit(two_layers(), batch_of(), classification(), lr=0.05) < 0.3
    assert diagnose.can_overfit(two_layers(), batch_of(), cut_off) == pytest.approx(1)


def test_can_overfit_follows_adam_step_by_step():
    model, (x, y) = two_layers(), batch_of()
    twin = copy.deepcopy(model)
    optimizer, losses = torch.optim.Adam(twin.parameters(), lr=0.02), []
    for _ in range(6):
        losses.append(F.cross_entropy(twin(x), y))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    ratio = diagnose.can_overfit(model, (x, y), classification(), steps=5, lr=0.02)
    assert ratio == pytest.approx(losses[-1].item() / losses[0].item(), abs=1e-6)


def test_can_overfit_needs_a_step_and_something_to_train():
    with pytest.raises(ValueError, match="0 trainable tensors"):
        diagnose.can_overfit(two_layers().requires_grad_(False), batch_of(), classification())
    with pytest.raises(ValueError, match="steps=0"):
        diagnose.can_overfit(two_layers(), batch_of(), classification(), steps=0)
