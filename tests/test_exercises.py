"""Every question of every page: its solution passes, its wrong answers are answered, its stub is not judged."""

import ast
import builtins
import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from tlhelpers.course import exercises
from tlhelpers.course.exercise import Question

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
PAGES = sorted(module.name for module in pkgutil.iter_modules(exercises.__path__) if module.name.startswith("page_"))


def questions_of(page: str) -> dict[str, Question]:
    module: ModuleType = importlib.import_module(f"tlhelpers.course.exercises.{page}")
    return {name: q for name, q in vars(module).items() if isinstance(q, Question)}


QUESTIONS = [q for page in PAGES for q in questions_of(page).values()]
by_name = pytest.mark.parametrize("q", QUESTIONS, ids=[q.name for q in QUESTIONS])


def answer_in(text: str) -> Any:
    """What a cell with this text leaves under the name `answer`."""
    cell = {"torch": torch, "np": np, "__name__": "__main__"}
    exec(text, cell)
    return cell["answer"]


def test_there_are_pages_and_each_asks_three_questions():
    assert PAGES
    counts = {page: len(questions_of(page)) for page in PAGES}
    assert counts.pop("page_14", 5) >= 3  # the bug hunt has as many as it has broken programs
    assert counts == dict.fromkeys(counts, 3)


@pytest.mark.parametrize("page", PAGES)
def test_a_question_is_named_as_it_stands_there(page):
    number = page.removeprefix("page_")
    assert {name: q.name for name, q in questions_of(page).items()} == {
        name: f"{number}.{name}" for name in questions_of(page)
    }


@by_name
def test_the_solution_is_right(q):
    assert q.verdict(answer_in(q.solution_text)) == "\N{CHECK MARK} Right."


def code_in_comments(q: Question) -> str:
    """What the solution shows but does not run, because it needs what the page has made."""
    return "\n".join(line[2:] for line in q.solution_text.splitlines() if line.startswith("# "))


def functions_of_page(number: str) -> dict[str, Callable]:
    """What a page imports, and of what it defines itself the signatures without their defaults and bodies."""
    (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    statements = [s for cell in cells for s in ast.walk(ast.parse("".join(cell["source"])))]
    names: dict[str, Any] = {}
    for statement in statements:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            exec(ast.unparse(statement), names)
    for statement in statements:
        if isinstance(statement, ast.FunctionDef):
            for argument in ast.walk(statement.args):
                vars(argument).pop("annotation", None)
            statement.args.defaults = [ast.Constant(None) for _ in statement.args.defaults]
            statement.args.kw_defaults = [d and ast.Constant(None) for d in statement.args.kw_defaults]
            exec(f"def {statement.name}({ast.unparse(statement.args)}): ...", names)
    return names


@pytest.mark.parametrize("q", [pytest.param(q, id=q.name) for q in QUESTIONS if code_in_comments(q)])
def test_code_that_a_solution_only_shows_calls_functions_as_they_are(q):
    names = functions_of_page(q.name[:2])
    nodes = list(ast.walk(ast.parse(code_in_comments(q))))
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    calls = [call for call in calls if call.func.id not in own and not hasattr(builtins, call.func.id)]
    assert calls
    for call in calls:
        inspect.signature(names[call.func.id]).bind(*call.args, **{word.arg: word.value for word in call.keywords})


@pytest.mark.parametrize(
    ("q", "text", "words"),
    [pytest.param(q, *wrong, id=f"{q.name}-{i}") for q in QUESTIONS for i, wrong in enumerate(q.wrong)],
)
def test_a_typical_wrong_answer_is_told_what_is_wrong_with_it(q, text, words):
    verdict = q.verdict(answer_in(text))
    assert verdict.startswith("\N{MULTIPLICATION X} Not yet: ")
    assert words in verdict


@by_name
def test_an_untouched_stub_is_not_judged(q):
    def stub(x): ...

    assert all(q.verdict(untouched).startswith("Not attempted") for untouched in (..., None, stub))


@by_name
def test_an_answer_of_a_wrong_kind_is_explained_in_words(q):
    for nonsense in ("nonsense", object(), [1, "two"], lambda: 1 / 0):
        assert q.verdict(nonsense).startswith("\N{MULTIPLICATION X} Not yet: ")


@by_name
def test_hints_are_sentences_and_none_is_the_solution(q):
    assert q.text.endswith((".", "?"))
    assert len(set(q.hints)) == len(q.hints)
    assert q.solution_text not in q.hints


def test_the_bug_hunt_shows_the_programs_that_its_checks_were_made_for():
    page = json.loads((NOTEBOOKS / "14_bug_clinic.ipynb").read_text("utf-8"))
    shown = "\n".join("".join(cell["source"]) for cell in page["cells"] if cell["cell_type"] == "code")
    hunt = vars(importlib.import_module("tlhelpers.course.exercises.page_14"))
    broken = {name: text.strip() for name, text in hunt.items() if name.startswith("BROKEN_")}
    assert len(broken) == 5
    assert [name for name, text in broken.items() if text not in shown] == []
