import math

import torch
from toys import differing, weights_of

from tlhelpers.data import few_shot, load_dataset
from tlhelpers.experiments.multi_task import (
    RECORD,
    SEEDS,
    SmallBody,
    in_sequence,
    joint_loader,
    jointly,
    learnt_weights,
    methods,
    new_model,
    pcgrad,
    scores,
    sources,
    task_gradients,
    train,
    watching,
    weights_for,
)
from tlhelpers.experiments.records import read_record
from tlhelpers.models import Normalize
from tlhelpers.objectives import multitask, uncertainty_weighted


def batch_and_model():
    digits, printed = load_dataset("digits").train, load_dataset("glyph-digits").train
    loader = joint_loader(few_shot(printed, 2, seed=0), few_shot(digits, 2, seed=0), seed=0, steps=1)
    return next(iter(loader)), new_model({"source": 10, "target": 10}, shared_head=True)


def gradient_of(model, objective, batch):
    model.zero_grad()
    objective(model, batch)["loss"].backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_lambda_weighs_the_target_and_infinity_is_the_target_alone():
    assert weights_for(1.0) == {"source": 0.5, "target": 0.5}
    assert weights_for(0.0) == {"source": 1.0, "target": 0.0}
    assert weights_for(math.inf) == {"source": 0.0, "target": 1.0}


def test_watching_gives_the_gradient_of_equal_weights_and_notes_a_cosine():
    batch, model = batch_and_model()
    model.eval()
    cosines = []
    watched = gradient_of(model, watching(cosines), batch)
    plain = gradient_of(model, multitask(weights_for(1.0)), batch)
    assert torch.allclose(watched, plain, atol=1e-5)
    assert len(cosines) == 1
    assert -1 <= cosines[0] <= 1


def test_pcgrad_never_steps_against_either_task():
    batch, model = batch_and_model()
    model.eval()
    together = gradient_of(model, pcgrad, batch)
    g_s, g_t = task_gradients(model, batch)
    assert float(together @ g_s) >= 0
    assert float(together @ g_t) >= 0


def small_tasks():
    return (few_shot(load_dataset(name).train, 2, seed=0) for name in ("glyph-digits", "digits"))


def test_the_body_normalises_before_anything_else():
    body = SmallBody()
    assert isinstance(body[0], Normalize)
    assert body.normalize is body[0]
    assert list(body(torch.rand(3, 1, 32, 32)).shape) == [3, body.feature_dim]


def test_a_run_depends_on_its_seed_alone():
    source, target = small_tasks()
    torch.manual_seed(1)
    first = jointly(source, target, seed=5, steps=2)
    torch.manual_seed(2)
    again = jointly(source, target, seed=5, steps=2)
    assert differing(weights_of(first), again) == []
    assert differing(weights_of(first), jointly(source, target, seed=6, steps=2)) != []


def test_the_weights_of_the_tasks_are_learnt_with_the_network():
    source, target = small_tasks()
    objective = uncertainty_weighted(("source", "target"))
    model = new_model({"source": 10, "target": 10}, shared_head=True)
    train(model, joint_loader(source, target, seed=0, steps=2), objective, lr=1e-2)
    assert all(float(value.detach().abs()) > 0 for value in objective.log_variances.values())
    assert set(learnt_weights(source, target, seed=0, lr=1e-2).heads) == {"source", "target"}


def test_the_recorded_runs_are_those_that_the_script_makes():
    recorded = read_record(RECORD)
    printed = load_dataset("glyph-digits")
    compared = sources(printed)
    assert list(methods(printed, compared, recorded["tuning"])) == list(recorded["runs"])
    for name, run in recorded["runs"].items():
        assert ("cosine" in run) == (name in compared)
        assert all(len(values) == len(SEEDS) for values in run.values())
    source, target = small_tasks()
    model = in_sequence(source, target, seed=0, lr=1e-3, source_lr=1e-2)
    assert set(scores(model, printed, load_dataset("digits"))) == set(recorded["runs"]["in sequence"])
