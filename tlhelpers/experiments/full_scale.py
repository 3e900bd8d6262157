"""Record real photographs and real weights: `python -m tlhelpers.experiments.full_scale` (half an hour, two CPU cores).

SqueezeNet with ImageNet weights on CIFAR-10's photographs, and a network trained on all of MNIST as the
source for the digits of this course.  It needs those files (`python -m tlhelpers prefetch`).  The sections "At full
scale" of pages 2, 3, 5 and 6 call the same functions, with larger bodies where there is a GPU.
"""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from tlhelpers.analysis import Features, extract_features, fit_probe, pixel_baseline
from tlhelpers.data import (
    Examples,
    Splits,
    TensorLoader,
    as_float,
    few_shot,
    load_dataset,
    load_messages,
    make_loaders,
    random_flip,
    split_messages,
)
from tlhelpers.experiments.distillation import tiny_cnn
from tlhelpers.experiments.records import RECORDED, provenance, write_record
from tlhelpers.experiments.strategies import fine_tuned, from_scratch
from tlhelpers.models import CUTS, Backbone, GlyphNet, attach_head, cut_off, freeze, load_backbone, param_groups
from tlhelpers.objectives import classification, distillation_loss
from tlhelpers.runtime import seed_everything
from tlhelpers.training import accuracy, fit, warmup_cosine

RECORD = RECORDED / "full_scale.json"
SEEDS = range(3)
LABELS = (10, 50, 400)  # photographs per class; 400 are all that the training part of the tested files has
SIZE = 80  # side of the photographs that the body sees, in pixels
RATE = 4e-4  # of fine-tuning photographs; better on validation than 1e-4 (one seed that is not used below)
PHOTO_MEAN = 0.47  # of the photographs' pixels, for students that start from nothing
PHOTO_STD = 0.25
MNIST_LABELS = (1, 5)
DIGIT_SEEDS = range(5)  # the first of them are those of the photographs
STUDENT_LABELS = 50  # photographs per class that the teacher of a student has seen
# Learning rate and temperature by way of teaching, chosen on validation with one draw that is not used below.
STUDENTS = {"labels": (1e-2, 1.0), "pseudo-labels": (3e-3, 1.0), "soft targets": (3e-3, 2.0)}


def photo_network(
    body: Backbone, train: Examples, *, seed: int, epochs: int, lr: float, blank: bool = False
) -> nn.Sequential:
    """Body and head, trained on photographs that are mirrored at random; the head starts as the probe (LP-FT).

    Args:
        blank: everything starts from random weights instead (from scratch).
    """
    from torchvision.models import get_model

    seed_everything(seed)
    model = attach_head(body, len(train.classes))
    if blank:
        model.body.network = get_model(CUTS[body.name].network, weights=None)
        cut_off(model.body.network, CUTS[body.name])
    else:
        model.head = fit_probe(extract_features(body, train), C=0.01).as_layer()
    groups = param_groups(model.body, model.head, lr=lr, body_scale=1.0)
    loaders = make_loaders(train, batch_size=32, augment=random_flip, seed=seed)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.02)
    fit(model, loaders, classification(), optimizer, epochs=epochs, schedule=warmup_cosine(), clip_norm=1.0)
    return model


def photo_probes(body: Backbone, photos: Splits, labels: tuple[int, ...] = LABELS) -> dict[int, list[float]]:
    """Test accuracy of a linear probe on a frozen body, by photographs per class, per seed; C by validation."""
    train = extract_features(body, photos.train)
    validation = extract_features(body, photos.validation)
    test = extract_features(body, photos.test)
    scores = defaultdict(list)
    for n in labels:
        for seed in SEEDS:
            few = few_features(photos.train, train, n, seed=seed)
            scores[n].append(fit_probe(few, validation=validation).score(test))
    return dict(scores)


def few_features(train: Examples, features: Features, labels_per_class: int, *, seed: int) -> Features:
    """The features of those examples that `few_shot` draws from all of `train`."""
    few = few_shot(replace(train, x=features.x), labels_per_class, seed=seed)
    return Features(few.x, few.y)


def photo_pixels(photos: Splits, labels: tuple[int, ...] = LABELS) -> dict[int, list[float]]:
    """The same for an SVM on the raw pixels; C and gamma by validation."""
    scores = defaultdict(list)
    for n in labels:
        for seed in SEEDS:
            few = few_shot(photos.train, n, seed=seed)
            draws_everything = len(few) == len(photos.train)  # as every other seed does: the score is the same
            if draws_everything and scores[n]:
                scores[n].append(scores[n][0])
            else:
                scores[n].append(pixel_baseline(few, photos.validation, photos.test, crop=False))
    return dict(scores)


def photo_teacher(body: Backbone, photos: Splits, *, labels: int, seed: int) -> tuple[Examples, Tensor, float]:
    """A linear probe on a frozen body, taught by `labels` photographs per class.

    Returns:
        Those photographs; its logits on all training photographs, [N, classes]; its test accuracy.
    """
    train = extract_features(body, photos.train)
    test = extract_features(body, photos.test)
    probe = fit_probe(few_features(photos.train, train, labels, seed=seed))
    with torch.no_grad():
        logits = probe.as_layer()(train.x)
    return few_shot(photos.train, labels, seed=seed), logits, probe.score(test)


def photo_student(photos: Splits, few: Examples, logits: Tensor, how: str, *, seed: int, steps: int = 500) -> float:
    """Test accuracy of a small network on 32x32 pixels, taught by labels or by the teacher's answers to all photos.

    Args:
        few: photographs with labels, which only the way "labels" learns from.
        logits: of the frozen teacher, which has answered once, [N, classes] for all N training photographs.
        how: a key of `STUDENTS`.
    """
    lr, temperature = STUDENTS[how]
    seed_everything(seed)
    student = tiny_cnn(len(photos.classes), channels=3, width=4, mean=PHOTO_MEAN, std=PHOTO_STD)
    loading = {"batch_size": 64, "shuffle": True, "steps": steps, "augment": random_flip, "seed": seed}
    if how == "soft targets":
        loader = NumberedLoader(photos.train, **loading)
        objective = RememberedTeacher(logits, temperature=temperature)
    else:
        examples = few if how == "labels" else replace(photos.train, y=logits.argmax(1))
        loader = TensorLoader(examples, **loading)
        objective = classification()
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0.02)
    fit(student, (loader, None), objective, optimizer, epochs=1, schedule=warmup_cosine(), clip_norm=1.0)
    return accuracy(student, photos.test)


class NumberedLoader(TensorLoader):
    """Batches (x, rows): the place of the labels, which no one reads, is taken by row numbers int64 [n]."""

    def __init__(self, examples: Examples, batch_size: int, **settings) -> None:
        super().__init__(examples, batch_size, **settings)
        self.y = torch.arange(len(examples), device=self.device)


class RememberedTeacher(nn.Module):
    """`objectives.distillation` with alpha = 1 and a teacher that answered once, for batches of `NumberedLoader`.

    Args:
        logits: of the teacher for every row, [N, classes].
    """

    def __init__(self, logits: Tensor, *, temperature: float) -> None:
        super().__init__()
        self.register_buffer("logits", logits)
        self.temperature = temperature

    def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, rows = batch
        return distillation_loss(model(x), self.logits[rows], None, temperature=self.temperature, alpha=1.0)


def mnist_body(mnist: Splits, *, steps: int = 1000, seed: int = 0) -> Backbone:
    """The network of the shipped bodies, trained on MNIST on canvases of 32x32 pixels."""
    train = mnist.train.mapped(on_canvas)
    validation = mnist.validation.mapped(on_canvas)
    seed_everything(seed)
    model = attach_head(GlyphNet(float(train.x.mean()), float(train.x.std())), len(mnist.classes))
    loaders = make_loaders(train, validation, batch_size=128, steps=steps, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    history = fit(model, loaders, classification(), optimizer, epochs=1, schedule=warmup_cosine())
    card = {"validation_accuracy": history[-1]["validation_accuracy"]}
    return Backbone(model.body.eval(), GlyphNet.feature_dim, "mnist", model.head, mnist.classes, card)


def on_canvas(images: Tensor) -> Tensor:
    """Images [N, 1, 28, 28] in the middle of 32x32 pixels, float in [0, 1]."""
    return nn.functional.pad(as_float(images), (2, 2, 2, 2))


def shared_and_specific(body: Backbone, letters: Splits, *, labels: int, seed: int = 0) -> dict[str, float]:
    """From digits to letters, test accuracy: shared layers kept, all layers tuned, the same network from scratch."""
    few = few_shot(letters.train, labels, seed=seed).mapped(on_canvas)
    test = letters.test.mapped(on_canvas)
    normalize = body.module.normalize
    scratch = from_scratch(few, seed=seed, mean=float(normalize.mean), std=float(normalize.std))
    return {
        "shared layers kept, new head": fit_probe(extract_features(body, few)).score(extract_features(body, test)),
        "shared layers tuned, new head": accuracy(fine_tuned(body, few, seed=seed, steps=400), test),
        "from scratch": accuracy(scratch, test),
    }


def text_tuned(name: str, *, labels: int, epochs: int, seed: int = 0) -> float:
    """Test accuracy on the intents of an encoder of the hub, fine-tuned with AdamW and warm-up; word vectors frozen."""
    body = load_backbone(f"hub:{name}")
    splits = split_messages(load_messages(body.tokens), seed=seed)
    few = few_shot(splits.train, labels, seed=seed)
    seed_everything(seed)
    model = attach_head(body, len(few.classes))
    freeze(model.body.transformer.embeddings)
    loaders = make_loaders(few, splits.validation, batch_size=16, seed=seed)
    optimizer = torch.optim.AdamW(param_groups(model.body, model.head, lr=1e-3, body_scale=0.05), weight_decay=0.01)
    fit(model, loaders, classification(), optimizer, epochs=epochs, schedule=warmup_cosine(), clip_norm=1.0)
    return accuracy(model, splits.test)


def photographs() -> dict[str, dict[int, list[float]]]:
    """Everything on CIFAR-10, per way of learning, labels per class and seed."""
    photos = load_dataset("cifar10")
    body = load_backbone("squeezenet1_0", image_size=SIZE)
    runs = {"pixels + SVM": photo_pixels(photos), "probe": photo_probes(body, photos)}
    print(runs, flush=True)
    plans = {"scratch": (50, {"epochs": 25, "lr": 1e-3, "blank": True}), "fine-tuned": (400, {"epochs": 3, "lr": RATE})}
    for name, (labels, plan) in plans.items():
        runs[name] = {labels: []}
        for seed in SEEDS:
            model = photo_network(body, few_shot(photos.train, labels, seed=seed), seed=seed, **plan)
            runs[name][labels].append(accuracy(model, photos.test))
        print(name, runs[name], flush=True)
    runs |= {"teacher": {STUDENT_LABELS: []}, **{f"student, {how}": {STUDENT_LABELS: []} for how in STUDENTS}}
    for seed in SEEDS:
        few, logits, score = photo_teacher(body, photos, labels=STUDENT_LABELS, seed=seed)
        runs["teacher"][STUDENT_LABELS].append(score)
        for how in STUDENTS:
            runs[f"student, {how}"][STUDENT_LABELS].append(photo_student(photos, few, logits, how, seed=seed))
    return to_four_digits(runs)


def characters() -> tuple[dict[str, dict[int, list[float]]], float]:
    """MNIST as the source of the course's digits: probe and fine-tuning, per labels per class and seed.

    Returns:
        The runs, and the validation accuracy on MNIST itself.
    """
    body = mnist_body(load_dataset("mnist"))
    digits = load_dataset("digits")
    test = extract_features(body, digits.test)
    runs = {"probe": defaultdict(list), "fine-tuned": defaultdict(list)}
    for n in MNIST_LABELS:
        for seed in DIGIT_SEEDS:
            few = few_shot(digits.train, n, seed=seed)
            runs["probe"][n].append(fit_probe(extract_features(body, few)).score(test))
            runs["fine-tuned"][n].append(accuracy(fine_tuned(body, few, seed=seed), digits.test))
    return to_four_digits(runs), body.card["validation_accuracy"]


def to_four_digits(runs: dict[str, dict[int, list[float]]]) -> dict[str, dict[int, list[float]]]:
    """Accuracies to four digits."""
    return {
        name: {n: [round(score, 4) for score in scores] for n, scores in by_labels.items()}
        for name, by_labels in runs.items()
    }


def record(path: Path) -> None:
    """Run everything and write it down; what is chosen was chosen before (see the constants)."""
    digit_runs, mnist_accuracy = characters()
    print(digit_runs, mnist_accuracy, flush=True)
    facts = {
        "what": "test accuracy by way of learning, labels per class and seed",
        "cifar10, squeezenet1_0": photographs(),
        "digits, a body trained on mnist": digit_runs,
        "mnist": {"validation_accuracy": round(mnist_accuracy, 4)},
    }
    write_record(path, facts | provenance("python -m tlhelpers.experiments.full_scale", seeds=DIGIT_SEEDS))


if __name__ == "__main__":
    record(RECORD)
