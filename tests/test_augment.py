import pytest
import torch
from torch.nn import functional as F

from tlhelpers.data import Jitter, random_flip

EVERYTHING = Jitter(degrees=40, scale=(0.5, 1.3), shear=0.3, bend=0.2, coarse=(4, 9), fade=0.5, noise=0.2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_jitter_without_any_freedom_returns_its_input():
    images = torch.rand(3, 2, 16, 16)
    assert torch.allclose(Jitter(size=16, place=0)(images, generator()), images, atol=1e-5)


def test_jitter_at_half_size_puts_the_image_into_the_middle_of_the_canvas():
    images = torch.rand(3, 1, 16, 16)
    out = Jitter(size=32, scale=(0.5, 0.5), place=0)(images, generator())
    assert torch.allclose(out, F.pad(images, [8] * 4), atol=1e-5)


def test_jitter_turns_by_right_angles_exactly():
    image = torch.rand(1, 1, 16, 16)
    first = float(2 * torch.rand(1, generator=generator()) - 1)  # the angle is this part of `degrees`
    out = Jitter(size=16, degrees=90 / first)(image, generator())
    assert torch.allclose(out, image.rot90(-1, (2, 3)), atol=1e-4)


def test_reduced_images_lie_anywhere_but_lose_no_ink():
    images = torch.zeros(50, 1, 16, 16)
    images[:, :, 1:-1, 1:-1] = 1
    out = Jitter(size=32, scale=(0.5, 0.5))(images, generator())
    assert torch.allclose(out.sum((1, 2, 3)), torch.tensor(14.0**2), rtol=1e-4)
    left = out.amax((1, 2)).argmax(1)
    assert left.min() <= 4
    assert left.max() >= 13


def test_one_generator_seed_gives_one_result_in_the_unit_range_also_from_bytes():
    pixels = torch.randint(256, (6, 1, 16, 16), dtype=torch.uint8)
    out = EVERYTHING(pixels, generator(1))
    assert out.shape == (6, 1, 32, 32)
    assert out.min() >= 0
    assert out.max() <= 1
    torch.rand(5)
    assert torch.equal(out, EVERYTHING(pixels.float() / 255, generator(1)))
    assert not torch.equal(out, EVERYTHING(pixels, generator(2)))


def test_only_half_of_a_batch_is_coarsened():
    images = torch.rand(6, 1, 16, 16)
    out = Jitter(size=16, place=0, coarse=(4, 4))(images, generator())
    assert torch.allclose(out[3:], images[3:], atol=1e-5)
    small = F.avg_pool2d(images[:3], 4)
    assert torch.allclose(F.adaptive_avg_pool2d(out[:3], 4).mean(), small.mean(), atol=0.02)
    assert out[:3].std() < images[:3].std() / 2


def test_every_other_photograph_is_mirrored_by_the_generator_alone():
    images = torch.rand(200, 3, 4, 4)
    out = random_flip(images, generator(1))
    mirrored = (out == images.flip(3)).all(dim=(1, 2, 3))
    assert torch.equal(~mirrored, (out == images).all(dim=(1, 2, 3)))
    assert 60 < mirrored.sum() < 140
    assert torch.equal(out, random_flip(images, generator(1)))
    assert not torch.equal(out, random_flip(images, generator(2)))


def test_a_bend_is_measured_in_halves_of_the_canvas():
    size = 61
    x = torch.linspace(-1, 1, size + 1)[:-1] + 1 / size  # where the pixels lie, the middle of the canvas being 0
    ramps = torch.stack([x.expand(size, size), x.expand(size, size).T]).expand(300, 2, size, size)
    moved = Jitter(size=size, bend=0.1)(ramps / 2 + 0.5, generator())
    at_grid_points = ((moved - 0.5) * 2 - ramps)[:, :, [20, 20, 40, 40], [20, 40, 20, 40]]  # a third and two thirds
    assert float(at_grid_points.std()) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int32, torch.int64])
def test_images_of_another_type_are_refused(dtype):
    with pytest.raises(ValueError, match=f"{dtype}.* give uint8 or float"):
        Jitter()(torch.ones(2, 1, 4, 4, dtype=dtype), generator())


@pytest.mark.parametrize("augmentation", [Jitter(), random_flip])
def test_images_of_another_shape_are_refused(augmentation):
    with pytest.raises(ValueError, match=r"\[3, 16, 16\].*\[N, C, H, W\]"):
        augmentation(torch.rand(3, 16, 16), generator())
