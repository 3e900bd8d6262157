"""Trains a small network and writes what came out: for `accelerate launch` and `notebook_launcher`."""

import atexit
import json
import os
import sys

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from toys import CPU, toy_examples

from tlhelpers.data import JointLoader, TensorLoader
from tlhelpers.objectives import classification, multitask
from tlhelpers.runtime import seed_everything
from tlhelpers.training import evaluate, fit, warmup_cosine


def plain_model():
    """[N, 4] -> [N, 3] without BatchNorm and dropout, which differ from process to process."""
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))


def trained(checkpoint=None, **options):
    """24 examples in batches of 9, so that the last one has 6 and a validation of 5 by 2 ends with a single one."""
    seed_everything(0)
    examples = toy_examples()
    model = plain_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    validation = TensorLoader(examples.take(torch.arange(5)), 2, device=CPU)
    options = {"epochs": 3, "schedule": warmup_cosine(), "clip_norm": 1.0, "device": CPU} | options
    # A DataLoader draws its order from torch's generator, which the processes must share.
    loader = DataLoader(TensorDataset(examples.x, examples.y), 9, shuffle=True)
    history = fit(model, (loader, validation), classification(), optimizer, checkpoint=checkpoint, **options)
    score = evaluate(model, TensorLoader(examples, 7, device=CPU), device=CPU)
    return {"history": history, "score": score, "logits": model(examples.x).tolist()}


class Scaled(nn.Module):
    """Two tasks, one of weight 0, whose loss is multiplied by a number that is learnt."""

    def __init__(self):
        super().__init__()
        self.tasks = multitask({"source": 1.0, "target": 0.0})
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.zeros(()))  # other in every process, until all get the first one's

    def forward(self, model, batch):
        self.seen += batch["source"][0].sum().item() * self.training
        logged = self.tasks(model, batch)
        return logged | {"loss": logged["loss"] * self.scale + F.softplus(-self.scale)}


def trained_on_two_tasks():
    """One task has weight 0, so its head gets no gradient; a parameter of the objective does."""
    seed_everything(0)
    examples = toy_examples()
    heads = {"source": nn.Linear(8, 3), "target": nn.Linear(8, 3)}
    model = nn.ModuleDict({"body": nn.Linear(4, 8), "heads": nn.ModuleDict(heads)})
    objective = Scaled()
    loaders = {task: TensorLoader(examples, 8, shuffle=True, seed=k, device=CPU) for k, task in enumerate(heads)}
    optimizer = torch.optim.SGD([*model.parameters(), *objective.parameters()], lr=0.1)
    history = fit(model, (JointLoader(loaders), None), objective, optimizer, epochs=2, device=CPU)
    return {"history": history, "scale": objective.scale.item(), "weights": model.body.weight.tolist()}, objective.seen


def save(folder, **options):
    """What every process calls."""
    one = trained(os.path.join(folder, "run.ckpt"), **options)
    two, seen = trained_on_two_tasks()
    result = {"one": one, "two": two, "seen": seen.item()}
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
