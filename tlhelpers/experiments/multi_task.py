"""Record the experiments of page 05: `python -m tlhelpers.experiments.multi_task` (about 8 minutes on one CPU core).

A small network from random weights, printed digits as the source task, 2 labels per class of
handwriting as the target task.  Recorded: the sweep of lambda in L_S + lambda * L_T, other sources
(negative transfer), learnt weights and PCGrad, and pretraining followed by tuning.  Settings are
chosen on the validation part with draws of labels that are not used afterwards.
"""

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn

from tlhelpers.data import TARGET_JITTER, Examples, JointLoader, Splits, TensorLoader, few_shot, load_dataset
from tlhelpers.experiments.records import RECORDED, choose, provenance, write_record
from tlhelpers.models import Normalize
from tlhelpers.objectives import (
    Objective,
    classification,
    gradient_cosine,
    multitask,
    project_conflicting,
    uncertainty_weighted,
)
from tlhelpers.runtime import seed_everything
from tlhelpers.training import accuracy, evaluate, fit, warmup_cosine

RECORD = RECORDED / "multi_task.json"
LABELS = 2  # per class of handwriting
SEEDS = range(5)
TUNING_SEEDS = (1000, 1001, 1002)
STEPS = 100  # joint steps: as many batches of 32 from each task
LAMBDAS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, math.inf)  # infinity: the target alone
RATES = (1e-2, 3e-2)
WIDTHS = (16, 32, 64)  # channels of the three convolutions

Method = Callable[..., nn.Module]  # (target examples, seed=..., **setting) -> a trained model


def jointly(
    source: Examples,
    target: Examples,
    *,
    seed: int,
    lam: float = 1.0,
    lr: float = 1e-2,
    steps: int = STEPS,
    shared_head: bool = True,
    objective: Objective | None = None,
) -> nn.Module:
    """One run: a new model trained on both tasks: L_S + lambda * L_T, unless another objective is given."""
    seed_everything(seed)
    model = new_model({"source": len(source.classes), "target": len(target.classes)}, shared_head=shared_head)
    loader = joint_loader(source, target, seed=seed, steps=steps)
    if objective is None:
        objective = multitask(weights_for(lam))
    train(model, loader, objective, lr=lr)
    return model


def train(model: nn.Module, loader: JointLoader, objective: Objective, *, lr: float) -> None:
    """AdamW, warm-up and cosine, one pass; what the objective learns is not decayed."""
    groups = [{"params": model.parameters(), "weight_decay": 0.02}]
    if isinstance(objective, nn.Module):
        groups.append({"params": objective.parameters(), "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=lr)
    fit(model, (loader, None), objective, optimizer, epochs=1, schedule=warmup_cosine())


def weights_for(lam: float) -> dict[str, float]:
    """The weights 1 and lambda divided by their sum: the same minimum, and steps of comparable size."""
    if math.isinf(lam):
        return {"source": 0.0, "target": 1.0}
    return {"source": 1 / (1 + lam), "target": lam / (1 + lam)}


def joint_loader(source: Examples, target: Examples, *, seed: int, steps: int = STEPS) -> JointLoader:
    """Batches of 32 from each task, drawn and bent at random."""
    return JointLoader(
        {
            task: TensorLoader(examples, 32, shuffle=True, steps=steps, augment=TARGET_JITTER, seed=seed)
            for task, examples in (("source", source), ("target", target))
        }
    )


class SmallBody(nn.Sequential):
    """[N, 1, 32, 32] in [0, 1] -> [N, 64]: three convolutions that each halve the image, then the mean over places."""

    feature_dim = WIDTHS[-1]

    def __init__(self) -> None:
        children = OrderedDict(normalize=Normalize(0.2, 0.3))  # about the mean and spread of print and handwriting
        for number, (inputs, outputs) in enumerate(itertools.pairwise((1, *WIDTHS)), start=1):
            children[f"conv{number}"] = nn.Conv2d(inputs, outputs, 5, 2, padding=2, bias=False)
            children[f"bn{number}"] = nn.BatchNorm2d(outputs)
            children[f"relu{number}"] = nn.ReLU()
        children["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(children)
        self.to(memory_format=torch.channels_last)  # faster on a CPU


def new_model(classes: dict[str, int], *, shared_head: bool) -> nn.Module:
    """A body, and per task a linear head; a shared head is one module under all names.

    Args:
        classes: number of classes per task, "target" among them.
    """
    model = nn.Module()
    model.body = SmallBody()
    heads = {task: nn.Linear(SmallBody.feature_dim, n) for task, n in reversed(classes.items())}
    model.heads = nn.ModuleDict({task: heads["target"] if shared_head else heads[task] for task in classes})
    return model


def through(model: nn.Module, task: str) -> nn.Sequential:
    """The part of the model that one task uses."""
    return nn.Sequential(OrderedDict(body=model.body, head=model.heads[task]))


def in_sequence(source: Examples, target: Examples, *, seed: int, lr: float, source_lr: float) -> nn.Module:
    """Pretrain on the source, then tune on the target, all weights: as many batches as STEPS joint steps."""
    model = jointly(source, target, seed=seed, lam=0.0, lr=source_lr)
    train(model, joint_loader(source, target, seed=seed), multitask(weights_for(math.inf)), lr=lr)
    return model


def learnt_weights(source: Examples, target: Examples, *, seed: int, lr: float) -> nn.Module:
    """Uncertainty weighting; its two log variances learn at the rate of the network."""
    return jointly(source, target, seed=seed, lr=lr, objective=uncertainty_weighted(("source", "target")))


def task_gradients(model: nn.Module, batch: dict) -> tuple[Tensor, Tensor]:
    """Gradients of L_S and L_T by all weights of the model, flattened: two vectors [P]."""
    parameters = list(model.parameters())
    flat = {}
    for task, examples in batch.items():
        loss = classification()(through(model, task), examples)["loss"]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)  # None for the other task's own head
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
        flat[task] = torch.cat([g.flatten() for g in filled])
    return flat["source"], flat["target"]


def pcgrad(model: nn.Module, batch: dict) -> dict[str, Tensor]:
    """An objective whose gradient is that of PCGrad; its value means nothing."""
    return _with_gradient(model, sum(project_conflicting(*task_gradients(model, batch))))


def watching(cosines: list[float]) -> Objective:
    """Equal weights, like weights_for(1); notes the cosine of the two gradients of the body at every step."""

    def objective(model: nn.Module, batch: dict) -> dict[str, Tensor]:
        g_s, g_t = task_gradients(model, batch)
        shared = sum(p.numel() for p in model.body.parameters())  # the body's weights come first
        cosines.append(gradient_cosine(g_s[:shared], g_t[:shared]))
        return _with_gradient(model, g_s + g_t)

    return objective


def _with_gradient(model: nn.Module, gradient: Tensor) -> dict[str, Tensor]:
    """A loss that has half of a given gradient [P] by the model's weights (half, like the weights of lambda = 1)."""
    weights = torch.cat([p.flatten() for p in model.parameters()])
    return {"loss": (weights * gradient).sum() / 2}


def scores(model: nn.Module, printed: Splits, digits: Splits) -> dict[str, float]:
    """Losses and accuracies: "validation" and "target" are handwriting, "source" is print in unseen fonts."""
    logged = {
        "validation": evaluate(through(model, "target"), TensorLoader(digits.validation, 300)),
        "target": evaluate(through(model, "target"), TensorLoader(digits.test, 300)),
        "source": evaluate(through(model, "source"), TensorLoader(printed.test, 300)),
    }
    table = {}
    for name, numbers in logged.items():
        table[name] = round(numbers["accuracy"], 4)
        table[f"{name} loss"] = round(numbers["loss"], 4)
    return table


def turned_over(examples: Examples) -> Examples:
    """Upside down: a half turn, which makes a 6 of a 9."""
    return examples.mapped(lambda images: images.flip((2, 3)))


def relabelled(examples: Examples) -> Examples:
    """Every digit y called 9 - y."""
    return replace(examples, y=9 - examples.y)


def gratings(per_class: int = 100) -> Examples:
    """Stripes in ten directions; the class is the direction."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(10).repeat(per_class)
    angle = math.pi * (y + 0.8 * torch.rand(len(y), generator=generator) - 0.4) / 10
    grid = torch.linspace(-1, 1, 32)
    along = angle.cos()[:, None, None] * grid + angle.sin()[:, None, None] * grid[:, None]
    frequency, phase = torch.rand(2, len(y), 1, 1, generator=generator) * torch.tensor([8, 6.3])[:, None, None, None]
    x = torch.sin((8 + frequency) * along + phase).clamp(0, 1).unsqueeze(1)  # [N, 1, 32, 32]
    return Examples("gratings", x, y, tuple("0123456789"), torch.arange(len(y)))


def sources(printed: Splits) -> dict[str, tuple[Examples, bool]]:
    """Sources for the question whether one hurts: the examples, and whether their head is the target's head too."""
    return {
        "one head, 1": (printed.train, True),
        "labels 9 - y": (relabelled(printed.train), True),
        "labels 9 - y, own head": (relabelled(printed.train), False),
        "upside down": (turned_over(printed.train), True),
        "letters, own head": (load_dataset("glyph-letters").train, False),
        "stripes, own head": (gratings(), False),
    }


def tune(printed: Splits, digits: Splits) -> dict[str, dict]:
    """Learning rates by mean validation accuracy over the tuning seeds."""

    def score(method: Method, **setting) -> float:
        models = [method(few_shot(digits.train, LABELS, seed=s), seed=s, **setting) for s in TUNING_SEEDS]
        return mean(accuracy(through(model, "target"), digits.validation) for model in models)

    tuning = {}
    for name, lam in (("source alone", 0.0), ("target alone", math.inf), ("joint", 1.0)):
        tuning[name] = choose(partial(score, partial(jointly, printed.train, lam=lam)), {"lr": RATES})
    source_lr = tuning["source alone"]["chosen"]["lr"]
    sequence = partial(in_sequence, printed.train, source_lr=source_lr)
    tuning["in sequence"] = choose(partial(score, sequence), {"lr": (1e-3, 3e-3, 1e-2)})
    return tuning


def methods(printed: Splits, compared: dict[str, tuple[Examples, bool]], tuning: dict[str, dict]) -> dict[str, Method]:
    """Every run that is recorded, by name.

    Args:
        compared: what `sources` gives.
    """
    rates = {name: choice["chosen"]["lr"] for name, choice in tuning.items()}
    lr = rates["joint"]
    runs = {}
    for lam, alone in ((0.0, "source alone"), (math.inf, "target alone")):
        runs[f"one head, {lam:g}"] = partial(jointly, printed.train, lam=lam, lr=rates[alone])
        # A joint step costs two batches, so a task alone may also take twice the steps.
        runs[f"{alone}, longer"] = partial(jointly, printed.train, lam=lam, lr=rates[alone], steps=2 * STEPS)
    for name, (source, shared_head) in compared.items():
        runs[name] = partial(jointly, source, lr=lr, shared_head=shared_head)
    runs["two heads, 1"] = partial(jointly, printed.train, lr=lr, shared_head=False)
    runs["learnt weights"] = partial(learnt_weights, printed.train, lr=lr)
    runs["PCGrad"] = partial(jointly, printed.train, lr=lr, objective=pcgrad)
    runs["in sequence"] = partial(in_sequence, printed.train, source_lr=rates["source alone"], lr=rates["in sequence"])
    for lam in LAMBDAS[1:-1]:
        runs.setdefault(f"one head, {lam:g}", partial(jointly, printed.train, lam=lam, lr=lr))
    return runs


def scored(method: Method, printed: Splits, digits: Splits, *, seed: int, watched: bool) -> dict[str, float]:
    """Scores of one method at one seed; if it is watched, also the mean cosine of the two tasks' gradients."""
    few = few_shot(digits.train, LABELS, seed=seed)
    if not watched:
        return scores(method(few, seed=seed), printed, digits)
    cosines = []
    model = method(few, seed=seed, objective=watching(cosines))
    return scores(model, printed, digits) | {"cosine": round(mean(cosines), 4)}


def record(path: Path) -> None:
    """Tune on validation, then run every method at every seed and score it once on the test parts."""
    printed = load_dataset("glyph-digits")
    digits = load_dataset("digits")
    compared = sources(printed)
    tuning = tune(printed, digits)
    facts = {"what": "accuracies and losses on the test parts by method and seed", "runs": {}, "tuning": tuning}
    facts |= provenance("python -m tlhelpers.experiments.multi_task", seeds=SEEDS)
    for name, method in methods(printed, compared, tuning).items():
        rows = [scored(method, printed, digits, seed=seed, watched=name in compared) for seed in SEEDS]
        facts["runs"][name] = {key: [row[key] for row in rows] for key in rows[0]}
        print(name, facts["runs"][name]["target"], flush=True)
        write_record(path, facts)  # what is done is safe


if __name__ == "__main__":
    record(RECORD)
