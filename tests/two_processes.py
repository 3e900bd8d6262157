"""Trains a small network and writes what came out: for `accelerate launch` and `notebook_launcher`."""

import atexit
import json
import os
import sys

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from toys import CPU, toy_part

from tlhelpers.data.examples import JointLoader, TensorLoader
from tlhelpers.objectives.supervised import classification, multitask
from tlhelpers.runtime import seed_everything
from tlhelpers.training.schedules import warmup_cosine
from tlhelpers.training.loop import evaluate, fit


def plain_model():
    """[N, 4] -> [N, 3] without BatchNorm and dropout, which differ from process to process."""
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))


def trained(checkpoint=None, **options):
    """24 examples in batches of 9, so that the last one has 6 and a validation of 5 by 2 ends with a single one."""
    seed_everything(0)
    part, model = toy_part(), plain_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    validation = TensorLoader(part.take(torch.arange(5)), 2, device=CPU)
    options = {"epochs": 3, "schedule": warmup_cosine(), "clip_norm": 1.0, "device": CPU} | options
    # A DataLoader draws its order from torch's generator, which the processes must share.
    loader = DataLoader(TensorDataset(part.x, part.y), 9, shuffle=True)
    history = fit(model, (loader, validation), classification(), optimizer, checkpoint=checkpoint, **options)
    score = evaluate(model, TensorLoader(part, 7, device=CPU), device=CPU)
    return {"history": history, "score": score, "logits": model(part.x).tolist()}


def trained_on_two_tasks():
    """One task has weight 0, so its head gets no gradient; a parameter outside the model does."""
    seed_everything(0)
    part = toy_part()
    model = nn.Module()
    model.body, heads = nn.Linear(4, 8), {"source": nn.Linear(8, 3), "target": nn.Linear(8, 3)}
    model.heads, scale = nn.ModuleDict(heads), nn.Parameter(torch.ones(()))
    inner = multitask({"source": 1.0, "target": 0.0})

    def objective(model, batch):
        logged = inner(model, batch)
        return logged | {"loss": logged["loss"] * scale + F.softplus(-scale)}

    loaders = {task: TensorLoader(part, 8, shuffle=True, seed=k, device=CPU) for k, task in enumerate(heads)}
    optimizer = torch.optim.SGD([*model.parameters(), scale], lr=0.1)
    history = fit(model, (JointLoader(loaders), None), objective, optimizer, epochs=2, device=CPU)
    return {"history": history, "scale": scale.item(), "weights": model.body.weight.tolist()}


def save(folder, **options):
    """What every process calls."""
    result = {"one": trained(os.path.join(folder, "run.ckpt"), **options), "two": trained_on_two_tasks()}
    with open(os.path.join(folder, f"rank{os.environ.get('RANK', 'none')}.json"), "w") as file:
        json.dump(result, file)


def note_the_end(folder):
    """Whether there is still a process group, to a file of this process."""
    state = "left behind" if torch.distributed.is_initialized() else "ended"
    with open(os.path.join(folder, f"group{os.environ['RANK']}.txt"), "w") as file:
        file.write(state)


if __name__ == "__main__":
    atexit.register(note_the_end, sys.argv[1])  # the first to register is the last to be called
    save(sys.argv[1])
