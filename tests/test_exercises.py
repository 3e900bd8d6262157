"""Every question of every page: its solution passes, its wrong answers are answered, its stub is not judged."""

import importlib
import json
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from tlhelpers.course import exercises
from tlhelpers.course.exercise import Question

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
    page = json.loads((Path(__file__).parent.parent / "notebooks" / "14_bug_clinic.ipynb").read_text("utf-8"))
    shown = "\n".join("".join(cell["source"]) for cell in page["cells"] if cell["cell_type"] == "code")
    hunt = vars(importlib.import_module("tlhelpers.course.exercises.page_14"))
    broken = {name: text.strip() for name, text in hunt.items() if name.startswith("BROKEN_")}
    assert len(broken) == 5
    assert [name for name, text in broken.items() if text not in shown] == []
