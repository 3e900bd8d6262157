from functools import cache

import nbformat
import pytest
import torch
from nbclient.output_widget import OutputWidget
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.svm import SVC
from torch import nn
from toys import CPU, differing, weights_of

from tlhelpers.models import backbones
from tlhelpers.models.backbones import GlyphNet, Normalize, load_backbone
from tlhelpers.data.examples import Splits, few_shot
from tlhelpers.data.named import load_dataset
from tlhelpers.analysis.features import extract_features, linear_probe
from tlhelpers.experiments import label_curve as label_curve
from tlhelpers.experiments import fine_tuning
from tools import pages
from tlhelpers.experiments import pretraining as pretrain
from tlhelpers.experiments.records import provenance

TRANSFORM = Normalize(0.2, 0.3)


@cache
def small(name: str) -> Splits:
    """Ten images per class and part; printed digits stand for every printed source."""
    splits = load_dataset("digits" if name == "digits" else "glyph-digits")
    return Splits(*(few_shot(part, 10, seed=0) for part in (splits.train, splits.validation, splits.test)))


@pytest.fixture(scope="module")
def digits():
    return small("digits")


@pytest.fixture
def source():
    """A body to start from; a fresh one for every test."""
    return load_backbone("glyphs-all")


@pytest.mark.parametrize("name", ["glyphs-random", "glyphs-letters"])
def test_a_body_is_made_alike_every_time_and_can_be_loaded(name, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "load_dataset", small)
    monkeypatch.setattr(pretrain, "SEEDS", (0, 0))
    monkeypatch.setattr(pretrain, "PASSES", 1)
    card = pretrain.make(name, tmp_path, steps=2)
    assert card["runs"][0] == card["runs"][1]
    monkeypatch.setattr(backbones, "ASSETS", tmp_path)
    loaded = load_backbone(name)
    assert loaded.card == card
    assert loaded.classes == tuple("0123456789")
    assert loaded.transform == pretrain.TRANSFORM


def test_bodies_are_normalised_by_the_pixels_of_their_source():
    pixels = load_dataset("glyph-letters").train.x
    assert pretrain.TRANSFORM.mean == pytest.approx(float(pixels.mean()), abs=0.01)
    assert pretrain.TRANSFORM.std == pytest.approx(float(pixels.std()), abs=0.01)


def test_the_random_control_has_initial_weights_and_the_batchnorm_means_of_its_images():
    splits = small("glyphs")
    model = pretrain.random_control(splits, TRANSFORM, seed=3).to(CPU)
    torch.manual_seed(3)
    fresh = GlyphNet()
    assert all(torch.equal(a, b) for a, b in zip(model.body.parameters(), fresh.parameters(), strict=True))
    means = fresh.stem.conv(TRANSFORM(splits.train.x)).mean((0, 2, 3))
    assert torch.allclose(model.body.stem.bn.running_mean, means, atol=1e-5)


def test_fine_tuning_leaves_the_backbone_alone_and_depends_on_its_seed_alone(source, digits):
    few = few_shot(digits.train, 1, seed=0)
    before = weights_of(source.module)
    torch.manual_seed(1)
    first = label_curve.fine_tuned(source, few, seed=5, steps=2)
    torch.manual_seed(2)
    again = label_curve.fine_tuned(source, few, seed=5, steps=2)
    assert differing(before, source.module) == []
    assert differing(weights_of(first), again) == []
    assert "stem.conv.weight" in differing(before, first.body)


def test_training_from_scratch_takes_nothing_from_a_backbone(digits):
    model = label_curve.from_scratch(digits.train, TRANSFORM, seed=4, steps=1, lr=1e-12)
    torch.manual_seed(4)
    for ours, fresh in zip(model.body.parameters(), GlyphNet().parameters(), strict=True):
        assert torch.allclose(ours.cpu(), fresh, atol=1e-6)


def test_lp_ft_starts_from_the_linear_probe(source, digits):
    features = extract_features(source, digits.train)
    probe = linear_probe(features, features)
    model = label_curve.probed_then_tuned(source, digits.train, seed=0, steps=1, lr=1e-12)
    assert torch.allclose(model.head.weight.cpu(), probe.weight, atol=1e-5)
    assert torch.allclose(model.head.bias.cpu(), probe.bias, atol=1e-5)


def test_the_pixel_baseline_is_the_grid_search_of_scikit_learn(digits):
    x, y = (torch.cat([getattr(part, field) for part in (digits.train, digits.validation)]) for field in "xy")
    x = x.flatten(1).numpy()
    grid = {"C": [1.0, 10.0], "gamma": [g / x.shape[1] for g in (3.0, 10.0, 30.0)]}
    folds = PredefinedSplit([-1] * 100 + [0] * 100)
    best = GridSearchCV(SVC(), grid, cv=folds, refit=False).fit(x, y).best_params_
    expected = SVC(**best).fit(x[:100], y[:100]).score(digits.test.x.flatten(1).numpy(), digits.test.y)
    assert label_curve.pixel_svm(digits.train, digits.validation, digits.test, crop=False) == pytest.approx(expected)
    assert label_curve.pixel_svm(digits.train, digits.validation, digits.test, crop=True) > 0.1


class Constant(nn.Module):
    """Answers one class, whatever it sees."""

    def __init__(self, answer: int) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return torch.eye(10, device=x.device)[self.answer].expand(len(x), 10)


def test_settings_are_chosen_by_mean_validation_accuracy():
    digits = load_dataset("digits")
    shares = torch.bincount(digits.validation.y) / len(digits.validation)
    grid = {"answer": (2, 5, 8), "unused": (0, 1)}
    found = label_curve.choose(lambda few, seed, answer, unused: Constant(answer), grid, (1, 5), digits, TRANSFORM)
    assert found["chosen"] == {"answer": max((2, 5, 8), key=lambda k: shares[k]), "unused": 0}
    measured = [row["validation_accuracy"] for row in found["table"]]
    assert measured == pytest.approx([float(shares[k]) for k in (2, 2, 5, 5, 8, 8)], abs=1e-4)


def test_the_recipe_of_page_03_contains_the_one_of_page_00(source, digits):
    ours = fine_tuning.adapted(source, digits.train, seed=1, steps=2)
    theirs = label_curve.fine_tuned(source, digits.train, seed=1, steps=2)
    assert differing(weights_of(ours), theirs) == []


def test_frozen_stages_do_not_drift_and_the_others_do(source, digits):
    model = fine_tuning.adapted(source, digits.train, seed=1, frozen=3, steps=2)
    drift = fine_tuning.drift_per_stage(model.body.to(CPU), source.module.to(CPU))
    assert [name for name, value in drift.items() if value == 0] == ["stem", "block1", "block2"]
    pairs = zip(model.body.parameters(), source.module.parameters(), strict=True)
    difference = torch.cat([(p - q).detach().flatten() for p, q in pairs])
    assert fine_tuning.total_drift(model.body, source.module) == pytest.approx(float(difference.norm()), rel=1e-4)


def test_only_the_kept_stages_are_transferred(source, digits):
    model = fine_tuning.partly_transferred(source, digits.train, seed=1, keep=2, frozen=True, steps=1)
    drift = fine_tuning.drift_per_stage(model.body.to(CPU), source.module.to(CPU))
    assert [name for name, value in drift.items() if value == 0] == ["stem", "block1"]
    assert drift["block4"] > 1


def test_a_recorded_file_says_how_it_was_made():
    facts = provenance("python -m something")
    assert facts["command"] == "python -m something"
    assert facts["versions"]["torch"] == torch.__version__
    assert {"machine", "date"} <= set(facts)


def test_a_widget_is_never_answered_while_its_cell_is_awaited(monkeypatch):
    """The answer would make the wait for the kernel miss its reply now and then (jupyter/nbclient#312)."""
    answers = []
    monkeypatch.setattr(OutputWidget, "send", lambda *message, **_: answers.append(message))
    source = "from tlhelpers.course.widgets import explore\nexplore(lambda n: print('drawn', n), n=[1, 2])"
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    pages.PageClient(page, kernel_name="python3", timeout=120).execute()
    assert answers == []
    (shown,) = page.cells[0].outputs  # the widget; what it draws stays inside it
    assert "application/vnd.jupyter.widget-view+json" in shown.data


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The path of a page of two cells, and a stand-in for the kernel that leaves typical outputs."""

    class Client:
        def __init__(self, page, **_):
            self.page = page

        def execute(self):
            outputs = [
                nbformat.v4.new_output("stream", name="stdout", text="ke"),
                nbformat.v4.new_output("stream", name="stderr", text="a progress bar"),
                nbformat.v4.new_output("stream", name="stdout", text="pt"),
                nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}}),
                nbformat.v4.new_output("display_data", {"image/png": ""}),
                nbformat.v4.new_output("stream", name="stdout", text="In words: white"),
            ]
            self.page.cells[1].outputs = outputs
            self.page.cells[1].metadata["execution"] = {"iopub.status.busy": "2030-01-01"}

    monkeypatch.setattr(pages, "PageClient", Client)
    cells = [
        nbformat.v4.new_markdown_cell("# A page\n*Computes for about 0 s on 9 CPU cores; read for 20 min.*"),
        nbformat.v4.new_code_cell("print('kept')"),
    ]
    facts = {"page": "07", "title": "A page", "objectives": ["see", "do"]}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"tlcourse": facts, "widgets": {"state": 1}})
    path = tmp_path / "07_a_page.ipynb"
    nbformat.write(notebook, path)
    return path


def test_an_executed_page_states_its_time_and_keeps_only_what_teaches(page):
    pages.execute(page)
    saved = nbformat.read(page, as_version=4)
    assert "*Computes for about 5 s on" in saved.cells[0].source
    assert saved.cells[0].source.endswith("; read for 20 min.*")
    above, figure, below = saved.cells[1].outputs
    assert (above.text, list(figure.data), below.text) == ("kept", ["image/png"], "In words: white")
    assert "widgets" not in saved.metadata
    first = page.read_text("utf-8")
    pages.execute(page)
    assert page.read_text("utf-8") == first


def test_the_table_of_pages_is_made_of_their_metadata(page):
    pages.execute(page)
    assert pages.page_table([page]).splitlines()[2] == ("| [07 A page](notebooks/07_a_page.ipynb) | see; do | 0 |")


def test_a_page_without_the_line_for_its_time_is_left_as_it_was(page):
    page.write_text(page.read_text("utf-8").replace("Computes", "Takes"), "utf-8")
    before = page.read_text("utf-8")
    with pytest.raises(ValueError, match=r"the first cell of 07_a_page\.ipynb must hold .*Computes for about 0 s"):
        pages.execute(page)
    assert page.read_text("utf-8") == before
