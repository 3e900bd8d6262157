"""Interactive versions of plain functions; beside `pad` the only file that imports ipywidgets.

A page first calls the function itself, so that a reader without a kernel sees a figure too.
"""

import base64
from collections.abc import Callable, Sequence

import ipywidgets
from IPython.display import HTML, display

from tlhelpers.course import overview


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


def download_button() -> None:
    """Show a button that packs the notebooks of this folder and the progress file, and offers the archive.

    For Binder and Colab, which forget everything: the archive is inside the link that appears, so any
    front end can save it.  Notebooks are packed as they were last saved.
    """
    button = ipywidgets.Button(description="Pack my work", icon="download")
    button.add_class("tl-pack-my-work")
    output = ipywidgets.Output()

    def offer(_button) -> None:
        packed, names = overview.pack()
        link = f"data:application/zip;base64,{base64.b64encode(packed).decode('ascii')}"
        output.clear_output()
        with output:
            display(
                HTML(
                    f'<a download="my_work.zip" href="{link}">Download my_work.zip</a> '
                    f"({len(packed) / 1e6:.1f} MB: {len(names)} files, as they were last saved)"
                )
            )

    button.on_click(offer)
    display(ipywidgets.VBox([button, output]))
