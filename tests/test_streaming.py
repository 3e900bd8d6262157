"""Features that are larger than memory: written batch by batch, and mapped when they are read."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from toys import CPU, toy_backbone, toy_images

from tlhelpers.analysis import extract_features, open_features, stream_features
from tlhelpers.data import Examples, TensorLoader
from tlhelpers.objectives import classification
from tlhelpers.training import evaluate, fit


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("n", [9, 10, 11])  # the last batch has 1, 2 or 3 examples
def test_a_streamed_file_holds_the_bits_of_the_same_batches_in_memory(n, tmp_path):
    backbone = toy_backbone()
    examples = toy_images(n)
    expected = extract_features(backbone, examples, batch_size=4, device=CPU)
    loader = TensorLoader(examples, 4, device=CPU)
    streamed = stream_features(backbone, loader, tmp_path / "f.npy", rows=n, device=CPU)
    for features in (streamed, open_features(tmp_path / "f.npy")):
        assert torch.equal(features.x, expected.x)
        assert torch.equal(features.y, examples.y)
    assert names_in(tmp_path) == ["f.labels.npy", "f.npy"]


def test_everybody_may_read_the_files(tmp_path):
    examples = toy_images()
    stream_features(toy_backbone(), [(examples.x, examples.y)], tmp_path / "f.npy", rows=10, device=CPU)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


def test_both_are_files_of_numpy_and_a_layer_can_be_named(tmp_path):
    backbone = toy_backbone()
    examples = toy_images()
    path = tmp_path / "f.npy"
    stream_features(backbone, [(examples.x, examples.y)], path, rows=10, layer="conv", device=CPU)
    x = np.load(path)
    assert (x.dtype, x.shape) == (np.float32, (10, 5))
    assert np.array_equal(x, extract_features(backbone, examples, layer="conv", device=CPU).x)
    y = np.load(tmp_path / "f.labels.npy")
    assert y.dtype == np.int64
    assert np.array_equal(y, examples.y)


def test_bytes_and_fractions_of_one_image_are_streamed_alike(tmp_path):
    backbone = toy_backbone()
    images = torch.randint(256, (10, 1, 8, 8), dtype=torch.uint8)
    of_bytes, of_fractions = (
        stream_features(backbone, [(x, toy_images().y)], tmp_path / f"{x.dtype}.npy", rows=10, device=CPU)
        for x in (images, images.float() / 255)
    )
    assert torch.equal(of_bytes.x, of_fractions.x)


def test_the_body_keeps_its_mode(tmp_path):
    backbone = toy_backbone()
    backbone.module.train()
    examples = toy_images()
    stream_features(backbone, [(examples.x, examples.y)], tmp_path / "f.npy", rows=10, device=CPU)
    assert all(part.training for part in backbone.module.modules())


def test_a_probe_trained_on_the_file_equals_one_trained_in_memory(tmp_path):
    backbone = toy_backbone()
    examples = toy_images(30)
    loader = TensorLoader(examples, 4, device=CPU)
    streamed = stream_features(backbone, loader, tmp_path / "f.npy", rows=30, device=CPU)
    probes = []
    for features in (extract_features(backbone, examples, batch_size=4, device=CPU), streamed):
        torch.manual_seed(0)
        head = nn.Sequential(nn.BatchNorm1d(5, affine=False), nn.Linear(5, 2))  # standardises batch by batch
        rows = Examples("features", features.x, features.y, examples.classes, examples.indices)
        shuffled = TensorLoader(rows, 8, shuffle=True, device=CPU)
        fit(head, (shuffled, None), classification(), torch.optim.SGD(head.parameters(), lr=0.5), epochs=3, device=CPU)
        probes.append(head)
    assert torch.equal(probes[0][1].weight, probes[1][1].weight)
    in_order = TensorLoader(rows, 8, device=CPU)
    assert evaluate(probes[0], in_order, device=CPU) == evaluate(probes[1], in_order, device=CPU)


def test_writing_into_what_was_read_leaves_the_files_alone(tmp_path):
    examples = toy_images()
    features = stream_features(toy_backbone(), [(examples.x, examples.y)], tmp_path / "f.npy", rows=10)
    before = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    features.x.zero_()
    features.y.zero_()
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == before


@pytest.mark.parametrize("rows", [9, 11])
def test_a_wrong_number_of_rows_is_refused_and_the_older_files_stay(rows, tmp_path):
    (tmp_path / "f.npy").write_text("older")
    (tmp_path / "f.labels.npy").write_text("older labels")
    with pytest.raises(ValueError, match=f"rows={rows}, but the batches hold 10.*; give the number of examples"):
        stream_features(toy_backbone(), TensorLoader(toy_images(), 5), tmp_path / "f.npy", rows=rows)
    contents = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert contents == {"f.npy": "older", "f.labels.npy": "older labels"}


def test_batches_that_do_not_exist_or_lack_labels_are_refused_and_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match="rows=10, but the batches hold 0; give the number of examples"):
        stream_features(toy_backbone(), [], tmp_path / "f.npy", rows=10)
    with pytest.raises(ValueError, match="a batch holds 10 inputs and 9 labels; give one label per input"):
        stream_features(toy_backbone(), [(toy_images().x, toy_images().y[:9])], tmp_path / "f.npy", rows=10)
    assert names_in(tmp_path) == []


def test_a_crash_while_streaming_leaves_nothing_behind(tmp_path):
    def batches():
        yield toy_images().x, toy_images().y
        assert [path.suffix for path in tmp_path.iterdir()] == [".partial", ".partial"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream_features(toy_backbone(), batches(), tmp_path / "f.npy", rows=20)
    assert names_in(tmp_path) == []


@pytest.fixture
def streamed(tmp_path):
    """The path of the features of ten images."""
    stream_features(toy_backbone(), [(toy_images().x, toy_images().y)], tmp_path / "f.npy", rows=10, device=CPU)
    return tmp_path / "f.npy"


def test_a_missing_file_is_named(streamed):
    with pytest.raises(FileNotFoundError, match="not-there"):
        open_features(Path("not-there"))
    streamed.with_name("f.labels.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"f\.labels\.npy"):
        open_features(streamed)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.zeros((10, 5)), np.zeros(10, np.int64)),
        (np.zeros(10, np.float32), np.zeros(10, np.int64)),
        (np.zeros((10, 5), np.float32), np.zeros(9, np.int64)),
        (np.zeros((10, 5), np.float32), np.zeros(10, np.int32)),
        (np.array([{}, {}]), np.zeros(2, np.int64)),  # pickled
    ],
)
def test_files_that_hold_something_else_are_refused(x, y, tmp_path):
    np.save(tmp_path / "f.npy", x)
    np.save(tmp_path / "f.labels.npy", y)
    with pytest.raises(ValueError, match=r"f\.npy .*hold.*remove it and extract"):
        open_features(tmp_path / "f.npy")


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Cut short, not NumPy's at all, or with a few other characters in the 128 bytes that describe the array."""
    kind = chance.choice(["cut", "noise", "bytes", "characters"])
    if kind == "cut":
        return content[: chance.randrange(len(content))]
    if kind == "noise":
        return chance.randbytes(chance.randrange(300))
    changed = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        letter = chance.randrange(256) if kind == "bytes" else ord(chance.choice("0123456789()',<f8O{}:L \n\t#-\\"))
        changed[chance.randrange(128)] = letter
    return bytes(changed)


@pytest.mark.fault_table
@pytest.mark.filterwarnings("ignore")  # NumPy reads heads of Python 2 too, with a warning
@pytest.mark.parametrize("name", ["f.npy", "f.labels.npy"])
def test_a_damaged_file_is_refused_with_its_name_and_the_remedy(name, streamed, fault_row):
    path = streamed.with_name(name)
    content = path.read_bytes()
    chance = random.Random(0)
    refused = 0
    right = 0
    for _ in range(400):
        path.write_bytes(damaged(content, chance))
        try:
            open_features(streamed)
        except ValueError as error:
            refused += "f.npy" in str(error) and "remove it and extract" in str(error)
        else:
            right += 1  # the change was in the spaces that fill the head
    assert refused > 300
    fault_row("damaged file of streamed features", "refused with its name and the remedy", 400 - right, refused)
