"""The sections "At full scale", run as they stand in the pages on real weights and photographs, and their record."""

import ast
import json
import os
import re
import shutil
import string
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import classification_report
from test_photos import SHARED, needs_cache
from toys import save_tiny_bert

from tlhelpers.analysis import Features
from tlhelpers.data import Examples, Splits, TensorLoader, few_shot, load_dataset
from tlhelpers.experiments import full_scale
from tlhelpers.experiments.records import read_record
from tlhelpers.models import Backbone, PhotoBody
from tlhelpers.models.normalize import PreparePhotos
from tlhelpers.objectives import distillation

ROOT = Path(__file__).parent.parent
RECORD = read_record(full_scale.RECORD)
pytestmark = pytest.mark.slow


@pytest.fixture
def real_cache(tmp_path, monkeypatch):
    """The pre-seeded cache, in a folder that more can be added to."""
    for entry in SHARED.iterdir():
        if entry.name != "torchvision":
            (tmp_path / entry.name).symlink_to(entry)
    shutil.copytree(SHARED / "torchvision", tmp_path / "torchvision", copy_function=os.symlink)
    monkeypatch.setenv("TLHELPERS_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("TLHELPERS_PROFILE", "full")
    return tmp_path


def run_section(page: str) -> None:
    """All imports of a page, its setup cell, and its cells with the tag full-scale."""
    path = next((ROOT / "notebooks").glob(f"{page}_*.ipynb"))
    cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    names: dict = {"__name__": "__main__"}
    for cell in cells:
        tree = ast.parse("".join(cell["source"]))
        tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(tree, page, "exec"), names)
    wanted = [cell for cell in cells if "full-scale" in cell["metadata"].get("tags", [])]
    assert wanted, f"page {page} has no cell with the tag full-scale"
    for cell in [cells[0], *wanted]:
        exec("".join(cell["source"]), names)


def numbers_in(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\b0\.\d{3}\b", text)]


@needs_cache
def test_page_02_a_probe_on_real_photographs_leaves_pixels_behind(real_cache, capsys):
    run_section("02")
    few, pixels_few, more, pixels = numbers_in(capsys.readouterr().out)
    assert few > pixels_few + 0.15 and more > pixels + 0.2


@needs_cache
def test_page_03_real_weights_beat_random_ones(real_cache, capsys):
    run_section("03")
    scratch, tuned = numbers_in(capsys.readouterr().out)
    assert tuned > scratch + 0.1


@needs_cache
def test_page_06_unlabelled_photographs_teach_a_student(real_cache, capsys):
    run_section("06")
    teacher, labels, soft = numbers_in(capsys.readouterr().out)
    assert teacher > soft > labels + 0.05


def test_a_remembered_teacher_gives_the_loss_of_one_that_is_asked():
    teacher, student = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    x, rows = torch.randn(6, 4), torch.tensor([5, 0, 3])
    logits = teacher(x).detach()
    asked = distillation(teacher, temperature=2.0, alpha=1.0)(student, (x[rows], rows))
    recalled = full_scale.RememberedTeacher(logits, temperature=2.0)(student, (x[rows], rows))
    assert torch.allclose(asked["loss"], recalled["loss"], atol=1e-6)


def test_a_numbered_loader_yields_the_batches_of_a_plain_one_with_row_numbers_for_labels():
    train = load_dataset("digits").train.take(torch.arange(50))
    settings = {"shuffle": True, "steps": 3, "seed": 4, "device": torch.device("cpu")}
    plain = list(TensorLoader(train, 16, **settings))
    numbered = list(full_scale.NumberedLoader(train, 16, **settings))
    for (x, y), (same_x, rows) in zip(plain, numbered, strict=True):
        assert torch.equal(x, same_x) and torch.equal(train.x[rows], x) and torch.equal(train.y[rows], y)


def noise_photos(n: int) -> Examples:
    x = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    return Examples("noise", x, torch.arange(n) % 4, tuple("abcd"), torch.arange(n))


def test_a_blank_network_keeps_the_normalisation_and_loses_the_weights():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 512, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    normalize = PreparePhotos(torch.nn.AvgPool2d(1))  # not that of SqueezeNet
    body = Backbone(PhotoBody(normalize, net, 512).eval(), 512, "squeezenet1_0")
    few = noise_photos(8)
    model = full_scale.photo_network(body, few, seed=0, epochs=1, lr=1e-3, blank=True)
    assert isinstance(model.body, PhotoBody) and isinstance(model.body.normalize.preset, torch.nn.AvgPool2d)
    assert type(model.body.network).__name__ == "SqueezeNet"
    assert model(few.x[:2]).shape == (2, 4)


@pytest.mark.parametrize("how", full_scale.STUDENTS)
def test_a_student_of_photographs_learns_from_labels_and_from_remembered_answers(how):
    photos = Splits(noise_photos(40), noise_photos(20), noise_photos(24))
    logits = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    assert 0 <= full_scale.photo_student(photos, photos.train.take(torch.arange(8)), logits, how, seed=0, steps=2) <= 1


def save_letters_as_emnist(cache: Path) -> None:
    """Printed capitals in the files of EMNIST: the real ones are 562 MB."""
    characters = load_dataset("glyphs")
    raw = cache / "torchvision" / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    number = torch.tensor([string.ascii_uppercase.find(name) + 1 for name in characters.classes])  # 0: no capital
    for split, examples in (("train", characters.train), ("test", characters.test)):
        capitals = examples.take(number[examples.y].nonzero().flatten())
        x = (capitals.x[:, 0, 2:-2, 2:-2] * 255).byte().transpose(1, 2).contiguous().numpy()
        y = number[capitals.y].byte().numpy()
        for kind, array in (("images-idx3", x), ("labels-idx1", y)):
            head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (raw / f"emnist-letters-{split}-{kind}-ubyte").write_bytes(head + array.tobytes())


def test_page_04_fine_tunes_whatever_the_hubs_cache_holds_as_bert(tmp_path, monkeypatch, capsys):
    """BERT itself is 440 MB; a BERT of one layer lies in its place."""
    repository = tmp_path / "models--google-bert--bert-base-uncased"
    save_tiny_bert(repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TLHELPERS_PROFILE", "full")
    run_section("04")
    assert "BERT, 16 labels per intent: 0." in capsys.readouterr().out


@needs_cache
def test_page_05_from_mnist_to_letters_in_the_files_of_emnist(real_cache, capsys):
    save_letters_as_emnist(real_cache)
    run_section("05")
    kept, tuned, _scratch = numbers_in(capsys.readouterr().out)
    assert min(kept, tuned) > 0.15  # of 26 classes, chance is below 0.04


@needs_cache
def test_a_folder_of_photos_becomes_a_classifier_with_a_report_in_ten_lines(real_cache, tmp_path):
    source = SHARED / "images" / "cifar10" / "train"
    for name in ("cat", "horse", "ship"):
        for path in sorted((source / name).iterdir())[:20]:
            (tmp_path / "mine" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "mine" / name)
    # The lines of page 2 and of the README, but for the path:
    from tlhelpers.analysis import extract_features, fit_probe
    from tlhelpers.models import load_backbone

    photos = load_dataset(f"folder:{tmp_path / 'mine'}", image_size=96)
    body = load_backbone("squeezenet1_0", image_size=96)
    probe = fit_probe(extract_features(body, photos.train))
    test = extract_features(body, photos.test)
    report = classification_report(test.y, probe.predict(test.x), target_names=photos.classes, zero_division=0)
    assert "recall" in report and "f1-score" in report and "horse" in report
    assert probe.score(test) > 0.5


def test_the_record_reaches_what_the_course_promises():
    runs = RECORD["cifar10, squeezenet1_0"]
    mean = {(name, n): float(np.mean(values)) for name, by in runs.items() for n, values in by.items()}
    assert all(len(values) >= 3 for by in runs.values() for values in by.values())
    assert mean["probe", "50"] - mean["pixels + SVM", "50"] >= 0.25
    assert mean["probe", "50"] - mean["scratch", "50"] >= 0.15
    assert mean["fine-tuned", "400"] > mean["probe", "400"]
    assert mean["student, soft targets", "50"] > mean["student, labels", "50"] + 0.08


def test_few_features_are_those_of_the_examples_that_few_shot_draws():
    train = load_dataset("digits").train
    few = few_shot(train, 2, seed=3)
    features = full_scale.few_features(train, Features(train.indices[:, None].float(), train.y), 2, seed=3)
    assert torch.equal(features.x[:, 0].long(), few.indices) and torch.equal(features.y, few.y)
