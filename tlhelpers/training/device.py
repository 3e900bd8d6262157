"""What a device wants: batches that lie on it, and the precision in which it multiplies fastest."""

import contextlib
from collections.abc import Mapping

import torch


def mixed_precision(device: torch.device) -> torch.dtype | None:
    """The reduced type in which this device multiplies faster, or None to stay in float32.

    bfloat16 where the hardware has it (its range equals float32's, so no loss scaling is needed),
    float16 on older CUDA cards such as the T4, nothing on a CPU.
    """
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """`torch.autocast` to `mixed_precision`, or a context that does nothing."""
    dtype = mixed_precision(device)
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def to_device(batch, device: torch.device):
    """A batch with all its tensors on `device`: a tensor, or tuples, lists and dicts of such, nested at will.

    Raises:
        ValueError: the batch holds something else.
    """
    if isinstance(batch, torch.Tensor):
        return batch if batch.device == device else batch.to(device, non_blocking=True)
    if isinstance(batch, (tuple, list)):
        return like(batch, [to_device(value, device) for value in batch])
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    raise ValueError(
        f"the batch holds a {type(batch).__name__}; let the loader give nothing but tensors, in tuples, lists or dicts "
        "(where there are no labels, torch.full((n,), -1))"
    )


def like(batch: tuple | list, values: list) -> tuple:
    """The values as a tuple, with names if the batch has some."""
    return type(batch)(*values) if hasattr(batch, "_fields") else tuple(values)


def batch_size(batch) -> int:
    """Number of examples in a batch: the length of the first tensor in it.

    Raises:
        ValueError: the batch is empty.
    """
    while not isinstance(batch, torch.Tensor):
        if len(batch) == 0:
            raise ValueError("the batch is empty; the loader must yield at least one tensor")
        batch = batch[0] if isinstance(batch, (tuple, list)) else next(iter(batch.values()))
    return batch.shape[0]  # len() takes three times as long
