"""The kernel's half of the pad; what the browser does with it is in test_browser.py."""

import base64
import io
import json
import re

import ipywidgets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tlhelpers.course import DrawingPad, drawing_pad, pad
from tlhelpers.data import render

SEVEN = [[(0.2, 0.1), (0.8, 0.1), (0.4, 0.9)]]
LINE = [[(0.1, 0.5), (0.9, 0.5)]]


def read(image: torch.Tensor) -> dict[str, float]:
    """ "wide" if most of the ink lies in the four rows of the middle."""
    share = (image[:, :, 14:18].sum() / image.sum()).item()
    return {"high": 1 - share, "wide": share}


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, instead of displaying it."""
    things = []
    monkeypatch.setattr(pad, "display", lambda thing, **_: things.append(thing))
    return things


def as_from_the_browser(drawing: DrawingPad, text: str) -> None:
    """What ipywidgets does when the hidden text area changes in the browser."""
    drawing.box.children[0].set_state({"value": text})


def answer(drawing: DrawingPad) -> str:
    return drawing.box.children[2].value


def test_a_drawing_is_read_and_the_answer_stands_below():
    images = []

    def look(image):
        images.append(image)
        return read(image)

    drawing = DrawingPad(look)
    assert drawing.sentence == "Nothing is drawn yet."
    as_from_the_browser(drawing, json.dumps(LINE))
    assert drawing.strokes == LINE
    assert torch.equal(images[0], render(LINE).unsqueeze(0))
    assert drawing.sentence == "I read: wide (100 %)"
    assert answer(drawing).count("<dt>") == 2
    as_from_the_browser(drawing, json.dumps(SEVEN))
    assert drawing.sentence.startswith("I read: high (")
    as_from_the_browser(drawing, "[]")
    assert drawing.sentence == "Nothing is drawn yet."
    assert "<dt>" not in answer(drawing)
    assert len(images) == 2, "an empty pad is not read"


def test_setting_strokes_is_drawing_them():
    by_hand, by_code = DrawingPad(read), DrawingPad(read)
    as_from_the_browser(by_hand, json.dumps(SEVEN))
    by_code.strokes = SEVEN
    assert by_code.strokes == by_hand.strokes == SEVEN
    assert by_code.sentence == by_hand.sentence
    assert answer(by_code) == answer(by_hand)
    assert json.loads(by_code.box.children[0].value) == [[list(point) for point in SEVEN[0]]], "the browser draws it"


def test_strokes_cannot_be_changed_behind_the_pads_back():
    drawing = DrawingPad(read)
    drawing.strokes = SEVEN
    drawing.strokes[0].append((2.0, 2.0))
    assert drawing.strokes == SEVEN


def test_the_channel_comes_before_its_answer_which_differs_every_time():
    drawing = DrawingPad(read)
    told = []
    channel, _, below = drawing.box.children
    channel.observe(lambda change: told.append("strokes"), "value")
    below.observe(lambda change: told.append(change["new"]), "value")
    drawing.strokes = LINE
    drawing.strokes = [[(0.1, 0.2), (0.9, 0.2)]]  # the same picture from another place
    answers = [text for text in told if text != "strokes"]
    assert len(answers) == 2 and answers[0] != answers[1]


def test_the_picture_is_what_the_network_gets():
    drawing = DrawingPad(read)
    drawing.strokes = SEVEN
    packed = re.search(r'src="data:image/png;base64,([^"]+)"', answer(drawing))[1]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(packed)))) / 255
    assert np.abs(pixels - render(SEVEN)[0].numpy()).max() <= 0.5 / 255 + 1e-6
    assert 'alt="Your drawing in 32 x 32 pixels"' in answer(drawing)


def test_bars_keep_the_given_order_and_show_the_ten_most_likely():
    probabilities = {f"n{number}": (1 + number % 5) / 47 for number in range(15)}
    drawing = DrawingPad(lambda image: probabilities)
    drawing.strokes = SEVEN
    names = re.findall(r"<dt>(\w+)</dt>", answer(drawing))
    assert len(names) == 10
    assert names == [name for name in probabilities if name in names]
    left_out = probabilities.keys() - set(names)
    assert max(probabilities[name] for name in left_out) <= min(probabilities[name] for name in names)
    assert answer(drawing).count("tl-pad-best") == 1
    assert drawing.sentence == "I read: n4 (11 %)"


def test_names_are_text_and_never_html():
    drawing = DrawingPad(lambda image: {"<script>alert(1)</script>": 0.75, "a & b": 0.25})
    drawing.strokes = SEVEN
    everything = drawing.box.children[1].value + answer(drawing)
    assert "<script>" not in everything
    assert "&lt;script&gt;" in everything and "a &amp; b" in everything
    assert drawing.sentence == "I read: <script>alert(1)</script> (75 %)"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Expecting value"),
        ("no JSON", "Expecting value"),
        ("[" * 100_000, "nested too deeply"),
        ('{"strokes": []}', "give a list of strokes"),
        ("[[[0.5, 7]]]", "stroke 1 holds the point [0.5, 7]"),
        ("[[[NaN, 0]]]", "stroke 1 holds the point [nan, 0]"),
        ("[[]]", "stroke 1 is []"),
        (f"[{'[[0,0]],' * 250}[[0,0]]]", "251 strokes; draw with at most 200"),
        (" " * 400_001, "400,001 characters; at most 400,000"),
        ("[[[<b>, 0]]]", "Expecting value"),
        ('[["<img src=x onerror=alert(1)>"]]', "give two numbers"),
    ],
)
def test_faulty_input_from_the_browser_is_a_sentence_and_the_drawing_stays(text, words):
    drawing = DrawingPad(read)
    drawing.strokes = SEVEN
    as_from_the_browser(drawing, text)
    assert drawing.sentence.startswith("This is not a drawing: ")
    assert words in drawing.sentence
    assert drawing.sentence.endswith("Clear the pad and draw again.")
    assert "<img" not in drawing.box.children[1].value + answer(drawing)
    assert drawing.strokes == SEVEN
    as_from_the_browser(drawing, json.dumps(LINE))
    assert drawing.sentence == "I read: wide (100 %)"


@settings(max_examples=50, derandomize=True, deadline=None, database=None)
@given(st.text(max_size=60) | st.text("[]0123456789., eN-", max_size=60))
def test_no_text_from_the_browser_raises(text):
    drawing = DrawingPad(read)
    as_from_the_browser(drawing, text)
    assert re.match("Nothing is drawn|This is not a drawing|I read", drawing.sentence)


def failing(image: torch.Tensor) -> dict[str, float]:
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x1024 and 64x10)")


@pytest.mark.parametrize(
    ("reader", "words"),
    [
        (failing, "RuntimeError: mat1 and mat2 shapes cannot be multiplied (1x1024 and 64x10)"),
        (lambda image: torch.zeros(1, 10), "read gave Tensor"),
        (lambda image: {}, "read gave dict {}; return a dictionary of a probability per name"),
        (lambda image: None, "read gave NoneType None"),
        (lambda image: {"3": 7.5}, "read gave 7.5 for '3'; return probabilities from 0 to 1, as softmax makes"),
        (lambda image: {"3": float("nan")}, "read gave nan for '3'"),
        (lambda image: {"3": "much"}, "could not convert string to float"),
        (lambda image: {"3": torch.zeros(2)}, "only one element tensors"),
    ],
)
def test_a_reader_that_fails_is_quoted_beside_the_picture(reader, words):
    drawing = DrawingPad(reader)
    drawing.strokes = SEVEN
    assert drawing.sentence.startswith("The network could not read this: ")
    assert words in drawing.sentence
    assert "<img" in answer(drawing) and "<dt>" not in answer(drawing)
    assert drawing.strokes == SEVEN


def test_a_very_long_error_is_cut():
    drawing = DrawingPad(lambda image: {}["x" * 4000])
    drawing.strokes = SEVEN
    assert drawing.sentence.startswith("The network could not read this: KeyError: 'xxx")
    assert 300 < len(drawing.sentence) < 400


def test_probabilities_may_be_tensors_and_pass_1_by_a_rounding():
    drawing = DrawingPad(lambda image: {3: torch.tensor(1 + 5e-7), 8: torch.tensor(-5e-7)})
    drawing.strokes = SEVEN
    assert drawing.sentence == "I read: 3 (100 %)"
    assert re.findall(r"width: ([\d.]+)%", answer(drawing)) == ["100.0", "0.0"]


def test_wrong_use_is_refused_before_anything_is_shown(shown):
    with pytest.raises(ValueError, match="read is 'model'; give a function"):
        drawing_pad("model")
    assert shown == []
    drawing = DrawingPad(read)
    with pytest.raises(ValueError, match="give two numbers from 0 to 1"):
        drawing.strokes = [[(0, 280)]]
    assert drawing.strokes == []


def test_a_page_shows_one_sentence_until_it_runs_and_the_answer_below(shown):
    made = drawing_pad(read)
    assert shown == [made]
    made._ipython_display_()
    page, box = shown[1:]
    assert page["text/plain"] == "Run this page to draw here."
    static = re.sub(r"<(script|style)>.*?</\1>", "", page["text/html"], flags=re.DOTALL)
    assert re.sub("<[^>]+>", "", static) == "Run this page to draw here."
    assert box is made.box
    hidden, status, _ = box.children
    assert isinstance(hidden, ipywidgets.Textarea) and hidden.layout.display == "none"
    assert "tl-pad-status" in status._dom_classes
    number = re.search(r'data-pad="(tl-pad-\d+)"', page["text/html"])[1]
    assert number in box._dom_classes, "the script finds the widgets of its pad by this class"


def test_nothing_that_is_shown_differs_from_run_to_run(shown):
    made = drawing_pad(read)
    made.strokes = SEVEN
    made._ipython_display_()
    assert repr(made) == "DrawingPad(1 strokes)"
    for text in (repr(made), repr(made.box), shown[1]["text/html"]):
        assert not re.search(r"0x[0-9a-f]{6,}|IPY_MODEL|object at", text)


def test_the_script_asks_for_nothing_outside():
    for path in (pad.SCRIPT, pad.STYLE):
        source = path.read_text("utf-8").replace('"http://www.w3.org/2000/svg"', "")  # a name, never fetched
        assert not re.search(r"https?:|//[a-z]+\.|fetch\(|import\(|@import|url\(", source), path.name
        assert "</script" not in source and "</style" not in source
