"""Pretrained bodies by name: the part of a network that is carried from one task to the next.

The shipped ones are `GlyphNet`, a small residual network (He et al. 2016, arXiv:1512.03385) made by
`tlhelpers/experiments/pretraining.py`; each has a card, a JSON file beside the weights.  Those for photographs
are torchvision's, downloaded at first use.
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

from tlhelpers.files import Remote, fetch
from tlhelpers.runtime import torch_home

ASSETS = Path(__file__).parent / "assets"
WIDTHS = (16, 32, 64, 96)  # channels of the four blocks; 0.2 M parameters in all


@dataclass(frozen=True)
class Normalize:
    """`(x - mean) / std` with one mean and one standard deviation for all pixels.

    Raises (when called):
        TypeError: images that are true or false.
    """

    mean: float
    std: float

    def __call__(self, images: Tensor) -> Tensor:
        if images.dtype is torch.bool:
            raise TypeError(f"images {images.dtype} {list(images.shape)} must be numbers; images.float() makes them so")
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


@dataclass(frozen=True)
class Cut:
    """How a torchvision network becomes a body.

    Attributes:
        network: its name in torchvision.
        instead: what takes the place of which child, by name.  The first one is the classifier.
        feature_dim: D of what comes out then.
    """

    network: str
    instead: dict[str, Callable[[], nn.Module]]
    feature_dim: int


def _pool() -> nn.Module:
    return nn.AdaptiveAvgPool2d(1)  # the networks flatten what follows themselves


# Cut by name: `children()` would lose what a network does between its children in `forward`.
CUTS = {
    "resnet18": Cut("resnet18", {"fc": nn.Identity}, 512),
    "resnet50": Cut("resnet50", {"fc": nn.Identity}, 2048),
    "densenet121": Cut("densenet121", {"classifier": nn.Identity}, 1024),
    "inception_v3": Cut("inception_v3", {"fc": nn.Identity}, 2048),
    "mobilenet_v3_small": Cut("mobilenet_v3_small", {"classifier": nn.Identity}, 576),
    "squeezenet1_0": Cut("squeezenet1_0", {"classifier": _pool}, 512),
    "vgg16": Cut("vgg16", {"classifier": nn.Identity, "avgpool": _pool}, 512),
    "vgg16-flat": Cut("vgg16", {"classifier": nn.Identity}, 25_088),  # 512 x 7 x 7, as VGG's own head sees it
    "vit_b_16": Cut("vit_b_16", {"heads": nn.Identity}, 768),
}


def cut_off(net: nn.Module, cut: Cut) -> nn.Module | None:
    """Turn a network into a body, in place; returns its classifier if that takes what the body gives."""
    head = getattr(net, next(iter(cut.instead)))
    for child, module in cut.instead.items():
        setattr(net, child, module())
    if cut.network == "inception_v3":
        net.aux_logits, net.AuxLogits = False, None  # in training it would return two outputs
    return head if list(cut.instead.values()) == [nn.Identity] else None


def photo_weights(name: str) -> tuple[object, Remote]:
    """torchvision's default weights for a body of `CUTS`, and the file that holds them.

    Raises:
        ValueError: no such body.
    """
    from torchvision.models import get_model_weights

    if name not in CUTS:
        raise ValueError(f"no body for photographs called {name[:80]!r}; choose one of {', '.join(CUTS)}")
    weights = get_model_weights(CUTS[name].network).DEFAULT
    file = weights.url.rsplit("/", 1)[-1]
    digest = file.rsplit("-", 1)[-1].split(".")[0]  # torch's convention: NAME-SHA256.pth
    licence = "BSD-3-Clause (torchvision), trained on ImageNet-1k (images for non-commercial research)"
    return weights, Remote(weights.url, f"sha256:{digest}", licence=licence)


def _tensors(path: Path) -> dict[str, Tensor]:
    """What torch saved at `path`, if it is tensors and not code.

    Raises:
        OSError: it is damaged, or it asks for code to be run.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch each have their own
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(f"{path} cannot be used as weights ({why}); remove it, so that it is fetched again") from error


def _load_photo_net(name: str, image_size: int | None) -> Backbone:
    from torchvision.models import get_model

    cut, (weights, remote) = CUTS[name], photo_weights(name)
    path = torch_home() / "hub" / "checkpoints" / remote.name
    if not path.exists():
        print(f"{name}: {weights.meta['_file_size']:.0f} MB from {remote.url}; {remote.licence}")
    state = _tensors(fetch(remote, path))
    own = {"transform_input": True, "init_weights": False} if cut.network == "inception_v3" else {}
    net = get_model(cut.network, weights=None, **own)
    try:
        net.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise OSError(f"{path} does not hold the weights of {cut.network} ({error}); remove it") from error
    head = cut_off(net, cut)
    sizes = {"crop_size": image_size, "resize_size": image_size} if image_size else {}
    card = {"name": name, "weights": str(weights), "file": str(path), "licence": remote.licence, "url": remote.url}
    return Backbone(
        name, net.eval(), cut.feature_dim, weights.transforms(**sizes), head, tuple(weights.meta["categories"]), card
    )


SHIPPED = ("glyphs-all", "glyphs-letters", "glyphs-random")
TEXT_BODIES = ("minilm", "minilm-random")
BACKBONES = (*SHIPPED, *CUTS, *TEXT_BODIES)


def _load_text_body(name: str) -> Backbone:
    from tlhelpers.models.encoders import CARRIER, SHA256, load_hub_body, load_text_body, load_tokens

    if name.startswith("hub:"):
        body, tokens = load_hub_body(name.removeprefix("hub:"))
        return Backbone(name, body, body.feature_dim, tokens, None, (), {"name": name, "licence": "see its model card"})
    body = load_text_body(pretrained=name == "minilm")
    card = {"name": name, "package": CARRIER, "sha256": SHA256, "licence": "Apache-2.0", "model": "all-MiniLM-L6-v2"}
    if name != "minilm":
        card = {"name": name, "data": "none: random weights, by torch's seed", "model": "the network of minilm"}
    return Backbone(name, body, body.feature_dim, load_tokens(), None, (), card)


def load_backbone(name: str, *, image_size: int | None = None) -> Backbone:
    """A pretrained body by name.

    Args:
        name: "glyphs-all" was pretrained on all 47 printed characters, "glyphs-letters" on the 22
            letters that no one takes for a digit, "glyphs-random" on nothing (the control).  The rest
            are ImageNet bodies of torchvision, for images [N, 3, H, W] in [0, 1]; their size and
            licence are printed before a download starts.  "minilm" is the sentence encoder
            all-MiniLM-L6-v2, for token ids [N, L] that its transform makes of texts; "minilm-random"
            is the same network from random weights; "hub:NAME" is any encoder of the Hugging Face
            hub, such as "hub:google-bert/bert-base-uncased" (440 MB).
        image_size: for those, the side to which images are brought; the one that the weights were
            trained with when None.  Smaller is faster and less accurate.

    Raises:
        ValueError: no such body (the message names the nearest), a damaged shipped file, or an image
            size for a shipped body.
        OSError: weights that are not there and cannot be downloaded.
    """
    if name not in BACKBONES and not name.startswith("hub:"):
        near = difflib.get_close_matches(name, BACKBONES, n=3, cutoff=0.4) or list(BACKBONES)
        raise ValueError(f"no backbone called {name!r}; did you mean {' or '.join(map(repr, near))}?")
    if name in CUTS:
        return _load_photo_net(name, image_size)
    if image_size is not None:
        raise ValueError(f"{name} takes its inputs as they are; leave out image_size={image_size}")
    return _load_glyph_net(name) if name in SHIPPED else _load_text_body(name)
