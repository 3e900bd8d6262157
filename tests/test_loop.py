import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import CPU, differing, toy_examples, toy_model, weights_of

from tlhelpers.data import JointLoader, TensorLoader
from tlhelpers.models import freeze, unfreeze
from tlhelpers.objectives import (
    adaptation,
    classification,
    dann,
    distillation,
    feature_match,
    l2_sp,
    multitask,
    uncertainty_weighted,
)
from tlhelpers.training import accuracy, device, evaluate, fit, loop, train_one_epoch, warmup_cosine


def loader(batch_size=8, *, shift=0):
    """Batches of the toy examples; a shift of the labels makes them contradict the training labels."""
    examples = toy_examples()
    examples.y.add_(shift).remainder_(3)
    return TensorLoader(examples, batch_size, shuffle=not shift, device=CPU)


def train(model, loaders=None, objective=None, *, lr=0.05, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    options = {"epochs": 2, "device": CPU} | options
    return fit(model, loaders or (loader(), None), objective or classification(), optimizer, **options)


def train_by_hand(model, batches, optimizer, *, epochs, lr):
    step = 0
    for _ in range(epochs):
        model.train()
        for x, y in batches:
            progress = (step + 0.5) / (epochs * len(batches))
            for group in optimizer.param_groups:
                group["lr"] = lr * warmup_cosine()(progress)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            step += 1


def test_fit_equals_a_loop_written_by_hand_to_the_last_bit():
    ours = toy_model()
    theirs = copy.deepcopy(ours)
    torch.manual_seed(1)  # of dropout
    optimizer = torch.optim.AdamW(ours.parameters(), lr=0.05, weight_decay=0.1)
    fit(
        ours,
        (loader(), None),
        classification(),
        optimizer,
        epochs=3,
        schedule=warmup_cosine(),
        clip_norm=0.5,
        device=CPU,
    )
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.05, weight_decay=0.1)
    train_by_hand(theirs, loader(), optimizer, epochs=3, lr=0.05)
    assert differing(weights_of(ours), theirs) == []


def test_two_runs_from_one_seed_are_bit_equal_and_a_validation_does_not_disturb_them():
    def run(validation):
        torch.manual_seed(4)
        model = toy_model()
        ends = []
        train(model, (loader(), validation), on_epoch=lambda _: ends.append(weights_of(model)))
        return ends[-1]

    first = run(None)
    second = run(None)
    validated = run(loader(shift=1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(first[name], validated[name]) for name in first)


def test_every_epoch_is_recorded_with_the_numbers_of_the_objective():
    def objective(model, batch):
        return classification()(model, batch) | {"size": len(batch[0])}

    heard = []
    history = train(toy_model(), (loader(7), loader(7, shift=1)), objective, epochs=3, on_epoch=heard.append)
    assert heard == history
    assert [record["epoch"] for record in history] == [1, 2, 3]
    numbers = {f"{split}_{name}" for split in ("train", "validation") for name in ("loss", "accuracy", "size")}
    assert set(history[0]) == numbers | {"epoch", "lr", "seconds"}
    assert history[0]["train_size"] == (3 * 7 * 7 + 3 * 3) / 24  # weighted by examples: batches of 7, 7, 7, 3


def test_without_validation_the_last_weights_stay_and_the_model_is_left_in_eval_mode():
    model = toy_model()
    ends = []
    history = train(model, on_epoch=lambda _: ends.append(weights_of(model)))
    assert not any(name.startswith("validation") for name in history[0])
    assert differing(ends[-1], model) == []
    assert not any(part.training for part in model.modules())


def test_the_weights_of_the_epoch_with_the_lowest_validation_loss_come_back():
    model = toy_model()
    ends = []
    loaders = (loader(), loader(shift=1))  # what is learnt is wrong there, so the best epoch comes early
    history = train(model, loaders, epochs=6, on_epoch=lambda _: ends.append(weights_of(model)))
    losses = [record["validation_loss"] for record in history]
    best = losses.index(min(losses))
    assert best < 5
    assert differing(ends[best], model) == []
    assert evaluate(model, loaders[1], device=CPU)["loss"] == pytest.approx(losses[best])


def given_scores(**scores):
    """An objective that logs these numbers in validation, one more with every call."""

    def objective(model, batch):
        if model.training:
            return classification()(model, batch)
        return {name: torch.tensor(next(numbers)) for name, numbers in given.items()}

    given = {name: iter(numbers) for name, numbers in scores.items()}
    return objective


@pytest.mark.parametrize(("best", "epoch"), [("validation_loss", 2), ("validation_task_loss", 3)])
def test_the_number_that_is_named_tells_the_best_epoch_and_of_equal_ones_the_first_is_the_best(best, epoch):
    objective = given_scores(loss=[2.0, 1.0, 1.0, 1.5], task_loss=[4.0, 3.0, 2.0, 2.0])
    model = toy_model()
    ends = []
    loaders = (loader(), loader(24))
    train(model, loaders, objective, epochs=4, best=best, on_epoch=lambda _: ends.append(weights_of(model)))
    assert differing(ends[epoch - 1], model) == []


def test_what_an_objective_has_learnt_comes_back_with_the_best_epoch():
    discriminator = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    examples = toy_examples()
    batch = {"source": (examples.x, examples.y), "target": (examples.x + 1, examples.y)}
    model = toy_model()
    objective = dann(discriminator, weight=3.0)
    optimizer = torch.optim.SGD([*model.parameters(), *objective.parameters()], lr=0.5)
    ends = []
    history = fit(
        model,
        ([batch] * 3, [batch]),
        objective,
        optimizer,
        epochs=8,
        device=CPU,
        best="validation_domain_loss",
        on_epoch=lambda _: ends.append((weights_of(model), weights_of(objective))),
    )
    losses = [record["validation_domain_loss"] for record in history]
    best = losses.index(min(losses))
    assert best < 7
    assert differing(ends[best][0], model) == []
    assert differing(ends[best][1], objective) == []


def test_warmup_cosine_rises_linearly_and_falls_as_half_a_cosine():
    factor = warmup_cosine(0.2)
    assert [factor(p) for p in (0, 0.05, 0.1)] == pytest.approx([0, 0.25, 0.5])
    assert [factor(p) for p in (0.2, 0.4, 0.6, 1.0)] == pytest.approx([1, 0.5 + math.sqrt(0.125), 0.5, 0])
    assert warmup_cosine(0)(0) == 1
    values = [factor(i / 1000) for i in range(1001)]
    assert max(abs(a - b) for a, b in itertools.pairwise(values)) <= 0.0051
    with pytest.raises(ValueError, match=r"in \[0, 1\), not 1"):
        warmup_cosine(1)


def test_a_schedule_scales_every_learning_rate_at_every_step():
    model = toy_model()
    seen = []
    optimizer = torch.optim.SGD(
        [{"params": model.body.parameters(), "lr": 0.1}, {"params": model.head.parameters(), "lr": 1.0}]
    )
    optimizer.register_step_pre_hook(lambda *_: seen.append([group["lr"] for group in optimizer.param_groups]))
    for _ in range(2):  # the optimizer is left as it was, so a second run takes the same rates
        fit(model, (loader(), None), classification(), optimizer, epochs=2, schedule=lambda p: 1 - p, device=CPU)
    factors = [1 - (step + 0.5) / 6 for step in range(6)]
    assert torch.allclose(torch.tensor(seen), torch.tensor([[0.1 * f, f] for f in factors * 2]))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 1.0]


@pytest.mark.parametrize("schedule", [None, lambda progress: 1 - progress])
def test_a_group_that_is_added_in_on_epoch_has_its_own_rate_under_the_schedule(schedule):
    def unfreeze_body(record):
        if record["epoch"] in (2, 4):  # the last one has no step left
            part = model.body.last if record["epoch"] == 2 else model.body.first
            unfreeze(part)
            optimizer.add_param_group({"params": part.parameters(), "lr": 0.01})

    model = toy_model()
    freeze(model.body)
    before = weights_of(model)
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append([group["lr"] for group in optimizer.param_groups]))
    options = {"epochs": 4, "schedule": schedule, "on_epoch": unfreeze_body, "device": CPU}
    fit(model, (loader(), None), classification(), optimizer, **options)
    factors = [(schedule or (lambda _: 1))((step + 0.5) / 12) for step in range(12)]
    assert seen == [[0.1 * f] for f in factors[:6]] + [[0.1 * f, 0.01 * f] for f in factors[6:]]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.01, 0.01]
    assert differing(before, model) == ["body.last.weight", "body.last.bias", "head.weight", "head.bias"]


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_clipping_bounds_the_norm_of_the_whole_step_whatever_the_loss_was_scaled_by(dtype, monkeypatch):
    monkeypatch.setattr(loop, "mixed_precision", lambda _: dtype)
    model = toy_model()
    before = weights_of(model)
    train(model, (loader(24), None), epochs=1, lr=1.0, clip_norm=0.01)
    step = torch.cat([(p.detach() - before[name]).flatten() for name, p in model.named_parameters()])
    assert float(step.norm()) == pytest.approx(0.01, rel=1e-3)


def test_forward_passes_of_training_and_evaluation_are_in_the_type_of_the_device(monkeypatch):
    def objective(model, batch):
        types.append(model(batch[0]).dtype)
        return classification()(model, batch)

    monkeypatch.setattr(device, "mixed_precision", lambda _: torch.bfloat16)
    types = []
    model = toy_model()
    history = train(model, (loader(), loader(24)), objective, epochs=1)
    assert types == [torch.bfloat16] * 4
    assert math.isfinite(history[0]["validation_loss"])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


# a loss that is not finite


def breaking(step, *, epoch, broken=math.nan):
    """The objective, whose training loss is `broken` from this step on, and a list of the training steps it saw."""
    seen = []

    def objective(model, batch):
        logged = classification()(model, batch)
        if model.training:
            seen.append(len(seen) + 1)
            if len(seen) >= 12 * (epoch - 1) + step:
                logged["loss"] = logged["loss"] * broken
        return logged

    return objective, seen


def look_every(monkeypatch, steps):
    """Let the loss be looked at as on a GPU: so many steps at a time."""

    class LateWatch(loop._LossWatch):
        def __init__(self, device, epoch):
            super().__init__(device, epoch)
            self.every = steps

    monkeypatch.setattr(loop, "_LossWatch", LateWatch)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize(("every", "noticed"), [(1, 7), (5, 10), (10, 10), (50, 12)])
@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize("validation", [None, loader(24)])
def test_a_loss_that_is_not_finite_is_named_and_the_weights_of_before_the_epoch_come_back(
    broken, every, noticed, epoch, validation, monkeypatch
):
    look_every(monkeypatch, every)
    model = toy_model()
    objective, seen = breaking(7, epoch=epoch, broken=broken)
    ends = [weights_of(model)]
    words = f"the loss is (nan|{broken}) in epoch {epoch}, step 7; lower the learning rate, set clip_norm"
    with pytest.raises(FloatingPointError, match=words):
        train(model, (loader(2), validation), objective, on_epoch=lambda _: ends.append(weights_of(model)))
    assert len(seen) == 12 * (epoch - 1) + noticed
    assert len(ends) == epoch
    assert differing(ends[-1], model) == []


@pytest.mark.parametrize("checked", [True, False])
def test_a_batch_that_is_not_finite_leaves_no_trace_in_batchnorm_of_model_and_objective(checked, monkeypatch):
    if not checked:  # the objective itself refuses such features; without that, the loop does
        monkeypatch.setattr(adaptation, "check_domains", lambda *_, **__: None)
    examples = toy_examples()
    good = {"source": (examples.x, examples.y), "target": (examples.x + 1, examples.y)}
    bad = good | {"source": (examples.x * math.nan, examples.y)}
    model = toy_model()
    objective = dann(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)))
    before = weights_of(model), weights_of(objective)
    optimizer = torch.optim.SGD([*model.parameters(), *objective.parameters()], lr=0.1)
    with pytest.raises((ValueError, FloatingPointError), match=r"source features hold NaN|epoch 1, step 2"):
        fit(model, ([good, bad], None), objective, optimizer, epochs=1, device=CPU)
    assert differing(before[0], model) == differing(before[1], objective) == []


@pytest.mark.parametrize(("losses", "epoch"), [([math.nan], 1), ([1.0, math.inf], 2)])
def test_a_validation_that_is_not_finite_is_named_and_the_last_good_weights_come_back(losses, epoch):
    model = toy_model()
    ends = [weights_of(model)]
    objective = given_scores(loss=losses)
    with pytest.raises(FloatingPointError, match=f"validation_loss is {losses[-1]} in epoch {epoch}; look for NaN"):
        train(model, (loader(), loader(24)), objective, epochs=3, on_epoch=lambda _: ends.append(weights_of(model)))
    assert differing(ends[-1], model) == []


def test_a_late_look_changes_nothing_about_a_run_without_a_broken_loss(monkeypatch):
    def run():
        torch.manual_seed(4)
        model = toy_model()
        history = train(model, (loader(2), loader(24)))
        return [record | {"seconds": 0} for record in history], weights_of(model)

    records, weights = run()
    look_every(monkeypatch, 5)
    again, same_weights = run()
    assert again == records
    assert all(torch.equal(weights[name], same_weights[name]) for name in weights)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_too_the_weights_of_before_the_epoch_come_back():
    model = toy_model()
    objective, _ = breaking(7, epoch=2)
    ends = []
    with pytest.raises(FloatingPointError, match="nan in epoch 2, step 7"):
        train(
            model,
            (loader(2), None),
            objective,
            device=torch.device("cuda"),
            on_epoch=lambda _: ends.append(weights_of(model)),
        )
    assert differing(ends[-1], model) == []


# what cannot work is refused


class Lying(list):
    """So many batches, and another length."""

    def __init__(self, n, length):
        super().__init__([(toy_examples().x, toy_examples().y)] * n)
        self.length = length

    def __len__(self):
        return self.length


@pytest.mark.parametrize(
    ("loaders", "options", "message"),
    [
        (([], None), {}, "training loader is empty: it needs at least one batch"),
        ((loader(), []), {}, "validation loader is empty"),
        ((loader(), None), {"epochs": 0}, "epochs=0 and accumulate=1 must be at least 1"),
        ((loader(), None), {"accumulate": 0}, "epochs=2 and accumulate=0 must be at least 1"),
        ((loader(), None), {"objective": lambda *_: {"cost": 1}}, r"returned \['cost'\]; it must have an entry 'loss'"),
        ((loader(), loader()), {"objective": given_scores(cost=[1.0] * 3)}, r"loss' is not logged; .*validation_cost"),
        ((loader(), loader()), {"best": "validation_task_loss"}, "not logged; .*'validation_loss', 'validation_acc"),
        ((loader(), loader()), {"best": "validation_accuracy"}, "must be a loss of the validation, .*the lowest wins"),
        ((loader(), loader()), {"best": "loss"}, "best='loss' must be a loss of the validation"),
        (
            (loader(), None),
            {"best": "validation_task_loss"},
            "needs a validation loader; without one, the last",
        ),
        ((Lying(3, 5), None), {}, "training loader gave 3 batches, its length says 5; correct __len__"),
        ((Lying(5, 3), None), {}, "training loader gave more than 3 batches, its length; correct __len__"),
        ((loader(23), None), {}, "the batch of epoch 1, step 2, .* has 1 example, .*; take another batch_size"),
        (
            (loader(), None),
            {"objective": lambda model, batch: classification()(model, batch) | {"rows": torch.ones(8)}},
            r"logs 'rows' of shape \[8\]; log its mean instead",
        ),
    ],
)
def test_a_run_that_cannot_work_is_refused_with_the_remedy(loaders, options, message):
    with pytest.raises(ValueError, match=message):
        train(toy_model(), loaders, **options)


def test_a_model_without_trainable_parameters_is_refused():
    model = toy_model()
    freeze(model)
    with pytest.raises(ValueError, match="no trainable parameter; unfreeze the head"):
        train(model)


LEARNERS = {
    "discriminator": lambda: dann(nn.Linear(6, 1)),
    "log_variances": lambda: uncertainty_weighted(["source"]),
    "regressor": lambda: feature_match(
        classification(), toy_model(), layers=("body", "body"), regressor=nn.Linear(6, 6), beta=0.1
    ),
    "inner discriminator": lambda: multitask({"source": 1.0}, {"source": dann(nn.Linear(6, 1))}),
    "inner regressor": lambda: l2_sp(LEARNERS["regressor"](), toy_model().body, alpha=0.1),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_an_optimizer_that_lacks_a_parameter_of_the_objective_is_refused_before_anything_is_done(name):
    model = toy_model()
    before = weights_of(model)
    objective = LEARNERS[name]()
    with pytest.raises(ValueError, match=r"does not hold \['.*'\] of the objective, .*\*objective.parameters\(\)\]"):
        train(model, objective=objective)
    *most, _ = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD([*model.parameters(), *most], lr=0.1)
    with pytest.raises(ValueError, match=r"does not hold \['[^,]*'\] of the objective"):
        fit(model, (loader(), None), objective, optimizer, epochs=1, device=CPU)
    assert differing(before, model) == []


def test_a_frozen_teacher_need_not_be_in_the_optimizer():
    train(toy_model(), objective=distillation(toy_model(), temperature=2.0, alpha=0.5))


def test_an_optimizer_that_holds_a_stranger_is_refused():
    model = toy_model()
    discriminator = nn.Linear(6, 1)
    inner = dann(discriminator)
    optimizer = torch.optim.SGD([*model.parameters(), *discriminator.parameters()], lr=0.1)
    words = r"holds 2 parameters .* of neither model nor objective; .*make it an nn.Module that owns them"
    for objective in (classification(), lambda model, batch: inner(model, batch)):  # a function hides what it uses
        with pytest.raises(ValueError, match=words):
            fit(model, (loader(), None), objective, optimizer, epochs=1, device=CPU)
    old = torch.optim.SGD(toy_model().parameters(), lr=0.1)  # the optimizer of another model
    with pytest.raises(ValueError, match=r"holds 8 parameters \[\[.*\]\] of neither"):
        fit(model, (loader(), None), classification(), old, epochs=1, device=CPU)


# objectives that are modules


class Noting(nn.Module):
    """An objective that owns the scale of the loss and a dropout, and notes where it is sent and how it runs."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.part = nn.Dropout(0.5)
        self.sent_to = []
        self.modes = []

    def to(self, device):
        self.sent_to.append(device)
        return super().to(device)

    def forward(self, model, batch):
        self.modes.append((model.training, self.training, self.part.training))
        logged = classification()(model, batch)
        return logged | {"loss": logged["loss"] * self.scale + F.softplus(-self.scale)}


def test_fit_moves_and_trains_an_objective_that_is_a_module_and_puts_it_in_the_mode_of_the_model():
    model = toy_model()
    objective = Noting().eval()
    before = weights_of(objective)
    elsewhere = torch.device("cpu", 0)  # the same place by another name
    optimizer = torch.optim.SGD([*model.parameters(), *objective.parameters()], lr=0.1)
    fit(model, (loader(), loader(24)), objective, optimizer, epochs=2, device=elsewhere)
    assert set(objective.sent_to) == {elsewhere}
    assert differing(before, objective) == ["scale"]
    assert objective.modes == [*[(True,) * 3] * 3, (False,) * 3] * 2


def test_a_module_equals_the_same_objective_by_hand_to_the_last_bit():
    ours = toy_model()
    theirs = copy.deepcopy(ours)
    objective = Noting()
    scale = torch.ones((), requires_grad=True)
    torch.manual_seed(1)  # of dropout
    optimizer = torch.optim.SGD([*ours.parameters(), *objective.parameters()], lr=0.1)
    fit(ours, (loader(), None), objective, optimizer, epochs=2, device=CPU)
    torch.manual_seed(1)
    optimizer = torch.optim.SGD([*theirs.parameters(), scale], lr=0.1)
    batches = loader()
    for _ in range(2):
        for x, y in batches:
            loss = F.cross_entropy(theirs.train()(x), y) * scale + F.softplus(-scale)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert differing(weights_of(ours), theirs) == []
    assert torch.equal(objective.scale, scale)


def test_several_modules_at_once_learn_through_fit():
    examples = toy_examples()
    both = {"source": TensorLoader(examples, 8, device=CPU), "target": [(examples.x + 1, examples.y)]}
    joint = JointLoader({"digits": JointLoader(both)})
    toy = toy_model()
    model = nn.ModuleDict({"body": toy.body, "heads": nn.ModuleDict({"digits": toy.head})})
    objective = uncertainty_weighted(["digits"], {"digits": dann(nn.Linear(6, 1))})
    first = weights_of(objective)
    optimizer = torch.optim.SGD([*model.parameters(), *objective.parameters()], lr=0.1)
    history = fit(model, (joint, joint), objective, optimizer, epochs=3, device=CPU)
    assert len(differing(first, objective)) == len(first)
    assert history[-1]["validation_digits_source_loss"] < history[0]["validation_digits_source_loss"]


# evaluation


def test_evaluation_averages_over_examples_not_batches():
    model = toy_model()
    examples = toy_examples(10)
    measured = evaluate(model, TensorLoader(examples, 4, device=CPU), device=CPU)
    logits = model.eval()(examples.x).detach()
    assert measured["loss"] == pytest.approx(float(F.cross_entropy(logits, examples.y)), abs=1e-6)
    assert measured["accuracy"] == pytest.approx(float((logits.argmax(1) == examples.y).float().mean()))
    in_threes = evaluate(model, TensorLoader(examples, 3, device=CPU), classification(), device=CPU)
    assert in_threes == pytest.approx(measured)


def test_accuracy_is_the_part_of_the_examples_that_is_right():
    model = toy_model()
    examples = toy_examples(300)  # more than one batch
    flags = [part.training for part in model.modules()]
    measured = accuracy(model, examples, device=CPU)
    assert [part.training for part in model.modules()] == flags
    right = model.eval()(examples.x).argmax(1) == examples.y
    assert measured == pytest.approx(int(right.sum()) / 300, abs=1e-7)


def test_evaluation_leaves_weights_and_training_flags_as_they_were():
    model = toy_model().train()
    model.body.norm.eval()
    flags = [part.training for part in model.modules()]
    before = weights_of(model)
    evaluate(model, loader(), device=CPU)
    assert [part.training for part in model.modules()] == flags
    assert differing(before, model) == []
    with pytest.raises(ValueError, match="the loader gave no batch; it must hold at least one example"):
        evaluate(model, [], device=CPU)
    assert [part.training for part in model.modules()] == flags


def test_one_epoch_alone_trains_and_returns_means():
    model = toy_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = [train_one_epoch(model, loader(), classification(), optimizer, device=CPU)["loss"] for _ in range(15)]
    assert losses[-1] < losses[0] - 0.1
