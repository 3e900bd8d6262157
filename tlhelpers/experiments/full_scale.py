"""Record real photographs and real weights: `python -m tlhelpers.experiments.full_scale` (half an hour on two CPU cores).

SqueezeNet with ImageNet weights on CIFAR-10's photographs, and a network trained on all of MNIST as the
source for the digits of this course.  It needs those files (`python -m tlhelpers prefetch`).  The sections "At full
scale" of pages 2, 3, 5 and 6 call the same functions, with larger bodies where there is a GPU.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits
from torch import nn

from tlhelpers.data.augment import random_flip
from tlhelpers.models.backbones import ASSETS, CUTS, Backbone, GlyphNet, Normalize, cut_off, load_backbone
from tlhelpers.data.examples import Part, Splits, as_float, few_shot, make_loaders
from tlhelpers.data.named import load_dataset
from tlhelpers.analysis.features import Features, extract_features, linear_probe
from tlhelpers.data.messages import load_messages, split_messages
from tlhelpers.objectives.supervised import Objective, classification, distillation
from tlhelpers.experiments.records import provenance
from tlhelpers.experiments.distillation import tiny_cnn
from tlhelpers.experiments.label_curve import accuracy, fine_tuned, from_scratch
from tlhelpers.runtime import seed_everything
from tlhelpers.models.surgery import attach_head, freeze, param_groups
from tlhelpers.training.loop import fit, warmup_cosine

RECORD = ASSETS / "recorded" / "full_scale.json"
SEEDS = range(3)
LABELS = (10, 50, 400)  # photographs per class; 400 are all that the training part of the tested files has
SIZE = 80  # side of the photographs that the body sees, in pixels
RATE = 4e-4  # of fine-tuning photographs; better on validation than 1e-4 (one seed that is not used below)
MNIST_LABELS = (1, 5)
STUDENT_LABELS = 50  # photographs per class that the teacher of a student has seen
# Learning rate and temperature by way of teaching, chosen on validation with one draw that is not used below.
STUDENTS = {"labels": (1e-2, 1.0), "pseudo-labels": (3e-3, 1.0), "soft targets": (3e-3, 2.0)}


def rows_of(features: Features, part: Part, few: Part) -> Features:
    """The features of a few-shot subset, picked from those of the whole part."""
    place = {int(index): row for row, index in enumerate(part.indices)}
    rows = torch.tensor([place[int(index)] for index in few.indices])
    return Features(features.x[rows], few.y)


def photo_probes(body: Backbone, photos: Splits, labels: tuple[int, ...] = LABELS) -> dict[int, list[float]]:
    """Test accuracy of a linear probe on a frozen body, by photographs per class, per seed; C by validation."""
    train, validation, test = (extract_features(body, p) for p in (photos.train, photos.validation, photos.test))
    found = {}
    for n in labels:
        draws = [few_shot(photos.train, n, seed=seed) for seed in SEEDS]
        rows = [rows_of(train, photos.train, few) for few in draws]
        found[n] = [linear_probe(few, test, validation=validation).accuracy for few in rows]
    return found


def photo_pixels(photos: Splits, labels: tuple[int, ...] = LABELS) -> dict[int, list[float]]:
    """The same for an SVM on the raw pixels; C and gamma by validation."""
    validation, test = (as_float(part.x).flatten(1).numpy() for part in (photos.validation, photos.test))
    found, seen = {n: [] for n in labels}, {}
    for n, seed in ((n, seed) for n in labels for seed in SEEDS):
        few = few_shot(photos.train, n, seed=seed)
        rows = tuple(few.indices.sort().values.tolist())
        if rows not in seen:  # a draw of all there is comes again with every seed
            x = as_float(few.x).flatten(1).numpy()
            with threadpool_limits(1):
                fits = [SVC(C=c, gamma=g).fit(x, few.y) for c in (1.0, 10.0) for g in ("scale", 0.003)]
                best = max(fits, key=lambda one: one.score(validation, photos.validation.y))
                seen[rows] = float(best.score(test, photos.test.y))
        found[n].append(seen[rows])
    return found


def photo_network(
    body: Backbone, train: Part, *, seed: int, epochs: int, lr: float, blank: bool = False
) -> nn.Sequential:
    """Body and head, trained on photographs that are mirrored at random; the head starts as the probe (LP-FT).

    Args:
        blank: everything starts from random weights instead (from scratch).
    """
    from torchvision.models import get_model

    seed_everything(seed)
    model = attach_head(body, len(train.classes))
    if blank:
        model.body = get_model(CUTS[body.name].network, weights=None)
        cut_off(model.body, CUTS[body.name])
    else:
        features = extract_features(body, train)
        model.head = linear_probe(features, features, C=0.01).as_layer()
    groups = param_groups(model.body, model.head, lr=lr, body_scale=1.0)
    loaders = make_loaders(train, batch_size=32, augment=random_flip, transform=body.transform, seed=seed)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.02)
    fit(model, loaders, classification(), optimizer, epochs=epochs, schedule=warmup_cosine(), clip_norm=1.0)
    return model


def photo_teacher(body: Backbone, photos: Splits, *, labels: int, seed: int) -> tuple[Part, torch.Tensor, float]:
    """A linear probe on a frozen body, taught by `labels` photographs per class.

    Returns:
        Those photographs; its logits on all training photographs, [N, classes]; its test accuracy.
    """
    few = few_shot(photos.train, labels, seed=seed)
    train, test = (extract_features(body, part) for part in (photos.train, photos.test))
    probe = linear_probe(rows_of(train, photos.train, few), test)
    with torch.inference_mode():
        return few, probe.as_layer()(train.x), probe.accuracy


def photo_student(photos: Splits, few: Part, logits: torch.Tensor, how: str, *, seed: int, steps: int = 500) -> float:
    """Test accuracy of a small network on 32x32 pixels, taught by labels or by the teacher's answers to all photos.

    The frozen teacher answered once; the place of the label is taken by the number of the row it answered.

    Args:
        how: a key of `STUDENTS`.
    """
    lr, temperature = STUDENTS[how]
    rows = torch.arange(len(logits))
    part = {
        "labels": few,
        "pseudo-labels": replace(photos.train, y=logits.argmax(1)),
        "soft targets": replace(photos.train, y=rows, classes=tuple(map(str, rows.tolist()))),
    }[how]
    seed_everything(seed)
    student = tiny_cnn(len(photos.classes), channels=3, width=4)
    transform = Normalize(0.47, 0.25)
    loaders = make_loaders(part, batch_size=64, steps=steps, augment=random_flip, transform=transform, seed=seed)
    objective = remembered(logits, temperature) if how == "soft targets" else classification()
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0.02)
    fit(student, loaders, objective, optimizer, epochs=1, schedule=warmup_cosine(), clip_norm=1.0)
    return accuracy(student, photos.test, transform)


def remembered(logits: torch.Tensor, temperature: float) -> Objective:
    """`objectives.distillation` with alpha = 1 and a teacher that is looked up: y holds row numbers of its logits."""

    def objective(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        theirs = logits.to(batch[1].device)[batch[1]]
        return distillation(Said(theirs), temperature=temperature, alpha=1.0)(model, batch)

    return objective


class Said(nn.Module):
    """A teacher that has answered already: its logits [N, K], whatever it is asked."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits


def mnist_body(mnist: Splits, *, steps: int = 1000, seed: int = 0) -> Backbone:
    """The network of the shipped bodies, trained on MNIST on canvases of 32x32 pixels."""
    grown = [part.mapped(_on_canvas) for part in (mnist.train, mnist.validation)]
    transform = Normalize(float(grown[0].x.mean()), float(grown[0].x.std()))
    seed_everything(seed)
    model = attach_head(Backbone("mnist", GlyphNet(), GlyphNet.feature_dim, transform, None, (), {}), 10)
    loaders = make_loaders(grown[0], grown[1], batch_size=128, steps=steps, transform=transform, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    history = fit(model, loaders, classification(), optimizer, epochs=1, schedule=warmup_cosine())
    card = {"validation_accuracy": history[-1]["validation_accuracy"]}
    return Backbone("mnist", model.body.eval(), GlyphNet.feature_dim, transform, model.head, mnist.classes, card)


def _on_canvas(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.pad(as_float(x), (2, 2, 2, 2))


def shared_and_specific(body: Backbone, letters: Splits, *, labels: int, seed: int = 0) -> dict[str, float]:
    """From digits to letters, test accuracy: shared layers kept, all layers tuned, the same network from scratch."""
    few, test = (part.mapped(_on_canvas) for part in (few_shot(letters.train, labels, seed=seed), letters.test))
    kept = linear_probe(extract_features(body, few), extract_features(body, test)).accuracy
    tuned = accuracy(fine_tuned(body, few, seed=seed, steps=400), test, body.transform)
    scratch = accuracy(from_scratch(few, body.transform, seed=seed), test, body.transform)
    return {"shared layers kept, new head": kept, "shared layers tuned, new head": tuned, "from scratch": scratch}


def text_tuned(name: str, *, labels: int, epochs: int, seed: int = 0) -> float:
    """Test accuracy on the intents of an encoder of the hub, fine-tuned with AdamW and warm-up; word vectors frozen."""
    body = load_backbone(f"hub:{name}")
    splits = split_messages(load_messages(body.transform), seed=seed)
    few = few_shot(splits.train, labels, seed=seed)
    seed_everything(seed)
    model = attach_head(body, len(few.classes))
    freeze(model.body.transformer.embeddings)
    loaders = make_loaders(few, splits.validation, batch_size=16, transform=body.transform, seed=seed)
    optimizer = torch.optim.AdamW(param_groups(model.body, model.head, lr=1e-3, body_scale=0.05), weight_decay=0.01)
    fit(model, loaders, classification(), optimizer, epochs=epochs, schedule=warmup_cosine(), clip_norm=1.0)
    return accuracy(model, splits.test, body.transform)


def photographs() -> dict:
    """Everything on CIFAR-10, per way of learning, labels per class and seed."""
    photos, body = load_dataset("cifar10"), load_backbone("squeezenet1_0", image_size=SIZE)
    runs = {"pixels + SVM": photo_pixels(photos), "probe": photo_probes(body, photos)}
    print(runs, flush=True)
    plans = {"scratch": (50, {"epochs": 25, "lr": 1e-3, "blank": True}), "fine-tuned": (400, {"epochs": 3, "lr": RATE})}
    for name, (labels, plan) in plans.items():
        draws = [few_shot(photos.train, labels, seed=seed) for seed in SEEDS]
        models = (photo_network(body, few, seed=seed, **plan) for seed, few in enumerate(draws))
        runs[name] = {labels: [accuracy(model, photos.test, body.transform) for model in models]}
        print(name, runs[name], flush=True)
    runs |= {"teacher": {STUDENT_LABELS: []}, **{f"student, {how}": {STUDENT_LABELS: []} for how in STUDENTS}}
    for seed in SEEDS:
        few, logits, score = photo_teacher(body, photos, labels=STUDENT_LABELS, seed=seed)
        runs["teacher"][STUDENT_LABELS].append(score)
        for how in STUDENTS:
            runs[f"student, {how}"][STUDENT_LABELS].append(photo_student(photos, few, logits, how, seed=seed))
    return runs


def characters() -> tuple[dict, float]:
    """MNIST as the source of the course's digits: probe and fine-tuning, per labels per class and seed."""
    body, digits = mnist_body(load_dataset("mnist")), load_dataset("digits")
    test, runs = extract_features(body, digits.test), {"probe": {}, "fine-tuned": {}}
    for n in MNIST_LABELS:
        draws = [few_shot(digits.train, n, seed=seed) for seed in range(5)]
        runs["probe"][n] = [linear_probe(extract_features(body, few), test).accuracy for few in draws]
        models = (fine_tuned(body, few, seed=seed) for seed, few in enumerate(draws))
        runs["fine-tuned"][n] = [accuracy(model, digits.test, body.transform) for model in models]
    return runs, body.card["validation_accuracy"]


def record(path: Path) -> None:
    """Run everything and write it down."""
    runs, source = characters()
    print(runs, source, flush=True)
    facts = {
        "what": "test accuracy by way of learning, labels per class and seed",
        "cifar10, squeezenet1_0": photographs(),
        "digits, a body trained on mnist": runs,
        "mnist": {"validation_accuracy": round(source, 4)},
    }
    told = provenance("python -m tlhelpers.experiments.full_scale")
    rounded = json.loads(json.dumps(facts), parse_float=lambda text: round(float(text), 4))
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(rounded | told, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    record(RECORD)
