import numpy as np
import pytest
import torch
from torch import nn
from toys import toy_images

from tlhelpers.analysis import Features
from tlhelpers.data import Examples
from tlhelpers.experiments import bug_clinic
from tlhelpers.models import load_backbone


def test_complaint_names_the_error_and_its_first_line():
    assert bug_clinic.complaint(lambda: int("x\ny")).startswith("ValueError: invalid literal")
    assert bug_clinic.complaint(lambda: 1) == "no complaint"


def test_the_ledger_keeps_paired_differences_in_points(capsys):
    ledger = bug_clinic.Ledger()
    assert ledger.note("C1\nword", [0.9, 0.8], [0.6, 0.7]) == pytest.approx(20)
    np.testing.assert_allclose(ledger.points["C1\nword"], [30, 10])
    assert "C1 word: 85.0 % against 65.0 %: 20.0 +/- 10.0 points" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no standard error"):
        ledger.note("one", [0.9], [0.8])


def test_read_counts_right_answers_whatever_the_batches():
    images = toy_images(10)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    nn.init.zeros_(model[1].weight)
    model[1].bias.data = torch.tensor([1.0, 0.0])  # always class 0, every second example
    assert [bug_clinic.read(model, images, size) for size in (3, 10)] == [0.5, 0.5]


def test_rows_end_where_the_ink_ends_and_the_last_state_is_taken_there():
    x = torch.zeros(2, 1, 6, 6)
    x[0, 0, 1:3, 2] = 1
    x[1, 0, 0:5, 2] = 1
    rows, lengths = bug_clinic.rows_of(Examples("p", x, torch.tensor([0, 1]), ("a", "b"), torch.arange(2)))
    assert lengths.tolist() == [2, 5] and rows.shape == (2, 5, 6)
    assert rows[0, 2:].abs().sum() == 0
    states = torch.arange(20.0).reshape(2, 5, 2)
    assert bug_clinic.last_valid(states, lengths).tolist() == [[2.0, 3.0], [18.0, 19.0]]


def test_the_luckiest_of_many_promises_more_than_it_keeps():
    generator = torch.Generator().manual_seed(0)
    draw = Features(torch.randn(40, 12, generator=generator), torch.arange(40) % 2)
    test = Features(torch.randn(400, 12, generator=generator), torch.arange(400) % 2)  # nothing to learn
    promised, kept = bug_clinic.luckiest(draw, test, settings=20, voters=20, seed=0)
    assert promised > 0.6 and abs(kept - 0.5) < 0.12


def test_another_luckiest_is_met_by_a_learner_who_shifts_the_seeds(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    draw = Features(torch.randn(40, 12, generator=generator), torch.arange(40) % 2)
    test = Features(torch.randn(400, 12, generator=generator), torch.arange(400) % 2)
    usual = bug_clinic.luckiest(draw, test, settings=5, voters=20, seed=0)
    monkeypatch.setenv("TLHELPERS_SEED", "1")
    assert bug_clinic.luckiest(draw, test, settings=5, voters=20, seed=0) != usual


def test_every_draw_gets_a_probe_and_a_module_serves_as_well_as_a_backbone():
    backbone = load_backbone("glyphs-random")
    images = toy_images(20)
    draws = [images, images.take(torch.arange(10))]
    scores = bug_clinic.probe_draws(backbone, draws, images)
    assert scores.shape == (2,)
    np.testing.assert_array_equal(bug_clinic.probe_draws(backbone.module, draws, images), scores)
    np.testing.assert_array_equal(bug_clinic.probe_draws(backbone, draws, images, lambda x: x), scores)


def test_a_folder_has_its_classes_sorted_by_name():
    assert bug_clinic.folder_of(["2", "10", "1"]).class_to_idx == {"1": 0, "10": 1, "2": 2}


def test_two_heads_in_training_and_one_in_eval_mode():
    net = bug_clinic.TwoHeads(load_backbone("glyphs-random"), 10)
    x = torch.rand(2, 1, 32, 32)
    assert [out.shape for out in net.train()(x)] == [(2, 10), (2, 10)]
    assert net.eval()(x).shape == (2, 10)


def test_narrowing_keeps_the_canvas_and_halves_the_ink():
    images = torch.rand(3, 1, 32, 32)
    narrowed = bug_clinic.narrow(images)
    assert narrowed.shape == images.shape
    assert narrowed[..., :8].abs().max() == 0 and narrowed[..., 24:].abs().max() == 0
    assert narrowed.sum() == pytest.approx(images.sum().item() / 2, rel=1e-4)


def test_training_follows_the_given_order_and_is_repeatable():
    backbone = load_backbone("glyphs-random")
    images = toy_images(20)
    runs = [bug_clinic.trained(backbone, images, [order], seed=0) for order in (torch.arange(20), torch.arange(20))]
    other = bug_clinic.trained(backbone, images, [torch.arange(20).flip(0)], seed=0)
    weights = [model.head.weight for model in (*runs, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
