"""Records, the ways to use a body, and the scripts of pages 00 and 03 and of the shipped weights."""

import json
import math
import re
from dataclasses import replace
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from statistics import mean

import pytest
import torch
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.svm import SVC
from torch import nn
from toys import CPU, differing, weights_of

from tlhelpers.analysis import extract_features, fit_probe, pixel_baseline
from tlhelpers.data import Splits, as_float, few_shot, load_dataset
from tlhelpers.experiments import fine_tuning, label_curve, pretraining, records
from tlhelpers.experiments.records import choose, provenance, read_record, write_record
from tlhelpers.experiments.strategies import (
    PRINT_MEAN,
    PRINT_STD,
    STAGES,
    fine_tuned,
    from_scratch,
    probed_then_tuned,
)
from tlhelpers.models import GlyphNet, glyphnet, load_backbone
from tlhelpers.training import accuracy


@cache
def small(name: str) -> Splits:
    """Ten images per class and part; printed digits stand for every printed source."""
    splits = load_dataset("digits" if name == "digits" else "glyph-digits")
    return Splits(*(few_shot(examples, 10, seed=0) for examples in (splits.train, splits.validation, splits.test)))


@pytest.fixture(scope="module")
def digits():
    return small("digits")


@pytest.fixture
def source():
    """A body to start from; a fresh one for every test."""
    return load_backbone("glyphs-all")


@pytest.mark.parametrize("name", ["glyphs-random", "glyphs-letters"])
def test_a_body_is_made_alike_every_time_and_can_be_loaded(name, tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "load_dataset", small)
    monkeypatch.setattr(pretraining, "SEEDS", (0, 0))
    monkeypatch.setattr(pretraining, "PASSES", 1)
    card = pretraining.make(name, tmp_path, steps=2)
    assert card["runs"][0] == card["runs"][1]
    monkeypatch.setattr(glyphnet, "ASSETS", tmp_path)
    loaded = load_backbone(name)
    assert loaded.card == card
    assert loaded.classes == tuple("0123456789")
    assert float(loaded.module.normalize.mean) == pytest.approx(PRINT_MEAN)
    assert float(loaded.module.normalize.std) == pytest.approx(PRINT_STD)


def test_bodies_are_normalised_by_the_pixels_of_their_source():
    pixels = load_dataset("glyph-letters").train.x
    assert pytest.approx(float(pixels.mean()), abs=0.01) == PRINT_MEAN
    assert pytest.approx(float(pixels.std()), abs=0.01) == PRINT_STD


def test_the_random_control_has_initial_weights_and_the_batchnorm_means_of_its_images():
    splits = small("glyphs")
    model = pretraining.random_control(splits, seed=3)
    torch.manual_seed(3)
    fresh = GlyphNet(PRINT_MEAN, PRINT_STD)
    assert all(torch.equal(a, b) for a, b in zip(model.body.parameters(), fresh.parameters(), strict=True))
    means = fresh.stem.conv(fresh.normalize(splits.train.x)).mean((0, 2, 3))
    assert torch.allclose(model.body.stem.bn.running_mean, means, atol=1e-5)


def test_fine_tuning_leaves_the_backbone_alone_and_depends_on_its_seed_alone(source, digits):
    few = few_shot(digits.train, 1, seed=0)
    before = weights_of(source.module)
    torch.manual_seed(1)
    first = fine_tuned(source, few, seed=5, steps=2)
    torch.manual_seed(2)
    again = fine_tuned(source, few, seed=5, steps=2)
    assert differing(before, source.module) == []
    assert differing(weights_of(first), again) == []
    assert "stem.conv.weight" in differing(before, first.body)


def test_training_from_scratch_takes_nothing_from_a_backbone(digits):
    model = from_scratch(digits.train, seed=4, steps=1, lr=1e-12)
    torch.manual_seed(4)
    for ours, fresh in zip(model.body.parameters(), GlyphNet().parameters(), strict=True):
        assert torch.allclose(ours.cpu(), fresh, atol=1e-6)


def test_lp_ft_starts_from_the_linear_probe(source, digits):
    probe = fit_probe(extract_features(source, digits.train))
    model = probed_then_tuned(source, digits.train, seed=0, steps=1, lr=1e-12)
    assert torch.allclose(model.head.weight.cpu(), probe.weight, atol=1e-5)
    assert torch.allclose(model.head.bias.cpu(), probe.bias, atol=1e-5)


def test_the_pixel_baseline_is_the_grid_search_of_scikit_learn(digits):
    x, y = (torch.cat([getattr(part, field) for part in (digits.train, digits.validation)]) for field in "xy")
    x = x.flatten(1).numpy()
    grid = {"C": [1.0, 10.0], "gamma": [g / x.shape[1] for g in (3.0, 10.0, 30.0)]}
    folds = PredefinedSplit([-1] * 100 + [0] * 100)
    best = GridSearchCV(SVC(), grid, cv=folds, refit=False).fit(x, y).best_params_
    expected = SVC(**best).fit(x[:100], y[:100]).score(digits.test.x.flatten(1).numpy(), digits.test.y)
    assert pixel_baseline(digits.train, digits.validation, digits.test, crop=False) == pytest.approx(expected)
    assert pixel_baseline(digits.train, digits.validation, digits.test, crop=True) > 0.1
    in_bytes = [replace(part, x=(255 * part.x).byte()) for part in (digits.train, digits.validation, digits.test)]
    in_fractions = [part.mapped(as_float) for part in in_bytes]
    assert pixel_baseline(*in_bytes) == pixel_baseline(*in_fractions)


class Constant(nn.Module):
    """Answers one class, whatever it sees."""

    def __init__(self, answer: int) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return torch.eye(10, device=x.device)[self.answer].expand(len(x), 10)


def test_a_choice_is_the_best_setting_of_the_grid_and_the_first_of_equals():
    grid = {"unused": (0, 1), "answer": (2, 5, 8)}
    choice = choose(lambda answer, unused: {2: 0.1, 5: 0.7, 8: 0.3}[answer], grid)
    assert choice["chosen"] == {"unused": 0, "answer": 5}
    settings = [row["setting"] for row in choice["table"]]
    assert len(settings) == 6
    assert all(list(setting) == ["unused", "answer"] for setting in settings)
    assert {row["validation_accuracy"] for row in choice["table"]} == {0.1, 0.7, 0.3}
    assert choice["at_the_edge"] == []


@pytest.mark.parametrize(
    ("values", "best", "is_named"),
    [
        ((1, 3, 10), 10, True),
        ((1, 3, 10), 1, True),
        ((10, 3, 1), 1, True),
        ((0.1, math.inf, 3), math.inf, True),
        ((1, 3, 10), 3, False),
        ((3, 1, 10), 3, False),
        ((1, 3), 3, False),
        (("bend", "place", "strong"), "strong", False),
        ((False, True, None), True, False),
    ],
)
def test_a_number_chosen_at_the_end_of_its_grid_is_named(values, best, is_named, capsys):
    choice = choose(lambda lr, other: float(lr == best), {"other": (1, 2), "lr": values})
    assert choice["chosen"]["lr"] == best
    assert choice["at_the_edge"] == (["lr"] if is_named else [])
    assert ("at the edge of the grid: lr; a wider one" in capsys.readouterr().out) is is_named


@pytest.mark.parametrize(
    "tune",
    [
        lambda method, grid, digits: label_curve.tune(method, grid, digits, labels=(1, 5)),
        fine_tuning.tune,
    ],
    ids=["label_curve", "fine_tuning"],
)
def test_settings_are_chosen_by_mean_validation_accuracy(tune):
    digits = load_dataset("digits")
    shares = torch.bincount(digits.validation.y) / len(digits.validation)
    choice = tune(lambda few, seed, answer: Constant(answer), {"answer": (2, 5, 8)}, digits)
    assert choice["chosen"] == {"answer": max((2, 5, 8), key=lambda k: shares[k])}
    measured = [row["validation_accuracy"] for row in choice["table"]]
    assert measured == pytest.approx([float(shares[k]) for k in (2, 5, 8)], abs=1e-4)


def test_frozen_stages_do_not_drift_and_the_others_do(source, digits):
    model = fine_tuned(source, digits.train, seed=1, frozen=3, steps=2)
    drift = fine_tuning.drift_per_stage(model.body, source.module)
    assert [name for name, value in drift.items() if value == 0] == ["stem", "block1", "block2"]
    pairs = zip(model.body.to(CPU).parameters(), source.module.parameters(), strict=True)
    difference = torch.cat([(p - q).detach().flatten() for p, q in pairs])
    assert fine_tuning.total_drift(model.body, source.module) == pytest.approx(float(difference.norm()), rel=1e-4)


@pytest.mark.parametrize("frozen", [True, False])
def test_only_the_kept_stages_are_transferred(frozen, source, digits):
    settings = {"seed": 1, "keep": 2, "frozen": frozen, "steps": 1, "lr": 1e-6}
    drift = fine_tuning.drift_per_stage(
        fine_tuning.partly_transferred(source, digits.train, **settings).body, source.module
    )
    assert [name for name, value in drift.items() if value == 0] == (["stem", "block1"] if frozen else [])
    assert [name for name, value in drift.items() if value > 1] == ["block2", "block3", "block4"]


def test_an_unchanged_body_knows_its_source(source):
    source_test = load_dataset("glyphs").test
    expected = accuracy(nn.Sequential(source.module, source.head), source_test)
    assert fine_tuning.source_accuracy(source.module, source.head, source_test) == expected
    assert expected == pytest.approx(source.card["runs"][0]["source_test_accuracy_float16"], abs=1e-3)


def test_the_record_of_page_03_has_the_form_that_its_script_writes(source, digits, monkeypatch, tmp_path):
    """All four grids with one setting, one seed and one step."""
    monkeypatch.setattr(fine_tuning, "SEEDS", range(1))
    monkeypatch.setattr(fine_tuning, "DEPTH_SEEDS", range(1))
    monkeypatch.setattr(fine_tuning, "TUNING_SEEDS", (1000,))
    monkeypatch.setattr(fine_tuning, "choose", lambda score, grid: choose(score, {k: v[:1] for k, v in grid.items()}))
    monkeypatch.setattr(fine_tuning, "load_dataset", small)
    monkeypatch.setattr(fine_tuning, "train_small", lambda model, *_, **__: model)
    monkeypatch.setattr(
        fine_tuning, "fine_tuned", lambda *values, **setting: fine_tuned(*values, **setting | {"steps": 1})
    )
    monkeypatch.setattr(fine_tuning, "source_accuracy", lambda body, head, test: 0.5)
    fine_tuning.record(tmp_path / "fine_tuning.json")
    ours = read_record(tmp_path / "fine_tuning.json")
    theirs = read_record(fine_tuning.RECORD)
    assert set(ours) == set(theirs) | {"seeds"}
    assert set(ours["depth"]) == set(theirs["depth"]) == {str(k) for k in range(len(STAGES) + 1)}
    for path in ("depth 3", "transferred frozen 2", "rates body_at_a_tenth 0.01", "pulls 0.3"):
        keys = [key.replace("_", " ") for key in path.split()]
        assert set(reduce(getitem, keys, ours)) - {"at_the_edge"} == set(reduce(getitem, keys, theirs)), path


def test_a_recorded_file_says_how_it_was_made(tmp_path, monkeypatch):
    facts = provenance("python -m something", seeds=range(3))
    assert facts["command"] == "python -m something" and facts["seeds"] == [0, 1, 2]
    assert facts["versions"]["torch"] == torch.__version__
    assert {"machine", "date"} <= set(facts)
    path = tmp_path / "recorded" / "something.json"
    write_record(path, {"what": "nothing"} | facts)
    assert read_record(path) == json.loads(path.read_text("utf-8")) == {"what": "nothing"} | facts
    for device, words in [(CPU, " CPU, "), (torch.device("cuda"), " Tesla T4, ")]:
        monkeypatch.setattr(records, "pick_device", lambda device=device: device)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Tesla T4")
        assert words in provenance("python -m something")["machine"]


def test_every_experiment_writes_its_seeds():
    folder = Path(records.__file__).parent
    calls = re.findall(
        r"provenance\(\s*\"python -m [\w.]+\"(.*?)\)", "".join(p.read_text("utf-8") for p in folder.glob("*.py"))
    )
    assert len(calls) >= 9 and all("seeds=" in call for call in calls)


def test_the_label_curve_holds_every_method_label_and_seed_and_choices_that_its_own_tables_make():
    record = read_record(label_curve.RECORD)
    recipes = label_curve.methods()
    assert set(record["runs"]) == set(record["other_writers"]) == {"pixels", *recipes}
    for runs in (record["runs"], record["other_writers"]):
        for by_labels in runs.values():
            assert {int(n): len(values) for n, values in by_labels.items()} == label_curve.SEEDS
    for tuning in (record["tuning"], record["tuning_many"]):
        for name, choice in tuning.items():
            for table in (choice["table"], choice.get("steps", [])):
                best = max(table, key=lambda row: row["validation_accuracy"], default={"setting": {}})
                assert best["setting"].items() <= choice["chosen"].items(), name


def test_writers_never_seen_confirm_the_label_curve():
    record = read_record(label_curve.RECORD)
    for name, by_labels in record["runs"].items():
        for n, values in by_labels.items():
            assert mean(record["other_writers"][name][n]) == pytest.approx(mean(values), abs=0.03), (name, n)
