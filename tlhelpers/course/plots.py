"""Draw given arrays on a given `ax`, and say in words what was drawn.

Every `plot_*` function returns its alt text; `show(fig, alt)` displays the figure and prints the
text below it, so that no one needs to see the figure to follow the page.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter

# Okabe & Ito's colours can be told apart by the colour-blind; markers and dashes repeat the distinction.
# Their sky blue and orange are too pale on white (contrast 2.3), so a violet and an olive stand for them.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#9016FA", "#000000", "#393508")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
# Methods that come back on many pages look the same on all of them: the row of the three lists above.
METHODS = {
    "linear probe": 0,
    "fine-tuned": 1,
    "from scratch": 2,
    "random weights": 3,
    "LP-FT": 4,
    "pixels": 5,
    "no label": 6,
}
STYLE = Path(__file__).with_name("style.mplstyle")


def look(name: str, place: int = 0) -> dict:
    """Colour, marker and dashes of a method, as keywords of matplotlib; of another name, those of its place.

    From the eighth place on the colours come again, with open markers.

    Raises:
        ValueError: the fifteenth place or a later one.
    """
    again, row = divmod(METHODS.get(name, place), len(COLOURS))
    if again > 1:
        raise ValueError(f"{name!r} is number {place + 1} in its figure, and only {2 * len(COLOURS)} look different")
    fill = "none" if again else "full"
    return {"color": COLOURS[row], "marker": MARKERS[row], "linestyle": DASHES[row], "fillstyle": fill}


def show(fig: Figure, alt: str, *, vector: bool = False) -> None:
    """Display a figure (in a notebook), print its description, and close it.

    Args:
        vector: as SVG, which stays sharp at every size: for drawings.  Photographs and clouds of points are
            smaller as pixels.
    """
    from IPython.display import display

    if vector:
        file = io.StringIO()
        fig.savefig(file, format="svg", metadata={"Date": None})  # without a date the file is the same at every run
        display({"image/svg+xml": file.getvalue()}, raw=True, metadata={"image/svg+xml": {"alt": alt}})
    else:
        display(fig, metadata={"image/png": {"alt": alt}})
    plt.close(fig)
    print(f"In words: {alt}")


def mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error over the first axis (seeds) of values [S, ...].

    Raises:
        ValueError: fewer than two seeds, which have no standard error.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        raise ValueError(f"{len(values)} seed(s) have no standard error; give at least 2")
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))


def show_images(axes: Sequence[Axes], images: np.ndarray, titles: Sequence[str] | None = None) -> str:
    """Images, one per ax: of one channel ink is drawn dark on white, three are drawn as colours.

    Args:
        images: [N, 1, H, W], [N, 3, H, W] or [N, H, W], in [0, 1] or uint8.

    Raises:
        ValueError: images of another shape, or more images than axes.
    """
    images = np.asarray(images)
    shape = list(images.shape)
    if images.ndim == 4 and shape[1] in (1, 3):
        images = images[:, 0] if shape[1] == 1 else images.transpose(0, 2, 3, 1)
    elif images.ndim != 3:
        raise ValueError(f"images are {shape}; give [N, 1, H, W], [N, 3, H, W] or [N, H, W]")
    if images.dtype == np.uint8:
        images = images / 255
    axes = np.ravel(np.asarray(axes, dtype=object))
    if len(axes) < len(images):
        raise ValueError(f"{len(images)} images do not fit on {len(axes)} axes")
    for ax in axes:
        ax.axis("off")
    for i, image in enumerate(images):
        axes[i].imshow(image, cmap="gray_r", vmin=0, vmax=1)
        if titles is not None:
            axes[i].set_title(titles[i], fontsize=9, pad=2)
    names = f": {', '.join(dict.fromkeys(titles))}" if titles is not None else ""
    return f"{len(images)} images{names}."


def plot_label_curve(
    ax: Axes,
    labels: Sequence[int],
    curves: Mapping[str, Sequence[np.ndarray]],
    *,
    chance: float | None = None,
    stretched: bool = False,
) -> str:
    """Accuracy against the number of labels per class, mean and standard error over seeds; names at the lines.

    Args:
        labels: numbers of labels per class, [L]; drawn on a logarithmic axis.
        curves: per method one array of accuracies over seeds [S] for each of `labels` (S may vary).
        stretched: give each halving of the error the same height (a logit axis), which parts curves that crowd
            below 100 %.  Every mean must then lie between 0 and 1.
    """
    words = []
    ends = {}
    for i, (name, runs) in enumerate(curves.items()):
        means, errors = zip(*(mean_and_error(run) for run in runs), strict=True)
        ax.errorbar(labels, means, yerr=errors, **look(name, i))
        ends[name] = (means[-1], look(name, i)["color"])
        steps = ", ".join(f"{100 * m:.0f}" for m in means)
        words.append(f"{name} {steps} %")
    ax.set_xscale("log")
    if stretched:
        ax.set_yscale("logit")
        ticks = [0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99]
        low, high = ax.get_ylim()
        ax.set_yticks([tick for tick in ticks if low <= tick <= high])
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.tick_params(axis="y", which="minor", length=0)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if chance is not None:
        ax.axhline(chance, color="0.6", linewidth=1, linestyle=":")
        ax.annotate("chance", (labels[0], chance), ha="left", va="bottom", color="0.4", fontsize=8)
    ax.set_xticks(labels, [str(n) for n in labels])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(axis="x", which="minor", length=0)
    ax.set(xlabel="labels per class", ylabel="accuracy on the test part")
    ax.grid(axis="y")
    name_lines(ax, labels[-1], ends)
    return f"accuracy at {', '.join(map(str, labels))} labels per class: " + "; ".join(words) + "."


def name_lines(ax: Axes, x: float, ends: Mapping[str, tuple[float, str]]) -> None:
    """Write every line's name to the right of its end, in its colour, so that no two names overlap.

    Args:
        x: where the lines end.
        ends: per name the y at which its line ends, and its colour.  The limits of the axis must be final.
    """
    ax.figure.draw_without_rendering()  # lays the figure out: until then nobody knows where a value lies
    heights = {name: ax.transData.transform((x, y))[1] for name, (y, _) in ends.items()}
    order = sorted(heights, key=heights.get)
    step = 1.35 * 9 * ax.figure.dpi / 72  # the height of a line of text of 9 points, in pixels
    places: dict[str, float] = {}
    lowest = -np.inf
    for name in order:
        places[name] = max(heights[name], lowest)
        lowest = places[name] + step
    # Pushed up only, the names would drift off their lines: move the whole stack down by half of the push.
    push = np.mean([places[name] - heights[name] for name in order])
    for name in order:
        y, colour = ends[name]
        shift = (places[name] - push - heights[name]) * 72 / ax.figure.dpi
        ax.annotate(name, (x, y), xytext=(9, shift), textcoords="offset points", va="center", fontsize=9, color=colour)


def plot_pairs(ax: Axes, values: Mapping[str, np.ndarray], *, ylabel: str) -> str:
    """Methods side by side, one thin line per draw [S] from one to the next: what is compared is paired.

    Args:
        values: per method the results of the same S draws, in the same order.

    Raises:
        ValueError: methods with different numbers of draws, which cannot be paired.
    """
    runs = {name: np.asarray(value, dtype=float) for name, value in values.items()}
    lengths = {name: len(value) for name, value in runs.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"the numbers of draws differ: {lengths}; give every method the same draws")
    words = []
    ax.plot(range(len(runs)), np.stack(list(runs.values())), color="0.8", linewidth=0.8, zorder=1)
    for i, (name, value) in enumerate(runs.items()):
        style = look(name.replace("\n", " "), i)
        mean, error = mean_and_error(value)
        ax.plot(
            np.full(len(value), i), value, linestyle="none", marker=style["marker"], color=style["color"], alpha=0.35
        )
        ax.plot([i - 0.16, i + 0.16], [mean, mean], color=style["color"], linewidth=3, solid_capstyle="butt")
        ax.annotate(f"{mean:.0%}", (i + 0.2, mean), va="center", color=style["color"], fontsize=11, fontweight="bold")
        words.append(f"{name} {mean:.1%} +/- {error:.1%}")
    ax.set_xlim(-0.4, len(runs) - 0.35)
    ax.set_xticks(range(len(runs)), list(runs))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set_ylabel(ylabel)
    ax.grid(axis="y")
    return f"{ylabel}: " + "; ".join(words).replace("\n", " ") + "."


def plot_plane(ax: Axes, points: Mapping[str, tuple[np.ndarray, np.ndarray]], *, xlabel: str, ylabel: str) -> str:
    """Every method as one point with its name beside it: means over seeds [S] of x and y, standard errors both ways."""
    words = []
    for i, (name, (x, y)) in enumerate(points.items()):
        mean_x, error_x = mean_and_error(x)
        mean_y, error_y = mean_and_error(y)
        style = look(name, i)
        ax.errorbar(mean_x, mean_y, xerr=error_x, yerr=error_y, color=style["color"], marker=style["marker"])
        ax.annotate(name, (mean_x, mean_y), xytext=(7, 5), textcoords="offset points", fontsize=9, color=style["color"])
        words.append(f"{name} ({mean_x:.3g}, {mean_y:.3g})")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid()
    return f"{ylabel} against {xlabel}, as (x, y): " + "; ".join(words) + "."


def plot_sweep(
    ax: Axes, x: Sequence, curves: Mapping[str, np.ndarray], *, xlabel: str, ylabel: str, dots: bool = True
) -> str:
    """Something measured over seeds, [S, X], against a setting [X]: mean, standard error, and the seeds as dots."""
    words = []
    places = np.arange(len(x))
    for i, (name, values) in enumerate(curves.items()):
        values = np.asarray(values, dtype=float)
        means, errors = mean_and_error(values)
        style = look(name, i)
        ax.errorbar(
            places,
            means,
            yerr=errors,
            label=name,
            **style,
        )
        if dots:
            spread = places + 0.08 * (i - (len(curves) - 1) / 2)
            ax.plot(np.tile(spread, (len(values), 1)), values, ".", color=style["color"], alpha=0.35, markersize=4)
        words.append(f"{name} " + ", ".join(f"{setting}: {m:.3g}" for setting, m in zip(x, means, strict=True)))
    ax.set_xticks(places, [str(setting) for setting in x])
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid()
    if len(curves) > 1:
        ax.legend()
    return f"{ylabel} against {xlabel}: " + "; ".join(words) + "."


def plot_bars(ax: Axes, values: Mapping[str, np.ndarray], *, ylabel: str) -> str:
    """One bar per name: the mean over seeds [S], its standard error, and the seeds as dots."""
    words = []
    for i, (name, runs) in enumerate(values.items()):
        mean, error = mean_and_error(runs)
        ax.bar(i, mean, yerr=error, capsize=3, color=look(name.replace("\n", " "), i)["color"], alpha=0.75, width=0.65)
        ax.plot(np.full(len(runs), i), runs, "k.", alpha=0.5, markersize=4)
        words.append(f"{name} {mean:.3g} +/- {error:.2g}")
    ax.set_xticks(range(len(values)), list(values))
    ax.set_ylabel(ylabel)
    ax.grid(axis="y")
    return f"{ylabel}: " + "; ".join(words) + "."


def plot_confusion(ax: Axes, truth: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> str:
    """How often each class [rows] was called which class [columns], in per cent of the row.

    Raises:
        ValueError: no example, or numbers that are not equally many classes 0..C-1.
    """
    truth = np.asarray(truth)
    predicted = np.asarray(predicted)
    are_labels = {truth.dtype.kind, predicted.dtype.kind} <= {"i", "u"} and truth.shape == predicted.shape
    if (
        not are_labels
        or not truth.size
        or min(truth.min(), predicted.min()) < 0
        or max(truth.max(), predicted.max()) >= len(classes)
    ):
        raise ValueError(
            f"{truth.size} true and {predicted.size} predicted labels must be equally many whole numbers, at least "
            f"one, in 0..{len(classes) - 1}"
        )
    counts = np.zeros((len(classes), len(classes)))
    np.add.at(counts, (truth, predicted), 1)
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    for row, column in zip(*np.nonzero(percent >= 1), strict=True):
        shade = "white" if percent[row, column] > 60 else "black"
        ax.text(column, row, f"{percent[row, column]:.0f}", ha="center", va="center", color=shade, fontsize=8)
    ax.set_xticks(range(len(classes)), classes)
    ax.set_yticks(range(len(classes)), classes)
    ax.set(xlabel="predicted", ylabel="true")
    off = percent - np.diag(np.diag(percent))
    row, column = np.unravel_index(off.argmax(), off.shape)
    return (
        f"confusion matrix, {np.diag(counts).sum() / counts.sum():.1%} on the diagonal; the most frequent "
        f"error: {classes[row]} called {classes[column]} in {off[row, column]:.0f} % of the cases."
    )


def plot_embedding(ax: Axes, points: Mapping[str, np.ndarray], *, title: str = "") -> str:
    """Clouds of two-dimensional points [N, 2], one colour and marker per name.

    Raises:
        ValueError: points that are not [N, 2] with N >= 1.
    """
    for i, (name, xy) in enumerate(points.items()):
        xy = np.asarray(xy)
        if xy.ndim != 2 or xy.shape[1] != 2 or len(xy) == 0:
            raise ValueError(f"the points of {name!r} are {list(xy.shape)}; they must be [N, 2], at least one")
        ax.scatter(xy[:, 0], xy[:, 1], s=10, alpha=0.5, color=COLOURS[i % 7], marker=MARKERS[i % 7], label=name)
    ax.set(xticks=[], yticks=[], title=title)
    ax.legend(markerscale=1.8)
    centres = "; ".join(
        f"{name} around ({np.mean(xy, axis=0)[0]:.1f}, {np.mean(xy, axis=0)[1]:.1f})" for name, xy in points.items()
    )
    return f"{title or 'point clouds'}: {centres}."


def plot_scatter(ax: Axes, points: Mapping[str, tuple[np.ndarray, np.ndarray]], *, xlabel: str, ylabel: str) -> str:
    """One letter per name at the means of x and y, each over seeds [S]; standard errors both ways, key at the right."""
    words = []
    for i, (name, (x, y)) in enumerate(points.items()):
        mean_x, error_x = mean_and_error(x)
        mean_y, error_y = mean_and_error(y)
        ax.errorbar(mean_x, mean_y, xerr=error_x, yerr=error_y, color="0.65", linewidth=1, capsize=2, zorder=1)
        letter = f"${chr(ord('A') + i)}$"
        ax.plot(mean_x, mean_y, linestyle="none", marker=letter, markersize=9, color=COLOURS[i % 7], label=name)
        words.append(f"{name} ({mean_x:.3g}, {mean_y:.3g})")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid()
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return f"{ylabel} against {xlabel}, as (x, y): " + "; ".join(words) + "."
