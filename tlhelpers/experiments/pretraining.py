"""Make the shipped bodies: `python -m tlhelpers.experiments.pretraining` (about 10 minutes on two CPU cores).

Every body sees the same number of images (STEPS * BATCH) in the same number of steps, and every
body is made from three seeds.  The weights of the first seed are shipped; the cards record all
three, because the spread between pretraining seeds is part of what a learner should know.
"""

import argparse
import hashlib
from pathlib import Path
from statistics import mean

import torch
from safetensors.torch import save
from torch import nn

from tlhelpers.analysis import extract_features, fit_probe
from tlhelpers.data import GLYPH_JITTER, Splits, TensorLoader, few_shot, glyph_masters, load_dataset
from tlhelpers.experiments.records import provenance, write_record
from tlhelpers.experiments.strategies import PRINT_MEAN, PRINT_STD
from tlhelpers.files import ASSETS, atomic
from tlhelpers.models import GlyphNet, attach_head
from tlhelpers.objectives import classification
from tlhelpers.runtime import seed_everything
from tlhelpers.training import accuracy, fit, warmup_cosine

SEEDS = (0, 1, 2)
STEPS = 1500
BATCH = 128
PASSES = 10  # 192,000 images, in 10 passes of 150 steps
PROBE_SEEDS = range(10)  # draws of 5 labels per digit for the probe in a card
SOURCES = {"glyphs-all": "glyphs", "glyphs-letters": "glyph-letters", "glyphs-random": "glyphs"}


def pretrain(splits: Splits, *, seed: int, steps: int = STEPS) -> nn.Sequential:
    """One run: a body and head trained on the characters of `splits.classes`; the weights of the last step."""
    seed_everything(seed)
    model = attach_head(GlyphNet(PRINT_MEAN, PRINT_STD), len(splits.classes))
    masters = glyph_masters(splits.classes)
    loader = TensorLoader(masters, BATCH, shuffle=True, steps=steps // PASSES, augment=GLYPH_JITTER, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.02)
    fit(model, (loader, None), classification(), optimizer, epochs=PASSES, schedule=warmup_cosine(), clip_norm=1.0)
    return model


def random_control(splits: Splits, *, seed: int) -> nn.Sequential:
    """Random weights; only BatchNorm has seen images (no labels), or its outputs would be degenerate."""
    seed_everything(seed)
    model = attach_head(GlyphNet(PRINT_MEAN, PRINT_STD), len(splits.classes))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain average over the batches, instead of a fading one
    model.train()
    with torch.no_grad():
        for x, _ in TensorLoader(splits.train, 256, shuffle=True, seed=seed, device=torch.device("cpu")):
            model(x)
    return model.eval()


def halved(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a model in float16, as it is shipped."""
    return {key: (t.half() if t.is_floating_point() else t).contiguous() for key, t in model.state_dict().items()}


def round_to_half(model: nn.Module) -> None:
    """Give a model the weights that a learner will load, in place."""
    model.load_state_dict({key: t.float() if t.is_floating_point() else t for key, t in halved(model).items()})


def measure(model: nn.Sequential, splits: Splits, digits: Splits) -> dict[str, float]:
    """Source accuracy (test fonts) in float32 and float16, and a probe with 5 labels per digit (validation).

    Afterwards the model is rounded to float16.
    """
    in_full = accuracy(model, splits.test)
    round_to_half(model)
    target = extract_features(model.body, digits.validation)
    draws = [extract_features(model.body, few_shot(digits.train, 5, seed=seed)) for seed in PROBE_SEEDS]
    return {
        "source_test_accuracy": round(in_full, 4),
        "source_test_accuracy_float16": round(accuracy(model, splits.test), 4),
        "digits_probe_5_labels_validation": round(mean(fit_probe(draw).score(target) for draw in draws), 4),
    }


def make(name: str, folder: Path, *, steps: int = STEPS) -> dict:
    """Train, measure and write one body: NAME.safetensors, and its card NAME.json, which is returned.

    Args:
        name: key of `SOURCES`.
        steps: of training in all.
    """
    splits = load_dataset(SOURCES[name])
    digits = load_dataset("digits")
    untrained = name == "glyphs-random"
    shipped = b""
    runs = []
    for seed in SEEDS:
        model = random_control(splits, seed=seed) if untrained else pretrain(splits, seed=seed, steps=steps)
        if not runs:
            shipped = save(halved(model))  # before `measure`, which rounds the model
        runs.append({"seed": seed, **measure(model, splits, digits)})
        print(name, runs[-1], flush=True)
    what = f"GlyphNet pretrained on {len(splits.classes)} printed characters"
    card = {
        "name": name,
        "what": "random weights, BatchNorm statistics from printed characters" if untrained else what,
        "data": f"{SOURCES[name]}: drawn from the fonts of matplotlib, licences of the fonts permit it",
        "classes": list(splits.classes),
        "mean": PRINT_MEAN,
        "std": PRINT_STD,
        "sha256": hashlib.sha256(shipped).hexdigest(),
        "shipped_seed": SEEDS[0],
        "budget": "none" if untrained else f"{steps} steps of {BATCH} images",
        "runs": runs,
        **provenance("python -m tlhelpers.experiments.pretraining", seeds=SEEDS),
        "licence": "BSD-3-Clause",
    }
    with atomic(folder / f"{name}.safetensors") as temporary:
        temporary.write_bytes(shipped)
    write_record(folder / f"{name}.json", card)
    return card


def main() -> None:
    """Make the bodies that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(SOURCES), help="bodies to make; all when none is named")
    parser.add_argument("--to", type=Path, default=ASSETS, help="folder for weights and cards")
    arguments = parser.parse_args()
    for name in arguments.names:
        make(name, arguments.to)


if __name__ == "__main__":
    main()
