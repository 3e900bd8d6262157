"""Make the shipped bodies: `python -m tlhelpers.experiments.pretraining` (about 10 minutes on two CPU cores).

Every body sees the same number of images (STEPS * BATCH) in the same number of steps, and every
body is made from three seeds.  The weights of the first seed are shipped; the cards record all
three, because the spread between pretraining seeds is part of what a learner should know.
"""

import argparse
import hashlib
import json
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from tlhelpers.models.backbones import ASSETS, Backbone, GlyphNet, Normalize
from tlhelpers.data.examples import Splits, TensorLoader, few_shot
from tlhelpers.data.named import GLYPH_JITTER, glyph_masters, load_dataset
from tlhelpers.analysis.features import extract_features, linear_probe
from tlhelpers.objectives.supervised import classification
from tlhelpers.experiments.records import provenance
from tlhelpers.runtime import seed_everything
from tlhelpers.training.loop import evaluate, fit, warmup_cosine

SEEDS = (0, 1, 2)
STEPS, BATCH, PASSES = 1500, 128, 10  # 192,000 images, in 10 passes of 150 steps
TRANSFORM = Normalize(mean=0.1569, std=0.26)  # of printed characters' pixels, as measured once
SOURCES = {"glyphs-all": "glyphs", "glyphs-letters": "glyph-letters", "glyphs-random": "glyphs"}


def pretrain(splits: Splits, transform: Normalize, *, seed: int, steps: int = STEPS) -> nn.Sequential:
    """A body and head trained on the characters of `splits.classes`; the weights of the last step."""
    seed_everything(seed)
    model = _new_model(len(splits.classes))
    loader = TensorLoader(
        glyph_masters(splits.classes),
        BATCH,
        shuffle=True,
        steps=steps // PASSES,
        augment=GLYPH_JITTER,
        transform=transform,
        seed=seed,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.02)
    fit(model, (loader, None), classification(), optimizer, epochs=PASSES, schedule=warmup_cosine(), clip_norm=1.0)
    return model


def random_control(splits: Splits, transform: Normalize, *, seed: int) -> nn.Sequential:
    """Random weights; only BatchNorm has seen images (no labels), or its outputs would be degenerate."""
    seed_everything(seed)
    model = _new_model(len(splits.classes))
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # a plain average over the batches, instead of a fading one
    model.train()
    with torch.no_grad():
        for x, _ in TensorLoader(splits.train, 256, shuffle=True, transform=transform, seed=seed):
            model(x)
    return model.eval()


def _new_model(classes: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(body=GlyphNet(), head=nn.Linear(GlyphNet.feature_dim, classes)))


def _halved(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: (t.half() if t.is_floating_point() else t).contiguous() for key, t in model.state_dict().items()}


def measure(model: nn.Sequential, splits: Splits, digits: Splits, transform: Normalize) -> dict[str, float]:
    """Source accuracy (test fonts) in float32 and float16, and a probe with 5 labels per digit (validation)."""
    loader = TensorLoader(splits.test, 256, transform=transform)
    full = evaluate(model, loader)["accuracy"]
    model.load_state_dict({k: t.float() if t.is_floating_point() else t for k, t in _halved(model).items()})
    body = Backbone("candidate", model.body, GlyphNet.feature_dim, transform, None, splits.classes, {})
    target = extract_features(body, digits.validation)
    draws = [extract_features(body, few_shot(digits.train, 5, seed=s)) for s in range(10)]
    probes = [linear_probe(draw, target).accuracy for draw in draws]
    return {
        "source_test_accuracy": round(full, 4),
        "source_test_accuracy_float16": round(evaluate(model, loader)["accuracy"], 4),
        "digits_probe_5_labels_validation": round(sum(probes) / len(probes), 4),
    }


def make(name: str, folder: Path, *, steps: int = STEPS) -> dict:
    """Train, measure and write one body; returns its card."""
    splits, digits = load_dataset(SOURCES[name]), load_dataset("digits")
    runs = []
    for seed in SEEDS:
        if name == "glyphs-random":
            model = random_control(splits, TRANSFORM, seed=seed)
        else:
            model = pretrain(splits, TRANSFORM, seed=seed, steps=steps)
        weights = save(_halved(model))  # before `measure`, which rounds the model
        runs.append({"seed": seed, **measure(model, splits, digits, TRANSFORM)})
        print(name, runs[-1], flush=True)
        if seed == SEEDS[0]:
            (folder / f"{name}.safetensors").write_bytes(weights)
            digest = hashlib.sha256(weights).hexdigest()
    card = {
        "name": name,
        "what": "random weights, BatchNorm statistics from printed characters"
        if "random" in name
        else f"GlyphNet pretrained on {len(splits.classes)} printed characters",
        "data": f"{SOURCES[name]}: drawn from the fonts of matplotlib, licences of the fonts permit it",
        "classes": list(splits.classes),
        "mean": TRANSFORM.mean,
        "std": TRANSFORM.std,
        "sha256": digest,
        "shipped_seed": SEEDS[0],
        "budget": "none" if "random" in name else f"{steps} steps of {BATCH} images",
        "runs": runs,
        **provenance("python -m tlhelpers.experiments.pretraining"),
        "licence": "BSD-3-Clause",
    }
    (folder / f"{name}.json").write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    return card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(SOURCES), help="bodies to make; all when none is named")
    parser.add_argument("--to", type=Path, default=ASSETS, help="folder for weights and cards")
    arguments = parser.parse_args()
    for name in arguments.names:
        make(name, arguments.to)


if __name__ == "__main__":
    main()
