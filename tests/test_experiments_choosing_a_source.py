import torch

from tlhelpers.analysis import pixel_scores
from tlhelpers.data import few_shot, glyph_masters, load_dataset
from tlhelpers.experiments import choosing_a_source as experiment
from tlhelpers.models import load_backbone


def test_there_are_ten_sources_or_more_and_every_one_gives_batches_of_32_by_32():
    made = experiment.sources()
    assert len(made) >= 10
    for name, source in made.items():
        x, y = next(iter(experiment.batches(source, seed=0, steps=1)))
        assert list(x.shape) == [experiment.BATCH, 1, 32, 32], name
        assert int(y.max()) < len(source.examples.classes)


def test_the_sources_differ_in_what_they_are_named_after():
    made, everything = experiment.sources(), glyph_masters()
    assert torch.equal(made["upside down"].examples.x.flip((2, 3)), everything.x)
    labels = {name: made[name].examples.y for name in ("noisy labels", "random labels")}
    wrong = {name: float((y != everything.y).float().mean()) for name, y in labels.items()}
    assert 0.65 < wrong["noisy labels"] < 0.72  # 70 %, less those drawn right by luck
    assert wrong["random labels"] > 0.95
    assert len(made["one font"].examples) < len(made["three fonts"].examples) < len(everything)
    light, _ = next(iter(experiment.batches(made["inverted"], seed=0, steps=1)))
    dark, _ = next(iter(experiment.batches(made["all characters"], seed=0, steps=1)))
    assert float(light.mean()) > 0.5 > float(dark.mean())


def test_labels_are_mislabelled_once_and_for_all():
    a, b = (experiment.mislabelled(glyph_masters(), 0.5).y for _ in range(2))
    assert torch.equal(a, b)


def test_halves_for_tuning_and_for_scoring_are_about_equal():
    names = {*experiment.sources(), experiment.UNTRAINED}
    tuned_on = set(experiment.TO_TUNE_ON)
    assert tuned_on < names
    assert abs(len(tuned_on) - len(names - tuned_on)) <= 1


def test_a_source_is_made_scored_and_probed_the_same_twice():
    digits = load_dataset("digits")
    few = few_shot(digits.train, 2, seed=0)
    runs = []
    for _ in range(2):
        model = experiment.pretrained(experiment.sources()["two letters"], steps=2)
        body = experiment.as_backbone("two letters", model, ("X", "h"))
        runs.append((experiment.scores(body, few), experiment.probed(body, few, digits)))
    assert runs[0] == runs[1]
    assert set(runs[0][0]) == {"H-score", "NCE", "LEEP", "LogME"}


def test_a_good_body_has_the_better_scores_and_pixels_are_above_chance():
    digits = load_dataset("digits")
    few = few_shot(digits.train, 5, seed=0)
    good, bad = (experiment.scores(load_backbone(name), few) for name in ("glyphs-all", "glyphs-random"))
    assert all(good[name] > bad[name] for name in ("NCE", "LEEP", "LogME"))
    assert min(pixel_scores(few, digits.validation, digits.test, crop=True)) > 0.6


def test_tables_hold_one_entry_per_label_budget_and_seed():
    digits = load_dataset("digits")
    table = experiment.over_seeds(lambda few, seed: {"size": len(few) / 10}, digits)
    assert table == {str(n): {"size": [float(n)] * 5} for n in experiment.LABELS}
    pairs = experiment.over_seeds(lambda few, seed: {"pair": (seed, 0.5)}, digits)
    assert pairs["1"]["pair"] == [[seed, 0.5] for seed in range(5)]
