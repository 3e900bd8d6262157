import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tlhelpers.course import plots

RUNS = [np.array([0.2, 0.4]), np.array([0.5, 0.7, 0.9])]
# Every plot function with a small input, and the words that its text must hold.
DRAWINGS = {
    "show_images": (
        lambda axes: plots.show_images(axes, np.random.rand(3, 1, 8, 8), ["a", "b", "a"]),
        ["3 images: a, b."],
    ),
    "plot_label_curve": (
        lambda axes: plots.plot_label_curve(axes[0], [1, 10], {"probe": RUNS, "scratch": RUNS[::-1]}, chance=0.1),
        ["1, 10 labels", "probe 30, 70 %", "scratch 70, 30 %"],
    ),
    "plot_sweep": (
        lambda axes: plots.plot_sweep(
            axes[0], ["one", "two"], {"a": [[1, 2], [3, 5]], "b": [[0, 0], [1, 1]]}, xlabel="layer", ylabel="score"
        ),
        ["score against layer", "a one: 2, two: 3.5", "b one: 0.5, two: 0.5"],
    ),
    "plot_bars": (
        lambda axes: plots.plot_bars(axes[0], {"probe": RUNS[0], "scratch": RUNS[1]}, ylabel="accuracy"),
        ["accuracy: probe 0.3 +/- 0.1", "scratch 0.7 +/- 0.12"],
    ),
    "plot_confusion": (
        lambda axes: plots.plot_confusion(axes[0], [0, 0, 0, 1], [0, 0, 1, 1], ["cat", "dog"]),
        ["75.0% on the diagonal", "cat called dog in 33 %"],
    ),
    "plot_scatter": (
        lambda axes: plots.plot_scatter(
            axes[0], {"probe": (RUNS[0], RUNS[1]), "scratch": (RUNS[1], [0, 1])}, xlabel="score", ylabel="accuracy"
        ),
        ["accuracy against score", "probe (0.3, 0.7)", "scratch (0.7, 0.5)"],
    ),
    "plot_pairs": (
        lambda axes: plots.plot_pairs(axes[0], {"pixels": RUNS[0], "linear probe": RUNS[0] + 0.5}, ylabel="accuracy"),
        ["accuracy: pixels 30.0% +/- 10.0%", "linear probe 80.0%"],
    ),
    "plot_plane": (
        lambda axes: plots.plot_plane(axes[0], {"fine-tuned": (RUNS[0], RUNS[1])}, xlabel="new task", ylabel="old"),
        ["old against new task", "fine-tuned (0.3, 0.7)"],
    ),
    "plot_embedding": (
        lambda axes: plots.plot_embedding(axes[0], {"source": [[0, 0], [2, 4]]}, title="features"),
        ["features: source around (1.0, 2.0)"],
    ),
}


@pytest.fixture
def axes():
    return Figure().subplots(1, 3)


def test_every_plot_function_is_tried_here():
    public = {name for name in vars(plots) if name.startswith(("plot_", "show_"))}
    assert public == set(DRAWINGS)


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_plot_draws_without_warnings_and_says_its_means(name, axes):
    draw, words = DRAWINGS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alt = draw(axes)
        FigureCanvasAgg(axes[0].figure).draw()
    assert axes[0].has_data()
    assert [word for word in words if word not in alt] == []


def test_more_curves_than_colours_still_differ_and_more_than_that_are_refused(axes):
    curves = {f"curve {i}": RUNS for i in range(14)}
    assert plots.plot_label_curve(axes[0], [1, 10], curves).count("30, 70 %") == 14
    drawn = [lines[0] for lines in axes[0].containers]
    assert len({(line.get_color(), line.get_marker(), line.get_fillstyle()) for line in drawn}) == 14
    with pytest.raises(ValueError, match="'curve 14' is number 15 in its figure, and only 14 look different"):
        plots.plot_label_curve(axes[0], [1, 10], curves | {"curve 14": RUNS})


def test_a_method_looks_the_same_in_every_figure_and_no_two_methods_look_alike():
    looks = [tuple(plots.look(name, place).values()) for name in plots.METHODS for place in (0, 3)]
    assert looks[::2] == looks[1::2]
    assert len(set(looks)) == len(plots.METHODS)


def test_names_at_the_lines_never_overlap():
    ax = Figure(figsize=(5, 4)).subplots()
    ax.set_ylim(0, 1)
    plots.name_lines(ax, 1, {f"line {i}": (0.5 + i / 1000, "black") for i in range(5)})
    FigureCanvasAgg(ax.figure).draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not [1 for i, one in enumerate(boxes) for other in boxes[:i] if one.overlaps(other)]


def test_a_stretched_axis_gives_each_halving_of_the_error_the_same_height():
    ax = Figure().subplots()
    plots.plot_label_curve(ax, [1, 10], {"probe": [np.array([0.9, 0.92]), np.array([0.95, 0.97])]}, stretched=True)
    heights = [ax.transData.transform((1, 1 - error))[1] for error in (0.04, 0.02, 0.01)]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], rel=0.02)


def test_unequal_numbers_of_draws_cannot_be_paired():
    with pytest.raises(ValueError, match=r"'a': 2, 'b': 3.*same draws"):
        plots.plot_pairs(Figure().subplots(), {"a": [0.1, 0.2], "b": [0.1, 0.2, 0.3]}, ylabel="accuracy")


def test_mean_and_standard_error_are_numpys():
    values = np.random.rand(5, 3)
    mean, error = plots.mean_and_error(values)
    assert np.allclose(mean, values.mean(0))
    assert np.allclose(error, np.sqrt(values.var(0, ddof=1) / 5))
    assert plots.mean_and_error([1.0, 3.0]) == (2.0, 1.0)


def test_the_bars_and_their_whiskers_stand_where_numpy_says(axes):
    plots.plot_bars(axes[0], {"probe": RUNS[1]}, ylabel="accuracy")
    (bar,) = axes[0].patches
    assert bar.get_height() == pytest.approx(0.7)
    whisker = axes[0].collections[0].get_segments()[0][:, 1]
    error = 0.2 / np.sqrt(3)
    assert whisker == pytest.approx([0.7 - error, 0.7 + error])


def test_the_confusion_matrix_is_in_per_cent_of_the_true_class(axes):
    plots.plot_confusion(axes[0], [0, 0, 0, 1], [0, 0, 1, 1], ["cat", "dog"])
    assert np.allclose(axes[0].images[0].get_array(), [[200 / 3, 100 / 3], [0, 100]])


def test_one_seed_has_no_standard_error():
    with pytest.raises(ValueError, match=r"1 seed\(s\) have no standard error; give at least 2"):
        plots.mean_and_error([0.5])


def test_images_that_do_not_fit_are_refused(axes):
    with pytest.raises(ValueError, match="4 images do not fit on 3 axes"):
        plots.show_images(axes, np.zeros((4, 8, 8)))


def test_photographs_are_drawn_in_colour_and_bytes_as_fractions(axes):
    photos = np.random.default_rng(0).integers(0, 256, (3, 3, 4, 5), dtype=np.uint8)
    plots.show_images(axes, photos)
    assert np.allclose(axes[1].images[0].get_array(), photos[1].transpose(1, 2, 0) / 255)
    plots.show_images(axes, photos[:, :1])
    assert np.allclose(axes[1].images[-1].get_array(), photos[1, 0] / 255)


@pytest.mark.parametrize("shape", [(3, 2, 4, 5), (4, 5), (2, 3, 1, 4, 5)])
def test_what_is_no_image_is_refused(axes, shape):
    with pytest.raises(ValueError, match=r"images are \[.*; give \[N, 1, H, W\], \[N, 3, H, W\] or \[N, H, W\]"):
        plots.show_images(axes, np.zeros(shape))


def test_showing_a_figure_prints_its_words_and_closes_it(capsys):
    plt.switch_backend("Agg")
    fig = plt.figure()
    plots.show(fig, "a line that rises")
    assert "In words: a line that rises" in capsys.readouterr().out
    assert not plt.fignum_exists(fig.number)
