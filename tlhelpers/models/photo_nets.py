"""Bodies for photographs: torchvision's ImageNet networks without their classifiers, downloaded at first use."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tlhelpers.files import Remote, fetch
from tlhelpers.models.normalize import PreparePhotos
from tlhelpers.runtime import torch_home


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


class PhotoBody(nn.Sequential):
    """A network without its classifier: photographs [N, 3, H, W], float in [0, 1] or uint8 -> [N, feature_dim].

    Its children are `normalize`, which prepares the photographs, and `network`.
    """

    def __init__(self, normalize: nn.Module, network: nn.Module, feature_dim: int) -> None:
        super().__init__(OrderedDict(normalize=normalize, network=network))
        self.feature_dim = feature_dim


def load_photo_body(name: str, image_size: int | None) -> tuple[PhotoBody, nn.Module | None, dict]:
    """A body of `CUTS` in eval mode, its classifier (None if that takes something else) and its card.

    Raises:
        ValueError: an image size that the network does not take.
        OSError: weights that are not there and cannot be downloaded, or that are damaged.
    """
    from torchvision.models import get_model

    cut = CUTS[name]
    weights, remote = photo_weights(name)
    trained_with = weights.transforms().crop_size[0]
    if cut.network == "vit_b_16" and image_size not in (None, trained_with):
        raise ValueError(f"{name} has one size of image, {trained_with} pixels; leave out {image_size=}")
    path = torch_home() / "hub" / "checkpoints" / remote.name
    if not path.exists():
        print(f"{name}: {weights.meta['_file_size']:.0f} MB from {remote.url}; {remote.licence}")
    state = _tensors(fetch(remote, path))
    options = {"transform_input": True, "init_weights": False} if cut.network == "inception_v3" else {}
    network = get_model(cut.network, weights=None, **options)
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise OSError(f"{path} does not hold the weights of {cut.network} ({error}); remove it") from error
    head = cut_off(network, cut)
    sizes = {"crop_size": image_size, "resize_size": image_size} if image_size else {}
    body = PhotoBody(PreparePhotos(weights.transforms(**sizes)), network, cut.feature_dim)
    card = {
        "name": name,
        "weights": str(weights),
        "file": str(path),
        "licence": remote.licence,
        "url": remote.url,
        "classes": weights.meta["categories"],
    }
    return body.eval(), head, card
