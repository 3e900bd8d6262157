"""The instructor's kit: student copies, slides and the guide are made from the pages."""

from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import kit

ROOT = Path(__file__).parent.parent
FIGURE = new_output("display_data", {"image/png": "AAAA"})
WORDS = new_output("stream", text="In words: a line")


def page(*cells):
    return new_notebook(cells=list(cells), metadata={"tlcourse": {"seconds": 130}})


def test_student_copies_have_no_outputs_and_no_solutions(tmp_path):
    kit.write_pages(tmp_path, kit.student_copy)
    for original in kit.PAGES:
        copy = kit.nbformat.read(tmp_path / original.name, as_version=4)
        code = [cell for cell in copy.cells if cell.cell_type == "code"]
        assert not [cell for cell in code if cell.outputs or cell.execution_count]
        sources = "\n".join(cell.source for cell in code)
        assert "solution()" not in sources
        assert "q1.check(" in sources and "# q1.hint()" in sources


def test_only_the_line_of_the_solution_is_taken_out():
    cell = new_code_cell("q1.check(answer)\n# q1.hint()\n# q1.solution()\nq2.solution()\nsolution = 3", outputs=[WORDS])
    assert kit.student_copy(page(cell)).cells[0].source == "q1.check(answer)\n# q1.hint()\nsolution = 3"


def test_slides_show_first_paragraphs_figures_and_code_by_hand():
    slides = kit.slides_of(
        page(
            new_markdown_cell("# 1. Title\n\nall\n\nof it"),
            new_code_cell("import torch"),
            new_markdown_cell("## Loss by hand\n\nshown\n\nsaid"),
            new_code_cell("loss = 0"),
            new_code_cell("plot()", outputs=[FIGURE, WORDS]),
            new_markdown_cell("only said"),
        )
    )
    sources = [cell.source for cell in slides.cells]
    assert sources[0] == "# 1. Title\n\nall\n\nof it"
    assert sources[1].startswith("## Loss by hand\n\nshown\n\n`````{revealjs-notes}\nsaid")
    assert sources[2:5] == ["loss = 0", "### Loss by hand (2)", "plot()"]
    assert slides.cells[4].outputs == [FIGURE] and "remove-input" in slides.cells[4].metadata["tags"]
    assert sources[5].startswith("`````{revealjs-notes}\nonly said") and len(sources) == 6


def test_minutes_follow_the_stated_rule():
    words = new_markdown_cell("word " * 300 + "\n```\nthis is code\n```")
    ask = new_code_cell("q1.check(...)\n# q1.hint()")
    assert kit.minutes(page(words, ask, new_code_cell(""))) == (3, 2, 5)


def test_the_guide_in_the_docs_is_that_of_the_pages():
    text = (ROOT / "docs" / "instructors.md").read_text("utf-8")
    assert kit.guide() in text, "run python -m tools.kit guide"


@pytest.mark.parametrize("words", [[], ["exam"]])
def test_an_unknown_wish_prints_the_usage(words, capsys):
    with pytest.raises(SystemExit):
        kit.main(words)
    assert "usage: python -m tools.kit" in capsys.readouterr().err


def test_student_copies_go_to_the_folder_that_is_named(tmp_path, capsys):
    kit.main(["student", str(tmp_path / "room")])
    assert {path.name for path in (tmp_path / "room").iterdir()} == {path.name for path in kit.PAGES}
    assert capsys.readouterr().out == f"open {tmp_path / 'room'}\n"


def test_no_block_of_a_plan_is_longer_than_90_minutes():
    rows = [line.split("|") for line in (ROOT / "docs" / "instructors.md").read_text("utf-8").splitlines()]
    blocks = [int(row[2]) for row in rows if len(row) == 5 and row[1].strip().isdigit()]
    assert len(blocks) == 6 and max(blocks) <= 90
