"""The networks, data and hand-written loop that several benchmarks share."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F

from tlhelpers.data import Examples
from tlhelpers.experiments.distillation import tiny_cnn
from tlhelpers.models import GlyphNet, attach_head

__all__ = ["glyph_net", "hand_loop", "noise", "resnet18", "tiny_cnn"]


def glyph_net() -> nn.Module:
    """The body of the course with a new head, [N, 1, 32, 32] -> [N, 10], 0.2 M parameters."""
    return attach_head(GlyphNet(), 10)


def resnet18() -> nn.Module:
    """torchvision's ResNet-18 from random weights, [N, 3, H, W] -> [N, 10]."""
    from torchvision.models import resnet18

    return resnet18(num_classes=10)


def noise(n: int, *shape: int) -> Examples:
    """Uniform noise [n, *shape] with ten labels in turn: for timings that no accuracy belongs to."""
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))
    return Examples("noise", x, torch.arange(n) % 10, tuple("0123456789"), torch.arange(n))


def hand_loop(model: nn.Module, loader: Iterable, optimizer: torch.optim.Optimizer, epochs: int = 1) -> None:
    """The shortest loop that trains: nothing is checked, logged or kept."""
    model.train()
    for _ in range(epochs):
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
