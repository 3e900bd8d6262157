"""What the specimens of page 14 share: plumbing that is right, so that the page shows the broken line alone."""

import copy
import tempfile
from collections import namedtuple
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tlhelpers.analysis import Features, extract_features, fit_probe
from tlhelpers.course import mean_and_error
from tlhelpers.data import Examples
from tlhelpers.models import Backbone, attach_head
from tlhelpers.runtime import seed_everything, shifted

CPU = torch.device("cpu")
Outputs = namedtuple("Outputs", "logits aux_logits")


def trained(body: Backbone, shot: Examples, epochs: Iterable[Tensor], *, seed: int) -> nn.Module:
    """A network fine-tuned by SGD on batches of ten, in the row order given for each epoch."""
    seed_everything(seed)
    model = attach_head(body, len(shot.classes)).train()
    groups = [{"params": model.body.parameters(), "lr": 0.005}, {"params": model.head.parameters(), "lr": 0.05}]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    for rows in epochs:
        take_steps(model, optimizer, [(shot.x[batch], shot.y[batch]) for batch in rows.split(10)])
    return model.eval()


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """One step of an optimizer per batch, in the mode that the model is in."""
    for x, y in batches:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.inference_mode()
def read(model: nn.Module, examples: Examples, batch_size: int = 256) -> float:
    """Accuracy of a model in the mode that it is in, in batches of consecutive images."""
    batches = zip(examples.x.split(batch_size), examples.y.split(batch_size), strict=True)
    return torch.cat([model(x).argmax(1) == y for x, y in batches]).float().mean().item()


def probe_draws(
    body: Backbone | nn.Module,
    draws: list[Examples],
    test: Examples,
    change: Callable[[Tensor], Tensor] | None = None,
) -> np.ndarray:
    """Test accuracy [S] of a linear probe per draw; `change` is applied to all images, training and test."""
    if change is not None:
        draws = [draw.mapped(change) for draw in draws]
        test = test.mapped(change)
    test_features = extract_features(body, test, device=CPU)
    probes = [fit_probe(extract_features(body, draw, device=CPU)) for draw in draws]
    return np.array([probe.score(test_features) for probe in probes])


def complaint(action: Callable[[], object]) -> str:
    """The error that an action raises, type and first line, or "no complaint"."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return "no complaint"


@dataclass
class Ledger:
    """Points that each mistake costs, [S] over draws of labels, under its name."""

    points: dict[str, np.ndarray] = field(default_factory=dict)

    def note(self, name: str, good: Iterable[float], bad: Iterable[float]) -> float:
        """Keep and print good minus bad in points, paired; returns the mean."""
        self.points[name] = 100 * np.subtract(good, bad)
        mean, error = mean_and_error(self.points[name])
        title = name.replace("-\n", "").replace("\n", " ")  # names are broken into lines for a figure
        print(
            f"{title}: {100 * np.mean(good):.1f} % against {100 * np.mean(bad):.1f} %: "
            f"{mean:.1f} +/- {error:.1f} points"
        )
        return float(mean)


def luckiest(draw: Features, test: Features, *, settings: int = 40, voters: int = 60, seed: int) -> tuple[float, float]:
    """The best of many probes, each on a third of the features, by accuracy on a few test examples.

    Returns:
        Its accuracy on those that chose it, and on all others.
    """
    generator = torch.Generator().manual_seed(shifted(seed))
    votes = torch.randperm(len(test), generator=generator) < voters
    width = draw.x.shape[1]
    scores = []
    for _ in range(settings):
        columns = torch.randperm(width, generator=generator)[: width // 3]
        probe = fit_probe(Features(draw.x[:, columns], draw.y))
        right = (probe.predict(test.x[:, columns]) == test.y).float()
        scores.append((right[votes].mean().item(), right[~votes].mean().item()))
    return max(scores, key=lambda pair: pair[0])  # the first of equals


def folder_of(names: Iterable[str]):
    """torchvision's `ImageFolder` over empty files, one per class: its classes come from names alone."""
    from torchvision.datasets import ImageFolder

    with tempfile.TemporaryDirectory() as root:
        for name in names:
            (Path(root) / name).mkdir()
            (Path(root) / name / "image.png").touch()
        return ImageFolder(root)


class TwoHeads(nn.Module):
    """A body with an auxiliary head half-way up: in training mode it returns both logits, as Inception v3 does."""

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        self.body = copy.deepcopy(backbone.module)
        self.head = nn.Linear(96, classes)
        self.aux = nn.Linear(32, classes)

    def forward(self, images: Tensor) -> Outputs | Tensor:
        body = self.body
        middle = body.block2(body.block1(body.stem(body.normalize(images))))  # [N, 32, 8, 8]
        logits = self.head(body.pool(body.block4(body.block3(middle))))
        return Outputs(logits, self.aux(middle.mean((2, 3)))) if self.training else logits


def rows_of(examples: Examples) -> tuple[Tensor, Tensor]:
    """Images as sequences of their inked rows, padded at the end: [N, T, W], and lengths [N]."""
    inked = [(image > 0.3).any(1).nonzero().flatten() for image in examples.x[:, 0]]
    cropped = [image[ink[0] : ink[-1] + 1] for image, ink in zip(examples.x[:, 0], inked, strict=True)]
    return nn.utils.rnn.pad_sequence(cropped, batch_first=True), torch.tensor([len(rows) for rows in cropped])


def last_valid(states: Tensor, lengths: Tensor) -> Tensor:
    """[N, T, D] to the state [N, D] at the last step of each sequence, before its padding."""
    return states[torch.arange(len(states)), lengths - 1]


def pretrained_gru(examples: Examples, *, steps: int = 60) -> nn.GRU:
    """A recurrent body that reads images row by row, trained with the valid last state."""
    seed_everything(0)
    rows, lengths = rows_of(examples)
    gru = nn.GRU(examples.x.shape[3], 64, batch_first=True)
    head = nn.Linear(64, len(examples.classes))
    optimizer = torch.optim.Adam([*gru.parameters(), *head.parameters()], lr=5e-3)
    for _ in range(steps):
        batch = torch.randint(len(examples), (200,))
        loss = F.cross_entropy(head(last_valid(gru(rows[batch])[0], lengths[batch])), examples.y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return gru.eval()


@torch.no_grad()
def gru_features(gru: nn.GRU, examples: Examples, pick: Callable[[Tensor, Tensor], Tensor]) -> Features:
    """`pick(states, lengths)` of a recurrent body for every image."""
    rows, lengths = rows_of(examples)
    return Features(pick(gru(rows)[0], lengths).contiguous(), examples.y)


def tiny_bert() -> nn.Module:
    """A BERT classifier with two labels and two small layers, random weights."""
    from transformers import BertConfig, BertForSequenceClassification

    seed_everything(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(vocab_size=100, num_labels=2, **sizes)).eval()


def narrow(images: Tensor) -> Tensor:
    """Images [N, 1, 32, 32] at half their width: what squeezing twice as wide a photograph into a square does."""
    return F.pad(F.interpolate(images, (32, 16), mode="area"), (8, 8, 0, 0))
