import torch

from tlhelpers.models.backbones import load_backbone
from tlhelpers.data.examples import few_shot
from tlhelpers.data.named import glyph_masters, load_dataset
from tlhelpers.experiments import choosing_a_source as recipe
from tlhelpers.experiments.label_curve import pixel_scores


def test_there_are_ten_sources_or_more_and_every_one_gives_batches_of_32_by_32():
    made = recipe.sources()
    assert len(made) >= 10
    for name, source in made.items():
        x, y = next(iter(recipe.batches(source, seed=0, steps=1)))
        assert list(x.shape) == [recipe.BATCH, 1, 32, 32], name
        assert int(y.max()) < len(source.part.classes)


def test_the_sources_differ_in_what_they_are_named_after():
    made, everything = recipe.sources(), glyph_masters()
    assert torch.equal(made["upside down"].part.x.flip((2, 3)), everything.x)
    wrong = {
        name: float((made[name].part.y != everything.y).float().mean()) for name in ("noisy labels", "random labels")
    }
    assert 0.65 < wrong["noisy labels"] < 0.72  # 70 %, less those drawn right by luck
    assert wrong["random labels"] > 0.95
    assert len(made["one font"].part) < len(made["three fonts"].part) < len(everything)
    light, _ = next(iter(recipe.batches(made["inverted"], seed=0, steps=1)))
    dark, _ = next(iter(recipe.batches(made["all characters"], seed=0, steps=1)))
    assert float(light.mean()) > 1 > float(dark.mean())


def test_labels_are_mislabelled_once_and_for_all():
    a, b = (recipe.mislabelled(glyph_masters(), 0.5).y for _ in range(2))
    assert torch.equal(a, b)


def test_halves_for_tuning_and_for_scoring_are_about_equal():
    names = {*recipe.sources(), recipe.UNTRAINED}
    tuned_on = set(recipe.TO_TUNE_ON)
    assert tuned_on < names
    assert abs(len(tuned_on) - len(names - tuned_on)) <= 1


def test_a_source_is_made_scored_and_probed_the_same_twice():
    digits = load_dataset("digits")
    few = few_shot(digits.train, 2, seed=0)
    runs = []
    for _ in range(2):
        model = recipe.pretrained(recipe.sources()["two letters"], steps=2)
        body = recipe.as_backbone("two letters", model, ("X", "h"))
        runs.append((recipe.scores(body, few), recipe.probed(body, few, digits)))
    assert runs[0] == runs[1]
    assert set(runs[0][0]) == {"H-score", "NCE", "LEEP", "LogME"}


def test_a_good_body_has_the_better_scores_and_pixels_are_above_chance():
    digits = load_dataset("digits")
    few = few_shot(digits.train, 5, seed=0)
    good, bad = (recipe.scores(load_backbone(name), few) for name in ("glyphs-all", "glyphs-random"))
    assert all(good[name] > bad[name] for name in ("NCE", "LEEP", "LogME"))
    assert min(pixel_scores(few, digits.validation, digits.test, crop=True)) > 0.6


def test_tables_hold_one_entry_per_label_budget_and_seed():
    digits = load_dataset("digits")
    table = recipe.over_seeds(lambda few, seed: {"size": len(few) / 10}, digits)
    assert table == {str(n): {"size": [float(n)] * 5} for n in recipe.LABELS}
    pairs = recipe.over_seeds(lambda few, seed: {"pair": (seed, 0.5)}, digits)
    assert pairs["1"]["pair"] == [[seed, 0.5] for seed in range(5)]
