"""GlyphNet: the small residual network of the quick world (He et al. 2016, arXiv:1512.03385).

Its shipped weights are made by `tlhelpers/experiments/pretraining.py`; each has a card, a JSON file beside it.
"""

import json
from collections import OrderedDict

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tlhelpers.files import ASSETS, digest_of
from tlhelpers.models.normalize import Normalize

SHIPPED = ("glyphs-all", "glyphs-letters", "glyphs-random")
WIDTHS = (16, 32, 64, 96)  # channels of the four blocks; 0.2 M parameters in all


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
    """Body for one-channel images: [N, 1, H, W], float in [0, 1] or uint8 -> [N, 96].

    For 32x32 input the children give normalize [N, 1, 32, 32], stem [N, 16, 16, 16], block1 the same,
    block2 [N, 32, 8, 8], block3 [N, 64, 4, 4], block4 [N, 96, 2, 2], pool [N, 96].

    Args:
        mean, std: of the pixels that it is trained on.

    Raises (when called):
        ValueError: images of another shape.
    """

    feature_dim = WIDTHS[-1]

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        children = OrderedDict(normalize=Normalize(mean, std))
        children["stem"] = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(1, WIDTHS[0], 5, 2, padding=2, bias=False),
                bn=nn.BatchNorm2d(WIDTHS[0]),
                relu=nn.ReLU(),
            )
        )
        children["block1"] = ResidualBlock(WIDTHS[0], WIDTHS[0], stride=1)
        children["block2"] = ResidualBlock(WIDTHS[0], WIDTHS[1], stride=2)
        children["block3"] = ResidualBlock(WIDTHS[1], WIDTHS[2], stride=2)
        children["block4"] = ResidualBlock(WIDTHS[2], WIDTHS[3], stride=2)
        children["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(children)
        self.to(memory_format=torch.channels_last)  # a third faster on a CPU than the default layout

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 1:
            raise ValueError(
                f"images must be [N, 1, H, W], not {list(images.shape)}; x.unsqueeze(1) adds a missing channel axis"
            )
        return super().forward(images)


def load_glyphnet(name: str) -> tuple[GlyphNet, nn.Linear, dict]:
    """A shipped body, the head of its source task and its card.

    Raises:
        ValueError: the file is damaged.
    """
    weights = ASSETS / f"{name}.safetensors"
    card = json.loads(weights.with_suffix(".json").read_text("utf-8"))
    digest = digest_of(weights)
    if digest != card["sha256"]:
        raise ValueError(
            f"{weights} is damaged: its sha256 is {digest[:12]}..., its card says {card['sha256'][:12]}...; "
            "install the package again (pip install --force-reinstall --no-deps tlhelpers)"
        )
    # Stored in half precision: half the size, the same accuracy (the card has both).
    state = {key: value.float() if value.is_floating_point() else value for key, value in load_file(weights).items()}
    body = GlyphNet(card["mean"], card["std"])
    head = nn.Linear(GlyphNet.feature_dim, len(card["classes"]))
    model = nn.Sequential(OrderedDict(body=body, head=head))
    model.load_state_dict(state)
    model.eval()
    return body, head, card
