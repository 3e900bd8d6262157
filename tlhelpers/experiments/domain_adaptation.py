"""Record the experiments of page 07: `python -m tlhelpers.experiments.domain_adaptation` (about 15 minutes on one CPU core).

Unsupervised domain adaptation on four pairs of a labelled source and an unlabelled target.  What is
chosen is chosen without a target label: the learning rate by accuracy on held-out source images, the
weight of each alignment loss by reverse validation, both with seeds that are not used afterwards.
Everything else is fixed beforehand.  Labels of the target are read in two places only: the final
score on its test part, and the ceiling, a probe that is allowed to learn from them.
"""

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tlhelpers.objectives.adaptation import adabn, coral, coral_transform, dann, mmd
from tlhelpers.data.augment import Jitter
from tlhelpers.models.backbones import ASSETS, Backbone, GlyphNet, Normalize, load_backbone
from tlhelpers.data.examples import JointLoader, Part, TensorLoader
from tlhelpers.data.named import DIGIT_PLACEMENT, GLYPH_JITTER, TARGET_JITTER, VALIDATION_FONTS, glyph_masters
from tlhelpers.data.named import load_dataset as load
from tlhelpers.analysis.features import Features, extract_features, linear_probe
from tlhelpers.data.glyphs import draw_masters
from tlhelpers.objectives.supervised import Objective, classification
from tlhelpers.analysis.pseudo_labels import class_prototypes, nearest_prototype, self_training, spherical_kmeans
from tlhelpers.experiments.records import provenance
from tlhelpers.experiments.label_curve import accuracy
from tlhelpers.experiments.multi_task import WIDTHS, SmallBody
from tlhelpers.runtime import seed_everything
from tlhelpers.training.loop import fit, warmup_cosine
from tlhelpers.analysis.transferability import proxy_a_distance

RECORD = ASSETS / "recorded" / "adaptation.json"
SEEDS, TUNING_SEEDS = range(8), (1000, 1001)
UNLABELLED = 600  # of the 900 or more target images, drawn anew by every seed
SAMPLE = 800  # source images with labels for the methods on features, drawn anew by every seed
DIGITS = tuple("0123456789")
RATES = (3e-3, 1e-2, 3e-2)
WEIGHTS = {"CORAL loss": (1.0, 10.0, 100.0), "MMD loss": (0.3, 1.0, 3.0), "DANN": (0.1, 0.3, 1.0)}


@dataclass(frozen=True)
class Pair:
    """A source with labels and a target without.

    Attributes:
        source: labelled images to train on, seen through `augment`.
        sample: labelled source images as they are, for methods that work on features.
        validation: source images in unseen fonts or of unseen writers.
        unlabelled: target images whose labels no method reads (the ceiling does).
        test: target images for the final score.
        body: name of the pretrained body that training starts from; random weights when None.
        steps: of training, in batches of 32 of each domain.
    """

    source: Part
    augment: Jitter
    sample: Part
    validation: Part
    unlabelled: Part
    test: Part
    body: str | None = None
    steps: int = 200


def pairs() -> dict[str, Pair]:
    """The four pairs of page 07 by name."""
    masters, printed, digits = glyph_masters(DIGITS), load("glyph-digits"), load("digits")
    target = {"unlabelled": digits.train, "test": digits.test}
    held_out = Part("glyphs/held-out", *draw_masters(DIGITS, fonts=VALIDATION_FONTS), DIGITS, torch.arange(60))
    plain = [placed(part, copies) for part, copies in ((masters, 2), (held_out, 4))]
    bent = (printed.train, printed.validation)
    return {
        "plain print to handwriting": Pair(masters, DIGIT_PLACEMENT, *plain, **target),
        "bent print to handwriting": Pair(masters, GLYPH_JITTER, *bent, **target),
        "pretrained, print to handwriting": Pair(masters, GLYPH_JITTER, *bent, **target, body="glyphs-all", steps=60),
        "handwriting to bent print": Pair(
            digits.train, TARGET_JITTER, digits.train, digits.validation, printed.train, printed.test
        ),
    }


def placed(part: Part, copies: int) -> Part:
    """Clean drawings somewhere on the canvas, each `copies` times; neither bent nor worn."""
    generator = torch.Generator().manual_seed(0)
    return part.take(torch.arange(len(part)).repeat(copies)).mapped(lambda x: DIGIT_PLACEMENT(x, generator))


def draw(part: Part, n: int, *, seed: int) -> Part:
    """n random images of a part, or all of them in random order."""
    return part.take(torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))[:n])


def transform_of(pair: Pair) -> Normalize:
    """What images go through before the network of this pair."""
    return load_backbone(pair.body).transform if pair.body else Normalize(0.2, 0.3)


def new_model(pair: Pair) -> nn.Sequential:
    """A body, pretrained or random, and a new linear head for ten digits."""
    body = load_backbone(pair.body).module if pair.body else SmallBody()
    return nn.Sequential(OrderedDict(body=body, head=nn.Linear(width_of(pair), 10)))


def width_of(pair: Pair) -> int:
    """Number of features that the body gives."""
    return GlyphNet.feature_dim if pair.body else WIDTHS[-1]


def train(pair: Pair, objective: Objective | None, *, seed: int, lr: float, more: nn.Module | None = None) -> nn.Module:
    """A new model (and `more`) trained with an objective of `alignment` on both domains, with None on the source."""
    seed_everything(seed)
    model, settings = new_model(pair), {"shuffle": True, "steps": pair.steps, "transform": transform_of(pair)}
    loader = TensorLoader(pair.source, 32, augment=pair.augment, seed=seed, **settings)
    if objective is not None:
        unlabelled = draw(pair.unlabelled, UNLABELLED, seed=seed)
        loader = JointLoader({"source": loader, "target": TensorLoader(unlabelled, 32, seed=seed + 1, **settings)})
    moving = [*model.parameters(), *(more.parameters() if more is not None else ())]
    optimizer = torch.optim.AdamW(moving, lr=lr, weight_decay=0.02)
    objective = objective or classification()
    fit(model, (loader, None), objective, optimizer, epochs=1, schedule=warmup_cosine(), clip_norm=1.0)
    return model


def aligned(pair: Pair, method: str, *, seed: int, lr: float, weight: float) -> nn.Module:
    """A model trained with one of the alignment losses; "both in one batch" has none, only a shared BatchNorm."""
    if method == "DANN":
        seed_everything(seed)
        discriminator = nn.Sequential(nn.Linear(width_of(pair), 64), nn.ReLU(), nn.Linear(64, 1))
        return train(pair, dann(discriminator, steps=pair.steps, weight=weight), seed=seed, lr=lr, more=discriminator)
    objective = mmd(weight) if method == "MMD loss" else coral(weight)
    return train(pair, objective, seed=seed, lr=lr)


def features_of(pair: Pair, model: nn.Module, part: Part) -> Features:
    """Features of a part from the body of a model, in eval mode."""
    return extract_features(Backbone("", model.body, 0, transform_of(pair), None, (), {}), part)


def on_features(pair: Pair, model: nn.Module, *, seed: int) -> dict[str, dict]:
    """Every method that works on features; the model stays as it is, AdaBN edits a copy.

    Returns:
        Per method "predictions" for the test part, and the features of "source" and "target" (test) behind them.
    """
    sample = features_of(pair, model, draw(pair.sample, SAMPLE, seed=seed))
    free = features_of(pair, model, draw(pair.unlabelled, UNLABELLED, seed=seed)).x
    test = Features(features_of(pair, model, pair.test).x, torch.zeros(len(pair.test), dtype=torch.int64))
    same = {"source": sample.x, "target": test.x}
    found = {"source only": same | {"predictions": linear_probe(sample, test).predictions}}
    spread = sample.x.std(0).clamp(min=1e-6)  # CORAL's r = 1 is meant for features of variance 1
    for name, r in (("CORAL", 1.0), ("CORAL, r = 0.01", 0.01)):
        moved = Features(coral_transform(sample.x / spread, free / spread, regularisation=r) * spread, sample.y)
        found[name] = same | {"source": moved.x, "predictions": linear_probe(moved, test).predictions}
    start = class_prototypes(sample)
    found["prototypes"] = same | {"predictions": nearest_prototype(test.x, start)}
    found["k-means"] = same | {"predictions": nearest_prototype(test.x, spherical_kmeans(free, start))}
    taught = self_training(sample, free).probe
    found["self-training"] = same | {"predictions": F.linear(test.x, taught.weight, taught.bias).argmax(1)}
    seen = Features(features_of(pair, with_own_statistics(pair, model, seed=seed), pair.test).x, test.y)
    found["AdaBN"] = same | {"target": seen.x, "predictions": linear_probe(sample, seen).predictions}
    return found


def with_own_statistics(pair: Pair, model: nn.Module, *, seed: int) -> nn.Module:
    """A copy of the model whose BatchNorm holds the statistics of the unlabelled target images."""
    copy = new_model(pair)
    copy.load_state_dict(model.state_dict())
    adabn(copy, TensorLoader(draw(pair.unlabelled, UNLABELLED, seed=seed), 200, transform=transform_of(pair)))
    return copy


def ceiling(pair: Pair, model: nn.Module, *, seed: int) -> float:
    """Test accuracy of a probe on the same features that may learn from the labels of the target images."""
    labelled = draw(pair.unlabelled, UNLABELLED, seed=seed)
    return linear_probe(features_of(pair, model, labelled), features_of(pair, model, pair.test)).accuracy


def score(pair: Pair, found: dict[str, dict], *, seed: int) -> dict[str, dict[str, float]]:
    """The one look at the labels of the target's test part, beside the proxy A-distance of the features."""
    return {
        name: {
            "accuracy": round(float((one["predictions"] == pair.test.y).float().mean()), 4),
            "distance": round(proxy_a_distance(one["source"], one["target"], seed=seed), 4),
        }
        for name, one in found.items()
    }


def by_head(pair: Pair, model: nn.Module, *, seed: int) -> dict[str, Tensor]:
    """What `on_features` gives per method, for a trained network with its own head."""
    source = features_of(pair, model, draw(pair.sample, SAMPLE, seed=seed)).x
    target = features_of(pair, model, pair.test).x
    with torch.inference_mode():
        return {"source": source, "target": target, "predictions": model.head(target).argmax(1)}


def reverse_validation(pair: Pair, model: nn.Module, *, seed: int) -> float:
    """Accuracy on source images of a probe that has learnt the labels that the model gives the unlabelled target.

    Ganin et al. 2016, arXiv:1505.07818, section 5.1.2, after Zhong et al. 2010.
    """
    free = features_of(pair, model, draw(pair.unlabelled, UNLABELLED, seed=seed)).x
    with torch.inference_mode():
        guessed = Features(free, model.head(free).argmax(1))
    if len(guessed.y.unique()) < 2:
        return 0.0
    return linear_probe(guessed, features_of(pair, model, pair.validation)).accuracy


def tune(pair: Pair) -> dict[str, dict]:
    """Learning rate by source validation, weights by reverse validation; means over the tuning seeds."""
    table = {}
    for lr in RATES:
        right = [accuracy(train(pair, None, seed=s, lr=lr), pair.validation, transform_of(pair)) for s in TUNING_SEEDS]
        table[str(lr)] = round(sum(right) / len(right), 4)
    lr = float(max(table, key=table.get))
    found = {"lr": {"chosen": lr, "by": "accuracy on source validation images", "table": table}}
    for method, weights in WEIGHTS.items():
        table = {}
        for weight in weights:
            runs = [(aligned(pair, method, seed=seed, lr=lr, weight=weight), seed) for seed in TUNING_SEEDS]
            table[str(weight)] = round(sum(reverse_validation(pair, m, seed=s) for m, s in runs) / len(runs), 4)
        found[method] = {"chosen": float(max(table, key=table.get)), "by": "reverse validation", "table": table}
        print(method, found[method], flush=True)
    return found


def run(pair: Pair, tuning: dict[str, dict], *, seed: int) -> dict[str, dict]:
    """All scores of one seed: "on features", "trained", and "ceiling"."""
    lr = tuning["lr"]["chosen"]
    plain = train(pair, None, seed=seed, lr=lr)
    frozen = new_model(pair) if pair.body else plain
    trained = {"source only": by_head(pair, plain, seed=seed)}
    for method, weight in {"both in one batch": 0.0, **{m: tuning[m]["chosen"] for m in WEIGHTS}}.items():
        trained[method] = by_head(pair, aligned(pair, method, seed=seed, lr=lr, weight=weight), seed=seed)
    return {
        "on features": score(pair, on_features(pair, frozen, seed=seed), seed=seed),
        "trained": score(pair, trained, seed=seed),
        "ceiling": {"target labels": {"accuracy": round(ceiling(pair, frozen, seed=seed), 4)}},
    }


def over_seeds(runs: list[dict]) -> dict[str, dict[str, list]]:
    """Scores of several seeds as lists: [{method: {key: value}}, ...] -> {method: {key: [value, ...]}}."""
    return {method: {key: [one[method][key] for one in runs] for key in runs[0][method]} for method in runs[0]}


def record(path: Path) -> None:
    """Choose without target labels, then run every method at every seed and score it once."""
    facts = {"what": "accuracy on the target's test part and proxy A-distance, by pair, method and seed", "pairs": {}}
    facts |= provenance("python -m tlhelpers.experiments.domain_adaptation")
    for name, pair in pairs().items():
        tuning = tune(pair)
        runs = [run(pair, tuning, seed=seed) for seed in SEEDS]
        facts["pairs"][name] = {kind: over_seeds([one[kind] for one in runs]) for kind in runs[0]} | {"tuning": tuning}
        print(name, facts["pairs"][name]["ceiling"], flush=True)
        path.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")  # what is done is kept


if __name__ == "__main__":
    record(RECORD)
