"""The table of `make bench` is drawn from its files; no time is asserted here."""

import importlib.util
import json
import math
import statistics
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import seeds, timing  # noqa: E402
from benchmarks.__main__ import SCRIPTS  # noqa: E402
from benchmarks.table import ROWS, Row, draw, load, verdict  # noqa: E402

GROUPS = ("loop", "rivals", "seeds", "features", "streaming", "pages", "threads", "scale", "processes", "gpu")


def test_every_group_of_the_plan_has_rows_and_no_row_stands_twice():
    assert {row.key.split("/")[0] for row in ROWS} == set(GROUPS)
    assert len({row.key for row in ROWS}) == len(ROWS)


def test_every_measured_row_is_in_the_table_and_every_row_of_a_file_was_measured():
    found = load()
    assert set(found) <= {row.key for row in ROWS}
    measured = {path.stem for path in timing.RESULTS.glob("*.json")}
    assert {row.key for row in ROWS if row.key.split("/")[0] in measured} == set(found)


def median_ratio(seconds, ours, theirs):
    return statistics.median(a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True))


def rows_of_features(raw):
    columns = {"probe": ("training", "again", "probe"), "same head": ("training", "again", "cached")}
    columns["extraction"] = ("extraction", "bare", "ours")
    return {
        f"{column}, {net}": median_ratio(raw[net][k], *pair) for net in raw for column, (k, *pair) in columns.items()
    }


def rows_of_rivals(raw):
    rows = {}
    for case, found in raw.items():
        seconds, scores = found["seconds"], found["accuracy"]
        others = set(seconds) - {"fit"}
        if case.startswith("augmented"):
            best = min(others, key=lambda name: statistics.median(seconds[name]))
            rows[case] = median_ratio(seconds, best, "fit")
        else:
            best = min(others - {"hand"}, key=lambda name: statistics.median(seconds[name]))
            rows[f"{case}, fastest"] = median_ratio(seconds, "fit", best)
            rows[f"{case}, hand"] = median_ratio(seconds, "fit", "hand")
            rows |= {f"{case}, {name}": median_ratio(seconds, name, "hand") for name in others - {"hand"}}
        mean_of_others = statistics.mean(score for name in others for score in scores[name])
        rows[f"{case}, accuracy"] = statistics.mean(scores["fit"]) - mean_of_others
    return rows


def rows_of_scale(raw):
    seconds, operations = raw["seconds"], raw["operations"]
    growth = operations["128"] / operations["64"]
    return {
        "side": median_ratio(seconds, "forward, 128 px", "forward, 64 px") / growth,
        "training": median_ratio(seconds, "training, 64 px", "forward, 64 px") / 3,
    }


def rows_of_streaming(raw):
    pairs = list(zip(raw["10000"], raw["1000000"], strict=True))
    return {
        "peak memory": statistics.median(b["peak_mib"] - a["peak_mib"] for a, b in pairs),
        "probe memory": statistics.median(b["probe_anonymous_mib"] - a["probe_anonymous_mib"] for a, b in pairs),
        "time": statistics.median(math.log(b["seconds"] / a["seconds"], 100) for a, b in pairs),
    }


# What the rows of a file must be, by what was measured.
FROM_RAW = {
    "features": rows_of_features,
    "loop": lambda raw: {row.partition("/")[2]: median_ratio(raw[row], "fit", "hand") for row in raw},
    "pages": lambda raw: {"slowest": max(raw["seconds"].values()), "all": sum(raw["seconds"].values())},
    "processes": lambda raw: {row.partition("/")[2]: median_ratio(raw[row], "one", "two") / 2 for row in raw},
    "rivals": rows_of_rivals,
    "scale": rows_of_scale,
    "seeds": lambda raw: {row.partition("/")[2]: median_ratio(raw[row], "in turn", "at once") for row in raw},
    "streaming": rows_of_streaming,
    "threads": lambda raw: {
        "two processes": median_ratio(raw["two processes"], "two threads each", "one thread each"),
        "probe": median_ratio(raw["probe"], "unlimited", "fit_probe"),
    },
}


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in sorted(timing.RESULTS.glob("*.json"))])
def test_every_result_says_where_it_comes_from_and_follows_from_its_raw_numbers(path):
    facts = json.loads(path.read_text("utf-8"))
    assert set(facts) >= {"command", "machine", "versions", "date", "cores", "rows", "raw"}
    rows = {key: row["value"] for key, row in facts["rows"].items()}
    expected = {f"{path.stem}/{key}": value for key, value in FROM_RAW[path.stem](facts["raw"]).items()}
    assert rows == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_the_table_shows_a_changed_file(tmp_path):
    (tmp_path / "loop.json").write_text(json.dumps({"rows": {"loop/resnet18": {"value": 9, "low": 8, "high": 10}}}))
    drawn = draw(load(tmp_path)).splitlines()
    assert len(drawn) == len(ROWS) + 2
    assert "| 9 [8, 10] | <= 1.03 | missed by 7.97" in drawn[2]
    assert sum("not measured" in line for line in drawn) == len(ROWS) - 1


@pytest.mark.parametrize(
    ("row", "value", "expected"),
    [
        (Row("a/b", "", at_most=1.0), 1.0, "met"),
        (Row("a/b", "", at_least=3.0), 3.5, "met"),
        (Row("a/b", "", at_least=3.0, because="of rain"), 2.9, "missed by 0.1 (within the spread) because of rain"),
        (Row("a/b", "", at_most=1.0, because="of rain"), 2.0, "missed by 1 because of rain"),
        (Row("a/b", ""), 2.0, "for orientation"),
    ],
)
def test_verdicts(row, value, expected):
    assert verdict(row, {"value": value, "low": value - 0.2, "high": value + 0.2}) == expected


def test_a_row_that_was_not_measured_says_how_to_measure_it():
    assert verdict(Row("loop/x", ""), None) == "not measured: run python -m benchmarks.loop"


def test_contenders_take_turns_and_neither_is_always_first():
    calls = []
    seconds = timing.interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, 4)
    assert "".join(calls) == "abc" + "abc" + "cba" + "bca" + "acb"
    assert {name: len(times) for name, times in seconds.items()} == dict.fromkeys("abc", 4)
    calls.clear()
    timing.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 4)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ba" + "ab"


def test_a_ratio_is_the_median_of_the_ratios_of_each_round():
    seconds = {"ours": [1.0, 4.0, 9.0], "theirs": [1.0, 2.0, 3.0]}
    assert timing.ratio(seconds, "ours", "theirs") == {"value": 2.0, "low": 1.5, "high": 2.5}
    assert timing.fastest(seconds, ["ours", "theirs"]) == "theirs"


@pytest.mark.parametrize("row", ["seeds/linear head", "seeds/student of page 06"])
def test_networks_trained_at_once_lose_as_networks_trained_in_turn(row):
    network, shape, *_ = seeds.CASES[row]
    torch.manual_seed(0)
    models = [seeds.without_running_statistics(network()) for _ in range(3)]
    x, y = torch.rand(3, 8, *shape), torch.randint(0, 10, (3, 8))
    together, in_turn = seeds.at_once(models, x, y), seeds.one_by_one(models, x, y)
    for _ in range(3):
        torch.testing.assert_close(together(), in_turn(), atol=2e-3, rtol=2e-3)


def test_every_script_that_the_command_runs_exists():
    assert {*SCRIPTS, "gpu"} == set(GROUPS)
    assert [name for name in GROUPS if importlib.util.find_spec(f"benchmarks.{name}") is None] == []


def test_the_page_of_arithmetic_holds_the_numbers_of_the_files():
    from benchmarks import scale

    text = scale.PAGE.read_text("utf-8")
    assert scale.with_tables(text) == text
    assert scale.with_tables(text.replace("GFLOP/s (ResNet-18", "TFLOP/s (ResNet-18")) == text


def test_fit_on_resident_data_gives_the_bits_of_the_hand_written_loop_over_a_dataloader():
    from torch.utils.data import DataLoader, TensorDataset

    from benchmarks.nets import hand_loop, noise, tiny_cnn
    from tlhelpers.data import TensorLoader
    from tlhelpers.objectives import classification
    from tlhelpers.training import fit

    cpu, part, models = torch.device("cpu"), noise(40, 1, 32, 32), [tiny_cnn(), tiny_cnn()]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in models]
    hand_loop(models[0], DataLoader(TensorDataset(part.x, part.y), 16), optimizers[0], epochs=2)
    fit(models[1], (TensorLoader(part, 16, device=cpu), None), classification(), optimizers[1], epochs=2, device=cpu)
    weights = models[1].state_dict()
    assert [name for name, value in models[0].state_dict().items() if not torch.equal(value, weights[name])] == []


def test_cached_features_give_the_losses_of_a_body_that_runs_in_every_epoch(monkeypatch):
    from benchmarks import features, nets

    monkeypatch.setattr(features, "EPOCHS", 3)
    backbone, part = features.body("GlyphNet"), nets.noise(40, 1, 32, 32)
    again, cached = features.again(backbone, part), features.cached(backbone, part)
    assert again == pytest.approx(cached, abs=1e-4)
    assert again[0] > again[-1]
