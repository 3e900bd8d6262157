"""Run a frozen body once, and keep what comes out: in memory, in a cache on disk, or in a file larger than memory."""

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

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
from tlhelpers.training.device import autocast

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
            is neither [N, D] nor [N, D, H, W].
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

    The key covers the examples (name, indices, the inputs themselves, what was done to them) and the
    body (layers, weights, normalisation): whatever changes, a stale file is never read.

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
    """sha256 (hex) over everything that the features depend on."""
    digest = hashlib.sha256()
    module = _module(body)
    name = body.name if isinstance(body, Backbone) else ""
    # The text of a module shows what its weights do not, such as which activation; a module of one's own may
    # hold a number that its text does not show.
    texts = (examples.name, examples.history, name, str(module), str(layer), str(_settings(module)))
    digest.update("\0".join(texts).encode())
    buffers = dict(module.named_buffers())  # those that no state dict has, too
    tensors = {"rows": examples.indices, "x": examples.x, **module.state_dict(), **buffers}
    for key, tensor in tensors.items():
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _settings(module: nn.Module) -> list[tuple[str, str, object]]:
    """Numbers and words in a module and its parts, except in which mode they are: (part, name, value)."""
    return [
        (part_name, key, value)
        for part_name, part in module.named_modules()
        for key, value in sorted(vars(part).items())
        if not key.startswith("_") and key != "training" and isinstance(value, int | float | str | tuple | list)
    ]


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
    return hashlib.sha256(x.contiguous().numpy().data).hexdigest()


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
        ValueError: the batches do not add up to `rows`; then nothing is left behind.
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
            if end > rows or len(y) != len(block):
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
