"""Models: pretrained bodies by name, and the surgery that makes a model of a body."""

from tlhelpers.models.backbones import BACKBONES, Backbone, load_backbone
from tlhelpers.models.encoders import (
    TextBody,
    cut_body,
    load_hub_body,
    load_text_body,
    mean_pool,
)
from tlhelpers.models.glyphnet import SHIPPED, GlyphNet
from tlhelpers.models.normalize import Normalize
from tlhelpers.models.photo_nets import CUTS, PhotoBody, cut_off, photo_weights
from tlhelpers.models.surgery import (
    attach_head,
    freeze,
    interpolate_weights,
    param_groups,
    train_mode,
    trainable_summary,
    unfreeze,
)
