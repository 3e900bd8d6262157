"""Pretrained bodies by name: the part of a network that is carried from one task to the next.

The shipped ones are `GlyphNet`, a small residual network (He et al. 2016, arXiv:1512.03385) made by
`tlhelpers/recipes/pretrain.py`; each has a card, a JSON file beside the weights.
"""

import difflib
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

ASSETS = Path(__file__).parent / "assets"
WIDTHS = (16, 32, 64, 96)  # channels of the four blocks; 0.2 M parameters in all


@dataclass(frozen=True)
class Normalize:
    """`(x - mean) / std` with one mean and one standard deviation for all pixels."""

    mean: float
    std: float

    def __call__(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; halves the image when stride is 2."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class GlyphNet(nn.Sequential):
    """Body for one-channel images: [N, 1, H, W] -> [N, 96].

    For 32x32 input the children give stem [N, 16, 16, 16], block1 the same, block2 [N, 32, 8, 8],
    block3 [N, 64, 4, 4], block4 [N, 96, 2, 2], pool [N, 96].
    """

    feature_dim = WIDTHS[-1]

    def __init__(self) -> None:
        stem = nn.Sequential(
            OrderedDict(conv=nn.Conv2d(1, WIDTHS[0], 5, 2, padding=2, bias=False), bn=nn.BatchNorm2d(WIDTHS[0]))
        )
        stem.add_module("relu", nn.ReLU())
        inputs = (WIDTHS[0], *WIDTHS)
        blocks = {
            f"block{i}": ResidualBlock(inputs[i - 1], WIDTHS[i - 1], stride=1 if i == 1 else 2) for i in range(1, 5)
        }
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(OrderedDict(stem=stem, **blocks, pool=pool))
        self.to(memory_format=torch.channels_last)  # a third faster on a CPU than the default layout

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 1:
            raise ValueError(
                f"images must be [N, 1, H, W], not {list(x.shape)}; x.unsqueeze(1) adds a missing channel axis"
            )
        return super().forward(x)


@dataclass(frozen=True)
class Backbone:
    """A pretrained body and all that is needed to use it rightly.

    Attributes:
        name: key of `BACKBONES`.
        module: the body, in eval mode, float32, on the CPU; a fresh copy at every load.
        feature_dim: D of its output [N, D].
        transform: what its input must go through after scaling to [0, 1].
        head: the classifier of its source task, [N, D] -> [N, len(classes)]; None if there is none.
        classes: the classes of the source task.
        card: how it was made: data, recipe, seeds, sha256, accuracy, licence.
    """

    name: str
    module: nn.Module
    feature_dim: int
    transform: Callable[[Tensor], Tensor]
    head: nn.Module | None
    classes: tuple[str, ...]
    card: dict


def _load_glyph_net(name: str) -> Backbone:
    weights = ASSETS / f"{name}.safetensors"
    card = json.loads(weights.with_suffix(".json").read_text("utf-8"))
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    if found != card["sha256"]:
        raise ValueError(
            f"{weights} is damaged: its sha256 is {found[:12]}..., its card says {card['sha256'][:12]}...; "
            "install the package again (pip install --force-reinstall --no-deps tlhelpers)"
        )
    classes = tuple(card["classes"])
    # Stored in half precision: half the size, the same accuracy (the card has both).
    state = {key: t.float() if t.is_floating_point() else t for key, t in load_file(weights).items()}
    model = nn.Sequential(OrderedDict(body=GlyphNet(), head=nn.Linear(GlyphNet.feature_dim, len(classes))))
    model.load_state_dict(state)
    model.eval()
    transform = Normalize(card["mean"], card["std"])
    return Backbone(name, model.body, GlyphNet.feature_dim, transform, model.head, classes, card)


BACKBONES: dict[str, Callable[[str], Backbone]] = {
    "glyphs-all": _load_glyph_net,
    "glyphs-letters": _load_glyph_net,
    "glyphs-random": _load_glyph_net,
}


def load_backbone(name: str) -> Backbone:
    """A pretrained body by name.

    Args:
        name: "glyphs-all" was pretrained on all 47 printed characters, "glyphs-letters" on the 22
            letters that no one takes for a digit, "glyphs-random" on nothing (the control).

    Raises:
        ValueError: no such body (the message names the nearest), or a damaged weights file.
    """
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, n=3, cutoff=0.4) or list(BACKBONES)
        raise ValueError(f"no backbone called {name!r}; did you mean {' or '.join(map(repr, near))}?")
    return BACKBONES[name](name)
