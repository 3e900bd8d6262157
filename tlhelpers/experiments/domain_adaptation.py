"""Record the experiments of page 07: `python -m tlhelpers.experiments.domain_adaptation` (15 minutes on one CPU core).

Unsupervised domain adaptation on four pairs of a labelled source and an unlabelled target.  What is
chosen is chosen without a target label: the learning rate by accuracy on held-out source images, the
weight of each alignment loss by reverse validation, both with seeds that are not used afterwards.
Everything else is fixed beforehand.  Labels of the target are read in two places only: the final
score on its test part, and the ceiling, a probe that is allowed to learn from them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn

from tlhelpers.analysis import (
    Features,
    class_prototypes,
    extract_features,
    fit_probe,
    nearest_prototype,
    proxy_a_distance,
    self_training,
    spherical_kmeans,
)
from tlhelpers.data import (
    DIGIT_PLACEMENT,
    GLYPH_JITTER,
    TARGET_JITTER,
    VALIDATION_FONTS,
    Examples,
    Jitter,
    JointLoader,
    TensorLoader,
    draw_masters,
    glyph_masters,
    load_dataset,
)
from tlhelpers.experiments.multi_task import SmallBody
from tlhelpers.experiments.records import RECORDED, choose, provenance, write_record
from tlhelpers.models import GlyphNet, attach_head, load_backbone
from tlhelpers.objectives import Objective, adabn, classification, coral, coral_transform, dann, mmd
from tlhelpers.runtime import seed_everything, shifted
from tlhelpers.training import accuracy, fit, warmup_cosine

RECORD = RECORDED / "adaptation.json"
SEEDS = range(8)
TUNING_SEEDS = (1000, 1001)
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

    source: Examples
    augment: Jitter
    sample: Examples
    validation: Examples
    unlabelled: Examples
    test: Examples
    body: str | None = None
    steps: int = 200


def train(pair: Pair, objective: Objective | None, *, seed: int, lr: float) -> nn.Sequential:
    """One run: a new model trained on both domains with an objective of `objectives.adaptation`.

    With None for the objective it is trained on the source alone.  It comes back on the CPU, like features.
    """
    seed_everything(seed)
    model = new_model(pair)
    loader = TensorLoader(pair.source, 32, shuffle=True, steps=pair.steps, augment=pair.augment, seed=seed)
    if objective is None:
        objective = classification()
    else:
        unlabelled = draw(pair.unlabelled, UNLABELLED, seed=seed)
        target = TensorLoader(unlabelled, 32, shuffle=True, steps=pair.steps, seed=seed + 1)
        loader = JointLoader({"source": loader, "target": target})
    learning = list(model.parameters())
    if isinstance(objective, nn.Module):
        learning += objective.parameters()
    optimizer = torch.optim.AdamW(learning, lr=lr, weight_decay=0.02)
    fit(model, (loader, None), objective, optimizer, epochs=1, schedule=warmup_cosine(), clip_norm=1.0)
    return model.cpu()


def aligned(pair: Pair, method: str, *, seed: int, lr: float, weight: float) -> nn.Sequential:
    """A model trained with one of the alignment losses.

    Args:
        method: key of `WEIGHTS`, or "both in one batch", which aligns nothing (weight 0) but shares BatchNorm.
    """
    if method == "DANN":
        seed_everything(seed)
        discriminator = nn.Sequential(nn.Linear(width_of(pair), 64), nn.ReLU(), nn.Linear(64, 1))
        objective = dann(discriminator, weight=weight)
    elif method == "MMD loss":
        objective = mmd(weight)
    else:
        objective = coral(weight)
    return train(pair, objective, seed=seed, lr=lr)


def new_model(pair: Pair) -> nn.Sequential:
    """A body, pretrained or random, and a new linear head for ten digits."""
    return attach_head(load_backbone(pair.body) if pair.body else SmallBody(), len(DIGITS))


def width_of(pair: Pair) -> int:
    """Number of features that the body gives."""
    return GlyphNet.feature_dim if pair.body else SmallBody.feature_dim


def draw(examples: Examples, n: int, *, seed: int) -> Examples:
    """n random examples, or all of them in random order; `TLHELPERS_SEED` shifts the seed."""
    generator = torch.Generator().manual_seed(shifted(seed))
    return examples.take(torch.randperm(len(examples), generator=generator)[:n])


def on_features(pair: Pair, model: nn.Module, *, seed: int) -> dict[str, dict[str, Tensor]]:
    """Every method that works on features; the model stays as it is, AdaBN edits a copy.

    Returns:
        Per method "predictions" for the test part, and the features of "source" and "target" (test) behind them.
    """
    sample = extract_features(model.body, draw(pair.sample, SAMPLE, seed=seed))
    unlabelled = extract_features(model.body, draw(pair.unlabelled, UNLABELLED, seed=seed)).x
    test = extract_features(model.body, pair.test).x
    untouched = {"source": sample.x, "target": test}
    probe = fit_probe(sample)
    outcomes = {"source only": untouched | {"predictions": probe.predict(test)}}
    spread = sample.x.std(0).clamp(min=1e-6)  # CORAL's r = 1 is meant for features of variance 1
    for name, r in (("CORAL", 1.0), ("CORAL, r = 0.01", 0.01)):
        moved = coral_transform(sample.x / spread, unlabelled / spread, regularisation=r) * spread
        predictions = fit_probe(Features(moved, sample.y)).predict(test)
        outcomes[name] = {"source": moved, "target": test, "predictions": predictions}
    prototypes = class_prototypes(sample)
    outcomes["prototypes"] = untouched | {"predictions": nearest_prototype(test, prototypes)}
    clusters = spherical_kmeans(unlabelled, prototypes)
    outcomes["k-means"] = untouched | {"predictions": nearest_prototype(test, clusters)}
    outcomes["self-training"] = untouched | {"predictions": self_training(sample, unlabelled).probe.predict(test)}
    renormalised = extract_features(with_own_statistics(pair, model, seed=seed).body, pair.test).x
    outcomes["AdaBN"] = {"source": sample.x, "target": renormalised, "predictions": probe.predict(renormalised)}
    return outcomes


def with_own_statistics(pair: Pair, model: nn.Module, *, seed: int) -> nn.Sequential:
    """A copy of the model whose BatchNorm holds the statistics of the unlabelled target images."""
    copy = new_model(pair)
    copy.load_state_dict(model.state_dict())
    adabn(copy, TensorLoader(draw(pair.unlabelled, UNLABELLED, seed=seed), 200))
    return copy


def by_head(pair: Pair, model: nn.Module, *, seed: int) -> dict[str, Tensor]:
    """What `on_features` gives per method, for a trained network with its own head."""
    source = extract_features(model.body, draw(pair.sample, SAMPLE, seed=seed)).x
    target = extract_features(model.body, pair.test).x
    with torch.inference_mode():
        return {"source": source, "target": target, "predictions": model.head(target).argmax(1)}


def ceiling(pair: Pair, model: nn.Module, *, seed: int) -> float:
    """Test accuracy of a probe on the same features that may learn from the labels of the target images."""
    labelled = extract_features(model.body, draw(pair.unlabelled, UNLABELLED, seed=seed))
    return fit_probe(labelled).score(extract_features(model.body, pair.test))


def score(pair: Pair, outcomes: dict[str, dict[str, Tensor]], *, seed: int) -> dict[str, dict[str, float]]:
    """The one look at the labels of the target's test part, beside the proxy A-distance of the features."""
    return {
        name: {
            "accuracy": round(float((outcome["predictions"] == pair.test.y).float().mean()), 4),
            "distance": round(proxy_a_distance(outcome["source"], outcome["target"], seed=seed), 4),
        }
        for name, outcome in outcomes.items()
    }


def placed(examples: Examples, copies: int) -> Examples:
    """Clean drawings somewhere on the canvas, each `copies` times; neither bent nor worn."""
    generator = torch.Generator().manual_seed(0)
    repeated = examples.take(torch.arange(len(examples)).repeat(copies))
    return repeated.mapped(lambda images: DIGIT_PLACEMENT(images, generator))


def pairs() -> dict[str, Pair]:
    """The four pairs of page 07 by name."""
    masters = glyph_masters(DIGITS)
    held_out = Examples("glyphs/held-out", *draw_masters(DIGITS, fonts=VALIDATION_FONTS), DIGITS, torch.arange(60))
    printed = load_dataset("glyph-digits")
    digits = load_dataset("digits")
    plain = {"sample": placed(masters, 2), "validation": placed(held_out, 4)}
    bent = {"sample": printed.train, "validation": printed.validation}
    handwriting = {"unlabelled": digits.train, "test": digits.test}
    return {
        "plain print to handwriting": Pair(masters, DIGIT_PLACEMENT, **plain, **handwriting),
        "bent print to handwriting": Pair(masters, GLYPH_JITTER, **bent, **handwriting),
        "pretrained, print to handwriting": Pair(
            masters, GLYPH_JITTER, **bent, **handwriting, body="glyphs-all", steps=60
        ),
        "handwriting to bent print": Pair(
            digits.train,
            TARGET_JITTER,
            sample=digits.train,
            validation=digits.validation,
            unlabelled=printed.train,
            test=printed.test,
        ),
    }


def reverse_validation(pair: Pair, model: nn.Module, *, seed: int) -> float:
    """Accuracy on source images of a probe that has learnt the labels that the model gives the unlabelled target.

    Ganin et al. 2016, arXiv:1505.07818, section 5.1.2, after Zhong et al. 2010.
    """
    unlabelled = extract_features(model.body, draw(pair.unlabelled, UNLABELLED, seed=seed)).x
    with torch.inference_mode():
        guessed = Features(unlabelled, model.head(unlabelled).argmax(1))
    if len(guessed.y.unique()) < 2:
        return 0.0
    return fit_probe(guessed).score(extract_features(model.body, pair.validation))


def tune(pair: Pair) -> dict[str, dict]:
    """Learning rate by source validation, weights by reverse validation; means over the tuning seeds."""

    def on_source(lr: float) -> float:
        return mean(accuracy(train(pair, None, seed=s, lr=lr), pair.validation) for s in TUNING_SEEDS)

    def in_reverse(method: str, lr: float, weight: float) -> float:
        models = {s: aligned(pair, method, seed=s, lr=lr, weight=weight) for s in TUNING_SEEDS}
        return mean(reverse_validation(pair, model, seed=s) for s, model in models.items())

    tuning = {"lr": choose_one(on_source, "lr", RATES, by="accuracy on source validation images")}
    lr = tuning["lr"]["chosen"]
    for method, weights in WEIGHTS.items():
        tuning[method] = choose_one(partial(in_reverse, method, lr), "weight", weights, by="reverse validation")
    return tuning


def choose_one(score: Callable[..., float], argument: str, values: tuple[float, ...], *, by: str) -> dict:
    """`choose` for a single argument.

    Args:
        score: as for `choose`.
        by: what the score is, in words.

    Returns:
        {"chosen": the best value, "by": the words, "table": {value: its score}, "at_the_edge": as of `choose`}.
    """
    choice = choose(score, {argument: values})
    table = {str(row["setting"][argument]): row["validation_accuracy"] for row in choice["table"]}
    return choice | {"chosen": choice["chosen"][argument], "by": by, "table": table}


def all_scores(pair: Pair, tuning: dict[str, dict], *, seed: int) -> dict[str, dict]:
    """All scores of one seed: "on features", "trained", and "ceiling"."""
    lr = tuning["lr"]["chosen"]
    plain = train(pair, None, seed=seed, lr=lr)
    start = new_model(pair) if pair.body else plain  # whose features the methods on features work on
    trained = {"source only": by_head(pair, plain, seed=seed)}
    weights = {"both in one batch": 0.0} | {method: tuning[method]["chosen"] for method in WEIGHTS}
    for method, weight in weights.items():
        trained[method] = by_head(pair, aligned(pair, method, seed=seed, lr=lr, weight=weight), seed=seed)
    return {
        "on features": score(pair, on_features(pair, start, seed=seed), seed=seed),
        "trained": score(pair, trained, seed=seed),
        "ceiling": {"target labels": {"accuracy": round(ceiling(pair, start, seed=seed), 4)}},
    }


def over_seeds(runs: list[dict]) -> dict[str, dict[str, list]]:
    """Scores of several seeds as lists: [{method: {key: value}}, ...] -> {method: {key: [value, ...]}}."""
    return {method: {key: [run[method][key] for run in runs] for key in runs[0][method]} for method in runs[0]}


def record(path: Path) -> None:
    """Choose without target labels, then run every method at every seed and score it once."""
    facts = {"what": "accuracy on the target's test part and proxy A-distance, by pair, method and seed", "pairs": {}}
    facts |= provenance("python -m tlhelpers.experiments.domain_adaptation", seeds=SEEDS)
    for name, pair in pairs().items():
        tuning = tune(pair)
        runs = [all_scores(pair, tuning, seed=seed) for seed in SEEDS]
        facts["pairs"][name] = {kind: over_seeds([run[kind] for run in runs]) for kind in runs[0]}
        facts["pairs"][name]["tuning"] = tuning
        print(name, facts["pairs"][name]["ceiling"], flush=True)
        write_record(path, facts)  # what is done is safe


if __name__ == "__main__":
    record(RECORD)
