"""Record the label curve: `python -m tlhelpers.recipes.few_shot` (about half an hour on one CPU core).

The three ways to use few labels that are too slow to repeat at every seed inside a page: training
from scratch, fine-tuning, and fine-tuning from the linear probe (LP-FT).  Settings are chosen on
the validation part with draws of labels that are not used afterwards; the test part is scored once
per run.  Pages import these same functions, run one seed live and compare it with the record.
"""

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits
from torch import nn

from tlhelpers.backbones import ASSETS, Backbone, GlyphNet, Normalize, load_backbone
from tlhelpers.data import Jitter, Part, Splits, TensorLoader, few_shot, make_loaders
from tlhelpers.datasets import DIGIT_PLACEMENT, TARGET_JITTER, crop_to_ink, load_dataset
from tlhelpers.features import extract_features, linear_probe
from tlhelpers.objectives import classification
from tlhelpers.recipes import provenance
from tlhelpers.runtime import seed_everything
from tlhelpers.surgery import attach_head, param_groups
from tlhelpers.train import evaluate, fit, warmup_cosine

RECORD = ASSETS / "recorded" / "label_curve.json"
LABELS = (1, 2, 5, 10, 20, 50)  # per class
SEEDS = {1: 20, 2: 10, 5: 10, 10: 5, 20: 5, 50: 5}  # the fewer labels, the more the draw matters
TUNING_SEEDS = (1000, 1001, 1002)
TUNING_LABELS = (1, 5)


def train_head_and_body(
    model: nn.Sequential,
    train: Part,
    transform: Normalize,
    *,
    seed: int,
    steps: int,
    lr: float,
    body_scale: float = 1.0,
    jitter: Jitter = TARGET_JITTER,
) -> nn.Sequential:
    """The recipe behind every small training run of the course: AdamW, warm-up and cosine, batches of 32."""
    loaders = make_loaders(train, batch_size=32, steps=steps, augment=jitter, transform=transform, seed=seed)
    groups = param_groups(model.body, model.head, lr=lr, body_scale=body_scale)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.02)
    fit(model, loaders, classification(), optimizer, epochs=1, schedule=warmup_cosine(), clip_norm=1.0)
    return model


def from_scratch(
    train: Part, transform: Normalize, *, seed: int, steps: int = 400, lr: float = 3e-3, jitter: Jitter = TARGET_JITTER
) -> nn.Sequential:
    """The same network from random weights."""
    seed_everything(seed)
    blank = Backbone("untrained", GlyphNet(), GlyphNet.feature_dim, transform, None, (), {})
    model = attach_head(blank, len(train.classes))
    return train_head_and_body(model, train, transform, seed=seed, steps=steps, lr=lr, jitter=jitter)


def fine_tuned(
    backbone: Backbone, train: Part, *, seed: int, steps: int = 60, lr: float = 1e-2, body_scale: float = 0.1
) -> nn.Sequential:
    """Pretrained body, new random head, everything trained; the body at `lr * body_scale`."""
    seed_everything(seed)
    model = attach_head(backbone, len(train.classes))
    return train_head_and_body(model, train, backbone.transform, seed=seed, steps=steps, lr=lr, body_scale=body_scale)


def probed_then_tuned(
    backbone: Backbone, train: Part, *, seed: int, steps: int = 60, lr: float = 1e-3, body_scale: float = 1.0
) -> nn.Sequential:
    """LP-FT: the head starts as the linear probe (Kumar et al. 2022, arXiv:2202.10054)."""
    seed_everything(seed)
    features = extract_features(backbone, train)
    probe = linear_probe(features, features)
    head = nn.Linear(backbone.feature_dim, len(train.classes))
    with torch.no_grad():
        head.weight.copy_(probe.weight)
        head.bias.copy_(probe.bias)
    model = attach_head(backbone, head)
    return train_head_and_body(model, train, backbone.transform, seed=seed, steps=steps, lr=lr, body_scale=body_scale)


def pixel_svm(train: Part, validation: Part, test: Part, *, crop: bool) -> float:
    """Test accuracy of an SVM on raw pixels, the trivial baseline; C and gamma by validation accuracy.

    Args:
        crop: cut every image to the bounding box of its ink first, which undoes place and size.
    """
    arrays = [(crop_to_ink(part.x) if crop else part.x).flatten(1).numpy() for part in (train, validation, test)]
    with threadpool_limits(1):
        fits = [
            SVC(C=c, gamma=gamma / arrays[0].shape[1]).fit(arrays[0], train.y)
            for c, gamma in itertools.product((1.0, 10.0), (3.0, 10.0, 30.0))
        ]
        best = max(fits, key=lambda fit: fit.score(arrays[1], validation.y))
        return float(best.score(arrays[2], test.y))


def accuracy(model: nn.Module, part: Part, transform: Normalize) -> float:
    """Accuracy of a model on a part."""
    return evaluate(model, TensorLoader(part, 256, transform=transform))["accuracy"]


def choose(run: Callable[..., nn.Module], grid: dict[str, tuple], digits: Splits, transform: Normalize) -> dict:
    """The setting of `grid` with the best mean validation accuracy over tuning seeds, and the whole table."""
    table = []
    for values in itertools.product(*grid.values()):
        setting = dict(zip(grid, values, strict=True))
        scores = [
            accuracy(run(few_shot(digits.train, n, seed=seed), seed=seed, **setting), digits.validation, transform)
            for n in TUNING_LABELS
            for seed in TUNING_SEEDS
        ]
        table.append({"setting": setting, "validation_accuracy": sum(scores) / len(scores)})
        print(table[-1], flush=True)
    best = max(table, key=lambda row: row["validation_accuracy"])
    return {"chosen": best["setting"], "table": table}


def record(path: Path) -> None:
    """Tune on validation, then score every method, label budget and seed once on the test part."""
    digits, backbone, letters = load_dataset("digits"), load_backbone("glyphs-all"), load_backbone("glyphs-letters")
    transform = backbone.transform
    rates = {"lr": (3e-3, 1e-2, 3e-2), "body_scale": (0.03, 0.1, 0.3)}
    methods = {
        "scratch": (
            lambda few, **setting: from_scratch(few, transform, **with_jitter(setting)),
            {"lr": (1e-3, 3e-3, 1e-2), "jitter": tuple(JITTERS)},
        ),
        "fine-tuned": (lambda few, **setting: fine_tuned(backbone, few, **setting), rates),
        "fine-tuned letters": (lambda few, **setting: fine_tuned(letters, few, **setting), rates),
        "LP-FT": (lambda few, **setting: probed_then_tuned(backbone, few, **setting), {"lr": (3e-4, 1e-3, 3e-3)}),
    }
    tuning, runs = {}, {}
    for name, (run, grid) in methods.items():
        tuning[name] = choose(run, grid, digits, transform)
        setting = tuning[name]["chosen"]
        runs[name] = {}
        for n in LABELS:
            began = time.process_time()
            runs[name][n] = [
                round(accuracy(run(few_shot(digits.train, n, seed=s), seed=s, **setting), digits.test, transform), 4)
                for s in range(SEEDS[n])
            ]
            seconds = (time.process_time() - began) / SEEDS[n]
            print(name, n, runs[name][n], f"{seconds:.1f} CPU s each", flush=True)
    facts = {"what": "test accuracy by method, labels per class and seed", "runs": runs, "tuning": tuning}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(facts | provenance("python -m tlhelpers.recipes.few_shot"), indent=1) + "\n", "utf-8")


# Augmentations that training from scratch may choose from; the second one also moves the digit about.
JITTERS = {"bend": TARGET_JITTER, "place": DIGIT_PLACEMENT}


def with_jitter(setting: dict) -> dict:
    """A setting from the record, with the name of its augmentation replaced by the augmentation."""
    return setting | {"jitter": JITTERS[setting["jitter"]]}


if __name__ == "__main__":
    record(RECORD)
