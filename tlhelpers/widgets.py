"""Interactive versions of plain functions; the only file that imports ipywidgets.

A page first calls the function itself, so that a reader without a kernel sees a figure too.
"""

from collections.abc import Callable, Sequence

import ipywidgets
from IPython.display import display


def explore(draw: Callable[..., None], **choices: Sequence) -> None:
    """Show one slider per argument of `draw`, and call `draw` with the chosen values at every move.

    Args:
        draw: displays its result itself (`plots.show`); called as `draw(name=value, ...)`.
        choices: the values of each argument, in slider order.  The slider starts at the first.

    Raises:
        ValueError: an argument without values.
    """
    sliders = {}
    for name, values in choices.items():
        if len(values) == 0:
            raise ValueError(f"{name} has no values to choose from")
        # SelectionSlider and interactive_output are the same in ipywidgets 7.7 (Colab) and 8.
        sliders[name] = ipywidgets.SelectionSlider(
            options=[(str(value), value) for value in values],
            description=name.replace("_", " "),
            continuous_update=False,
            style={"description_width": "initial"},
            layout={"width": "24em"},
        )
        sliders[name].add_class(f"tl-{name.replace('_', '-')}")
    output = ipywidgets.interactive_output(draw, sliders)
    display(ipywidgets.VBox([*sliders.values(), output]))
