"""What can be checked about accessibility without a browser; the rest is in test_browser.py and test_site.py."""

import itertools
import json
from pathlib import Path

import ipywidgets
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from tlhelpers.course import plots, widgets

PAGES = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
# Linear RGB as the colour-blind see it: Machado, Oliveira & Fernandes (2009), severity 1.
SIGHT = {
    "all colours": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> np.ndarray:
    """sRGB without its gamma, [3] in 0 to 1."""
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast_with_white(colour: str) -> float:
    """The ratio of WCAG 2.1, from 1 (white) to 21 (black)."""
    return 1.05 / (TO_XYZ[1] @ linear(colour) + 0.05)


def lab(colour: str, sight: str) -> np.ndarray:
    """CIE L*a*b* of a colour as it is seen, [3]; about 2 is the least difference that an eye notices."""
    seen = np.clip(np.array(SIGHT[sight]) @ linear(colour), 0, 1)
    xyz = TO_XYZ @ seen / TO_XYZ.sum(axis=1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_contrast_of_the_ends_and_of_a_known_grey():
    assert contrast_with_white("black") == pytest.approx(21)
    assert contrast_with_white("white") == pytest.approx(1, abs=1e-3)
    assert contrast_with_white("#767676") == pytest.approx(4.54, abs=0.01)  # WCAG's own example of just enough


def test_every_colour_stands_out_on_white():
    assert {colour for colour in plots.COLOURS if contrast_with_white(colour) < 3} == set()


@pytest.mark.parametrize("sight", SIGHT)
def test_no_two_colours_look_alike(sight):
    for one, other in itertools.combinations(plots.COLOURS, 2):
        assert np.linalg.norm(lab(one, sight) - lab(other, sight)) > 15, (one, other)


def test_the_simulation_makes_red_and_green_alike_for_the_colour_blind():
    red, green = "#B05050", "#767600"
    apart = {sight: np.linalg.norm(lab(red, sight) - lab(green, sight)) for sight in SIGHT}
    assert apart["deuteranopia"] < apart["all colours"] / 2


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_saved_figure_has_alt_text(path):
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            for kind in {"image/png", "image/svg+xml"} & set(output.get("data", {})):
                assert output["metadata"][kind]["alt"].strip(), "draw it with plots.show"


def test_controls_of_a_widget_are_labelled_and_of_a_kind_that_ties_its_label(monkeypatch):
    shown = []
    monkeypatch.setattr(widgets, "display", shown.append)
    widgets.explore(lambda **_: None, labels_per_class=[1, 2], method=["probe", "scratch"])
    *controls, output = shown[0].children
    assert isinstance(output, ipywidgets.Output)
    for control in controls:
        assert isinstance(control, ipywidgets.Dropdown), "a slider's label is tied to nothing"
        assert control.description
