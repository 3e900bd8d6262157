"""The ways to use a pretrained body that the course compares, each as one function that makes one run.

All end in `train_small`, the recipe behind every small training run of the course.
"""

import torch
from torch import nn

from tlhelpers.analysis import extract_features, fit_probe
from tlhelpers.data import DIGIT_PLACEMENT, TARGET_JITTER, Examples, Jitter, make_loaders
from tlhelpers.models import Backbone, GlyphNet, attach_head, freeze, param_groups
from tlhelpers.objectives import classification, l2_sp
from tlhelpers.runtime import seed_everything
from tlhelpers.training import fit, warmup_cosine

STAGES = ("stem", "block1", "block2", "block3", "block4")  # the parts of GlyphNet that have parameters
# Augmentations to choose from: gentle, stronger, and one that also moves the digit about.
JITTERS = {
    "bend": TARGET_JITTER,
    "strong": Jitter(degrees=15, scale=(0.7, 1.2), shear=0.3, bend=0.1),
    "place": DIGIT_PLACEMENT,
}
PRINT_MEAN = 0.1569  # of printed characters' pixels, as measured once
PRINT_STD = 0.26


def train_small(
    model: nn.Sequential,
    train: Examples,
    *,
    groups: list[dict],
    seed: int,
    steps: int,
    jitter: Jitter = TARGET_JITTER,
    alpha: float = 0.0,
) -> nn.Sequential:
    """AdamW, warm-up and cosine, batches of 32.

    Args:
        model: with children `body` and `head`; trained in place.
        groups: of parameters, from `param_groups`.
        alpha: strength of L2-SP, which takes the place of weight decay; none when 0.
    """
    loaders = make_loaders(train, batch_size=32, steps=steps, augment=jitter, seed=seed)
    objective = l2_sp(classification(), model.body, alpha=alpha) if alpha else classification()
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0 if alpha else 0.02)
    fit(model, loaders, objective, optimizer, epochs=1, schedule=warmup_cosine(), clip_norm=1.0)
    return model


def from_scratch(
    train: Examples,
    *,
    seed: int,
    steps: int = 400,
    lr: float = 3e-3,
    jitter: str = "bend",
    mean: float = PRINT_MEAN,
    std: float = PRINT_STD,
) -> nn.Sequential:
    """The same network from random weights.

    Args:
        jitter: name of an augmentation in `JITTERS`.
        mean, std: with which its inputs are normalised; those of the pretrained bodies when left out.
    """
    seed_everything(seed)
    model = attach_head(GlyphNet(mean, std), len(train.classes))
    groups = param_groups(model.body, model.head, lr=lr, body_scale=1.0)
    return train_small(model, train, groups=groups, seed=seed, steps=steps, jitter=JITTERS[jitter])


def fine_tuned(
    backbone: Backbone,
    train: Examples,
    *,
    seed: int,
    frozen: int = 0,
    lr: float = 1e-2,
    body_scale: float = 0.1,
    layer_decay: float = 1.0,
    alpha: float = 0.0,
    steps: int = 60,
    jitter: str = "bend",
) -> nn.Sequential:
    """Pretrained body and new random head, trained together; the body at `lr * body_scale`.

    Args:
        frozen: number of stages, counted from the input, that stay as they were.
        layer_decay: see `models.param_groups`.
        alpha: strength of L2-SP, which takes the place of weight decay; none when 0.
        jitter: name of an augmentation in `JITTERS`.
    """
    seed_everything(seed)
    model = attach_head(backbone, len(train.classes))
    for name in STAGES[:frozen]:
        freeze(model.body.get_submodule(name))
    groups = param_groups(model.body, model.head, lr=lr, body_scale=body_scale, layer_decay=layer_decay)
    return train_small(model, train, groups=groups, seed=seed, steps=steps, jitter=JITTERS[jitter], alpha=alpha)


def probed_then_tuned(
    backbone: Backbone,
    train: Examples,
    *,
    seed: int,
    steps: int = 60,
    lr: float = 1e-3,
    body_scale: float = 1.0,
    jitter: str = "bend",
) -> nn.Sequential:
    """LP-FT: the head starts as the linear probe (Kumar et al. 2022, arXiv:2202.10054).

    Args:
        jitter: name of an augmentation in `JITTERS`.
    """
    seed_everything(seed)
    probe = fit_probe(extract_features(backbone, train))
    model = attach_head(backbone, probe.as_layer())
    groups = param_groups(model.body, model.head, lr=lr, body_scale=body_scale)
    return train_small(model, train, groups=groups, seed=seed, steps=steps, jitter=JITTERS[jitter])
