import math

import torch

from tlhelpers.data.examples import few_shot
from tlhelpers.data.named import load_dataset
from tlhelpers.objectives.supervised import multitask
from tlhelpers.experiments.multi_task import joint_loader, new_model, pcgrad, task_gradients, watching, weights_for


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
