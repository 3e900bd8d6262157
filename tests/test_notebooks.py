"""The rules for pages, read from the notebook files (running them is nbval's part)."""

import ast
import importlib
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "notebooks").glob("*.ipynb"))
assert PAGES, "no notebooks found"

# Names that current torch, torchvision and transformers warn of or no longer have.
OLD_NAMES = ("pretrained=True", "torch.cuda.amp", "evaluation_strategy", "torch_dtype", "ToTensor(", "children()[:-1])")

# A page imports from a room, not from the files in it; only those of the shelves stand for themselves.
ROOMS = ("data", "models", "objectives", "training", "analysis", "course", "files", "runtime")
SHELVES = {"tlhelpers.experiments", "tlhelpers.course.exercises"}


@pytest.fixture(params=PAGES, ids=lambda path: path.stem)
def page(request: pytest.FixtureRequest) -> dict:
    return json.loads(request.param.read_text("utf-8")) | {"path": request.param}


def source(cell: dict) -> str:
    return "".join(cell["source"])


def cells(page: dict, kind: str) -> list[dict]:
    return [cell for cell in page["cells"] if cell["cell_type"] == kind]


def prose(page: dict) -> str:
    """All Markdown outside fenced code."""
    return re.sub(r"```.*?```", "", "\n\n".join(source(cell) for cell in cells(page, "markdown")), flags=re.DOTALL)


def test_the_first_cell_says_what_the_page_gives_and_how_long_it_takes(page):
    first = source(page["cells"][0])
    assert re.match(r"# \d+\. \S", first)
    assert len(re.findall(r"^\* ", first, flags=re.MULTILINE)) == 3, "three goals"
    assert re.search(r"\*Computes for about [1-9]\d* s on \d+ CPU cores?; .*\*", first)


def test_headings_start_at_one_title_and_skip_no_level(page):
    levels = [len(mark) for mark in re.findall(r"^(#+) ", prose(page), flags=re.MULTILINE)]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_code_alternates_with_prose(page):
    lesson = [cell for cell in page["cells"] if "install" not in cell["metadata"].get("tags", [])]
    kinds = "".join(cell["cell_type"][0] for cell in lesson)
    assert "ccc" not in kinds, "never more than two code cells in a row"
    assert 40 <= len(kinds) <= 75


def test_paragraph_cells_stay_readable(page):
    for cell in cells(page, "markdown"):
        words = re.sub(r"```.*?```", "", source(cell), flags=re.DOTALL).split()
        assert len(words) <= 180, source(cell)[:80]


def test_the_page_was_run_from_top_to_bottom_and_saved_without_errors(page):
    counts = [cell["execution_count"] for cell in cells(page, "code")]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in cells(page, "code") for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_the_file_is_small_and_holds_no_widget_state(page):
    assert page["path"].stat().st_size <= 500_000
    assert "widgets" not in page["metadata"], "GitHub shows 'Invalid Notebook' for saved widget state"


def test_every_figure_is_said_in_words_below_it(page):
    for cell in cells(page, "code"):
        for output, below in pairwise([*cell["outputs"], {}]):
            if {"image/png", "image/svg+xml"} & set(output.get("data", {})):
                assert "".join(below.get("text", "")).startswith("In words: "), source(cell)[:80]


def test_the_page_claims_explores_and_asks(page):
    code = "\n".join(source(cell) for cell in cells(page, "code"))
    assert len(re.findall(r"\bclaim\(", code)) >= 5
    assert "claims_table()" in code
    assert "explore(" in code
    assert all(f"{name}.check(" in code for name in ("q1", "q2", "q3"))
    assert all(f"# {name}.solution()" in code for name in ("q1", "q2", "q3")), "solutions are there, closed"


def test_no_measured_number_is_typed_into_prose(page):
    for cell in cells(page, "markdown"):
        typed = re.search(r"\d+(\.\d+)? ?(%|per ?cent|points?\b)", re.sub(r"`[^`]*`", "", source(cell)))
        cited = re.search(r"\b(19|20)\d\d\b", source(cell))
        assert typed is None or cited, f"compute and print it, or cite it: {typed and typed.group()!r}"


def test_code_uses_no_outdated_names_and_no_trailing_semicolon(page):
    for cell in cells(page, "code"):
        assert not [name for name in OLD_NAMES if name in source(cell)]
        assert not re.search(r";\s*$", source(cell)), "nbval compares what a ; hides"
        assert "import *" not in source(cell)


def imports_of(page: dict) -> list[tuple[str, str]]:
    """Module and name of everything that a page imports from the package, also in code that it only shows."""
    shown = [
        block for cell in cells(page, "markdown") for block in re.findall(r"```python\n(.*?)```", source(cell), re.S)
    ]
    codes = [source(cell) for cell in cells(page, "code")] + shown
    # A line of IPython's own, such as %pip, is no Python.
    trees = [ast.parse(re.sub(r"^(\s*)%.*", r"\1pass", code, flags=re.M)) for code in codes]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    plain = [(alias.name, "") for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    named = [(node.module, alias.name) for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
    return [(module, name) for module, name in plain + named if module.split(".")[0] == "tlhelpers"]


def test_a_page_imports_from_rooms_what_they_offer(page):
    for module, name in imports_of(page):
        if module in SHELVES:
            importlib.import_module(f"{module}.{name}")
        else:
            is_room = module.removeprefix("tlhelpers.") in ROOMS
            assert is_room or module.rpartition(".")[0] in SHELVES, f"import {name} from its room, not from {module}"
            file = Path(importlib.import_module(module).__file__)
            tree = ast.parse(file.read_text("utf-8"))
            imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
            offered = imported if file.name == "__init__.py" else vars(importlib.import_module(module))
            assert name in offered, f"{module} offers no {name}"


def test_links_between_pages_resolve(page):
    for target in re.findall(r"\]\((?!https:)([^)#]+\.ipynb)[^)]*\)", prose(page)):
        assert (page["path"].parent / target).exists(), target


def test_metadata_tell_an_instructor_what_the_page_is_for(page):
    facts = page["metadata"]["tlcourse"]
    assert facts["page"] == page["path"].stem[:2]
    assert len(facts["objectives"]) == 3 and len(facts["keypoints"]) == 3
    assert facts["misconceptions"] and facts["seconds"] > 0


def test_the_readme_lists_every_page_with_its_time():
    rows = [line for line in (ROOT / "README.md").read_text("utf-8").splitlines() if line.startswith("| [")]
    assert len(rows) == len(PAGES)
    for path, row in zip(PAGES, rows, strict=True):
        facts = json.loads(path.read_text("utf-8"))["metadata"]["tlcourse"]
        assert f"(notebooks/{path.name})" in row
        assert row.endswith(f"| {facts['seconds']} |")
