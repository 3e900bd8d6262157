"""Run a frozen body once, and keep what comes out: in memory, in a cache on disk, or in a file larger than memory."""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from types import CodeType, FunctionType, MethodType

import numpy as np
import torch
from numpy.lib.format import open_memmap
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tlhelpers.data.examples import Examples, as_float
from tlhelpers.files import atomic
from tlhelpers.models.backbones import Backbone
from tlhelpers.modules import listening, modes_kept
from tlhelpers.runtime import cache_dir, pick_device
from tlhelpers.training.device import autocast, mixed_precision

Body = Backbone | nn.Module


@dataclass(frozen=True)
class Features:
    """Outputs of a body: x float32 [N, D] and labels y int64 [N], both on the CPU."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


def extract_features(
    body: Body,
    examples: Examples,
    *,
    layer: str | None = None,
    batch_size: int = 256,
    device: torch.device | None = None,
) -> Features:
    """Features of every example, in order, on the CPU; from the body in eval mode and without gradients.

    On a GPU the body runs in reduced precision, as it does under `fit`.  Afterwards it is where it was, and in
    the mode in which it was.

    Args:
        body: a `Backbone`, or any module that takes what the examples hold.
        layer: name of a submodule whose output is taken instead, averaged over positions if it is
            a feature map [N, D, H, W]; the body's own output when None.

    Raises:
        ValueError: no such submodule, one that does not run exactly once per pass, or an output that
            is neither [N, D] nor [N, D, H, W], such as the tuple of a recurrent layer.
    """
    with feature_function(body, layer=layer, device=device) as features_of:
        return Features(torch.cat([features_of(x) for x in examples.x.split(batch_size)]), examples.y)


@contextmanager
def feature_function(
    body: Body, *, layer: str | None = None, device: torch.device | None = None
) -> Iterator[Callable[[Tensor], Tensor]]:
    """What `extract_features` does to one batch: inputs [n, ...] to features float32 [n, D] on the CPU."""
    device = device or pick_device()
    module = _module(body)

    @torch.inference_mode()
    def features_of(x: Tensor) -> Tensor:
        caught.clear()
        with autocast(device):
            module(as_float(x.to(device)))
        if len(caught) != 1:
            raise ValueError(f"layer {layer!r} runs {len(caught)} times per pass; take one that runs once")
        return caught[0]

    with _visiting(module, device), listening(module, layer or "", keep=_kept) as caught:
        yield features_of


@contextmanager
def _visiting(module: nn.Module, device: torch.device) -> Iterator[None]:
    """The module on a device and in eval mode, and then as it was before."""
    tensors = [*module.parameters(), *module.buffers()]
    home = tensors[0].device if tensors else device
    with modes_kept(module):
        module.to(device).eval()
        try:
            yield
        finally:
            module.to(home)


def _module(body: Body) -> nn.Module:
    return body.module if isinstance(body, Backbone) else body


def _kept(output: Tensor) -> Tensor:
    """[N, D] or [N, D, H, W] as float32 [N, D] in memory of its own, on the CPU."""
    if output.ndim == 4:
        output = output.mean(dim=(2, 3))
    if output.ndim != 2:
        raise ValueError(f"the layer gives {list(output.shape)}; take one that gives [N, D] or [N, D, H, W]")
    return output.to("cpu", torch.float32, copy=True)


def cached_features(
    body: Body, examples: Examples, *, layer: str | None = None, folder: Path | None = None
) -> Features:
    """`extract_features`, kept on disk.  A file that is damaged is made anew, with a warning.

    A file is read again only for the same examples (name, indices, the inputs themselves, what was done to
    them), the same precision, and the same body: its parameters and buffers, and of every module in it the
    class with its methods, and the attributes (numbers, words, tensors, functions, lists and tables of such).
    Not looked at are forward hooks, other objects among the attributes, and what a method reads from outside
    its module, such as a global variable: after changing one of those, give another `folder`.

    Args:
        folder: where to keep the files; `runtime.cache_dir() / "features"` when None.

    A folder that cannot be written (read-only, full) costs a warning, which says how to choose another,
    and not the features.
    """
    folder = folder or cache_dir() / "features"
    path = folder / f"{feature_key(body, examples, layer)}.safetensors"
    if path.exists():
        try:
            return Features(read_tensor(path, rows=len(examples)), examples.y)
        except (OSError, SafetensorError, ValueError) as error:
            warnings.warn(f"{path} cannot be used ({error}); its features are computed again", stacklevel=2)
    features = extract_features(body, examples, layer=layer)
    try:
        write_tensor(path, features.x)
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"cannot keep features in {folder} ({getattr(error, 'strerror', None) or error}); they will be computed "
            "again next time: set TLHELPERS_CACHE to a folder with room that you can write to",
            stacklevel=2,
        )
    return features


def feature_key(body: Body, examples: Examples, layer: str | None) -> str:
    """sha256 (hex) over what the features depend on, as far as `cached_features` promises."""
    digest = hashlib.sha256()
    module = _module(body)
    name = body.name if isinstance(body, Backbone) else ""
    texts = (examples.name, examples.history, name, str(layer), str(_precision(pick_device())), *_settings(module))
    digest.update("\0".join(texts).encode())
    buffers = module.named_buffers(remove_duplicate=False)  # those that no state dict has, too
    of_body = [*module.named_parameters(remove_duplicate=False), *buffers]
    for key, tensor in [("rows", examples.indices), ("x", examples.x), *of_body]:
        digest.update(f"{key} {_described(tensor)}".encode())
    return digest.hexdigest()


def _precision(device: torch.device) -> torch.dtype | None:
    """The reduced type in which a body runs here: by `mixed_precision`, or by an autocast around the call."""
    if torch.is_autocast_enabled(device.type):
        return mixed_precision(device) or torch.get_autocast_dtype(device.type)
    return mixed_precision(device)


def _settings(module: nn.Module) -> Iterator[str]:
    """What decides over the output beside the tensors: the attributes of every part, and those of its classes."""
    of_every_module = vars(nn.Module())  # among them in which mode it is
    kinds = set()
    for name, part in module.named_modules():
        own = {key: value for key, value in sorted(vars(part).items()) if key not in of_every_module}
        yield f"{name}: {_described(type(part))} {_described(own)}"
        kinds |= {kind for kind in type(part).__mro__ if kind not in nn.Module.__mro__}
    for kind in sorted(kinds, key=_described):
        own = {key: value for key, value in sorted(vars(kind).items()) if not key.startswith("__")}
        yield f"{_described(kind)} {_described(own)}"


def _described(value: object, within: tuple = ()) -> str:
    """A setting in words that are the same in every process: a function by what it does, other objects by their type.

    Args:
        within: the values that this one is part of, for those that hold themselves.
    """
    parts: Iterable = ()
    if isinstance(value, str | bytes | int | float | complex | torch.dtype | torch.device | None):
        return repr(value)
    if any(value is outer for outer in within):
        return "itself"
    if isinstance(value, tuple | list):
        parts = value
    elif isinstance(value, set | frozenset):
        parts = sorted(value, key=_described)
    elif isinstance(value, dict):
        parts = chain.from_iterable(value.items())
    elif isinstance(value, Tensor):
        parts = (value.dtype, list(value.shape), _digest(value))
    elif isinstance(value, partial):
        parts = (value.func, value.args, value.keywords)
    elif isinstance(value, CodeType):
        parts = (value.co_code, value.co_names, value.co_consts)
    elif isinstance(value, FunctionType):
        parts = (value.__code__, value.__defaults__, value.__kwdefaults__, _closure(value))
    elif isinstance(value, MethodType | staticmethod | classmethod):
        parts = (value.__func__,)
    elif isinstance(value, property):
        parts = (value.fget,)
    kind = value if callable(value) and hasattr(value, "__qualname__") else type(value)
    inside = ", ".join(_described(part, (*within, value)) for part in parts)
    return f"{kind.__module__}.{kind.__qualname__}({inside})"


def _closure(function: FunctionType) -> list:
    """The values of the outer variables that a function uses."""
    return [cell.cell_contents for cell in function.__closure__ or ()]


def write_tensor(path: Path, x: Tensor) -> None:
    """Write a tensor of the CPU with its sha256, all or nothing.

    Raises:
        OSError, SafetensorError: it cannot be written; nothing is left behind.
    """
    with atomic(path) as temporary:
        save_file({"x": x}, temporary, {"sha256": _digest(x)})


def read_tensor(path: Path, *, rows: int) -> Tensor:
    """The tensor in a file of `write_tensor`.

    Raises:
        ValueError: it is not what was written, or not as long as `rows`.
        OSError, SafetensorError: the file cannot be read.
    """
    with safe_open(path, "pt") as file:
        x = file.get_tensor("x")
        written = (file.metadata() or {}).get("sha256")
    if _digest(x) != written or len(x) != rows:
        raise ValueError(f"it does not hold the {rows} rows that were written")
    return x


def _digest(x: Tensor) -> str:
    return hashlib.sha256(x.detach().cpu().flatten().view(torch.uint8).numpy()).hexdigest()  # NumPy has no bfloat16


def stream_features(
    body: Body,
    batches: Iterable[tuple[Tensor, Tensor]],
    path: Path,
    *,
    rows: int,
    layer: str | None = None,
    device: torch.device | None = None,
) -> Features:
    """`extract_features` for a loader instead of examples in memory; in memory is one batch at a time.

    The result is mapped: indexing it reads rows from the file.  To train on it without loading it, draw
    minibatches: `TensorLoader` does on a CPU, `DataLoader(TensorDataset(features.x, features.y))` for a GPU.

    Args:
        batches: inputs [n, ...] as `Examples` hold them, and labels int64 [n].
        path: the NumPy file (.npy) to write, float32 [rows, D]; the labels go beside it, to NAME.labels.npy.
            Both appear when they are complete, and replace older ones.
        rows: examples in all, such as `len(loader.dataset)`.
        layer: as for `extract_features`.

    Raises:
        ValueError: the batches do not add up to `rows`, or one has more or fewer labels than inputs; then nothing
            is left behind.
    """
    with ExitStack() as stack:
        features_file = stack.enter_context(atomic(path))  # the last to take its name
        labels_file = stack.enter_context(atomic(_labels_beside(path)))
        features_of = stack.enter_context(feature_function(body, layer=layer, device=device))
        labels = open_memmap(labels_file, "w+", np.int64, (rows,))
        features = None
        seen = 0
        for x, y in batches:
            block = features_of(x)
            if features is None:
                features = open_memmap(features_file, "w+", np.float32, (rows, block.shape[1]))
            end = seen + len(block)
            if len(y) != len(block):
                raise ValueError(f"a batch holds {len(block)} inputs and {len(y)} labels; give one label per input")
            if end > rows:
                raise ValueError(f"rows={rows}, but the batches hold {end} or more; give the number of examples")
            features[seen:end] = block.numpy()
            labels[seen:end] = y.cpu().numpy()
            seen = end
        if seen < rows or features is None:
            raise ValueError(f"rows={rows}, but the batches hold {seen}; give the number of examples")
        features.flush()
        labels.flush()
        path.unlink(missing_ok=True)  # a crash from here on must not leave old features beside new labels
    return open_features(path)


def open_features(path: Path) -> Features:
    """The features in the files of `stream_features`, mapped into memory.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or another file.
    """
    try:
        # "c": what is read may be changed in memory, the file stays as it is (torch wants memory it may write).
        x = open_memmap(path, "c")
        y = open_memmap(_labels_beside(path), "c")
    except OSError:
        raise
    except Exception as error:  # NumPy reads the head of a file as Python: damaged, it may raise anything
        raise ValueError(f"{path} does not hold features ({error}); remove it and extract them again") from error
    if x.ndim != 2 or x.dtype != np.float32 or y.shape != x.shape[:1] or y.dtype != np.int64:
        raise ValueError(
            f"{path} holds {x.dtype} {list(x.shape)} with labels {y.dtype} {list(y.shape)}, not float32 [N, D] with "
            "int64 [N]; remove it and extract the features again"
        )
    return Features(torch.from_numpy(x), torch.from_numpy(y))


def _labels_beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}.labels.npy")
