"""The file formats of MNIST, EMNIST and CIFAR-10."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from tlhelpers.data import load_dataset, photos

SHARED = Path(__file__).parent.parent.parent / "shared" / "cache"
needs_cache = pytest.mark.skipif(not SHARED.is_dir(), reason="the pre-seeded cache ../shared/cache is not here")


def save_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


def test_emnist_stands_upright_and_its_labels_start_at_zero(tmp_path, monkeypatch):
    monkeypatch.setenv("TLHELPERS_CACHE", str(tmp_path))
    raw = tmp_path / "torchvision" / "EMNIST" / "raw"
    upright = np.zeros((1, 28, 28))
    upright[:, 3:25, 14] = 255  # an I
    for split, n in (("train", 520), ("test", 26)):
        save_idx(raw / f"emnist-letters-{split}-images-idx3-ubyte", np.repeat(upright.transpose(0, 2, 1), n, 0))
        save_idx(raw / f"emnist-letters-{split}-labels-idx1-ubyte", np.arange(n) % 26 + 1)
    splits = load_dataset("emnist-letters")
    assert len(splits.classes) == 26 and splits.classes[0] == "a"
    assert sorted(splits.test.y.tolist()) == list(range(26))
    assert torch.equal(splits.test.x[0, 0], torch.from_numpy(upright[0]).byte())
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [494, 26, 26]


def test_cifar10_in_the_layout_of_torchvision_is_read_also_from_a_cache_called_images(tmp_path, monkeypatch):
    class Published:  # in place of the class of torchvision, whose files are 170 MB
        base_folder, train_list, test_list, classes = "batches", [], [], ["cat", "dog"]

        def __init__(self, root, train):
            assert root == tmp_path / "images" / "torchvision"
            self.data = np.arange(2 if train else 1)[:, None, None, None] * np.ones((1, 4, 5, 3), np.uint8)
            self.data, self.targets = np.repeat(self.data, 3, 0), [0, 1, 0] * len(self.data)

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Published)
    monkeypatch.setenv("TLHELPERS_CACHE", str(tmp_path / "images"))
    (tmp_path / "images" / "torchvision" / "batches").mkdir(parents=True)
    assert list(load_dataset("cifar10").test.x.shape) == [3, 3, 4, 5]


@needs_cache
def test_the_real_mnist_is_read_from_the_layout_of_torchvision(monkeypatch):
    monkeypatch.setenv("TLHELPERS_CACHE", str(SHARED))
    splits = photos.mnist()
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [50_000, 10_000, 10_000]
    assert splits.classes == tuple("0123456789")
    assert splits.test.y[:5].tolist() == [7, 2, 1, 0, 4]


@needs_cache
def test_the_real_cifar10_photos_are_read_from_a_folder(monkeypatch):
    monkeypatch.setenv("TLHELPERS_CACHE", str(SHARED))
    splits = load_dataset("cifar10")
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [4000, 1000, 2000]
    assert splits.train.x.shape[1:] == (3, 32, 32)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "emnist-letters"])
def test_without_a_network_one_line_says_what_is_missing(name):
    with pytest.raises(OSError, match="is missing and this machine is set to be offline"):
        load_dataset(name)
