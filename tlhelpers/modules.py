"""What several rooms do with a network that is not theirs: listen to a layer, and put its modes back."""

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def modes_kept(*modules: nn.Module) -> Iterator[None]:
    """Afterwards each part of the modules is in training or eval mode as it was before, whatever happened."""
    flags = [(part, part.training) for module in modules for part in module.modules()]
    try:
        yield
    finally:
        for part, training in flags:
            part.training = training


@contextmanager
def listening(module: nn.Module, layer: str, keep: Callable[[Tensor], Tensor] = torch.clone) -> Iterator[list[Tensor]]:
    """A list that fills with the outputs of a layer; the hook is gone afterwards, whatever happens.

    Args:
        layer: its name in `module.named_modules()`; the module itself is "".
        keep: what is kept of an output, in memory of its own: a layer in place that follows would change it.

    Raises:
        ValueError: no such layer; (when it runs) an output that is no tensor.
    """
    try:
        listened = module.get_submodule(layer)
    except AttributeError:
        near = difflib.get_close_matches(layer, dict(module.named_modules())) or dict(module.named_children())
        raise ValueError(f"no layer called {layer!r}; named_modules() has {', '.join(near)}, and others") from None
    caught: list[Tensor] = []

    def catch(part: nn.Module, _inputs: tuple, output: object) -> None:
        if not isinstance(output, Tensor):
            raise ValueError(
                f"layer {layer!r} ({type(part).__name__}) gives a {type(output).__name__}; take one that gives a tensor"
            )
        caught.append(keep(output))

    hook = listened.register_forward_hook(catch)
    try:
        yield caught
    finally:
        hook.remove()
