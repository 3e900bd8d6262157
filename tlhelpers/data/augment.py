"""Random variation of whole batches of images, on the device that they lie on."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Jitter:
    """Random geometry and ink for a whole batch of images at once, on their own device.

    Every image gets its own draw.

    Attributes:
        size: side of the square output in pixels.
        degrees: rotation, uniform in +-degrees.
        scale: factor on the size of the input, uniform between the two.
        place: 1 puts a reduced image anywhere on the canvas, 0 always in the middle.
        shear: horizontal slant, uniform in +-shear.
        bend: standard deviation of 4 x 4 random displacements, between which all pixels move smoothly (elastic
            distortion, Simard 2003); 1 is half of the canvas.
        coarse: the first half of the batch is reduced to some size between the two, in pixels, and
            enlarged again; so hand over examples in random order.
        fade: up to this much ink is taken away.
        noise: standard deviation of pixel noise.
    """

    size: int = 32
    degrees: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    place: float = 1.0
    shear: float = 0.0
    bend: float = 0.0
    coarse: tuple[int, int] | None = None
    fade: float = 0.0
    noise: float = 0.0

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images [N, C, H, W], uint8 or float in [0, 1], to float32 [N, C, size, size] in [0, 1].

        The generator must live on the device of the images.

        Raises:
            ValueError: images of another shape or type, or a size below 1.
        """
        right_type = images.dtype == torch.uint8 or images.is_floating_point()
        if images.ndim != 4 or 0 in images.shape or self.size < 1 or not right_type:
            raise ValueError(
                f"images {images.dtype} {list(images.shape)} at size={self.size}: give uint8 or float [N, C, H, W], "
                "none of them 0, and a size of at least 1"
            )
        images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        out = F.grid_sample(images, self._grid(len(images), generator), align_corners=False)
        if self.coarse is not None:
            out = self._coarsen(out, generator)
        if self.fade:
            out = out * (1 - self.fade * torch.rand(len(out), 1, 1, 1, generator=generator, device=out.device))
        if self.noise:
            out = out + self.noise * torch.randn(out.shape, generator=generator, device=out.device)
        return out.clamp(0, 1)

    def _grid(self, n: int, generator: torch.Generator) -> Tensor:
        """Where each output pixel looks in the input: [n, size, size, 2] in [-1, 1]."""
        device = generator.device

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(n, *shape, generator=generator, device=device)

        angle = uniform(-self.degrees, self.degrees).deg2rad()
        scale = uniform(*self.scale)
        slant = uniform(-self.shear, self.shear)
        shift = uniform(-1, 1, 2) * self.place * (1 - scale).clamp(min=0).unsqueeze(1)  # [n, 2]
        cos, sin = angle.cos() / scale, angle.sin() / scale
        # grid_sample wants output -> input: undo the shift, then rotation and scale, then the slant.
        rows = [torch.stack([cos - slant * sin, sin + slant * cos], 1), torch.stack([-sin, cos], 1)]
        linear = torch.stack(rows, 1)  # [n, 2, 2]
        theta = torch.cat([linear, -linear @ shift.unsqueeze(2)], dim=2)  # [n, 2, 3]
        grid = F.affine_grid(theta, [n, 1, self.size, self.size], align_corners=False)
        if self.bend:
            field = self.bend * torch.randn(n, 2, 4, 4, generator=generator, device=device)
            field = F.interpolate(field, (self.size, self.size), mode="bicubic", align_corners=True)
            grid = grid + field.permute(0, 2, 3, 1)
        return grid

    def _coarsen(self, images: Tensor, generator: torch.Generator) -> Tensor:
        low, high = self.coarse
        side = int(torch.randint(low, high + 1, (1,), generator=generator, device=generator.device))
        half = len(images) // 2
        small = F.interpolate(images[:half], (side, side), mode="area") if half else images[:0]
        blurred = F.interpolate(small, (self.size, self.size), mode="bilinear") if half else small
        return torch.cat([blurred, images[half:]])


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror every other photograph [N, C, H, W], by chance, left to right; not for characters.

    Raises:
        ValueError: images of another shape.
    """
    if images.ndim != 4:
        raise ValueError(f"images {list(images.shape)} must be [N, C, H, W]")
    flipped = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    return torch.where(flipped[:, None, None, None], images.flip(3), images)
