"""Drawings: their picture against geometry, their files against what a file may hold."""

import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tlhelpers.data import check_strokes, read_strokes, render, write_strokes
from tlhelpers.data.strokes import MAX_BYTES, MAX_POINTS, MAX_SIGNS, MAX_STROKES
from tlhelpers.models import load_backbone

thorough = settings(max_examples=50, derandomize=True, deadline=None, database=None)

PLACES = st.integers(0, 64).map(lambda parts: parts / 64)
STROKES = st.lists(st.lists(st.tuples(PLACES, PLACES), min_size=1, max_size=6), min_size=1, max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=20,
)


def arc(x: float, y: float, across: float, down: float, start: float, end: float) -> list[tuple[float, float]]:
    """Points on an ellipse; degrees from the right, clockwise on the screen."""
    turn = np.radians(np.linspace(start, end, 20))
    return [(float(a), float(b)) for a, b in zip(x + across * np.cos(turn), y + down * np.sin(turn), strict=True)]


DIGITS = {
    "0": [arc(0.5, 0.5, 0.28, 0.4, -90, 270)],
    "1": [[(0.35, 0.28), (0.52, 0.1), (0.52, 0.9)]],
    "2": [[*arc(0.5, 0.3, 0.25, 0.2, -170, 30), (0.25, 0.9), (0.78, 0.9)]],
    "3": [[*arc(0.47, 0.3, 0.24, 0.2, -150, 90), *arc(0.47, 0.7, 0.27, 0.2, -90, 150)]],
    "4": [[(0.6, 0.1), (0.2, 0.62), (0.82, 0.62)], [(0.6, 0.1), (0.6, 0.92)]],
    "5": [[(0.74, 0.1), (0.32, 0.1), (0.28, 0.45), *arc(0.47, 0.64, 0.26, 0.24, -130, 140)]],
    "6": [[*arc(0.6, 0.5, 0.32, 0.4, -80, -180), *arc(0.5, 0.68, 0.22, 0.2, 180, -150)]],
    "7": [[(0.22, 0.12), (0.76, 0.12), (0.42, 0.92)]],
    "8": [[*arc(0.5, 0.3, 0.2, 0.2, 90, 450), *arc(0.5, 0.7, 0.24, 0.2, -90, 270)]],
    "9": [[*arc(0.47, 0.32, 0.22, 0.22, 0, -360), (0.67, 0.5), (0.6, 0.92)]],
}


def moved(strokes, factor: float, x: float, y: float):
    """The same drawing, smaller and elsewhere."""
    return [[(factor * a + x, factor * b + y) for a, b in stroke] for stroke in strokes]


def by_distance(strokes) -> torch.Tensor:
    """The picture by its definition, [1, 32, 32]: the share of a pixel that is within half a pen of some segment."""
    points = np.array([point for stroke in strokes for point in stroke])
    low, high = points.min(0), points.max(0)
    scale = 24.5 / max(*(high - low), 0.05)  # the ink takes 27 pixels, 2.5 of them the pen's
    place = (np.arange(32 * 10) + 0.5) / 10
    grid = np.stack(np.meshgrid(place, place), axis=-1)  # [320, 320, 2] as (x, y)
    nearest = np.full(grid.shape[:2], np.inf)
    for stroke in strokes:
        path = (np.array(stroke) - (low + high) / 2) * scale + 16
        for start, end in zip(path, [*path[1:], path[-1]], strict=True):
            along = end - start
            share = ((grid - start) @ along / max(along @ along, 1e-12)).clip(0, 1)
            away = np.linalg.norm(grid - start - share[..., None] * along, axis=-1)
            nearest = np.minimum(nearest, away)
    inside = torch.from_numpy(nearest <= 1.25).float()
    return inside.reshape(1, 32, 10, 32, 10).mean(dim=(2, 4))


# the picture


def test_a_horizontal_line_is_a_horizontal_bar_of_27_by_2_and_a_half_pixels():
    picture = render([[(0.2, 0.6), (0.4, 0.6)]])
    assert picture.shape == (1, 32, 32) and picture.dtype == torch.float32
    rows, columns = (picture[0] > 0.5).nonzero(as_tuple=True)
    assert sorted(set(rows.tolist())) == [15, 16]
    assert sorted(set(columns.tolist())) == list(range(3, 29))
    assert picture[0, :, 16].sum() == pytest.approx(2.5, abs=0.2)


@thorough
@given(STROKES)
def test_the_picture_is_what_lies_within_half_a_pen_of_the_strokes(strokes):
    difference = (render(strokes) - by_distance(strokes)).abs()
    assert difference.mean() < 0.01
    assert difference.max() < 0.5  # only where several edges share a pixel


@thorough
@given(STROKES, st.floats(0.3, 0.9), st.floats(0, 1), st.floats(0, 1))
def test_it_does_not_matter_where_and_how_large_the_strokes_were_drawn(strokes, factor, right, down):
    points = np.array([point for stroke in strokes for point in stroke])
    if np.ptp(points, axis=0).max() < 0.2:
        return  # so small that it may become a dot
    there = moved(strokes, factor, (1 - factor) * right, (1 - factor) * down)
    assert (render(there) - render(strokes)).abs().mean() < 0.01


@thorough
@given(STROKES)
def test_mirrored_turned_and_backwards_drawings(strokes):
    picture = render(strokes)
    mirrored = render([[(1 - x, y) for x, y in stroke] for stroke in strokes])
    assert (mirrored - picture.flip(2)).abs().mean() < 0.01
    transposed = render([[(y, x) for x, y in stroke] for stroke in strokes])
    assert (transposed - picture.transpose(1, 2)).abs().mean() < 0.01
    backwards = render([stroke[::-1] for stroke in strokes[::-1]])
    assert (backwards - picture).abs().mean() < 0.01


def test_a_larger_picture_shows_the_same():
    halved = torch.nn.functional.avg_pool2d(render(DIGITS["3"], size=64), 2)
    assert (halved - render(DIGITS["3"])).abs().mean() < 0.01


def test_a_tap_is_a_dot_even_if_the_finger_moves_a_little():
    dot = render([[(0.9, 0.1)]])
    assert dot.sum() == pytest.approx(np.pi * 1.25**2, rel=0.15)
    assert dot[0, 14:18, 14:18].sum() == dot.sum()
    assert render([[(0.9, 0.1), (0.903, 0.102)]]).sum() < 2 * dot.sum()


def test_nothing_drawn_is_black():
    assert render([]).count_nonzero() == 0


def test_a_body_that_has_seen_print_only_reads_drawn_digits():
    body = load_backbone("glyphs-all")
    pictures = torch.stack([render(strokes) for strokes in DIGITS.values()])
    with torch.no_grad():
        answers = body.head(body.module(pictures))[:, :10].argmax(1)
    assert body.classes[:10] == tuple(DIGITS)
    assert (answers == torch.arange(10)).sum() >= 9


def test_a_picture_without_room_for_a_sign_is_refused():
    with pytest.raises(ValueError, match="size=4 shows no sign; give at least 8"):
        render(DIGITS["1"], size=4)


# what strokes are


@pytest.mark.parametrize(
    ("strokes", "message"),
    [
        (None, r"strokes are None; give a list of strokes"),
        ("[[[0, 0]]]", r"strokes are '\[\[\[0, 0\]\]\]'; give a list"),
        ({"strokes": []}, r"strokes are \{'strokes': \[\]\}; give a list"),
        ([[]], r"stroke 1 is \[\]; give a list of at least one point"),
        ([[(0, 0)], 3], r"stroke 2 is 3; give a list of at least one point"),
        ([[(0, 0), (0.5,)]], r"stroke 1 holds the point \(0.5,\); give two numbers from 0 to 1"),
        ([[(0, 1.01)]], r"the point \(0, 1.01\); give two numbers from 0 to 1"),
        ([[(-0.01, 0)]], r"the point \(-0.01, 0\)"),
        ([[(float("nan"), 0)]], r"the point \(nan, 0\)"),
        ([[(True, 0)]], r"the point \(True, 0\)"),
        ([[("0", 0)]], r"the point \('0', 0\)"),
        ([(0.1, 0.2)], r"stroke 1 holds the point 0.1"),
        ([[(0, 0)]] * (MAX_STROKES + 1), "201 strokes; draw with at most 200"),
        ([[(0, 0)] * (MAX_POINTS + 1)], "10001 points; draw with at most 10,000"),
    ],
)
def test_what_is_not_strokes_is_refused_with_a_word_on_what_to_give(strokes, message):
    with pytest.raises(ValueError, match=message):
        check_strokes(strokes)
    with pytest.raises(ValueError, match=message):
        render(strokes)


def test_strokes_come_back_as_points_of_floats_and_what_was_given_stays():
    given_strokes = [[[0, 1], (np.float32(0.5), 0.25)]]
    assert check_strokes(given_strokes) == [[(0.0, 1.0), (0.5, 0.25)]]
    assert given_strokes[0][0] == [0, 1]


@thorough
@given(JSON)
def test_anything_is_strokes_or_a_short_message(thing):
    try:
        strokes = check_strokes(thing)
    except ValueError as error:
        assert len(str(error)) < 400
    else:
        assert render(strokes).isfinite().all()


# files


@thorough
@given(st.lists(st.tuples(st.text(min_size=1, max_size=40), STROKES | st.just([])), max_size=4))
def test_a_file_gives_back_what_was_written(tmp_path_factory, signs):
    path = tmp_path_factory.mktemp("signs") / "signs.json"
    write_strokes(path, signs)
    assert read_strokes(path) == signs


def test_the_file_has_the_published_form(tmp_path):
    write_strokes(tmp_path / "signs.json", [("house", [[(0.5, 0.25)]]), ("house", [])])
    assert json.loads((tmp_path / "signs.json").read_text("utf-8")) == {
        "format": "signs 1",
        "signs": [{"name": "house", "strokes": [[[0.5, 0.25]]]}, {"name": "house", "strokes": []}],
    }


SIGN = '{"name": "a", "strokes": [[[0, 0]]]}'


def signs_file(signs: str) -> bytes:
    return f'{{"format": "signs 1", "signs": {signs}}}'.encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 200_000, "is not JSON"),
        (b"[]", 'must hold {"format": "signs 1"'),
        (b'{"format": "signs 2", "signs": []}', "is no file of signs"),
        (signs_file("{}"), "is no file of signs"),
        (signs_file('["a"]'), "sign 1: 'a'; give its name and its strokes"),
        (signs_file('[{"name": "a"}]'), "sign 1: .*; give its name and its strokes"),
        (signs_file(f'[{SIGN}, {{"name": 3, "strokes": []}}]'), "sign 2: the name 3; give 1 to 40 characters"),
        (signs_file(f'[{{"name": "{"a" * 41}", "strokes": []}}]'), "sign 1: the name 'a.*; give 1 to 40 characters"),
        (signs_file('[{"name": "a", "strokes": [[[NaN, 0]]]}]'), r"sign 1 \('a'\): stroke 1 holds the point \[nan, 0"),
        (signs_file('[{"name": "a", "strokes": [[[1e999, 0]]]}]'), r"the point \[inf, 0\]"),
        (signs_file(f'[{{"name": "a", "strokes": {"[" * 500}{"]" * 500}}}]'), r"the point \[\[\[.*; give two"),
        (signs_file(f'[{{"name": "a", "strokes": [[[{"9" * 4000}, 0]]]}}]'), r"the point \[999.*; give two"),
        (signs_file(f"[{', '.join([SIGN] * (MAX_SIGNS + 1))}]"), "1001 signs; keep at most 1000"),
        (b" " * (MAX_BYTES + 1), "has 20 MB; a file of signs has at most 20"),
    ],
)
def test_a_hostile_file_is_refused_in_a_few_words_and_stays_as_it_is(content, message, tmp_path):
    path = tmp_path / "signs.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_strokes(path)
    assert len(str(caught.value)) < 500 + len(str(path))
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is no file; give one that"):
        read_strokes(tmp_path / "pipe")


def test_a_file_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_strokes(tmp_path / "nowhere.json")


@pytest.mark.parametrize("faulty", [("", []), ("a", [[]]), ("a", [[(2, 0)]])])
def test_what_could_not_be_read_is_not_written_and_the_old_file_stays(faulty, tmp_path):
    path = tmp_path / "signs.json"
    write_strokes(path, [("7", DIGITS["7"])])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"signs.json, sign 2"):
        write_strokes(path, [("7", DIGITS["7"]), faulty])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
