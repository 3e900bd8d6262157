"""Row 2: `fit` on resident data against a hand-written DataLoader loop and what a user would pick instead.

A round is a whole training of the same network from the same weights by every contender, start-up
included, with the accuracy on 200 test images afterwards.  See `trainers.py` for what all have in common.
"""

import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from benchmarks.nets import resnet18
from benchmarks.timing import SMOKE, fastest, interleaved, keep_freed_memory, ratio, save, use_one_thread
from benchmarks.trainers import BATCH, CPU, RATE, RIVALS, by_hand
from tlhelpers.data import TARGET_JITTER, Examples, Jitter, TensorLoader, load_dataset
from tlhelpers.models import attach_head, load_backbone
from tlhelpers.objectives import classification
from tlhelpers.training import evaluate, fit

AFFINE = Jitter(degrees=10, scale=(0.8, 1.1), shear=0.2)


class Augmented(Dataset):
    """The examples of a part, each sent through a transform whenever it is asked for."""

    def __init__(self, images: list, labels: torch.Tensor, transform: Callable) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform(self.images[i]), self.labels[i]


def per_sample(part: Examples, *, elastic: bool) -> Augmented:
    """torchvision's counterpart of `Jitter`: the same angle, scale, slant; a shift; smooth bending of the same size.

    Without bending the images are PIL's, whose affine transform is four times as fast as that of tensors.
    """
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional

    bilinear = v2.InterpolationMode.BILINEAR
    affine = v2.RandomAffine(10, translate=(0.1, 0.1), scale=(0.8, 1.1), shear=11, interpolation=bilinear)
    if elastic:  # its defaults move a pixel of a 32x32 image by 0.8 pixels (RMS), as bend=0.05 does
        return Augmented(list(part.x), part.y, v2.Compose([affine, v2.ElasticTransform()]))
    images = [functional.to_pil_image(x) for x in part.x]
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return Augmented(images, part.y, v2.Compose([affine, *to_tensor]))


def ours(model: nn.Module, part: Examples, epochs: int, augment: Jitter | None = None) -> None:
    """`fit` on batches taken from one resident tensor, augmented as a whole."""
    loader = TensorLoader(part, BATCH, shuffle=True, augment=augment, seed=torch.initial_seed(), device=CPU)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    fit(model, (loader, None), classification(), optimizer, epochs=epochs, device=CPU)


def glyph_net() -> nn.Module:
    """The pretrained body of the course, with a new head."""
    return attach_head(load_backbone("glyphs-all"), 10)


def compare(
    network: Callable[[], nn.Module],
    train: Examples,
    test: Examples,
    epochs: int,
    rounds: int,
    data: Dataset | None = None,
    augment: Jitter | None = None,
    before: int = 0,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds and test accuracies of every contender, by round; the alternatives read `data`.

    All start from the same weights, which `before` epochs have trained, and seed torch with the number of the round.
    """
    data = data or TensorDataset(train.x, train.y)
    torch.manual_seed(0)
    begun = network()
    by_hand(begun, data, before)
    trained: dict[str, list[nn.Module]] = {}

    def run(name: str, train_with: Callable, source: Examples | Dataset) -> None:
        model = network()
        model.load_state_dict(begun.state_dict())
        model.train()  # Lightning takes the mode as it finds it, and a pretrained body comes in eval mode
        torch.manual_seed(len(trained.get(name, [])))
        train_with(model, source, epochs)
        trained.setdefault(name, []).append(model)

    everyone = {"fit": (partial(ours, augment=augment), train), "hand": (by_hand, data)}
    everyone |= {name: (rival, data) for name, rival in RIVALS.items()}
    seconds = interleaved({name: partial(run, name, *pair) for name, pair in everyone.items()}, rounds)
    batch = (test.x, test.y)
    scores = {name: [evaluate(m, [batch], device=CPU)["accuracy"] for m in models] for name, models in trained.items()}
    return seconds, scores


def as_photographs(part: Examples, n: int) -> Examples:
    """The first n digits as images of three channels and 64x64 pixels."""
    x = F.interpolate(part.x[:n], size=64, mode="bilinear").expand(-1, 3, -1, -1).contiguous()
    return Examples(part.name, x, part.y[:n], part.classes, part.indices[:n])


def accuracy_gap(scores: dict[str, list[float]]) -> dict[str, float]:
    """Mean test accuracy of `fit` minus the mean of all others, plus-minus two standard errors."""
    others = [value for name, values in scores.items() if name != "fit" for value in values]
    gap = statistics.mean(scores["fit"]) - statistics.mean(others)
    error = sum(statistics.variance(values) / len(values) for values in (scores["fit"], others)) ** 0.5
    return {"value": gap, "low": gap - 2 * error, "high": gap + 2 * error}


def main() -> None:
    use_one_thread()
    keep_freed_memory()
    digits = load_dataset("digits")
    test, first = digits.test.take(torch.arange(200)), digits.train.take(torch.arange(32 if SMOKE else 640))
    photos, photo_test = as_photographs(digits.train, 32 if SMOKE else 128), as_photographs(digits.test, 100)
    rounds = (lambda _n: 1) if SMOKE else (lambda n: n)
    rows, raw = {}, {}
    for case, train, tests, network, epochs, n, before in (
        ("GlyphNet", first, test, glyph_net, 3, 7, 0),
        ("ResNet-18, 64 px", photos, photo_test, resnet18, 1, 4, 5),
    ):
        seconds, scores = compare(network, train, tests, epochs, rounds(n), before=before)
        best = fastest(seconds, list(RIVALS))
        rows[f"rivals/{case}, hand"] = ratio(seconds, "fit", "hand")
        rows[f"rivals/{case}, fastest"] = ratio(seconds, "fit", best) | {"fastest": best}
        rows |= {f"rivals/{case}, {name}": ratio(seconds, name, "hand") for name in RIVALS}
        rows[f"rivals/{case}, accuracy"] = accuracy_gap(scores)
        raw[case] = {"seconds": seconds, "accuracy": scores}
    for case, elastic, augment in (("affine and elastic", True, TARGET_JITTER), ("affine alone", False, AFFINE)):
        data = per_sample(first, elastic=elastic)
        seconds, scores = compare(glyph_net, first, test, 1, rounds(2 if elastic else 3), data, augment)
        best = fastest(seconds, [*RIVALS, "hand"])
        rows[f"rivals/augmented, {case}"] = ratio(seconds, best, "fit") | {"fastest": best}
        rows[f"rivals/augmented, {case}, accuracy"] = accuracy_gap(scores)
        raw[f"augmented, {case}"] = {"seconds": seconds, "accuracy": scores}
    save("rivals", rows, raw)


if __name__ == "__main__":
    main()
