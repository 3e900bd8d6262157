import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.patches import FancyBboxPatch

from tlhelpers.course import drawings, plots
from tlhelpers.course.drawings import STATES


@pytest.fixture
def drawing():
    fig, ax = drawings.canvas(10, 3)
    yield ax
    plt.close(fig)


def test_boxes_stand_side_by_side_at_their_widths_and_their_middles_are_returned(drawing):
    middles = drawings.network(drawing, [("body", "frozen"), ("head", "new")], at=(1, 2), widths=[3, 1], gap=0.5)
    assert middles == [(2.5, 2), (5.0, 2)]
    boxes = [patch for patch in drawing.patches if isinstance(patch, FancyBboxPatch)]
    assert [(box.get_x(), box.get_width()) for box in boxes] == [(1, 3), (4.5, 1)]


def test_no_two_states_look_alike():
    assert len(set(STATES.values())) == len(STATES)


def test_an_unknown_state_is_named(drawing):
    with pytest.raises(ValueError, match=r"'melted'.*frozen"):
        drawings.network(drawing, [("body", "melted")], at=(0, 1))


def test_every_piece_stays_inside_the_limits_of_the_canvas(drawing):
    drawings.picture(drawing, np.eye(4), (1, 1))
    drawings.key(drawing, ["frozen", "new"], at=(2, 1))
    drawings.arrow(drawing, (3, 1), (5, 1), "copied")
    assert (drawing.get_xlim(), drawing.get_ylim()) == ((0, 10), (0, 3))


def test_a_vector_drawing_is_the_same_at_every_run_and_carries_its_words(drawing, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append((data, options)))
    plt.style.use(plots.STYLE)
    for _ in range(2):
        fig, ax = drawings.canvas(3, 1)
        drawings.network(ax, [("body", "frozen")], at=(1, 0.5))
        plots.show(fig, "a body", vector=True)
    assert shown[0] == shown[1]
    assert shown[0][1]["metadata"]["image/svg+xml"]["alt"] == "a body"
    assert capsys.readouterr().out.count("In words: a body") == 2
