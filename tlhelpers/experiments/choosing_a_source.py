"""Record the sources of page 08: `python -m tlhelpers.experiments.choosing_a_source` (20 minutes on half a CPU core).

Thirteen sources, one network, one budget (STEPS batches of BATCH images), one pretraining seed each.  For every
source, number of labels and draw of target labels: scores that need no training, and the accuracy
of four ways to use the body.  Nothing is tuned per source, so that no source gets more attention than another.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tlhelpers.analysis import extract_features, fit_probe, h_score, leep, logme, nce, pixel_scores
from tlhelpers.data import (
    ALL_CLASSES,
    GLYPH_JITTER,
    LETTER_CLASSES,
    TRAIN_FONTS,
    Examples,
    Jitter,
    Splits,
    TensorLoader,
    draw_masters,
    few_shot,
    glyph_masters,
    load_dataset,
)
from tlhelpers.experiments.multi_task import gratings
from tlhelpers.experiments.pretraining import random_control
from tlhelpers.experiments.records import RECORDED, provenance, write_record
from tlhelpers.experiments.strategies import PRINT_MEAN, PRINT_STD, fine_tuned, probed_then_tuned
from tlhelpers.models import SHIPPED, Backbone, GlyphNet, attach_head, load_backbone
from tlhelpers.objectives import classification
from tlhelpers.runtime import seed_everything
from tlhelpers.training import accuracy, evaluate, fit, warmup_cosine

RECORD = RECORDED / "sources.json"
STEPS = 250  # of pretraining, the same for every source
BATCH = 128
LABELS = (1, 5, 20)  # per class of the target
SEEDS = range(5)  # draws of them
SHORT = 40  # steps of every training run on the target, in batches of 32
TUNED = {
    "fine-tune top": partial(fine_tuned, frozen=3, steps=SHORT),  # stem, block1 and block2 stay as they are
    "fine-tune": partial(fine_tuned, steps=SHORT),
    "LP-FT": partial(probed_then_tuned, steps=SHORT),
}
STRAIGHT = Jitter()  # no variation at all; it brings drawings to 32x32
UNTRAINED = "untrained"
# The rules of `analysis.recommend` were written with the first half in view; they are scored on the second.
TO_TUNE_ON = ("all characters", "digits", "three fonts", "two letters", "noisy labels", "stripes", UNTRAINED)


@dataclass(frozen=True)
class Source:
    """Images with labels, and how they are varied in training."""

    examples: Examples
    augment: Callable[[Tensor, torch.Generator], Tensor] = GLYPH_JITTER


def pretrained(source: Source, *, seed: int = 0, steps: int = STEPS) -> nn.Sequential:
    """One run: a body and a head that learnt one source, with the recipe of `experiments/pretraining.py`.

    They come back on the CPU, like features.
    """
    seed_everything(seed)
    model = attach_head(GlyphNet(PRINT_MEAN, PRINT_STD), len(source.examples.classes))
    loader = batches(source, seed=seed, steps=steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.02)
    fit(model, (loader, None), classification(), optimizer, epochs=1, schedule=warmup_cosine(), clip_norm=1.0)
    return model.cpu().eval()


def batches(source: Source, *, seed: int, steps: int) -> TensorLoader:
    """Batches of a source, varied like those of the shipped bodies."""
    return TensorLoader(source.examples, BATCH, shuffle=True, steps=steps, augment=source.augment, seed=seed)


def scores(backbone: Backbone, few: Examples) -> dict[str, float]:
    """Four scores of a source from a few labelled target images, without training."""
    features = extract_features(backbone, few)
    with torch.inference_mode():
        theta = backbone.head(features.x).softmax(1)  # p(z | x) [N, Z]
    return {
        "H-score": h_score(features.x, few.y),
        "NCE": nce(theta.argmax(1), few.y),
        "LEEP": leep(theta, few.y),
        "LogME": logme(features.x, few.y),
    }


def probed(backbone: Backbone, few: Examples, digits: Splits) -> tuple[float, float]:
    """Accuracy of the linear probe on the validation and on the test part."""
    probe = fit_probe(extract_features(backbone, few))
    validation = probe.score(extract_features(backbone, digits.validation))
    test = probe.score(extract_features(backbone, digits.test))
    return validation, test


def strategies(backbone: Backbone, few: Examples, digits: Splits, *, seed: int) -> dict[str, tuple[float, float]]:
    """Validation and test accuracy of every way to use one body."""
    outcomes = {"probe": probed(backbone, few, digits)}
    for name, method in TUNED.items():
        model = method(backbone, few, seed=seed)
        outcomes[name] = (accuracy(model, digits.validation), accuracy(model, digits.test))
    return outcomes


class Inverted:
    """Dark ink on a light ground, after the variation."""

    def __init__(self, jitter: Jitter) -> None:
        self.jitter = jitter

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """As the jitter, [N, C, H, W], with 1 - x for x."""
        return 1 - self.jitter(images, generator)


def in_fonts(fonts: tuple[int, ...]) -> Examples:
    """All characters, in some of the training fonts."""
    x, y = draw_masters(fonts=fonts)
    return Examples("glyphs/some-fonts", x, y, ALL_CLASSES, torch.arange(len(x)))


def mislabelled(examples: Examples, share: float) -> Examples:
    """Every drawing in `share` of the cases with a label drawn at random, once and for all."""
    generator = torch.Generator().manual_seed(1)
    wrong = torch.rand(len(examples), generator=generator) < share
    random_labels = torch.randint(len(examples.classes), (len(examples),), generator=generator)
    return replace(examples, y=torch.where(wrong, random_labels, examples.y))


def sources() -> dict[str, Source]:
    """What to pretrain on, by name; `UNTRAINED` is trained on nothing and stands apart."""
    everything = glyph_masters()
    turned = replace(everything, x=everything.x.flip((2, 3)))
    return {
        "all characters": Source(everything),
        "letters": Source(glyph_masters(LETTER_CLASSES)),
        "digits": Source(glyph_masters(tuple("0123456789"))),
        "upside down": Source(turned),
        "three fonts": Source(in_fonts(TRAIN_FONTS[::6])),
        "one font": Source(in_fonts(TRAIN_FONTS[:1])),
        "no variation": Source(everything, STRAIGHT),
        "two letters": Source(glyph_masters(("X", "h"))),
        "inverted": Source(everything, Inverted(GLYPH_JITTER)),
        "noisy labels": Source(mislabelled(everything, 0.7)),
        "random labels": Source(mislabelled(everything, 1.0)),
        "stripes": Source(gratings(300), STRAIGHT),
    }


def make(name: str, *, steps: int = STEPS) -> tuple[Backbone, float]:
    """One body by the name of its source, and its accuracy on drawings that it was trained on.

    They are varied anew, except where the source varies nothing ("no variation", "stripes"): there they are the
    very images of the training.  For `UNTRAINED`, which has learnt no class, chance is given, and nothing measured.
    """
    if name == UNTRAINED:
        printed = load_dataset("glyphs")
        return as_backbone(name, random_control(printed, seed=0), printed.classes), 1 / len(printed.classes)
    source = sources()[name]
    model = pretrained(source, steps=steps)
    own_accuracy = evaluate(model, batches(source, seed=1, steps=8))["accuracy"]
    return as_backbone(name, model.cpu(), source.examples.classes), own_accuracy


def as_backbone(name: str, model: nn.Sequential, classes: tuple[str, ...]) -> Backbone:
    """A model made here in the form of those that are shipped."""
    return Backbone(model.body, GlyphNet.feature_dim, name, head=model.head, classes=classes)


Measurement = Callable[[Examples, int], Mapping[str, float | tuple[float, float]]]


def over_seeds(measurement: Measurement, digits: Splits) -> dict[str, dict[str, list]]:
    """{labels per class: {what `measurement(few, seed)` names: one entry per seed}}."""
    table = {}
    for n in LABELS:
        rows = [measurement(few_shot(digits.train, n, seed=seed), seed) for seed in SEEDS]
        table[str(n)] = {key: np.round([row[key] for row in rows], 4).tolist() for key in rows[0]}
    return table


def measure(backbone: Backbone, digits: Splits) -> dict[str, dict]:
    """Scores and real transfer of one body, per number of labels, as lists over seeds."""
    return {
        "scores": over_seeds(lambda few, seed: scores(backbone, few), digits),
        "transfer": over_seeds(lambda few, seed: strategies(backbone, few, digits, seed=seed), digits),
    }


def baseline(digits: Splits) -> dict[str, dict]:
    """The same for an SVM on pixels, which needs no source."""
    return over_seeds(
        lambda few, seed: {"pixels": pixel_scores(few, digits.validation, digits.test, crop=True)}, digits
    )


def record(path: Path) -> None:
    """Make every source, measure it, and write what is done after each."""
    digits = load_dataset("digits")
    facts = {
        "what": "per source, labels per class and draw: scores, and [validation, test] accuracy by strategy; source "
        "accuracy is that on training drawings, varied anew where the source varies them (untrained: chance)"
    }
    facts |= provenance("python -m tlhelpers.experiments.choosing_a_source", seeds=SEEDS)
    facts["pixels"] = baseline(digits)
    facts["shipped"] = {}
    for name in SHIPPED:
        shipped = load_backbone(name)
        facts["shipped"][name] = over_seeds(lambda few, seed, body=shipped: scores(body, few), digits)
    facts["sources"] = {}
    for name in (*sources(), UNTRAINED):
        backbone, own_accuracy = make(name)
        facts["sources"][name] = {"source accuracy": round(own_accuracy, 4), **measure(backbone, digits)}
        tested = {how: np.mean(pairs, axis=0)[1] for how, pairs in facts["sources"][name]["transfer"]["5"].items()}
        print(name, round(own_accuracy, 3), {how: round(float(value), 3) for how, value in tested.items()}, flush=True)
        write_record(path, facts)  # what is done is safe


if __name__ == "__main__":
    record(RECORD)
