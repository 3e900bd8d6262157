import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from toys import CPU, toy_backbone, toy_images

from tlhelpers.data.examples import Part, TensorLoader
from tlhelpers.analysis.streaming import open_features, stream_features
from tlhelpers.analysis.features import extract_features
from tlhelpers.objectives.supervised import classification
from tlhelpers.training.loop import evaluate, fit


@pytest.mark.parametrize("n", [9, 10, 11])  # the last batch has 1, 2 or 3 examples; odd and even lengths of the file
def test_a_streamed_file_holds_the_bits_of_the_same_batches_in_memory(n, tmp_path):
    backbone, part = toy_backbone(), toy_images(n)
    expected = extract_features(backbone, part, batch_size=4, device=CPU)
    found = stream_features(backbone, TensorLoader(part, 4, device=CPU), tmp_path / "f", rows=n, device=CPU)
    for features in (found, open_features(tmp_path / "f")):
        assert torch.equal(features.x, expected.x)
        assert torch.equal(features.y, part.y)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_everybody_may_read_the_file(tmp_path):
    part = toy_images()
    stream_features(toy_backbone(), [(part.x, part.y)], tmp_path / "f", rows=10, device=CPU)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o644


def test_the_file_is_a_safetensors_file_and_a_layer_can_be_named(tmp_path):
    backbone, part = toy_backbone(), toy_images()
    stream_features(backbone, [(part.x, part.y)], tmp_path / "f", rows=10, layer="conv", device=CPU)
    with safe_open(tmp_path / "f", "numpy") as file:
        assert sorted(file.keys()) == ["x", "y"]
        expected = extract_features(backbone, part, layer="conv", device=CPU).x
        assert torch.equal(torch.from_numpy(file.get_tensor("x")), expected)
    length = int.from_bytes((tmp_path / "f").read_bytes()[:8], "little")
    assert (length % 8, json.loads((tmp_path / "f").read_bytes()[8 : 8 + length])["x"]["shape"]) == (0, [10, 5])


def test_a_probe_trained_on_the_file_equals_one_trained_in_memory(tmp_path):
    backbone, part = toy_backbone(), toy_images(30)
    streamed = stream_features(backbone, TensorLoader(part, 4, device=CPU), tmp_path / "f", rows=30, device=CPU)
    probes = []
    for features in (extract_features(backbone, part, batch_size=4, device=CPU), streamed):
        torch.manual_seed(0)
        head = nn.Sequential(nn.BatchNorm1d(5, affine=False), nn.Linear(5, 2))  # standardises batch by batch
        rows = Part("features", features.x, features.y, part.classes, part.indices)
        loader = TensorLoader(rows, 8, shuffle=True, device=CPU)
        fit(head, (loader, None), classification(), torch.optim.SGD(head.parameters(), lr=0.5), epochs=3, device=CPU)
        probes.append(head)
    assert torch.equal(probes[0][1].weight, probes[1][1].weight)
    assert evaluate(probes[0], loader, device=CPU) == evaluate(probes[1], loader, device=CPU)


def test_writing_into_what_was_read_leaves_the_file_alone(tmp_path):
    part = toy_images()
    found = stream_features(toy_backbone(), [(part.x, part.y)], tmp_path / "f", rows=10)
    before = (tmp_path / "f").read_bytes()
    found.x.zero_()
    assert (tmp_path / "f").read_bytes() == before


@pytest.mark.parametrize("rows", [9, 11])
def test_a_wrong_number_of_rows_is_refused_and_the_older_file_stays(rows, tmp_path):
    (tmp_path / "f").write_text("older")
    with pytest.raises(ValueError, match=f"rows={rows}, but the batches hold 10.*; give the number of examples"):
        stream_features(toy_backbone(), TensorLoader(toy_images(), 5), tmp_path / "f", rows=rows)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("f", "older")]


def test_a_crash_while_streaming_leaves_nothing_behind(tmp_path):
    def batches():
        yield toy_images().x, toy_images().y
        assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream_features(toy_backbone(), batches(), tmp_path / "f", rows=20)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match="not-there"):
        open_features(Path("not-there"))
