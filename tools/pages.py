"""Re-execute the pages and save their outputs: `python -m tools.pages [PAGE ...]`.

Pages run in order, one after the other, each in a fresh kernel.  What differs from run to run and
teaches nothing (times of execution, widget state) is dropped; the seconds that the page took are
written into its first cell and its metadata, and the table in README.md is made from the latter.
Run it from the top folder.
"""

import argparse
import base64
import re
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.output_widget import OutputWidget

from tlhelpers.runtime import available_cores
from tools import PAGE_FILES, with_block

TIME_LINE = re.compile(r"\*Computes for about \d+ s on \d+ CPU cores?;")


class PageClient(NotebookClient):
    """Runs pages that hold widgets.

    nbclient answers an Output widget on the channel on which it waits for the kernel; the wait then misses
    the kernel's reply now and then, and never ends (jupyter/nbclient#312).  This client does not answer.
    """

    def on_comm_open_jupyter_widget(self, msg: dict) -> Any:
        """The stand-in for a widget that has opened; None for most kinds."""
        widget = super().on_comm_open_jupyter_widget(msg)
        if isinstance(widget, OutputWidget):
            widget.sync_state = lambda: None
        return widget


def execute(path: Path) -> float:
    """Run one page and save it in place; returns the seconds.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the file is left as it was.
        ValueError: the first cell does not hold the line that states the time.
    """
    page = nbformat.read(path, as_version=4)
    began = time.perf_counter()
    PageClient(
        page,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    seconds = time.perf_counter() - began
    line = f"*Computes for about {5 * max(1, round(seconds / 5))} s on {available_cores()} CPU cores;"
    page.cells[0].source, replaced = TIME_LINE.subn(line, page.cells[0].source)
    if not replaced:
        raise ValueError(f"the first cell of {path.name} must hold '*Computes for about 0 s on 2 CPU cores; ...*'")
    tidy(page)
    page.metadata["tlcourse"]["seconds"] = round(seconds)
    save_readme_figure(page, path.parent / "figures")
    nbformat.write(page, path)
    return seconds


def tidy(page: nbformat.NotebookNode) -> None:
    """Drop what changes at every run: execution times, widget state, warnings and progress bars on stderr.

    A kernel sends what is printed in pieces that differ too; those with nothing between them become one.
    """
    page.metadata.pop("widgets", None)
    page.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    page.metadata["language_info"] = {"name": "python"}
    page.metadata.pop("jupytext", None)
    for number, cell in enumerate(page.cells):
        cell["id"] = f"cell-{number:02d}"  # stable ids keep differences between versions small
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = _joined([o for o in cell.outputs if o.get("name") != "stderr" and not _is_widget(o)])


def save_readme_figure(page: nbformat.NotebookNode, folder: Path) -> None:
    """Write the figure of the cell tagged "readme-figure", if there is one, where README.md shows it."""
    for cell in page.cells:
        if "readme-figure" in cell.metadata.get("tags", []):
            image = next(o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {}))
            folder.mkdir(exist_ok=True)
            (folder / "label_curve.png").write_bytes(base64.b64decode(image))


def page_table(pages: list[Path]) -> str:
    """The Markdown table of pages that README.md holds, from the pages' own metadata."""
    rows = ["| page | after it you will be able to | seconds |", "|---|---|---|"]
    for path in pages:
        facts = nbformat.read(path, as_version=4).metadata["tlcourse"]
        objectives = "; ".join(facts["objectives"])
        seconds = facts.get("seconds", "-")
        rows.append(f"| [{facts['page']} {facts['title']}](notebooks/{path.name}) | {objectives} | {seconds} |")
    return "\n".join(rows)


def _joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    # nbclient's `coalesce_streams` moves what is printed below a figure to what was printed above it.
    joined = []
    for output in outputs:
        if joined and output.output_type == joined[-1].output_type == "stream":
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _is_widget(output: nbformat.NotebookNode) -> bool:
    # Without its kernel a saved widget shows only its type; the static figure above it stays.
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", type=Path, help="notebook files; all of notebooks/ when none is named")
    everything = sorted(Path("notebooks").glob(PAGE_FILES))
    pages = parser.parse_args().pages or everything
    for path in pages:
        print(f"{path.name} ...", end=" ", flush=True)
        print(f"{execute(path):.0f} s", flush=True)
    readme = Path("README.md")
    readme.write_text(with_block(readme.read_text("utf-8"), "pages", page_table(everything)), "utf-8")


if __name__ == "__main__":
    main()
