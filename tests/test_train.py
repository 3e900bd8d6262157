import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import CPU, differing, toy_model, toy_part, weights_of

from tlhelpers.data.examples import TensorLoader
from tlhelpers.objectives.supervised import classification
from tlhelpers.models.surgery import freeze
from tlhelpers.training.loop import evaluate, fit, train_one_epoch, warmup_cosine


def loader(batch_size=8, *, shift=0):
    """Batches of the toy part; a shift of the labels makes them contradict the training labels."""
    part = toy_part()
    part.y.add_(shift).remainder_(3)
    return TensorLoader(part, batch_size, shuffle=not shift, device=CPU)


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

    first, second, validated = run(None), run(None), run(loader(shift=1))
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
    model, ends = toy_model(), []
    history = train(model, on_epoch=lambda _: ends.append(weights_of(model)))
    assert not any(name.startswith("validation") for name in history[0])
    assert differing(ends[-1], model) == []
    assert not any(part.training for part in model.modules())


@pytest.mark.parametrize(("monitor", "pick"), [("validation_loss", min), ("validation_accuracy", max)])
def test_the_weights_of_the_best_epoch_come_back(monitor, pick):
    model, ends = toy_model(), []
    loaders = (loader(), loader(shift=1))  # what is learnt is wrong there, so the best epoch comes early
    history = train(model, loaders, epochs=6, monitor=monitor, on_epoch=lambda _: ends.append(weights_of(model)))
    scores = [record[monitor] for record in history]
    best = scores.index(pick(scores))
    assert best < 5
    assert differing(ends[best], model) == []
    assert evaluate(model, loaders[1], device=CPU)[monitor.removeprefix("validation_")] == pytest.approx(scores[best])


def test_patience_counts_epochs_without_a_new_best():
    losses = iter([3.0, 2.0, 2.5, 1.0, 1.0, 1.5, 0.5])

    def objective(model, batch):
        if model.training:
            return classification()(model, batch)
        return {"loss": torch.tensor(next(losses))}

    history = train(toy_model(), (loader(), loader(24, shift=1)), objective, epochs=7, patience=2)
    assert [record["validation_loss"] for record in history] == [3.0, 2.0, 2.5, 1.0, 1.0, 1.5]


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
    model, seen = toy_model(), []
    optimizer = torch.optim.SGD(
        [{"params": model.body.parameters(), "lr": 0.1}, {"params": model.head.parameters(), "lr": 1.0}]
    )

    optimizer.register_step_pre_hook(lambda *_: seen.append([group["lr"] for group in optimizer.param_groups]))
    for _ in range(2):  # the optimizer is left as it was, so a second run takes the same rates
        fit(model, (loader(), None), classification(), optimizer, epochs=2, schedule=lambda p: 1 - p, device=CPU)
    factors = [1 - (step + 0.5) / 6 for step in range(6)]
    assert torch.allclose(torch.tensor(seen), torch.tensor([[0.1 * f, f] for f in factors * 2]))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 1.0]


def test_clipping_bounds_the_norm_of_the_whole_step():
    model = toy_model()
    before = weights_of(model)
    train(model, (loader(24), None), epochs=1, lr=1.0, clip_norm=0.01)
    step = torch.cat([(p.detach() - before[name]).flatten() for name, p in model.named_parameters()])
    assert float(step.norm()) == pytest.approx(0.01, rel=1e-3)


def test_a_loss_that_is_not_finite_stops_before_it_does_harm():
    model, calls = toy_model(), itertools.count(1)

    def objective(model, batch):
        logged = classification()(model, batch)
        return logged | {"loss": logged["loss"] * (math.nan if next(calls) == 5 else 1)}

    with pytest.raises(FloatingPointError, match=r"nan in epoch 2, step 2; lower the learning rate, set clip_norm"):
        train(model, objective=objective)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize(
    ("loaders", "options", "message"),
    [
        (([], None), {}, "training loader is empty: it needs at least one batch"),
        ((loader(), []), {}, "validation loader is empty"),
        ((loader(), None), {"epochs": 0}, "epochs=0 and accumulate=1 must be at least 1"),
        ((loader(), loader()), {"monitor": "validation_f1"}, r"'validation_f1' is not logged; .*'validation_loss'"),
        ((loader(), None), {"objective": lambda *_: {"cost": 1}}, r"returned \['cost'\]; it must have an entry 'loss'"),
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


def test_evaluation_averages_over_examples_not_batches():
    model, part = toy_model(), toy_part(10)
    measured = evaluate(model, TensorLoader(part, 4, device=CPU), device=CPU)
    logits = model.eval()(part.x).detach()
    assert measured["loss"] == pytest.approx(float(F.cross_entropy(logits, part.y)), abs=1e-6)
    assert measured["accuracy"] == pytest.approx(float((logits.argmax(1) == part.y).float().mean()))
    assert evaluate(model, TensorLoader(part, 3, device=CPU), classification(), device=CPU) == pytest.approx(measured)


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


def test_learning_rates_are_put_back_when_a_run_fails():
    model = toy_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    broken = [(torch.full((2, 4), math.nan), torch.tensor([0, 1]))]
    with pytest.raises(FloatingPointError):
        fit(model, (broken, None), classification(), optimizer, epochs=1, schedule=lambda p: 0.5, device=CPU)
    assert optimizer.param_groups[0]["lr"] == 0.1
