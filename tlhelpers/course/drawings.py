"""Drawings that explain: networks as rows of boxes, in the colours of the course, made of lines that stay sharp.

A page composes a drawing from these few pieces and displays it with `plots.show(fig, alt, vector=True)`.
Lengths are in the units of the canvas; a box of a network is 1 wide and 1 high unless said otherwise.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from tlhelpers.course.plots import COLOURS, METHODS

# What may happen to a part of a network: its colour, and how its edge is drawn.
STATES = {
    "frozen": (COLOURS[METHODS["linear probe"]], "-"),
    "trained": (COLOURS[METHODS["fine-tuned"]], "-"),
    "new": (COLOURS[METHODS["fine-tuned"]], "--"),
    "random": (COLOURS[METHODS["from scratch"]], "--"),
    "kept": (COLOURS[METHODS["from scratch"]], "-"),
    "dropped": ("#8a8a8a", ":"),
}
INK = "#333333"


def canvas(width: float, height: float, *, scale: float = 0.62) -> tuple[Figure, Axes]:
    """An empty drawing, `width` by `height` units with (0, 0) at the lower left; `scale` inches per unit."""
    fig, ax = plt.subplots(figsize=(width * scale, height * scale))
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.axis("off")
    return fig, ax


def network(
    ax: Axes,
    parts: Sequence[tuple[str, str]],
    *,
    at: tuple[float, float],
    widths: Sequence[float] | None = None,
    height: float = 1.0,
    gap: float = 0.22,
    fontsize: float = 9,
) -> list[tuple[float, float]]:
    """A network as a row of boxes from left to right, joined by short arrows.

    Args:
        parts: (text, state) of every box; the states are the keys of `STATES`.
        at: the middle of the left edge of the first box.
        widths: of the boxes; all 1 when None.
        gap: between two boxes.

    Returns:
        The middle of every box.

    Raises:
        ValueError: an unknown state.
    """
    unknown = [state for _, state in parts if state not in STATES]
    if unknown:
        raise ValueError(f"no state called {unknown[0]!r}; choose from {', '.join(STATES)}")
    x, y = at
    middles = []
    for (text, state), width in zip(parts, widths or [1.0] * len(parts), strict=True):
        if middles:
            arrow(ax, (x - gap, y), (x, y))
        _box(ax, state, (x, y), width, height)
        ax.text(x + width / 2, y, text, ha="center", va="center", fontsize=fontsize, color=INK)
        middles.append((x + width / 2, y))
        x += width + gap
    return middles


def arrow(
    ax: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    text: str = "",
    *,
    colour: str = INK,
    bend: float = 0.0,
    dashed: bool = False,
) -> None:
    """An arrow, with words above its middle; `bend` curves it (to the left of its way when positive)."""
    line = FancyArrowPatch(
        start,
        end,
        arrowstyle="-|>",
        mutation_scale=9,
        shrinkA=0,
        shrinkB=0,
        linewidth=1.4,
        color=colour,
        linestyle="--" if dashed else "-",
        connectionstyle=f"arc3,rad={bend}",
    )
    ax.add_patch(line)
    if text:
        note(ax, ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.16), text, colour=colour)


def note(
    ax: Axes, at: tuple[float, float], text: str, *, colour: str = INK, fontsize: float = 9, align: str = "center"
) -> None:
    """Words whose lower edge stands at a point; `align` says which end of them: "left", "center" or "right"."""
    ax.text(*at, text, ha=align, va="bottom", fontsize=fontsize, color=colour)


def picture(ax: Axes, image: np.ndarray, at: tuple[float, float], *, side: float = 0.9, frame: str = "0.6") -> None:
    """A small image [H, W] in [0, 1], ink dark on white, with its middle at a point and a frame around it."""
    pixels = np.asarray(image)
    corner = (at[0] - side / 2, at[1] - side / 2)
    ax.imshow(
        pixels,
        cmap="gray_r",
        vmin=0,
        vmax=1,
        extent=(corner[0], corner[0] + side, corner[1], corner[1] + side),
        zorder=2,
        interpolation="nearest",
    )
    ax.add_patch(plt.Rectangle(corner, side, side, fill=False, edgecolor=frame, linewidth=1, zorder=3))


def key(ax: Axes, states: Sequence[str], *, at: tuple[float, float], step: float = 1.9) -> None:
    """What the colours mean: one small box and a word per state, in a row."""
    x, y = at
    for state in states:
        _box(ax, state, (x, y), 0.3, 0.26)
        ax.text(x + 0.42, y, state, ha="left", va="center", fontsize=9, color=INK)
        x += step


def _box(ax: Axes, state: str, left: tuple[float, float], width: float, height: float) -> None:
    """A rounded box in the look of a state; `left` is the middle of its left edge."""
    colour, edge = STATES[state]
    x, y = left
    box = FancyBboxPatch(
        (x, y - height / 2),
        width,
        height,
        boxstyle=f"round,pad=0,rounding_size={0.12 * min(height, 1)}",
        facecolor=tint(colour),
        edgecolor=colour,
        linestyle=edge,
        linewidth=1.6,
    )
    ax.add_patch(box)


def tint(colour: str, strength: float = 0.14) -> tuple[float, ...]:
    """A pale tone of a colour, as RGB in [0, 1], on which dark words can be read."""
    return tuple(1 - strength * (1 - value) for value in to_rgb(colour))
