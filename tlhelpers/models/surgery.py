"""Edit a model before training: a new head, frozen parts, learning rates per part, mixed weights.

A model of this course is `nn.Sequential` with two named children: `body` (pretrained) and `head` (new).
"""

import copy
import operator
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def attach_head(body: nn.Module, head: int | nn.Module, *, frozen: nn.Module | None = None) -> nn.Sequential:
    """A new model `head(body(x))`; the body that is given is left as it is.

    Args:
        body: a `backbones.Backbone`, or a module with a `feature_dim`, D of its output [N, D].
        head: the number of classes for a fresh linear layer, or a module that takes
            `[N, feature_dim]`.  A module is used as it is, not copied.
        frozen: the body or a part of it that will not be trained.  The new model's parameters there are
            frozen and share the memory of the old ones, which saves a copy of large ones.

    Returns:
        A model with children `body` (a deep copy, so several models can start from one body)
        and `head`.

    Raises:
        ValueError: fewer than two classes, a head whose first layer is linear and takes other than `feature_dim`
            features, a body without a `feature_dim`, or a frozen part of another model.
        TypeError: a head that is neither a whole number nor a module.
    """
    module = body if isinstance(body, nn.Module) else body.module
    if not hasattr(body, "feature_dim"):
        raise ValueError(
            f"the {type(body).__name__} has no feature_dim; set it to D of the output [N, D], or give "
            "Backbone(module, feature_dim)"
        )
    if frozen is not None and all(frozen is not part for part in module.modules()):
        raise ValueError(f"the frozen {type(frozen).__name__} is no part of this body; give one of its modules")
    if not isinstance(head, nn.Module):
        classes = operator.index(head)  # NumPy has whole numbers of its own
        if classes < 2:
            raise ValueError(f"a classifier needs at least 2 classes, not {classes}")
        head = nn.Linear(body.feature_dim, classes)
    first = next(head.children(), None) if isinstance(head, nn.Sequential) else head
    if isinstance(first, nn.Linear) and first.in_features != body.feature_dim:
        raise ValueError(
            f"the head takes {first.in_features} features but the body gives {body.feature_dim}; "
            f"build it with nn.Linear({body.feature_dim}, ...)"
        )
    shared = {} if frozen is None else {id(p): nn.Parameter(p.detach(), False) for p in frozen.parameters()}
    return nn.Sequential(OrderedDict(body=copy.deepcopy(module, shared), head=head))


def _stay_in_eval(module: nn.Module, inputs: tuple) -> None:
    """Forward pre-hook of every frozen module: undoes any `.train()` called since."""
    module.training = False


def is_held(part: nn.Module) -> bool:
    """Does `freeze` keep this module, whatever is in it, in eval mode?"""
    return _stay_in_eval in part._forward_pre_hooks.values()


def hold(part: nn.Module, held: bool) -> None:
    """Let a module, but nothing in it, return to eval mode whenever it runs, or no longer."""
    if held and not is_held(part):
        part.register_forward_pre_hook(_stay_in_eval)
    if not held:
        for key in [key for key, hook in part._forward_pre_hooks.items() if hook is _stay_in_eval]:
            del part._forward_pre_hooks[key]
    part.training = not held


def freeze(module: nn.Module) -> None:
    """Stop a module from changing: no gradients, and no BatchNorm or dropout updates either.

    `requires_grad = False` alone is not enough: BatchNorm in training mode overwrites its running
    statistics on every forward pass.  So each submodule also returns to eval mode whenever it runs,
    whatever `.train()` was called in between, until `unfreeze`.
    """
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None  # an optimizer with momentum moves a parameter that still has a gradient
    for part in module.modules():
        hold(part, True)


def unfreeze(module: nn.Module) -> None:
    """Let a module and everything in it be trained: also what was not, or was in eval mode, before `freeze`."""
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    for part in module.modules():
        hold(part, False)


def train_mode(model: nn.Module) -> None:
    """`model.train()`, except for parts that have parameters of which none is trainable.

    Those stay in eval mode, so that a part frozen by hand (`requires_grad = False`) keeps its
    BatchNorm statistics too.
    """
    model.train()
    for part in model.modules():
        parameters = list(part.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            part.eval()


def param_groups(
    body: nn.Module, head: nn.Module, *, lr: float, body_scale: float = 0.1, layer_decay: float = 1.0
) -> list[dict]:
    """Discriminative learning rates: the head learns at `lr`, the body slower, its first layers slowest.

    The child of `body` that is k places before the last one gets `lr * body_scale * layer_decay**k`
    (Howard & Ruder 2018, ULMFiT, arXiv:1801.06146, with layer_decay = 1/2.6).  A body that only wraps
    another is looked into, and a list of layers counts as its layers: a ResNet has its stages, MiniLM its
    embeddings and six layers.

    Args:
        lr: learning rate of the head.
        body_scale: factor for the last child of the body, in (0, 1] as a rule.
        layer_decay: further factor per child towards the input.

    Returns:
        Groups for any torch optimizer, with a "name" each; frozen parameters are left out.  A parameter of
        several parts (tied weights) is in the group of the first.

    Raises:
        ValueError: nothing is trainable, or a factor is not positive.
    """
    if lr <= 0 or body_scale <= 0 or layer_decay <= 0:
        raise ValueError(f"lr={lr}, body_scale={body_scale}, layer_decay={layer_decay} must all be positive")
    stages = _stages("body", body)
    rates = [lr * body_scale * layer_decay**k for k in reversed(range(len(stages)))]
    groups = []
    seen = set()
    for (name, parameters), rate in zip([*stages, ("head", head.parameters())], [*rates, lr], strict=True):
        trainable = [p for p in parameters if p.requires_grad and p not in seen]
        seen.update(trainable)
        if trainable:
            groups.append({"name": name, "params": trainable, "lr": rate})
    if not groups:
        raise ValueError("every parameter is frozen; unfreeze the head or some of the body first")
    return groups


def _stages(name: str, module: nn.Module) -> list[tuple[str, list[nn.Parameter]]]:
    """What learns at a rate of its own, by name, from the input to the output."""
    # Parameters outside every child (the class token of a vision transformer) sit at the input.
    own = list(module.parameters(recurse=False))
    # A child without parameters (normalisation, pooling) takes no place in the count.
    children = {f"{name}.{key}": child for key, child in module.named_children() if list(child.parameters())}
    only_wraps = len(children) == 1 and not own
    stages = [(name, own)] if own else []
    for child_name, child in children.items():
        if only_wraps or _is_list(child):
            stages += _stages(child_name, child)
        else:
            stages.append((child_name, list(child.parameters())))
    return stages


def _is_list(module: nn.Module) -> bool:
    """Is this a list of layers, or a module around one?"""
    return isinstance(module, nn.ModuleList) or [type(child) for child in module.children()] == [nn.ModuleList]


@dataclass(frozen=True)
class TrainableSummary:
    """Numbers of parameters: in all, trainable, and (trainable, in all) per child."""

    trainable: int
    total: int
    parts: dict[str, tuple[int, int]]

    def __str__(self) -> str:
        rows = [f"{name:<12} {free:>12,} of {size:>12,} trainable" for name, (free, size) in self.parts.items()]
        return "\n".join([*rows, f"{'in all':<12} {self.trainable:>12,} of {self.total:>12,} trainable"])


def trainable_summary(model: nn.Module) -> TrainableSummary:
    """Count parameters per child (grandchildren for a child called `body`), and those outside every child."""
    parts = {"outside": list(model.parameters(recurse=False))}
    for name, child in model.named_children():
        if name == "body":
            parts[name] = list(child.parameters(recurse=False))
            parts |= {f"{name}.{inner}": list(part.parameters()) for inner, part in child.named_children()}
        else:
            parts[name] = list(child.parameters())
    counts = {name: _count(parameters) for name, parameters in parts.items() if parameters}
    return TrainableSummary(*_count(model.parameters()), counts)


def _count(parameters: Iterable[nn.Parameter]) -> tuple[int, int]:
    """Numbers in them: of trainable ones, and in all."""
    sizes = [(p.numel(), p.requires_grad) for p in parameters]
    return sum(size for size, free in sizes if free), sum(size for size, _ in sizes)


def interpolate_weights(a: dict[str, Tensor], b: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """`(1 - alpha) * a + alpha * b` for two state dicts (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903).

    Integer buffers (BatchNorm's `num_batches_tracked`) are counts, which have no mean: taken from `b`.

    Raises:
        ValueError: the state dicts differ in names or shapes.
    """
    different = sorted(set(a) ^ set(b)) or [name for name in a if a[name].shape != b[name].shape]
    if different:
        raise ValueError(f"the two models differ in {different[:3]}; interpolate models of one architecture")
    return {name: torch.lerp(a[name], b[name], alpha) if a[name].is_floating_point() else b[name].clone() for name in a}
