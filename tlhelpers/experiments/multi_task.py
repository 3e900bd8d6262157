"""Record the experiments of page 05: `python -m tlhelpers.experiments.multi_task` (about 8 minutes on one CPU core).

A small network from random weights, printed digits as the source task, 2 labels per class of
handwriting as the target task.  Recorded: the sweep of lambda in L_S + lambda * L_T, other sources
(negative transfer), learnt weights and PCGrad, and pretraining followed by tuning.  Settings are
chosen on the validation part with draws of labels that are not used afterwards.
"""

import itertools
import json
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from tlhelpers.objectives.adaptation import gradient_cosine, project_conflicting
from tlhelpers.models.backbones import ASSETS, Normalize
from tlhelpers.data.examples import JointLoader, Part, Splits, TensorLoader, few_shot
from tlhelpers.data.named import TARGET_JITTER, load_dataset
from tlhelpers.objectives.supervised import Objective, classification, multitask, uncertainty_weighted
from tlhelpers.experiments.records import provenance
from tlhelpers.experiments.label_curve import choose
from tlhelpers.runtime import seed_everything
from tlhelpers.training.loop import evaluate, fit, warmup_cosine

RECORD = ASSETS / "recorded" / "multi_task.json"
LABELS = 2  # per class of handwriting
SEEDS = range(5)
STEPS = 100  # joint steps: as many batches of 32 from each task
LAMBDAS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, math.inf)  # infinity: the target alone
WATCHED = (  # the runs at lambda = 1 whose gradients are compared, one per source
    "one head, 1",
    "labels 9 - y",
    "labels 9 - y, own head",
    "upside down",
    "letters, own head",
    "stripes, own head",
)
RATES = (1e-2, 3e-2)
TRANSFORM = Normalize(0.2, 0.3)  # about the mean and spread of the pixels of both tasks
WIDTHS = (16, 32, 64)


class SmallBody(nn.Sequential):
    """[N, 1, 32, 32] -> [N, 64]: three convolutions that each halve the image, then the mean over places."""

    def __init__(self) -> None:
        layers = []
        for inputs, outputs in itertools.pairwise((1, *WIDTHS)):
            layers += [nn.Conv2d(inputs, outputs, 5, 2, padding=2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.to(memory_format=torch.channels_last)  # faster on a CPU


def new_model(classes: dict[str, int], *, shared_head: bool) -> nn.Module:
    """A body, and per task a linear head; a shared head is one module under all names."""
    model = nn.Module()
    model.body = SmallBody()
    heads = {task: nn.Linear(WIDTHS[-1], n) for task, n in reversed(classes.items())}
    model.heads = nn.ModuleDict({task: heads["target"] if shared_head else heads[task] for task in classes})
    return model


def weights_for(lam: float) -> dict[str, float]:
    """The weights 1 and lambda divided by their sum: the same minimum, and steps of comparable size."""
    if math.isinf(lam):
        return {"source": 0.0, "target": 1.0}
    return {"source": 1 / (1 + lam), "target": lam / (1 + lam)}


def joint_loader(source: Part, target: Part, *, seed: int, steps: int = STEPS) -> JointLoader:
    """Batches of 32 from each task, drawn and bent at random."""
    parts = {"source": source, "target": target}
    loaders = {
        task: TensorLoader(part, 32, shuffle=True, steps=steps, augment=TARGET_JITTER, transform=TRANSFORM, seed=seed)
        for task, part in parts.items()
    }
    return JointLoader(loaders)


def jointly(
    source: Part,
    target: Part,
    *,
    seed: int,
    lam: float = 1.0,
    lr: float = 1e-2,
    steps: int = STEPS,
    shared_head: bool = True,
    objective: Objective | None = None,
) -> nn.Module:
    """A new model trained on both tasks: L_S + lambda * L_T, unless another objective is given."""
    seed_everything(seed)
    sizes = {"source": len(source.classes), "target": len(target.classes)}
    model = new_model(sizes, shared_head=shared_head)
    train(model, joint_loader(source, target, seed=seed, steps=steps), objective or multitask(weights_for(lam)), lr=lr)
    return model


def train(
    model: nn.Module, loader: JointLoader, objective: Objective, *, lr: float, more: tuple[Tensor, ...] = ()
) -> None:
    """AdamW, warm-up and cosine, one pass; `more` are parameters of the objective."""
    optimizer = torch.optim.AdamW([{"params": list(model.parameters())}], lr=lr, weight_decay=0.02)
    if more:
        optimizer.add_param_group({"params": list(more), "weight_decay": 0.0})
    fit(model, (loader, None), objective, optimizer, epochs=1, schedule=warmup_cosine())


def in_sequence(source: Part, target: Part, *, seed: int, lr: float, source_lr: float) -> nn.Module:
    """Pretrain on the source, then tune on the target, all weights: as many batches as STEPS joint steps."""
    model = jointly(source, target, seed=seed, lam=0.0, lr=source_lr)
    train(model, joint_loader(source, target, seed=seed), multitask(weights_for(math.inf)), lr=lr)
    return model


def learnt_weights(source: Part, target: Part, *, seed: int, lr: float) -> nn.Module:
    """Uncertainty weighting; its two scalars learn at the rate of the network."""
    seed_everything(seed)
    model = new_model({"source": len(source.classes), "target": len(target.classes)}, shared_head=True)
    scalars = nn.ParameterDict({task: torch.zeros(()) for task in ("source", "target")})
    objective = uncertainty_weighted(scalars)
    train(model, joint_loader(source, target, seed=seed), objective, lr=lr, more=tuple(scalars.parameters()))
    return model


def task_gradients(model: nn.Module, batch: dict) -> tuple[Tensor, Tensor]:
    """Gradients of L_S and L_T by all weights of the model, flattened: two vectors [P]."""
    parameters = list(model.parameters())
    gradients = []
    for task, pair in batch.items():
        loss = classification()(through(model, task), pair)["loss"]
        found = torch.autograd.grad(loss, parameters, allow_unused=True)  # the other task's own head: none
        found = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        gradients.append(torch.cat([g.flatten() for g in found]))
    return gradients[0], gradients[1]


def pcgrad(model: nn.Module, batch: dict) -> dict[str, Tensor]:
    """An objective whose gradient is that of PCGrad; its value means nothing."""
    g = sum(project_conflicting(*task_gradients(model, batch)))
    weights = torch.cat([p.flatten() for p in model.parameters()])
    return {"loss": (weights * g).sum() / 2}  # halved like weights_for(1)


def watching(cosines: list[float]) -> Objective:
    """Equal weights, like weights_for(1); notes the cosine of the two gradients of the body at every step."""

    def objective(model: nn.Module, batch: dict) -> dict[str, Tensor]:
        g_s, g_t = task_gradients(model, batch)
        shared = sum(p.numel() for p in model.body.parameters())  # the body's weights come first
        cosines.append(gradient_cosine(g_s[:shared], g_t[:shared]))
        weights = torch.cat([p.flatten() for p in model.parameters()])
        return {"loss": (weights * (g_s + g_t)).sum() / 2}

    return objective


def through(model: nn.Module, task: str) -> nn.Sequential:
    """The part of the model that one task uses."""
    return nn.Sequential(OrderedDict(body=model.body, head=model.heads[task]))


def scores(model: nn.Module, printed: Splits, digits: Splits) -> dict[str, float]:
    """Losses and accuracies: "validation" and "target" are handwriting, "source" is print in unseen fonts."""
    found = {}
    for name, task, part in [
        ("validation", "target", digits.validation),
        ("target", "target", digits.test),
        ("source", "source", printed.test),
    ]:
        logged = evaluate(through(model, task), TensorLoader(part, 300, transform=TRANSFORM))
        found |= {name: round(logged["accuracy"], 4), f"{name} loss": round(logged["loss"], 4)}
    return found


def turned_over(part: Part) -> Part:
    """Upside down: a half turn, which makes a 6 of a 9."""
    return part.mapped(lambda images: images.flip((2, 3)))


def relabelled(part: Part) -> Part:
    """Every digit y called 9 - y."""
    return replace(part, y=9 - part.y)


def gratings(per_class: int = 100) -> Part:
    """Stripes in ten directions; the class is the direction."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(10).repeat(per_class)
    angle = math.pi * (y + 0.8 * torch.rand(len(y), generator=generator) - 0.4) / 10
    grid = torch.linspace(-1, 1, 32)
    along = angle.cos()[:, None, None] * grid + angle.sin()[:, None, None] * grid[:, None]
    frequency, phase = torch.rand(2, len(y), 1, 1, generator=generator) * torch.tensor([8, 6.3])[:, None, None, None]
    x = torch.sin((8 + frequency) * along + phase).clamp(0, 1).unsqueeze(1)  # [N, 1, 32, 32]
    return Part("gratings", x, y, tuple("0123456789"), torch.arange(len(y)))


def sources(printed: Splits) -> dict[str, tuple[Part, bool]]:
    """Sources for the question whether one hurts: the part, and whether its head is the target's head too."""
    parts = (
        (printed.train, True),
        (relabelled(printed.train), True),
        (relabelled(printed.train), False),
        (turned_over(printed.train), True),
        (load_dataset("glyph-letters").train, False),
        (gratings(), False),
    )
    return dict(zip(WATCHED, parts, strict=True))


def tune(printed: Splits, digits: Splits) -> dict[str, dict]:
    """Learning rates by validation accuracy."""

    def alone(lam: float) -> Callable[..., nn.Module]:
        return lambda few, **setting: through(jointly(printed.train, few, lam=lam, **setting), "target")

    ends = [("source alone", 0.0), ("target alone", math.inf), ("joint", 1.0)]
    found = {name: choose(alone(lam), {"lr": RATES}, (LABELS,), digits, TRANSFORM) for name, lam in ends}
    source_lr = found["source alone"]["chosen"]["lr"]

    def sequence(few: Part, **setting: float) -> nn.Module:
        return through(in_sequence(printed.train, few, source_lr=source_lr, **setting), "target")

    found["in sequence"] = choose(sequence, {"lr": (1e-3, 3e-3, 1e-2)}, (LABELS,), digits, TRANSFORM)
    return found


def methods(printed: Splits, tuning: dict[str, dict]) -> dict[str, Callable[..., nn.Module]]:
    """Every run that is recorded: name -> `(target part, seed=...) -> model`."""
    lr, runs = tuning["joint"]["chosen"]["lr"], {}
    rates = {end: tuning[end]["chosen"]["lr"] for end in tuning}
    for lam, end in [(0.0, "source alone"), (math.inf, "target alone")]:
        runs[f"one head, {lam:g}"] = partial(jointly, printed.train, lam=lam, lr=rates[end])
        # A joint step costs two batches, so a task alone may also take twice the steps.
        runs[f"{end}, longer"] = partial(jointly, printed.train, lam=lam, lr=rates[end], steps=2 * STEPS)
    for name, (part, shared) in sources(printed).items():
        runs[name] = partial(jointly, part, lr=lr, shared_head=shared)
    runs["two heads, 1"] = partial(jointly, printed.train, lr=lr, shared_head=False)
    runs["learnt weights"] = partial(learnt_weights, printed.train, lr=lr)
    runs["PCGrad"] = partial(jointly, printed.train, lr=lr, objective=pcgrad)
    runs["in sequence"] = partial(in_sequence, printed.train, source_lr=rates["source alone"], lr=rates["in sequence"])
    for lam in LAMBDAS[1:-1]:
        runs.setdefault(f"one head, {lam:g}", partial(jointly, printed.train, lam=lam, lr=lr))
    return runs


def record(path: Path) -> None:
    """Tune on validation, then run every method at every seed and score it once on the test parts."""
    printed, digits = load_dataset("glyph-digits"), load_dataset("digits")
    tuning = tune(printed, digits)
    draws = [few_shot(digits.train, LABELS, seed=seed) for seed in SEEDS]
    facts = {"what": "accuracies and losses on the test parts by method and seed", "runs": {}, "tuning": tuning}
    facts |= provenance("python -m tlhelpers.experiments.multi_task")
    for name, run in methods(printed, tuning).items():
        found = []
        for seed in SEEDS:
            cosines = []  # filled by the runs that are watched
            watched = {"objective": watching(cosines)} if name in WATCHED else {}
            model = run(draws[seed], seed=seed, **watched)
            more = {"cosine": round(sum(cosines) / len(cosines), 4)} if cosines else {}
            found.append(scores(model, printed, digits) | more)
        facts["runs"][name] = {key: [one[key] for one in found] for key in found[0]}
        print(name, facts["runs"][name]["target"], flush=True)
        path.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")  # what is done is kept


if __name__ == "__main__":
    record(RECORD)
