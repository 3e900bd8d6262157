"""Interactive versions of plain functions; the only file that imports ipywidgets.

A page first calls the function itself, so that a reader without a kernel sees a figure too.
"""

from collections.abc import Callable, Sequence

import ipywidgets
from IPython.display import display


def explore(draw: Callable[..., None], **choices: Sequence) -> None:
    """Show one menu per argument of `draw`, and call `draw` with the chosen values at every change.

    On the keyboard: Tab to a menu, Space, arrow keys, Enter.

    Args:
        draw: displays its result itself (`plots.show`); called as `draw(name=value, ...)`.
        choices: the values of each argument, in menu order.  The menu starts at the first.

    Raises:
        ValueError: an argument without values.
    """
    menus = {}
    for name, values in choices.items():
        if len(values) == 0:
            raise ValueError(f"{name} has no values to choose from")
        # A menu, because a slider of ipywidgets has no accessible name: its label is tied to nothing.
        # Dropdown and interactive_output are the same in ipywidgets 7.7 (Colab) and 8.
        menus[name] = ipywidgets.Dropdown(
            options=[(str(value), value) for value in values],
            description=name.replace("_", " "),
            style={"description_width": "initial"},
            layout={"width": "24em", "max_width": "100%"},
        )
        menus[name].add_class(f"tl-{name.replace('_', '-')}")
    output = ipywidgets.interactive_output(draw, menus)
    display(ipywidgets.VBox([*menus.values(), output]))
