"""Pretrained bodies by name: the part of a network that is carried from one task to the next."""

import difflib
from dataclasses import dataclass, field

from torch import nn

from tlhelpers.data.tokens import CARRIER, SHA256, Tokens, load_tokens
from tlhelpers.models.encoders import load_hub_body, load_text_body
from tlhelpers.models.glyphnet import SHIPPED, load_glyphnet
from tlhelpers.models.photo_nets import CUTS, load_photo_body

TEXT_BODIES = ("minilm", "minilm-random")
BACKBONES = (*SHIPPED, *CUTS, *TEXT_BODIES)


@dataclass(frozen=True)
class Backbone:
    """A pretrained body, and what is known about it.

    Attributes:
        module: the body, in eval mode, float32, on the CPU; a fresh copy at every load.  It takes what a data
            set gives, because its first child normalises (images) or because ids need no preparation (texts).
        feature_dim: D of its output [N, D].
        name: key of `BACKBONES`.
        head: the classifier of its source task, [N, D] -> [N, len(classes)]; None if there is none.
        classes: the classes of the source task.
        card: how it was made: data, recipe, seeds, sha256, accuracy, licence.
        tokens: what makes token ids of texts; None for images.
    """

    module: nn.Module
    feature_dim: int
    name: str = "custom"
    head: nn.Module | None = None
    classes: tuple[str, ...] = ()
    card: dict = field(default_factory=dict)
    tokens: Tokens | None = None


def load_backbone(name: str, *, image_size: int | None = None) -> Backbone:
    """A pretrained body by name.

    Args:
        name: "glyphs-all" was pretrained on all 47 printed characters, "glyphs-letters" on the 22
            letters that no one takes for a digit, "glyphs-random" on nothing (the control).  The rest
            are ImageNet bodies of torchvision, for images [N, 3, H, W] in [0, 1]; their size and
            licence are printed before a download starts.  "minilm" is the sentence encoder
            all-MiniLM-L6-v2, for token ids [N, L] that its `tokens` make of texts; "minilm-random"
            is the same network from random weights; "hub:NAME" is any encoder of the Hugging Face
            hub, such as "hub:google-bert/bert-base-uncased" (440 MB).
        image_size: for those, the side to which images are brought; the one that the weights were
            trained with when None.  Smaller is faster and less accurate; "vit_b_16" takes its own only.

    Raises:
        ValueError: no such body (the message names the nearest), a damaged file of a package, an image size for
            a body that takes its inputs as they are, or one that the network does not take.
        OSError: weights that are not there and cannot be downloaded, or that are damaged.
        ModuleNotFoundError: the package that carries MiniLM is not installed.
    """
    if name not in BACKBONES and not name.startswith("hub:"):
        near = difflib.get_close_matches(name, BACKBONES, n=3, cutoff=0.4) or list(BACKBONES)
        raise ValueError(f"no backbone called {name!r}; did you mean {' or '.join(map(repr, near))}?")
    if name in CUTS:
        body, head, card = load_photo_body(name, image_size)
        return Backbone(body, body.feature_dim, name, head, tuple(card["classes"]), card)
    if image_size is not None:
        raise ValueError(f"{name} takes its inputs as they are; leave out image_size={image_size}")
    if name in SHIPPED:
        body, head, card = load_glyphnet(name)
        return Backbone(body, body.feature_dim, name, head, tuple(card["classes"]), card)
    if name.startswith("hub:"):
        body, tokens = load_hub_body(name.removeprefix("hub:"))
        return Backbone(body, body.feature_dim, name, card={"licence": "see its model card"}, tokens=tokens)
    body = load_text_body(pretrained=name == "minilm")
    if name == "minilm":
        card = {"package": CARRIER, "sha256": SHA256, "licence": "Apache-2.0", "model": "all-MiniLM-L6-v2"}
    else:
        card = {"data": "none: random weights, by torch's seed", "model": "the network of minilm"}
    return Backbone(body, body.feature_dim, name, card=card, tokens=load_tokens())
