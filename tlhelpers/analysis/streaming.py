"""Features of data that are larger than memory: written batch by batch to a file, and read from it as needed.

The file is a safetensors file like those of `features.cached_features`, so that any tool can open it
(https://github.com/huggingface/safetensors, "Format"): 8 bytes with the length of a JSON header, the
header, then the tensors.  `safetensors` maps a file into memory and reads from disk what is looked at.
"""

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tlhelpers.models.backbones import Backbone
from tlhelpers.analysis.features import Features, feature_function


def stream_features(
    backbone: Backbone,
    batches: Iterable[tuple[Tensor, Tensor]],
    path: Path,
    *,
    rows: int,
    layer: str | None = None,
    device: torch.device | None = None,
) -> Features:
    """`extract_features` for a loader instead of a part; in memory is one batch at a time.

    The result is mapped: indexing it reads rows from the file.  To train on it without loading it, draw
    minibatches: `TensorLoader` does on a CPU, `DataLoader(TensorDataset(found.x, found.y))` for a GPU.

    Args:
        batches: inputs [n, ...] as a `Part` holds them, before the body's transform, and labels int64 [n].
        path: the file to write; it appears when it is complete, and replaces an older one.
        rows: examples in all, such as `len(loader.dataset)`.
        layer: as for `extract_features`.

    Raises:
        ValueError: the batches do not add up to `rows`; then nothing is left behind.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with open(handle, "wb") as file, feature_function(backbone, layer=layer, device=device) as outputs:
            seen = 0
            for x, y in batches:
                features = outputs(x)
                if seen == 0:
                    labels_at, features_at = _write_header(file, rows, features.shape[1])
                seen += len(features)
                if seen > rows or len(y) != len(features):
                    raise ValueError(f"rows={rows}, but the batches hold {seen} or more; give the number of examples")
                _write(file, labels_at, y.long())
                _write(file, features_at, features)
                labels_at, features_at = labels_at + 8 * len(y), features_at + 4 * features.numel()
            if seen < rows:
                raise ValueError(f"rows={rows}, but the batches hold {seen}; give the number of examples")
        os.chmod(temporary, 0o644)  # mkstemp lets only its owner read, but a room may share the folder
        os.replace(temporary, path)  # a reader sees the whole file or none
    except BaseException:
        os.unlink(temporary)
        raise
    return open_features(path)


def open_features(path: Path) -> Features:
    """The features in a file of `stream_features`, mapped into memory.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or another file.
    """
    try:
        tensors = load_file(path)
        return Features(tensors["x"], tensors["y"])
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} does not hold features ({error}); remove it and extract them again") from error


def _write_header(file: BinaryIO, rows: int, width: int) -> tuple[int, int]:
    """Write the header for labels [rows] and features [rows, width]; returns where each begins in the file."""
    middle, end = 8 * rows, 8 * rows + 4 * rows * width
    header = json.dumps(
        {
            "y": {"dtype": "I64", "shape": [rows], "data_offsets": [0, middle]},
            "x": {"dtype": "F32", "shape": [rows, width], "data_offsets": [middle, end]},
        }
    ).encode()
    header += b" " * (-len(header) % 8)  # the tensors begin at a multiple of 8 bytes
    file.write(len(header).to_bytes(8, "little") + header)
    return file.tell(), file.tell() + middle


def _write(file: BinaryIO, position: int, tensor: Tensor) -> None:
    file.seek(position)
    file.write(tensor.cpu().contiguous().numpy().data)
