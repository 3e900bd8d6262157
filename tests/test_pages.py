"""The tool that executes pages and makes their table."""

import nbformat
import pytest
from nbclient.output_widget import OutputWidget

from tools import pages, with_block


def test_a_widget_is_never_answered_while_its_cell_is_awaited(monkeypatch):
    """The answer would make the wait for the kernel miss its reply now and then (jupyter/nbclient#312)."""
    answers = []
    monkeypatch.setattr(OutputWidget, "send", lambda *message, **_: answers.append(message))
    source = "from tlhelpers.course.widgets import explore\nexplore(lambda n: print('drawn', n), n=[1, 2])"
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    pages.PageClient(page, kernel_name="python3", timeout=120).execute()
    assert answers == []
    (shown,) = page.cells[0].outputs  # the widget; what it draws stays inside it
    assert "application/vnd.jupyter.widget-view+json" in shown.data


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The path of a page of two cells, and a stand-in for the kernel that leaves typical outputs."""

    class Client:
        def __init__(self, page, **_):
            self.page = page

        def execute(self):
            outputs = [
                nbformat.v4.new_output("stream", name="stdout", text="ke"),
                nbformat.v4.new_output("stream", name="stderr", text="a progress bar"),
                nbformat.v4.new_output("stream", name="stdout", text="pt"),
                nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}}),
                nbformat.v4.new_output("display_data", {"image/png": ""}),
                nbformat.v4.new_output("stream", name="stdout", text="In words: white"),
            ]
            self.page.cells[1].outputs = outputs
            self.page.cells[1].metadata["execution"] = {"iopub.status.busy": "2030-01-01"}

    monkeypatch.setattr(pages, "PageClient", Client)
    cells = [
        nbformat.v4.new_markdown_cell("# A page\n*Computes for about 0 s on 9 CPU cores; read for 20 min.*"),
        nbformat.v4.new_code_cell("print('kept')"),
    ]
    facts = {"page": "07", "title": "A page", "objectives": ["see", "do"]}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"tlcourse": facts, "widgets": {"state": 1}})
    path = tmp_path / "07_a_page.ipynb"
    nbformat.write(notebook, path)
    return path


def test_an_executed_page_states_its_time_and_keeps_only_what_teaches(page):
    pages.execute(page)
    saved = nbformat.read(page, as_version=4)
    assert "*Computes for about 5 s on" in saved.cells[0].source
    assert saved.cells[0].source.endswith("; read for 20 min.*")
    above, figure, below = saved.cells[1].outputs
    assert (above.text, list(figure.data), below.text) == ("kept", ["image/png"], "In words: white")
    assert "widgets" not in saved.metadata
    first = page.read_text("utf-8")
    pages.execute(page)
    assert page.read_text("utf-8") == first


def test_the_table_of_pages_is_made_of_their_metadata(page):
    pages.execute(page)
    assert pages.page_table([page]).splitlines()[2] == ("| [07 A page](notebooks/07_a_page.ipynb) | see; do | 0 |")


def test_a_page_without_the_line_for_its_time_is_left_as_it_was(page):
    page.write_text(page.read_text("utf-8").replace("Computes", "Takes"), "utf-8")
    before = page.read_text("utf-8")
    with pytest.raises(ValueError, match=r"the first cell of 07_a_page\.ipynb must hold .*Computes for about 0 s"):
        pages.execute(page)
    assert page.read_text("utf-8") == before


def test_a_block_between_its_marks_is_made_anew_and_nothing_else_moves():
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb <!-- y -->\n"
    new = with_block(text, "x", "\\1 new\n")  # no pattern of a replacement
    assert new == "a\n<!-- x -->\n\\1 new\n<!-- /x -->\nb <!-- y -->\n"
    assert with_block(new, "x", "old") == text
    for broken in (text.replace("/x", "/z"), text + text, ""):
        with pytest.raises(ValueError, match="needs a line '<!-- x -->' and below it"):
            with_block(broken, "x", "new")
