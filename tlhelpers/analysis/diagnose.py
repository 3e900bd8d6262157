"""Checks that find silent mistakes in a training program; each is a pure function of what it is given.

None of them changes the model, its training flags or the random numbers that come after it: what must
run in training mode runs on a copy.  The bug clinic shows for each the mistakes that it catches.
"""

import copy
import math
from collections.abc import Callable
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = tuple[Tensor, Tensor]


def first_loss(model: nn.Module, batch: Batch, *, classes: int) -> tuple[float, float]:
    """Cross-entropy before any training, and ln(classes), what a fresh head of the right size gives.

    A first loss near the logarithm of a larger number says that the head has that many outputs; one far
    above says that the inputs or the head are on a wrong scale.

    Args:
        batch: inputs [N, ...] and labels int64 [N].

    Raises:
        ValueError: fewer than two classes, labels that do not fit them, or a head with fewer outputs than classes.
    """
    x, y = batch
    if classes < 2:
        raise ValueError(f"classes is {classes}; a classifier needs at least 2")
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise ValueError(f"labels run from {int(y.min())} to {int(y.max())}, outside 0..{classes - 1}; renumber them")
    with torch.inference_mode():
        logits = copy.deepcopy(model).eval()(x).float()
    if logits.ndim != 2 or logits.shape[1] < classes:
        raise ValueError(
            f"the model gives {list(logits.shape)} for {classes} classes; its head needs one output for each"
        )
    return float(F.cross_entropy(logits, y)), math.log(classes)


def batch_dependence(model: nn.Module, x: Tensor, *, parts: int = 2) -> float:
    """How much an example's output depends on its neighbours: 0 if a batch can be cut anywhere.

    The largest difference between the outputs of the whole batch x [N, ...] and of the same examples
    in `parts` batches, divided by the mean size of the outputs.  In eval mode rounding is left, about
    1e-6.  BatchNorm in training mode gives something of the order of 1, and so does active dropout.
    The model runs in the mode that it is in.

    Raises:
        ValueError: fewer than two parts, or fewer than two examples for each.
    """
    if parts < 2 or len(x) < 2 * parts:
        raise ValueError(f"{len(x)} examples cannot be cut into {parts} batches of 2 or more; give more examples")
    with _random_numbers_kept(), torch.inference_mode():
        whole = copy.deepcopy(model)(x)
        cut = torch.cat([copy.deepcopy(model)(part) for part in x.tensor_split(parts)])
    return float((whole - cut).abs().max() / whole.abs().mean().clamp(min=1e-12))


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers on the CPU, also of the buffers that no state dict has."""
    every_name = {"remove_duplicate": False}
    named = chain(model.named_parameters(**every_name), model.named_buffers(**every_name))
    return {name: tensor.detach().cpu().clone() for name, tensor in named}


def changed_tensors(before: dict[str, Tensor], model: nn.Module) -> list[str]:
    """Names of the parameters and buffers that are not bit-equal to a snapshot (so NaN equals itself).

    Raises:
        ValueError: the model has other tensors, or other shapes, than the snapshot.
    """
    after = snapshot(model)
    different = sorted(set(before) ^ set(after)) or [n for n in after if after[n].shape != before[n].shape]
    if different:
        raise ValueError(f"snapshot and model differ in {different[:3]}; compare a model with itself")
    return [name for name, tensor in after.items() if not torch.equal(_bits(tensor), _bits(before[name]))]


def _bits(tensor: Tensor) -> Tensor:
    return tensor.flatten().view(torch.uint8)


def not_in_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of trainable parameters that the optimizer does not hold, such as a head attached after it was made.

    Raises:
        ValueError: no parameter of the model is trainable at all.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("no parameter is trainable, so nothing can learn; unfreeze the head or part of the body")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [name for name, p in trainable if id(p) not in held]


def missing_gradients(model: nn.Module, loss: Tensor) -> list[str]:
    """Names of trainable parameters that a loss gives no gradient, or one of zeros only.

    Nothing is written to `.grad`, and the graph stays usable.

    Raises:
        ValueError: the loss is not a scalar that carries a gradient, or no parameter is trainable.
    """
    if loss.numel() != 1 or not loss.requires_grad:
        raise ValueError("the loss carries no gradient (or is no scalar): was it detached, or made under no_grad?")
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("no parameter is trainable, so none can have a gradient; unfreeze something first")
    gradients = torch.autograd.grad(loss, [p for _, p in named], retain_graph=True, allow_unused=True)
    return [name for (name, _), g in zip(named, gradients, strict=True) if g is None or not g.any()]


def saved_graph_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that a forward pass keeps for a backward pass: 0 under `no_grad` or `inference_mode`.

    The model's own parameters are not counted, and no storage is counted twice.  Call it where you
    call the model: the `no_grad` around it counts.
    """
    model = copy.deepcopy(model)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            kept[place] = tensor  # held, so that its place is not given to another tensor
        return tensor

    with _random_numbers_kept(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(x)
    del output
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def input_shift(x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Per channel, how inputs lie to those that the model was made for: shift [C] and scale [C].

    The shift is the difference of the means in standard deviations of `reference`, the scale the ratio
    of the standard deviations; right inputs have about 0 and about 1.

    Args:
        x, reference: [N, C, ...], the inputs as the model gets them and as it was trained on.

    Raises:
        ValueError: other numbers of channels, no value in `x`, or a constant channel in `reference`.
    """
    if x.ndim < 2 or reference.ndim < 2 or x.shape[1] != reference.shape[1] or x.numel() == 0:
        shapes = f"{list(x.shape)} and {list(reference.shape)}"
        raise ValueError(f"inputs {shapes} must be [N, C, ...] with the same C, and not empty")
    mine, theirs = (t.double().transpose(0, 1).flatten(1) for t in (x, reference))
    spread = theirs.std(dim=1)
    if not (spread > 0).all():
        raise ValueError("a channel of the reference is constant; give real inputs, more than one")
    return (mine.mean(dim=1) - theirs.mean(dim=1)) / spread, mine.std(dim=1) / spread


def can_overfit(model: nn.Module, batch: Batch, objective: Callable, *, steps: int = 60, lr: float = 1e-2) -> float:
    """Loss of a copy of the model after `steps` steps of Adam on a single batch, relative to its first loss.

    Near 0 for a program that can learn.  Near 1 means that nothing learns: frozen, cut off, or a rate
    far too small.  Only what is trainable is trained.

    Args:
        objective: `(model, batch) -> {"loss": scalar, ...}`.

    Raises:
        ValueError: no step, or nothing is trainable.
    """
    clone = copy.deepcopy(model)
    trainable = [p for p in clone.parameters() if p.requires_grad]
    if steps < 1 or not trainable:
        raise ValueError(f"steps={steps} and {len(trainable)} trainable tensors: give at least one of each")
    optimizer = torch.optim.Adam(trainable, lr=lr)
    losses = []
    with _random_numbers_kept():
        for _ in range(steps + 1):
            losses.append(objective(clone, batch)["loss"])
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
    return float(losses[-1].detach()) / float(losses[0].detach())


@contextmanager
def _random_numbers_kept():
    """Dropout inside draws random numbers; put the generators back afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield
