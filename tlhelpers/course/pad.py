"""A pad on which a learner draws, and below it what a network reads.

The pad itself is `pad.js`; its strokes reach Python through the text of a widget that no one sees, because that works
in every front end without a package of its own (ipywidgets 7.7 and 8), and without a request to anywhere.
"""

import base64
import html
import io
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import ipywidgets
from IPython.display import display
from PIL import Image
from torch import Tensor

from tlhelpers.data.strokes import MAX_POINTS, Strokes, check_strokes, render

SCRIPT = Path(__file__).with_name("pad.js")
STYLE = Path(__file__).with_name("pad.css")
WITHOUT_KERNEL = "Run this page to draw here."
NOTHING = "Nothing is drawn yet."
MOST_BARS = 10
MAX_REASON = 300  # characters of an error; some print a whole tensor
MAX_TEXT = 40 * MAX_POINTS  # characters from the browser; a point takes about 16

_numbers = itertools.count(1)  # of the pads of this kernel: the same at every run of a page, unlike an address


class DrawingPad:
    """The kernel's half of a pad; `drawing_pad` makes one and shows it.

    Attributes:
        box: the widgets; the first holds the strokes as text, and is not seen.
    """

    def __init__(self, read: Callable[[Tensor], Mapping[str, float]]) -> None:
        if not callable(read):
            raise ValueError(f"read is {read!r}; give a function of an image [1, 1, 32, 32] that returns probabilities")
        self._read = read
        self._strokes: Strokes = []
        self._number = next(_numbers)
        self._answers = 0
        self._channel = ipywidgets.Textarea(layout={"display": "none"})
        self._status = ipywidgets.HTML(NOTHING)
        self._status.add_class("tl-pad-status")
        self._answer = ipywidgets.HTML()
        self._answer.add_class("tl-pad-answer")
        self.box = ipywidgets.VBox([self._channel, self._status, self._answer])
        self.box.add_class(f"tl-pad-{self._number}")
        self._channel.observe(self._take, "value")

    @property
    def strokes(self) -> Strokes:
        """The drawing.  Setting it reads it, as if it had been drawn, and shows it on the pad.

        Raises:
            ValueError: set to something else than strokes (as `check_strokes`).
        """
        return [list(stroke) for stroke in self._strokes]

    @strokes.setter
    def strokes(self, strokes: Strokes) -> None:
        self._channel.value = json.dumps(check_strokes(strokes))  # `_take` does the rest

    @property
    def sentence(self) -> str:
        """What the line below the pad says."""
        return html.unescape(self._status.value)

    def __repr__(self) -> str:
        return f"DrawingPad({len(self._strokes)} strokes)"

    def _ipython_display_(self) -> None:
        """Show the pad, with its answer below: above, the answer would push it away from the pen."""
        # The sentence stays where no script runs or no kernel answers: GitHub, the site, a page opened but not run.
        page = (
            f"<style>{STYLE.read_text('utf-8')}</style>"
            f'<div class="tl-pad" data-pad="tl-pad-{self._number}">{WITHOUT_KERNEL}</div>'
            f"<script>{SCRIPT.read_text('utf-8')}</script>"
        )
        display({"text/plain": WITHOUT_KERNEL, "text/html": page}, raw=True)
        display(self.box)

    def _take(self, change: dict) -> None:
        """Take the drawing that the browser, or `strokes`, has put into the channel."""
        try:
            self._strokes = _strokes_from(change["new"])
        except ValueError as error:
            self._show(f"This is not a drawing: {error}. Clear the pad and draw again.")
            return
        if not self._strokes:
            self._show(NOTHING)
            return
        image = render(self._strokes)
        try:
            probabilities = _checked(self._read(image.unsqueeze(0)))
        except Exception as error:  # whatever a page's function raises: a learner sees it here, or nowhere
            reason = f"{type(error).__name__}: {error}"[:MAX_REASON]
            self._show(f"The network could not read this: {reason}", _picture(image))
            return
        best = max(probabilities, key=probabilities.get)
        self._show(f"I read: {best} ({_per_cent(probabilities[best])})", _picture(image) + _bars(probabilities))

    def _show(self, sentence: str, answer: str = "") -> None:
        """Show a sentence, and HTML below it."""
        self._answers += 1
        self._status.value = html.escape(sentence)
        # The number makes every answer another one, so that the pad notices it and looks whether it shows the drawing.
        self._answer.value = f'<div class="tl-pad-result" data-answer="{self._answers}">{answer}</div>'


def drawing_pad(read: Callable[[Tensor], Mapping[str, float]]) -> DrawingPad:
    """Show a pad to draw on with mouse, finger, pen or keys; after every stroke, what `read` reads stands below it.

    On the keyboard: Tab to the pad, arrow keys move, Space puts the pen down and lifts it, Backspace takes the last
    stroke back, Tab leaves.

    Args:
        read: takes the drawing as an image [1, 1, 32, 32] as `render` makes it, and gives a probability per name.
            What it raises is shown in place of an answer.

    Returns:
        The pad.  `pad.strokes` is the drawing, which code may set too; `pad.sentence` is what it was read as.

    Raises:
        ValueError: `read` cannot be called.
    """
    pad = DrawingPad(read)
    display(pad)
    return pad


def _strokes_from(text: str) -> Strokes:
    """The strokes in a text from the browser.

    Raises:
        ValueError: it holds something else.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"{len(text):,} characters; at most {MAX_TEXT:,} are taken")
    try:
        strokes = json.loads(text)
    except RecursionError:
        raise ValueError("its lists are nested too deeply") from None
    return check_strokes(strokes)


def _checked(probabilities: Mapping[str, float]) -> dict[str, float]:
    """What `read` gave, as text -> float.

    Raises:
        ValueError: something else than probabilities.
    """
    if not isinstance(probabilities, Mapping) or not probabilities:
        kind = type(probabilities).__name__
        raise ValueError(f"read gave {kind} {probabilities!r:.40}; return a dictionary of a probability per name")
    checked = {str(name): float(value) for name, value in probabilities.items()}
    for name, value in checked.items():
        if not -1e-6 <= value <= 1 + 1e-6:  # false for NaN; sums in float32 may pass 1 a little
            raise ValueError(f"read gave {value:.4g} for {name!r}; return probabilities from 0 to 1, as softmax makes")
    return {name: min(max(value, 0.0), 1.0) for name, value in checked.items()}


def _picture(image: Tensor) -> str:
    """HTML of an image [1, H, W] as the network gets it."""
    content = io.BytesIO()
    Image.fromarray((image[0] * 255).round().byte().numpy()).save(content, "PNG")
    packed = base64.b64encode(content.getvalue()).decode("ascii")
    height, width = image.shape[1:]
    return (
        '<figure class="tl-pad-picture">'
        f'<img src="data:image/png;base64,{packed}" alt="Your drawing in {width} x {height} pixels">'
        "<figcaption>what the network gets</figcaption></figure>"
    )


def _bars(probabilities: Mapping[str, float]) -> str:
    """HTML of the most probable names with their bars, in the order in which they were given."""
    most = sorted(probabilities, key=probabilities.get, reverse=True)[:MOST_BARS]
    rows = [
        f'<div class="tl-pad-row{" tl-pad-best" if name == most[0] else ""}"><dt>{html.escape(name)}</dt>'
        f'<dd><span class="tl-pad-track"><span style="width: {value:.1%}"></span></span>'
        f"<span>{_per_cent(value)}</span></dd></div>"
        for name, value in probabilities.items()
        if name in most
    ]
    return f'<dl class="tl-pad-bars">{"".join(rows)}</dl>'


def _per_cent(value: float) -> str:
    return f"{100 * value:.0f} %"
