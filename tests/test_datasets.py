import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from test_photos import SHARED, needs_cache

from tlhelpers.data import (
    ALL_CLASSES,
    DATASETS,
    FONTS,
    LETTER_CLASSES,
    TEST_FONTS,
    TRAIN_FONTS,
    VALIDATION_FONTS,
    crop_to_ink,
    glyph_masters,
    handwriting,
    load_dataset,
    overlap,
)
from tlhelpers.models import Normalize


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def parts_of(splits):
    return splits.train, splits.validation, splits.test


def test_digits_are_blocks_of_writers_in_the_order_of_the_file(digits):
    assert [len(examples) for examples in parts_of(digits)] == [900, 300, 597]
    assert torch.equal(torch.cat([examples.indices for examples in parts_of(digits)]), torch.arange(1797))


def test_labels_and_pixels_of_the_digits_are_those_of_scikit_learn(digits):
    source = load_digits()
    assert np.array_equal(torch.cat([examples.y for examples in parts_of(digits)]).numpy(), source.target)
    placed = crop_to_ink(digits.train.x, size=8).flatten(1)
    original = crop_to_ink(torch.from_numpy(source.images[:900]).float().unsqueeze(1) / 16, size=8).flatten(1)
    likeness = torch.corrcoef(torch.cat([placed, original]))[:900, 900:]
    assert likeness.diagonal().median() > 0.85
    assert likeness.median() < 0.5


def test_the_random_split_holds_the_same_images_in_another_order(digits):
    other = load_dataset("digits-random-split")
    assert [len(examples) for examples in parts_of(other)] == [900, 300, 597]
    rows = torch.cat([examples.indices for examples in parts_of(other)])
    assert torch.equal(rows.sort().values, torch.arange(1797))
    whole = torch.cat([examples.x for examples in parts_of(digits)])
    assert all(torch.equal(examples.x, whole[examples.indices]) for examples in parts_of(other))


@pytest.mark.parametrize(
    ("name", "classes"), [("glyph-letters", LETTER_CLASSES), ("glyph-digits", tuple("0123456789"))]
)
def test_every_class_of_printed_characters_has_its_share_of_each_part(name, classes):
    splits = load_dataset(name)
    assert splits.classes == classes
    for examples, share in zip(parts_of(splits), (100, 20, 40), strict=True):
        assert torch.bincount(examples.y).tolist() == [share] * len(classes)


def test_printed_characters_are_in_random_order_because_jitter_blurs_the_first_half():
    train = load_dataset("glyph-digits").train
    in_first_half = torch.bincount(train.y[: len(train) // 2], minlength=10)
    assert in_first_half.min() > 30
    assert in_first_half.max() < 70


def test_letters_and_digits_have_no_class_in_common():
    assert not set(LETTER_CLASSES) & set(load_dataset("glyph-digits").classes)
    assert set(LETTER_CLASSES) < set(ALL_CLASSES)


def test_no_font_is_in_two_parts():
    groups = [set(TRAIN_FONTS), set(VALIDATION_FONTS), set(TEST_FONTS)]
    assert set.union(*groups) == set(range(len(FONTS)))
    assert sum(map(len, groups)) == len(FONTS)
    masters = glyph_masters(("8",))
    assert len(masters) == 3 * len(TRAIN_FONTS)


@pytest.fixture(scope="module")
def mnist_5k():
    return load_dataset("mnist-5k")


def test_mnist_5k_has_its_sizes_500_images_per_digit_and_no_image_in_two_parts(mnist_5k):
    parts = parts_of(mnist_5k)
    assert [len(examples) for examples in parts] == [3000, 500, 1500]
    assert mnist_5k.classes == tuple("0123456789")
    assert torch.bincount(torch.cat([examples.y for examples in parts])).tolist() == [500] * 10
    assert [len(overlap(a.x, b.x)) for a, b in itertools.combinations(parts, 2)] == [0, 0, 0]


@needs_cache
def test_no_digit_of_mnist_5k_is_in_the_test_part_of_mnist_whose_writers_are_others(mnist_5k, monkeypatch):
    monkeypatch.setenv("TLHELPERS_CACHE", str(SHARED))
    everything = load_dataset("mnist")
    published = torch.cat([part.x for part in parts_of(mnist_5k)])[:, :, 2:-2, 2:-2]
    published = (255 * published).round().to(torch.uint8)
    assert len(overlap(everything.test.x, published)) == 0
    training = torch.cat([everything.train.x, everything.validation.x])
    assert len(overlap(training, published)) == len(published)


def test_mnist_5k_holds_the_bytes_of_its_file_in_an_empty_frame(mnist_5k):
    package = Path(importlib.util.find_spec(handwriting.MNIST_CARRIER).submodule_search_locations[0])
    published = np.loadtxt(package / handwriting.MNIST_FILE, delimiter=",", dtype=np.uint8)
    x, y = (torch.cat([getattr(examples, field) for examples in parts_of(mnist_5k)]) for field in "xy")
    assert x.shape == (5000, 1, 32, 32) and x.dtype == torch.float32
    inner = (255 * x[:, 0, 2:-2, 2:-2]).round().byte()
    assert float(255 * x.double().sum()) == pytest.approx(float(inner.sum()), rel=1e-6)  # the frame holds nothing
    rows = torch.cat([inner.flatten(1), y[:, None].byte()], dim=1).numpy()
    assert sorted(map(bytes, rows)) == sorted(map(bytes, published))


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    [
        ("MNIST_CARRIER", "no_package", ModuleNotFoundError, "files of no-package are missing; pip install"),
        ("MNIST_SHA256", "0" * 64, ValueError, "mnist_5k.csv.gz is not the published file"),
    ],
)
def test_mnist_5k_without_its_carrier_or_from_another_file_is_refused(monkeypatch, name, value, error, words):
    handwriting._published_mnist.cache_clear()
    monkeypatch.setattr(handwriting, name, value)
    with pytest.raises(error, match=words):
        load_dataset("mnist-5k")


@pytest.mark.parametrize("name", ["digits", "glyph-digits", "mnist-5k"])
def test_images_lie_in_the_unit_range_and_are_drawn_alike_every_time(name):
    first = load_dataset(name)
    handwriting._placed_digits.cache_clear()
    handwriting._published_mnist.cache_clear()
    torch.manual_seed(123)
    second = load_dataset(name)
    for a, b in zip(parts_of(first), parts_of(second), strict=True):
        assert a.x.shape[1:] == (1, 32, 32)
        assert a.x.min() >= 0
        assert 0.9 < a.x.max() <= 1
        assert torch.equal(a.x, b.x)


def test_a_transform_is_applied_to_every_part_and_recorded(digits):
    normalize = Normalize(0.2, 0.5)
    changed = load_dataset("digits", transform=normalize)
    for examples, plain in zip(parts_of(changed), parts_of(digits), strict=True):
        assert torch.equal(examples.x, (plain.x - 0.2) / 0.5)
        assert repr(normalize) in examples.history


def test_an_unknown_name_brings_the_near_ones():
    with pytest.raises(ValueError, match=r"no data set called 'digit'; did you mean 'digits'"):
        load_dataset("digit")
    with pytest.raises(ValueError, match=r"'glyphs' or 'glyph-letters'.* or 'digits'"):
        load_dataset("???")


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("option", [{"image_size": 96}, {"skip_unreadable": True}])
def test_an_option_of_folders_is_refused_by_every_other_data_set(name, option):
    ((word, value),) = option.items()
    with pytest.raises(ValueError, match=rf"'{name}' takes no .*{word}={value}.*they are options of 'folder:PATH'"):
        load_dataset(name, **option)


def test_the_crop_does_not_see_where_the_ink_lies():
    ink = torch.rand(5, 1, 12, 9) * 0.6 + 0.4
    here = torch.zeros(5, 1, 32, 32)
    there = torch.zeros(5, 1, 32, 32)
    here[..., 1:13, 1:10] = ink
    there[..., 17:29, 20:29] = ink
    assert torch.allclose(crop_to_ink(here), crop_to_ink(there), atol=1e-5)
    assert torch.allclose(crop_to_ink(here[..., :16, :16]), crop_to_ink(here), atol=1e-5)


def test_the_crop_at_the_size_of_the_ink_is_the_ink_itself():
    images = torch.zeros(2, 1, 32, 32)
    images[..., 3:19, 8:24] = torch.rand(2, 1, 16, 16) * 0.6 + 0.4
    assert torch.allclose(crop_to_ink(images), images[..., 3:19, 8:24], atol=1e-5)


def test_an_image_without_ink_is_kept_whole():
    faint = torch.rand(1, 1, 16, 16) * 0.2
    assert torch.allclose(crop_to_ink(faint), faint, atol=1e-5)
