"""Small models and data that several test files share."""

from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from tlhelpers.data import Examples
from tlhelpers.models import Backbone, Normalize

CPU = torch.device("cpu")  # oracles that hold to the last bit are compared there


class Pair(NamedTuple):
    """A batch with names."""

    x: torch.Tensor
    y: torch.Tensor


def toy_model() -> nn.Sequential:
    """[N, 4] -> [N, 3], with BatchNorm and dropout in the body."""
    body = nn.Sequential(
        OrderedDict(
            first=nn.Linear(4, 8), norm=nn.BatchNorm1d(8), relu=nn.ReLU(), drop=nn.Dropout(0.3), last=nn.Linear(8, 6)
        )
    )
    return nn.Sequential(OrderedDict(body=body, head=nn.Linear(6, 3)))


def toy_examples(n: int = 24) -> Examples:
    """Points in four dimensions; the class is the largest of the first three coordinates."""
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(7))
    return Examples("toy/train", x, x[:, :3].argmax(1), ("a", "b", "c"), torch.arange(n))


def toy_backbone() -> Backbone:
    """Images [N, 1, H, W], float in [0, 1] or uint8 -> [N, 5]."""
    children = OrderedDict(normalize=Normalize(0.5, 2.0))
    children["conv"] = nn.Conv2d(1, 5, 3)
    children["norm"] = nn.BatchNorm2d(5)
    children["relu"] = nn.ReLU()
    children["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Backbone(nn.Sequential(children), 5, name="toy")


def toy_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """All 24 of `toy_examples` in one."""
    examples = toy_examples()
    return examples.x, examples.y


def slope(value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The gradient of a number with respect to x; the graph stays, for another one."""
    return torch.autograd.grad(value, x, retain_graph=True)[0]


def toy_images(n: int = 10) -> Examples:
    """Noise [n, 1, 8, 8] with labels 0, 1, 0, 1, ..."""
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(8))
    return Examples("toy/images", x, torch.arange(n) % 2, ("even", "odd"), torch.arange(n))


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all parameters and buffers, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}


def differing(before: dict[str, torch.Tensor], module: nn.Module) -> list[str]:
    """Names of the parameters and buffers that are no longer bit-equal to `before`."""
    return [name for name, tensor in weights_of(module).items() if not torch.equal(tensor, before[name])]


def save_tiny_bert(folder: Path) -> Path:
    """A BERT of one layer and seven words, saved as transformers saves it."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "book"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    BertModel(config).save_pretrained(folder)
    return folder
