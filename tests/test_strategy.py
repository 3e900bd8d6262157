import itertools
import math

import pytest

from tlhelpers.analysis.strategy import FEW_STEPS, MANY, MARGIN, SCRATCH_STEPS, STRATEGIES, recommend


def strategy(labels, **facts):
    return recommend(labels, **facts).strategy


def test_every_answer_is_a_known_strategy_with_reasons():
    accuracies, truths = (0.0, 0.3, 0.5, 1.0), (False, True)
    grid = itertools.product((1, 5, 50), (None, *accuracies), accuracies, (0, 40, 1000), truths, truths)
    for labels, probe, pixels, steps, images, shrink in grid:
        facts = {"probe": probe, "pixels": pixels, "steps": steps, "source_images": images, "must_shrink": shrink}
        advice = recommend(labels, **facts)
        assert advice.strategy in STRATEGIES
        assert len(advice.reasons) >= 2 and all(advice.reasons)
        assert advice == recommend(labels, **facts)
        if steps == 0:
            assert advice.strategy in ("probe", "pixels")
        if steps < SCRATCH_STEPS:
            assert advice.strategy != "scratch"
        if advice.strategy in ("probe", "LP-FT", "fine-tune", "fine-tune top"):
            assert probe is not None and not shrink  # these end with the body
        if advice.strategy == "distil":
            assert shrink and probe is not None and probe >= pixels - MARGIN
        assert (advice.frozen is not None) == (advice.strategy in ("LP-FT", "fine-tune", "fine-tune top"))


def test_without_training_the_better_of_probe_and_pixels_wins():
    assert strategy(5, probe=0.6, pixels=0.5, steps=0) == "probe"
    assert strategy(5, probe=0.4, pixels=0.5, steps=0) == "pixels"
    assert strategy(5, probe=None, pixels=0.5, steps=0) == "pixels"


def test_a_good_body_is_tuned_from_its_probe_and_freely_only_with_labels_and_steps():
    good = {"probe": 0.95, "pixels": 0.9}
    assert strategy(1, **good) == strategy(MANY, steps=SCRATCH_STEPS - 1, **good) == "LP-FT"
    assert strategy(MANY, **good) == "fine-tune"
    assert recommend(1, **good).frozen == 0
    assert recommend(1, steps=FEW_STEPS - 1, **good).frozen == 3


def test_a_body_that_is_worse_than_pixels_is_not_used():
    assert strategy(1, probe=0.3, pixels=0.6) == "pixels"
    assert strategy(MANY, probe=0.3, pixels=0.9, steps=SCRATCH_STEPS) == "scratch"
    assert strategy(MANY, probe=0.3, pixels=0.9, steps=SCRATCH_STEPS - 1) == "pixels"


def test_what_is_at_hand_decides_when_there_is_no_body_or_no_room_for_it():
    assert strategy(2, probe=None, pixels=0.5, source_images=True) == "joint"
    assert strategy(50, probe=None, pixels=0.9) == "scratch"
    assert strategy(2, probe=None, pixels=0.5) == "pixels"
    assert strategy(5, probe=0.9, pixels=0.5, must_shrink=True) == "distil"
    assert strategy(5, probe=0.9, pixels=0.5, must_shrink=True, steps=0) == "pixels"
    assert strategy(5, probe=0.1, pixels=0.9, must_shrink=True) == "pixels"
    assert strategy(MANY, probe=0.1, pixels=0.9, must_shrink=True) == "scratch"


@pytest.mark.parametrize(
    ("labels", "facts", "message"),
    [
        (0, {}, "labels_per_class is 0; it must be at least 1"),
        (-3, {}, "labels_per_class is -3"),
        (5, {"steps": -1}, "steps is -1; it must be 0"),
        (5, {"probe": 73.0}, r"probe is 73.0; an accuracy lies in 0..1 \(divide per cent by 100\)"),
        (5, {"probe": -0.1}, "probe is -0.1"),
        (5, {"pixels": 1.1}, "pixels is 1.1; an accuracy"),
        (5, {"pixels": math.nan}, "pixels is nan; an accuracy"),
    ],
)
def test_numbers_that_cannot_be_are_refused(labels, facts, message):
    with pytest.raises(ValueError, match=message):
        recommend(labels, **{"probe": 0.5, "pixels": 0.5} | facts)
