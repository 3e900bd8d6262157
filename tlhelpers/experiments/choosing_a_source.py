"""Record the sources of page 08: `python -m tlhelpers.experiments.choosing_a_source` (about 20 minutes on half a CPU core).

Thirteen sources, one network, one budget (STEPS batches of BATCH images), one pretraining seed each.  For every
source, number of labels and draw of target labels: scores that need no training, and the accuracy
of four ways to use the body.  Nothing is tuned per source, so that no source gets more attention than another.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from tlhelpers.data.augment import Jitter
from tlhelpers.models.backbones import ASSETS, SHIPPED, Backbone, GlyphNet, load_backbone
from tlhelpers.data.examples import Part, Splits, TensorLoader, few_shot
from tlhelpers.data.named import GLYPH_JITTER, TRAIN_FONTS, glyph_masters, load_dataset
from tlhelpers.analysis.features import Features, extract_features, linear_probe
from tlhelpers.data.glyphs import ALL_CLASSES, LETTER_CLASSES, draw_masters
from tlhelpers.objectives.supervised import classification
from tlhelpers.experiments.records import provenance
from tlhelpers.experiments.label_curve import accuracy, fine_tuned, pixel_scores, probed_then_tuned
from tlhelpers.experiments.fine_tuning import adapted
from tlhelpers.experiments.multi_task import gratings
from tlhelpers.experiments.pretraining import TRANSFORM, random_control
from tlhelpers.runtime import seed_everything
from tlhelpers.training.loop import evaluate, fit, warmup_cosine
from tlhelpers.analysis.transferability import h_score, leep, logme, nce

RECORD = ASSETS / "recorded" / "sources.json"
STEPS, BATCH = 250, 128  # of pretraining, the same for every source
LABELS, SEEDS = (1, 5, 20), range(5)  # per class of the target, and draws of them
SHORT = 40  # steps of every training run on the target, in batches of 32
TUNED = {
    "fine-tune top": partial(adapted, frozen=3, steps=SHORT),  # stem, block1 and block2 stay as they are
    "fine-tune": partial(fine_tuned, steps=SHORT),
    "LP-FT": partial(probed_then_tuned, steps=SHORT),
}
STRAIGHT = Jitter()  # no variation at all; it brings drawings to 32x32


@dataclass(frozen=True)
class Source:
    """Images with labels, and how they are varied in training."""

    part: Part
    augment: Jitter = GLYPH_JITTER


class Inverted:
    """Dark ink on a light ground, after the variation."""

    def __init__(self, jitter: Jitter) -> None:
        self.jitter = jitter

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """As the jitter, [N, C, H, W], with 1 - x for x."""
        return 1 - self.jitter(images, generator)


def in_fonts(fonts: tuple[int, ...]) -> Part:
    """All characters, in some of the training fonts."""
    x, y = draw_masters(fonts=fonts)
    return Part("glyphs/some-fonts", x, y, ALL_CLASSES, torch.arange(len(x)))


def mislabelled(part: Part, share: float) -> Part:
    """Every drawing in `share` of the cases with a label drawn at random, once and for all."""
    generator = torch.Generator().manual_seed(1)
    wrong = torch.rand(len(part), generator=generator) < share
    drawn = torch.randint(len(part.classes), (len(part),), generator=generator)
    return replace(part, y=torch.where(wrong, drawn, part.y))


def sources() -> dict[str, Source]:
    """What to pretrain on, by name; "untrained" is trained on nothing and stands apart."""
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


UNTRAINED = "untrained"
# The rules of `strategy.recommend` were written with the first half in view; they are scored on the second.
TO_TUNE_ON = ("all characters", "digits", "three fonts", "two letters", "noisy labels", "stripes", UNTRAINED)


def batches(source: Source, *, seed: int, steps: int) -> TensorLoader:
    """Batches of a source, varied and normalised like those of the shipped bodies."""
    settings = {"augment": source.augment, "transform": TRANSFORM, "seed": seed}
    return TensorLoader(source.part, BATCH, shuffle=True, steps=steps, **settings)


def pretrained(source: Source, *, seed: int = 0, steps: int = STEPS) -> nn.Sequential:
    """A body and a head that learnt one source, with the recipe of `recipes/pretrain.py`."""
    seed_everything(seed)
    model = nn.Sequential(OrderedDict(body=GlyphNet(), head=nn.Linear(GlyphNet.feature_dim, len(source.part.classes))))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.02)
    loaders = (batches(source, seed=seed, steps=steps), None)
    fit(model, loaders, classification(), optimizer, epochs=1, schedule=warmup_cosine(), clip_norm=1.0)
    return model.eval()


def as_backbone(name: str, model: nn.Sequential, classes: tuple[str, ...]) -> Backbone:
    """A model made here in the form of those that are shipped."""
    return Backbone(name, model.body, GlyphNet.feature_dim, TRANSFORM, model.head, classes, {})


def scores(backbone: Backbone, few: Part) -> dict[str, float]:
    """Four scores of a source from a few labelled target images, without training."""
    features = extract_features(backbone, few)
    with torch.inference_mode():
        theta = backbone.head(features.x).softmax(1)  # p(z | x) [N, Z]
    found = {"H-score": h_score(features.x, few.y), "NCE": nce(theta.argmax(1), few.y)}
    return found | {"LEEP": leep(theta, few.y), "LogME": logme(features.x, few.y)}


def probed(backbone: Backbone, few: Part, digits: Splits) -> tuple[float, float]:
    """Accuracy of the linear probe on the validation and on the test part."""
    train, held_out, test = (extract_features(backbone, part) for part in (few, digits.validation, digits.test))
    both = Features(torch.cat([held_out.x, test.x]), torch.cat([held_out.y, test.y]))
    right = linear_probe(train, both).predictions == both.y
    return tuple(float(part.float().mean()) for part in right.split([len(held_out), len(test)]))


def strategies(backbone: Backbone, few: Part, digits: Splits, *, seed: int) -> dict[str, tuple[float, float]]:
    """Validation and test accuracy of every way to use one body."""
    found = {"probe": probed(backbone, few, digits)}
    for name, run in TUNED.items():
        model = run(backbone, few, seed=seed)
        found[name] = tuple(accuracy(model, part, TRANSFORM) for part in (digits.validation, digits.test))
    return found


Cell = Callable[[Part, int], Mapping[str, float | tuple[float, float]]]


def over_seeds(cell: Cell, digits: Splits) -> dict[str, dict[str, list]]:
    """{labels: {what `cell(few, seed)` names: one entry per seed}}."""
    table = {}
    for n in LABELS:
        found = [cell(few_shot(digits.train, n, seed=seed), seed) for seed in SEEDS]
        rounded = torch.tensor([[one[key] for key in one] for one in found], dtype=torch.float64)
        table[str(n)] = {key: rounded[:, i].mul(1e4).round().div(1e4).tolist() for i, key in enumerate(found[0])}
    return table


def measure(backbone: Backbone, digits: Splits) -> dict[str, dict]:
    """Scores and real transfer of one body, per number of labels, as lists over seeds."""
    transfer = over_seeds(lambda few, seed: strategies(backbone, few, digits, seed=seed), digits)
    return {"scores": over_seeds(lambda few, seed: scores(backbone, few), digits), "transfer": transfer}


def make(name: str, *, steps: int = STEPS) -> tuple[Backbone, float]:
    """One body by the name of its source, and its accuracy on fresh variations of its own source."""
    if name == UNTRAINED:
        printed = load_dataset("glyphs")
        return as_backbone(name, random_control(printed, TRANSFORM, seed=0), printed.classes), 1 / len(printed.classes)
    source = sources()[name]
    model = pretrained(source, steps=steps)
    return as_backbone(name, model, source.part.classes), evaluate(model, batches(source, seed=1, steps=8))["accuracy"]


def record(path: Path) -> None:
    """Make every source, measure it, and write what is done after each."""
    digits = load_dataset("digits")
    facts = {"what": "per source, labels per class and draw: scores, and [validation, test] accuracy by strategy"}
    facts |= provenance("python -m tlhelpers.experiments.choosing_a_source")
    facts["pixels"] = over_seeds(
        lambda few, seed: {"pixels": pixel_scores(few, digits.validation, digits.test, crop=True)}, digits
    )
    shipped = {name: load_backbone(name) for name in SHIPPED}
    facts["shipped"] = {
        name: over_seeds(lambda few, seed, body=body: scores(body, few), digits) for name, body in shipped.items()
    }
    facts["sources"] = {}
    for name in (*sources(), UNTRAINED):
        backbone, own = make(name)
        facts["sources"][name] = {"source accuracy": round(own, 4), **measure(backbone, digits)}
        means = {how: torch.tensor(v)[:, 1].mean().item() for how, v in facts["sources"][name]["transfer"]["5"].items()}
        print(name, round(own, 3), {how: round(mean, 3) for how, mean in means.items()}, flush=True)
        path.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    record(RECORD)
