"""Record the label curve: `python -m tlhelpers.experiments.label_curve` (about three quarters of an hour on one CPU core).

The three ways to use few labels that are too slow to repeat at every seed inside a page: training
from scratch, fine-tuning, and fine-tuning from the linear probe (LP-FT).  Settings are chosen on
the validation part with draws of labels that are not used afterwards; the test part is scored once
per run.  Pages import these same functions, run one seed live and compare it with the record.
"""

import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits
from torch import nn

from tlhelpers.data.augment import Jitter
from tlhelpers.models.backbones import ASSETS, Backbone, GlyphNet, Normalize, load_backbone
from tlhelpers.data.examples import Part, Splits, TensorLoader, few_shot, make_loaders
from tlhelpers.data.named import DIGIT_PLACEMENT, TARGET_JITTER, crop_to_ink, load_dataset
from tlhelpers.analysis.features import extract_features, linear_probe
from tlhelpers.objectives.supervised import classification, l2_sp
from tlhelpers.experiments.records import provenance
from tlhelpers.runtime import seed_everything
from tlhelpers.models.surgery import attach_head, param_groups
from tlhelpers.training.loop import evaluate, fit, warmup_cosine

RECORD = ASSETS / "recorded" / "label_curve.json"
LABELS = (1, 2, 5, 10, 20, 50)  # per class
SEEDS = {1: 20, 2: 10, 5: 10, 10: 5, 20: 5, 50: 5}  # the fewer labels, the more the draw matters
TUNING_SEEDS = (1000, 1001, 1002)
MANY = 10  # labels per class from which the settings tuned with many labels are used


def train_small(
    model: nn.Sequential,
    train: Part,
    transform: Normalize,
    *,
    groups: list[dict],
    seed: int,
    steps: int,
    jitter: Jitter = TARGET_JITTER,
    alpha: float = 0.0,
) -> nn.Sequential:
    """The recipe behind every small training run of the course: AdamW, warm-up and cosine, batches of 32.

    Args:
        groups: of parameters, from `param_groups`.
        alpha: strength of L2-SP, which takes the place of weight decay; none when 0.
    """
    loaders = make_loaders(train, batch_size=32, steps=steps, augment=jitter, transform=transform, seed=seed)
    objective = l2_sp(classification(), model.body, alpha=alpha) if alpha else classification()
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0 if alpha else 0.02)
    fit(model, loaders, objective, optimizer, epochs=1, schedule=warmup_cosine(), clip_norm=1.0)
    return model


def from_scratch(
    train: Part, transform: Normalize, *, seed: int, steps: int = 400, lr: float = 3e-3, jitter: Jitter = TARGET_JITTER
) -> nn.Sequential:
    """The same network from random weights."""
    seed_everything(seed)
    blank = Backbone("untrained", GlyphNet(), GlyphNet.feature_dim, transform, None, (), {})
    model = attach_head(blank, len(train.classes))
    groups = param_groups(model.body, model.head, lr=lr, body_scale=1.0)
    return train_small(model, train, transform, groups=groups, seed=seed, steps=steps, jitter=jitter)


def fine_tuned(
    backbone: Backbone, train: Part, *, seed: int, steps: int = 60, lr: float = 1e-2, body_scale: float = 0.1
) -> nn.Sequential:
    """Pretrained body, new random head, everything trained; the body at `lr * body_scale`."""
    seed_everything(seed)
    model = attach_head(backbone, len(train.classes))
    groups = param_groups(model.body, model.head, lr=lr, body_scale=body_scale)
    return train_small(model, train, backbone.transform, groups=groups, seed=seed, steps=steps)


def probed_then_tuned(
    backbone: Backbone, train: Part, *, seed: int, steps: int = 60, lr: float = 1e-3, body_scale: float = 1.0
) -> nn.Sequential:
    """LP-FT: the head starts as the linear probe (Kumar et al. 2022, arXiv:2202.10054)."""
    seed_everything(seed)
    features = extract_features(backbone, train)
    probe = linear_probe(features, features)
    model = attach_head(backbone, probe.as_layer())
    groups = param_groups(model.body, model.head, lr=lr, body_scale=body_scale)
    return train_small(model, train, backbone.transform, groups=groups, seed=seed, steps=steps)


def pixel_scores(train: Part, validation: Part, test: Part, *, crop: bool) -> tuple[float, float]:
    """Validation and test accuracy of an SVM on raw pixels, the trivial baseline; C and gamma by the former.

    Args:
        crop: cut every image to the bounding box of its ink first, which undoes place and size.
    """
    arrays = [(crop_to_ink(part.x) if crop else part.x).flatten(1).numpy() for part in (train, validation, test)]
    with threadpool_limits(1):
        # The RBF kernel is exp(-gamma d), so that all settings share the squared distances d; SVC would find them anew.
        among, to_validation, to_test = (
            euclidean_distances(array, arrays[0], squared=True) / array.shape[1] for array in arrays
        )
        fits = []
        for C, gamma in itertools.product((1.0, 10.0), (3.0, 10.0, 30.0)):
            svm = SVC(C=C, kernel="precomputed").fit(np.exp(-gamma * among), train.y)
            fits.append((svm.score(np.exp(-gamma * to_validation), validation.y), gamma, svm))
        held_out, gamma, svm = max(fits, key=lambda fit: fit[0])
        return float(held_out), float(svm.score(np.exp(-gamma * to_test), test.y))


def pixel_svm(train: Part, validation: Part, test: Part, *, crop: bool) -> float:
    """Test accuracy of `pixel_scores`."""
    return pixel_scores(train, validation, test, crop=crop)[1]


def accuracy(model: nn.Module, part: Part, transform: Normalize) -> float:
    """Accuracy of a model on a part."""
    return evaluate(model, TensorLoader(part, 256, transform=transform))["accuracy"]


def choose(
    run: Callable[..., nn.Module], grid: dict[str, tuple], labels: tuple[int, ...], digits: Splits, transform: Normalize
) -> dict:
    """The setting of `grid` with the best mean validation accuracy over tuning seeds, and the whole table.

    Args:
        run: `(train, seed=..., **setting) -> model`.
        labels: numbers of labels per class to average over.
    """
    table = []
    for values in itertools.product(*grid.values()):
        setting = dict(zip(grid, values, strict=True))
        scores = [
            accuracy(run(few_shot(digits.train, n, seed=seed), seed=seed, **setting), digits.validation, transform)
            for n in labels
            for seed in TUNING_SEEDS
        ]
        table.append({"setting": setting, "validation_accuracy": round(sum(scores) / len(scores), 4)})
        print(table[-1], flush=True)
    best = max(table, key=lambda row: row["validation_accuracy"])
    return {"chosen": best["setting"], "table": table}


def methods() -> dict[str, tuple[Callable[..., nn.Module], dict[str, tuple], dict[str, tuple]]]:
    """Per method: how to run it, and what to choose from with few and with many labels.

    With many labels the pretrained network may take as many steps as the one from scratch.
    """
    backbone, letters = load_backbone("glyphs-all"), load_backbone("glyphs-letters")

    def scratch(train: Part, *, jitter: str, **setting: float) -> nn.Module:
        return from_scratch(train, backbone.transform, jitter=JITTERS[jitter], **setting)

    rates = {"lr": (3e-3, 1e-2, 3e-2), "body_scale": (0.03, 0.1, 0.3)}
    longer = {"lr": (1e-2,), "body_scale": (0.03, 0.3), "steps": (60, 400)}
    jitters = tuple(JITTERS)
    return {
        "scratch": (scratch, {"lr": (1e-3, 3e-3, 1e-2), "jitter": jitters}, {"lr": (3e-3, 1e-2), "jitter": jitters}),
        "fine-tuned": (partial(fine_tuned, backbone), rates, longer),
        "fine-tuned letters": (partial(fine_tuned, letters), rates, longer),
        "LP-FT": (
            partial(probed_then_tuned, backbone),
            {"lr": (3e-4, 1e-3, 3e-3)},
            {"lr": (1e-3, 3e-3), "steps": (60, 400)},
        ),
    }


def score(
    run: Callable[..., nn.Module], setting: dict, labels: int, digits: Splits, transform: Normalize
) -> list[float]:
    """Test accuracies over the seeds of one number of labels per class."""
    draws = [few_shot(digits.train, labels, seed=seed) for seed in range(SEEDS[labels])]
    models = (run(draw, seed=seed, **setting) for seed, draw in enumerate(draws))
    return [round(accuracy(model, digits.test, transform), 4) for model in models]


def record(path: Path) -> None:
    """Tune on validation, then score every method, label budget and seed once on the test part."""
    digits, transform = load_dataset("digits"), load_backbone("glyphs-all").transform
    tuning, tuning_many, runs = {}, {}, {}
    for name, (run, few_grid, many_grid) in methods().items():
        tuning[name] = choose(run, few_grid, (1, 5), digits, transform)
        tuning_many[name] = choose(run, many_grid, (20,), digits, transform)
        settings = {n: (tuning if n < MANY else tuning_many)[name]["chosen"] for n in LABELS}
        runs[name] = {n: score(run, settings[n], n, digits, transform) for n in LABELS}
        print(name, runs[name], flush=True)
    write(path, runs, tuning, tuning_many)


def write(path: Path, runs: dict, tuning: dict, tuning_many: dict) -> None:
    """Write the record; `tuning` holds for fewer than MANY labels per class, `tuning_many` from there on."""
    facts = {
        "what": "test accuracy by method, labels per class and seed",
        "runs": runs,
        "tuning": tuning,
        "tuning_many": tuning_many,
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(facts | provenance("python -m tlhelpers.experiments.label_curve"), indent=1) + "\n", "utf-8")


# Augmentations that training from scratch may choose from; the second one also moves the digit about.
JITTERS = {"bend": TARGET_JITTER, "place": DIGIT_PLACEMENT}


def with_jitter(setting: dict) -> dict:
    """A setting from the record, with the name of its augmentation replaced by the augmentation."""
    return setting | {"jitter": JITTERS[setting["jitter"]]}


if __name__ == "__main__":
    record(RECORD)
