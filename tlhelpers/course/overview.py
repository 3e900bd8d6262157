"""How far a learner is: the list of all questions, beside the scorebook that says which of them are solved."""

import csv
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from tlhelpers.course import scorebook
from tlhelpers.course.exercise import Question
from tlhelpers.course.exercises import (
    page_00,
    page_01,
    page_02,
    page_03,
    page_04,
    page_05,
    page_06,
    page_07,
    page_08,
    page_13,
    page_14,
)

PAGES = (page_00, page_01, page_02, page_03, page_04, page_05, page_06, page_07, page_08, page_13, page_14)


def questions() -> dict[str, list[str]]:
    """The questions of every page, such as {"05": ["q1", "q2", "q3"]}."""
    table: dict[str, list[str]] = {}
    for module in PAGES:
        for value in vars(module).values():
            if isinstance(value, Question):
                page, number = value.name.split(".")
                table.setdefault(page, []).append(number)
    return table


def show() -> None:
    """Print what is solved, a line per page."""
    solved = scorebook.collected()
    for page, numbers in questions().items():
        done = [f"{page}.{number}" in solved for number in numbers]
        marks = " ".join("\N{CHECK MARK}" if right else "\N{MIDDLE DOT}" for right in done)
        print(f"page {page}  {marks}  {sum(done)} of {len(numbers)}")
    places = scorebook.places()
    print(f"kept in {next((path for path in places if path.exists()), places[0]).name}")


def export(books: Mapping[str, Mapping[str, str]], to: TextIO) -> None:
    """Write one CSV row per learner and question that there is: learner, page, question, time (empty if not solved)."""
    table = csv.writer(to, lineterminator="\n")
    table.writerow(["learner", "page", "question", "solved"])
    for learner, solved in books.items():
        for page, numbers in questions().items():
            table.writerows([learner, page, number, solved.get(f"{page}.{number}", "")] for number in numbers)


def pack() -> tuple[bytes, list[str]]:
    """A zip archive of the notebooks in this folder and of what was solved, and the names of the files in it.

    The progress file is the union of those that there are (`scorebook.collected`).
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(Path.cwd().glob("*.ipynb")):
            archive.write(path, path.name)
        archive.writestr(scorebook.FILE, scorebook.as_text(scorebook.collected()))
        names = archive.namelist()
    return content.getvalue(), names
