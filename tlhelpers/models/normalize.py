"""The first child of every body for images, photographs too: what a data set gives, as the weights know it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """`(x - mean) / std` for images [N, C, H, W], float in [0, 1] or uint8 (which is scaled to [0, 1] first).

    Mean and standard deviation belong to the weights, as the weights have seen nothing else; inside the model
    they cannot be forgotten.  They are not learnt, and not part of a state dict.

    Args:
        mean, std: one number for all channels, or one per channel.

    Raises:
        ValueError: a standard deviation that is not positive; (when called) other channels than there are means.
        TypeError: (when called) images that are true or false.
    """

    def __init__(self, mean: float | Sequence[float] = 0.0, std: float | Sequence[float] = 1.0) -> None:
        super().__init__()
        self.register_buffer("mean", _per_channel(mean), persistent=False)
        self.register_buffer("std", _per_channel(std), persistent=False)
        if not (self.std > 0).all():
            raise ValueError(f"the standard deviation is {std}; it must be positive")

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype is torch.bool:
            raise TypeError(f"images {images.dtype} {list(images.shape)} must be numbers; images.float() makes them so")
        if images.dtype is torch.uint8:
            images = images.float() / 255
        if self.mean.ndim and images.shape[-3] != len(self.mean):
            raise ValueError(
                f"images {list(images.shape)} must be [N, {len(self.mean)}, H, W], one channel per mean; "
                "images.expand(-1, 3, -1, -1) makes three channels of one"
            )
        return (images - self.mean) / self.std

    def extra_repr(self) -> str:
        numbers = {name: [float(f"{x:.6g}") for x in getattr(self, name).flatten()] for name in ("mean", "std")}
        return ", ".join(f"{name}={values[0] if len(values) == 1 else values}" for name, values in numbers.items())


class PreparePhotos(nn.Module):
    """Photographs [N, 3, H, W], float in [0, 1] or uint8, as the weights of a torchvision network want them.

    Args:
        preset: torchvision's own preparation for the weights (`weights.transforms()`): it resizes, cuts out the
            centre, subtracts the mean of every channel and divides by its standard deviation.
    """

    def __init__(self, preset: nn.Module) -> None:
        super().__init__()
        self.preset = preset

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype is torch.uint8:
            images = images.float() / 255
        return self.preset(images)


def _per_channel(values: float | Sequence[float]) -> Tensor:
    tensor = torch.as_tensor(values, dtype=torch.float32)
    return tensor if tensor.ndim == 0 else tensor.reshape(-1, 1, 1)
