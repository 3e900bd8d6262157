import copy

import numpy as np
import pytest
import torch
from torch import nn
from toys import CPU, differing, toy_backbone, toy_examples, toy_model, weights_of

from tlhelpers.data import TensorLoader
from tlhelpers.models import Backbone, surgery
from tlhelpers.objectives import classification
from tlhelpers.training import fit

OPTIMIZERS = {
    "SGD with momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "AdamW with weight decay": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1),
}


def contrary(model, batch):
    """An objective that switches the whole model to training mode before it uses it."""
    model.train()
    return classification()(model, batch)


def run(model, optimizer, *, epochs=2, objective=contrary, on_epoch=None):
    loaders = (TensorLoader(toy_examples(), 8, device=CPU), None)
    return fit(model, loaders, objective, optimizer, epochs=epochs, on_epoch=on_epoch, device=CPU)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("prepare", [lambda model: model, copy.deepcopy], ids=["itself", "a deep copy"])
def test_frozen_weights_and_buffers_are_bit_equal_after_fit_whatever_train_was_called(make, prepare):
    model = toy_model()
    surgery.freeze(model.body)
    model = prepare(model)
    before = weights_of(model)
    run(model, make(model.parameters()), on_epoch=lambda record: model.train())
    assert differing(before, model) == ["head.weight", "head.bias"]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_body_frozen_in_the_middle_of_training_stops_at_once(make):
    model = toy_model()
    when_frozen = {}

    def freeze_after_two(record):
        if record["epoch"] == 2:
            surgery.freeze(model.body)
            when_frozen.update(weights_of(model.body))

    before = weights_of(model.body)
    run(model, make(model.parameters()), epochs=4, on_epoch=freeze_after_two)
    assert differing(when_frozen, model.body) == []
    assert "norm.running_mean" in differing(before, model.body)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_gradient_from_before_the_freeze_is_not_applied_after_it(make):
    model = toy_model()
    examples = toy_examples()
    optimizer = make(model.parameters())
    contrary(model, (examples.x, examples.y))["loss"].backward()
    surgery.freeze(model.body)
    before = weights_of(model)
    optimizer.step()
    assert differing(before, model) == ["head.weight", "head.bias"]


def test_frozen_dropout_and_batchnorm_act_as_in_eval_mode():
    body = toy_model().body
    x = torch.randn(5, 4)
    body.norm.running_mean.normal_()
    expected = body.eval()(x)
    body.train()
    surgery.freeze(body)
    assert not any(part.training for part in body.modules())
    body.train()
    assert torch.equal(body(x), expected)
    assert not any(part.training for part in body.modules())


@pytest.mark.parametrize("freezes", [1, 2])
def test_one_unfreeze_lets_everything_train_also_what_did_not_before_and_leaves_foreign_hooks(freezes):
    body = toy_model().eval().body
    body.first.requires_grad_(False)
    seen = []
    body.first.register_forward_pre_hook(lambda module, inputs: seen.append(module.training))
    for _ in range(freezes):
        surgery.freeze(body)
    surgery.unfreeze(body)
    assert all(p.requires_grad for p in body.parameters())
    assert sum(len(part._forward_pre_hooks) for part in body.modules()) == 1
    before = weights_of(body)
    body(torch.randn(5, 4))
    assert set(differing(before, body)) == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert seen == [True]


def test_train_mode_protects_what_was_frozen_by_hand():
    model = toy_model()
    model.body.requires_grad_(False)
    surgery.train_mode(model)
    assert [name for name, part in model.named_modules() if part.training] == ["", "head"]
    model.body.requires_grad_(True)
    surgery.train_mode(model)
    assert all(part.training for part in model.modules())


class Around(nn.Module):
    """Wraps one module, as `TextBody` wraps a transformer."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside


def with_a_token(body):
    body.class_token = nn.Parameter(torch.zeros(4))
    return body


def transformer():
    layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
    block = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))  # one part, though it wraps two
    return nn.ModuleDict({"embed": block, "encoder": Around(layers), "pooler": nn.Identity()})


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        (toy_model().body, ["body.first", "body.norm", "body.last"]),
        (with_a_token(toy_model().body), ["body", "body.first", "body.norm", "body.last"]),
        (Around(transformer()), [f"body.inside.{part}" for part in ("embed", "encoder.inside.0", "encoder.inside.1")]),
    ],
    ids=["children", "parameters of its own", "a wrapper and a list"],
)
def test_learning_rates_fall_from_the_head_to_the_input(body, parts):
    groups = surgery.param_groups(body, nn.Linear(4, 2), lr=0.1, body_scale=0.5, layer_decay=0.2)
    rates = {group["name"]: group["lr"] for group in groups}
    expected = {part: 0.05 * 0.2**k for k, part in enumerate(reversed(parts))} | {"head": 0.1}
    assert rates == pytest.approx(expected)
    assert list(rates) == [*parts, "head"]
    held = [p for group in groups[:-1] for p in group["params"]]
    assert len(held) == len(set(held)) == len(list(body.parameters()))
    surgery.freeze(body)
    assert [group["name"] for group in surgery.param_groups(body, nn.Linear(4, 2), lr=0.1)] == ["head"]


def test_tied_weights_learn_once_at_the_rate_of_the_first_part():
    body = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    body[1].weight = body[0].weight
    groups = surgery.param_groups(body, nn.Linear(4, 2), lr=0.1)
    torch.optim.SGD(groups)
    assert [len(group["params"]) for group in groups] == [2, 1, 2]


def test_param_groups_refuses_rates_that_are_not_positive_and_a_model_without_freedom():
    model = toy_model()
    with pytest.raises(ValueError, match=r"body_scale=-1.*must all be positive"):
        surgery.param_groups(model.body, model.head, lr=0.1, body_scale=-1)
    surgery.freeze(model)
    with pytest.raises(ValueError, match="unfreeze the head"):
        surgery.param_groups(model.body, model.head, lr=0.1)


def test_an_attached_head_gets_the_features_of_a_copied_body():
    backbone = toy_backbone()
    x = torch.rand(3, 1, 8, 8)
    backbone.module.eval()
    model = surgery.attach_head(backbone, 4).eval()
    features = backbone.module(x)
    assert torch.allclose(model(x), features @ model.head.weight.T + model.head.bias, atol=1e-6)
    before = weights_of(backbone.module)
    with torch.no_grad():
        model.body.conv.weight.add_(1)
    assert differing(before, backbone.module) == []


@pytest.mark.parametrize("bare", [False, True])
def test_a_frozen_part_shares_its_memory_and_trains_nothing(bare):
    backbone = toy_backbone()
    backbone.module.feature_dim = 5
    x = torch.rand(3, 1, 8, 8)
    model = surgery.attach_head(backbone.module if bare else backbone, 4, frozen=backbone.module.conv)
    assert model.body.conv.weight.data_ptr() == backbone.module.conv.weight.data_ptr()
    model(x).sum().backward()
    assert model.body.conv.weight.grad is None
    assert model.head.weight.grad is not None
    assert backbone.module.conv.weight.requires_grad  # the backbone itself is not frozen
    others = [name for name, p in model.body.named_parameters() if p.requires_grad]
    assert others == [n for n, _ in backbone.module.named_parameters() if not n.startswith("conv.")]
    with pytest.raises(ValueError, match="the frozen Linear is no part of this body"):
        surgery.attach_head(backbone, 4, frozen=nn.Linear(2, 2))


def test_a_bare_module_with_a_feature_dim_is_a_body_like_any_other():
    module = toy_backbone().module.eval()
    with pytest.raises(ValueError, match=r"the Sequential has no feature_dim; .*Backbone\(module, feature_dim\)"):
        surgery.attach_head(module, 4)
    module.feature_dim = 5
    torch.manual_seed(1)
    model = surgery.attach_head(module, 4)
    torch.manual_seed(1)
    same = surgery.attach_head(Backbone(module, 5), 4)
    assert differing(weights_of(same), model) == []
    assert model.body is not module
    assert model.body.conv.weight.data_ptr() != module.conv.weight.data_ptr()
    with pytest.raises(ValueError, match="takes 7 features but the body gives 5"):
        surgery.attach_head(module, nn.Linear(7, 2))


@pytest.mark.parametrize(
    "head",
    [
        nn.Sequential(nn.ReLU(), nn.Linear(5, 2)),
        nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 3, 2), nn.Flatten(), nn.Linear(12, 2)),
    ],
)
def test_a_ready_made_head_is_used_as_it_is(head):
    model = surgery.attach_head(toy_backbone(), head)
    assert model.head is head
    assert model(torch.rand(3, 1, 8, 8)).shape == (3, 2)


def test_a_head_that_does_not_fit_is_refused_with_the_right_size():
    for head in (nn.Linear(7, 2), nn.Sequential(nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 2))):
        with pytest.raises(ValueError, match=r"takes 7 features but the body gives 5; build it with nn\.Linear\(5"):
            surgery.attach_head(toy_backbone(), head)
    with pytest.raises(ValueError, match="at least 2 classes, not 1"):
        surgery.attach_head(toy_backbone(), 1)
    with pytest.raises(TypeError, match="'str'"):
        surgery.attach_head(toy_backbone(), "4")
    assert surgery.attach_head(toy_backbone(), np.int64(4)).head.out_features == 4


def test_interpolation_meets_both_ends_and_is_linear_between():
    a = weights_of(toy_model())
    b = weights_of(toy_model())
    b["body.norm.num_batches_tracked"] += 5
    for alpha in (0.0, 0.25, 1.0):
        mixed = surgery.interpolate_weights(a, b, alpha)
        for name, value in mixed.items():
            if name == "body.norm.num_batches_tracked":
                assert value == 5
            else:
                torch.testing.assert_close(value, (1 - alpha) * a[name] + alpha * b[name])
    assert all(torch.equal(surgery.interpolate_weights(a, b, 1.0)[name], b[name]) for name in b)


def test_models_of_two_architectures_cannot_be_mixed():
    a = weights_of(toy_model())
    with pytest.raises(ValueError, match=r"differ in \['head.weight'\]; interpolate models of one architecture"):
        surgery.interpolate_weights(a, {name: t for name, t in a.items() if name != "head.weight"}, 0.5)
    with pytest.raises(ValueError, match=r"differ in \['head.bias'\]"):
        surgery.interpolate_weights(a, a | {"head.bias": torch.zeros(9)}, 0.5)


def test_the_summary_counts_what_can_be_counted_by_hand():
    model = toy_model()
    model.body.token = nn.Parameter(torch.zeros(7))
    model.scale = nn.Parameter(torch.zeros(2))
    surgery.freeze(model.body.first)
    summary = surgery.trainable_summary(model)
    assert summary.parts == {
        "outside": (2, 2),
        "body": (7, 7),
        "body.first": (0, 4 * 8 + 8),
        "body.norm": (16, 16),
        "body.last": (8 * 6 + 6, 8 * 6 + 6),
        "head": (6 * 3 + 3, 6 * 3 + 3),
    }
    assert (summary.trainable, summary.total) == (100, 140)
    assert str(summary).splitlines()[-1].split() == ["in", "all", "100", "of", "140", "trainable"]
