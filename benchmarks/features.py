"""Row 3: features computed once against a frozen body that runs again in every epoch, and what extraction costs.

Three ways to train a classifier for 20 epochs on a frozen body.  "again" sends every batch through the
body, as the articles do; "cached" extracts once and trains the same head on the same batches, which gives
the same losses; "probe" extracts once and calls `fit_probe`, as the pages do.
"""

import torch
from torch import nn

from benchmarks.nets import noise, resnet18
from benchmarks.timing import SMOKE, interleaved, ratio, save, use_one_thread
from tlhelpers.analysis import extract_features, fit_probe
from tlhelpers.data import Examples, TensorLoader
from tlhelpers.models import Backbone, GlyphNet, Normalize, PhotoBody, freeze
from tlhelpers.objectives import classification
from tlhelpers.runtime import pick_device
from tlhelpers.training import fit

EPOCHS = 20
# Network: shape of an example, examples, rounds.
CASES = {"GlyphNet": ((1, 32, 32), 320, 3), "ResNet-18, 64 px": ((3, 64, 64), 64, 3)}


def body(name: str) -> Backbone:
    """A frozen body from random weights; speed does not depend on them."""
    torch.manual_seed(0)
    if name == "GlyphNet":
        module = GlyphNet(0.5, 0.3)
    else:
        network = resnet18()
        network.fc = nn.Identity()
        module = PhotoBody(Normalize(0.5, 0.3), network, 512)
    freeze(module)
    return Backbone(module.eval(), module.feature_dim, name)


def head_losses(model: nn.Module, head: nn.Linear, part: Examples) -> list[float]:
    """Train `head`, the last layer of `model`, with batches of 32; returns the loss of every epoch."""
    loader = TensorLoader(part, 32, shuffle=True)
    history = fit(model, (loader, None), classification(), torch.optim.SGD(head.parameters(), lr=0.1), epochs=EPOCHS)
    return [record["train_loss"] for record in history]


def again(backbone: Backbone, part: Examples) -> list[float]:
    """Body and head in one model."""
    torch.manual_seed(0)
    head = nn.Linear(backbone.feature_dim, 10)
    return head_losses(nn.Sequential(backbone.module, head), head, part)


def cached(backbone: Backbone, part: Examples) -> list[float]:
    """The head alone, on features."""
    torch.manual_seed(0)
    head = nn.Linear(backbone.feature_dim, 10)
    features = extract_features(backbone, part)
    return head_losses(head, head, Examples("features", features.x, features.y, part.classes, part.indices))


def bare(backbone: Backbone, part: Examples) -> None:
    """The shortest extraction: the body over the same batches, results thrown away."""
    device = pick_device()
    module = backbone.module.to(device)
    with torch.inference_mode():
        for x in part.x.split(256):
            module(x.to(device))


def measure(name: str, shape: tuple[int, ...], examples: int, rounds: int) -> tuple[dict, dict]:
    """Rows and raw seconds of one network."""
    backbone, part = body(name), noise(examples, *shape)
    slow, fast = again(backbone, part), cached(backbone, part)
    apart = max(abs(a - b) for a, b in zip(slow, fast, strict=True))
    assert apart < 1e-3, f"cached features must give the losses of the slow way; they differ by {apart}"

    def probe() -> None:
        fit_probe(extract_features(backbone, part))

    runs = {"again": lambda: again(backbone, part), "cached": lambda: cached(backbone, part), "probe": probe}
    training = interleaved(runs, rounds)
    large = noise(examples * 4, *shape)
    runs = {"bare": lambda: bare(backbone, large), "ours": lambda: extract_features(backbone, large)}
    extraction = interleaved(runs, 3 * rounds)
    rows = {
        f"features/probe, {name}": ratio(training, "again", "probe"),
        f"features/same head, {name}": ratio(training, "again", "cached") | {"largest_difference_of_losses": apart},
        f"features/extraction, {name}": ratio(extraction, "bare", "ours")
        | {"examples_per_second": len(large) / min(extraction["ours"])},
    }
    return rows, {"training": training, "extraction": extraction}


def main() -> None:
    use_one_thread()
    rows, raw = {}, {}
    for name, (shape, examples, rounds) in CASES.items():
        found, raw[name] = measure(name, shape, *((32, 1) if SMOKE else (examples, rounds)))
        rows |= found
    save("features", rows, raw)


if __name__ == "__main__":
    main()
