"""Which exercises a learner has solved: one small file that can be looked at, merged and handed in.

It lies where the notebooks run, as `my_progress.json` (or where `TLHELPERS_PROGRESS` says), and in the
cache if that folder cannot be written.  Whatever happens to it, an exercise is still checked.
"""

import csv
import importlib
import io
import json
import os
import pkgutil
import re
import sys
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from tlhelpers.runtime import cache_dir

FILE, VERSION = "my_progress.json", 1
PAGES = "tlhelpers.course.exercises.page_"
_said: set[str] = set()  # complaints that were made already


def note(question: Any) -> None:
    """Write down that a question of a page was answered rightly; the first time counts.

    A question that belongs to no page is not kept.  What goes wrong is said once, never raised.
    """
    name = name_of(question)
    if name is None:
        return
    problems = []
    for path in places():
        try:
            solved = merged(read(path), {name: datetime.now(UTC).isoformat(timespec="seconds")})
            write(path, solved)
            return
        except OSError as error:
            problems.append(f"{path} ({error.strerror or error})")
    _say_once(f"Your progress cannot be kept: {', '.join(problems)}. Exercises are checked all the same.")


def name_of(question: Any) -> str | None:
    """Such as "05.q1": the page, and the name of the question there."""
    for module in (name for name in list(sys.modules) if name.startswith(PAGES)):
        for name, value in vars(sys.modules[module]).items():
            if value is question:
                return f"{module.removeprefix(PAGES)}.{name}"
    return None


def places() -> list[Path]:
    """Where the file may be, the best place first."""
    if asked := os.environ.get("TLHELPERS_PROGRESS"):
        return [Path(asked)]
    return [Path.cwd() / FILE, cache_dir() / FILE]


def read(path: Path) -> dict[str, str]:
    """Question -> time of the first right answer; empty if there is no file.

    A damaged file is set aside under the name *.damaged, and that is said.

    Raises:
        OSError: the file is there but cannot be read.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
        if found["version"] > VERSION:
            raise ValueError(f"version {found['version']} is newer than this package")
        return {str(name): str(time) for name, time in found["solved"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        aside = path.with_name(path.name + ".damaged")
        path.replace(aside)
        print(f"{path.name} could not be understood ({error}); it is now {aside.name}, and a new one begins.")
        return {}


def write(path: Path, solved: Mapping[str, str]) -> None:
    """Write all or nothing: a temporary file takes the place of the old one when it is complete.

    Raises:
        OSError: no permission, or no space; the old file is still there then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(_as_text(solved), "utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _as_text(solved: Mapping[str, str]) -> str:
    return json.dumps({"version": VERSION, "solved": dict(sorted(solved.items()))}, indent=1)


def merged(*books: Mapping[str, str]) -> dict[str, str]:
    """What any of them holds, with the earliest time: for two copies of the file."""
    found: dict[str, str] = {}
    for name, time in (pair for book in books for pair in book.items()):
        found[name] = min(time, found.get(name, time))
    return found


def collected() -> dict[str, str]:
    """Everything that was solved, wherever it could be kept."""
    return merged(*(read(path) for path in places()))


def show() -> None:
    """Print what is solved, a line per page."""
    solved = collected()
    for page, names in questions().items():
        marks = " ".join("\N{CHECK MARK}" if f"{page}.{name}" in solved else "\N{MIDDLE DOT}" for name in names)
        print(f"page {page}  {marks}  {sum(f'{page}.{name}' in solved for name in names)} of {len(names)}")
    print(f"kept in {next((path for path in places() if path.exists()), places()[0]).name}")


def export(books: Mapping[str, Mapping[str, str]], to: TextIO) -> None:
    """Write one CSV row per learner and question that there is: learner, page, question, time (empty if not solved)."""
    table = csv.writer(to, lineterminator="\n")
    table.writerow(["learner", "page", "question", "solved"])
    for learner, solved in books.items():
        for page, names in questions().items():
            table.writerows([learner, page, name, solved.get(f"{page}.{name}", "")] for name in names)


def pack(folder: str | Path = ".") -> tuple[bytes, list[str]]:
    """A zip archive of the notebooks in a folder and of what was solved, and the names of the files in it.

    The progress file is the union of those that there are (`collected`).
    """
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(Path(folder).glob("*.ipynb")):
            archive.write(path, path.name)
        archive.writestr(FILE, _as_text(collected()))
        names = archive.namelist()
    return held.getvalue(), names


def questions() -> dict[str, list[str]]:
    """The names of all questions by page, such as {"05": ["q1", "q2", "q3"]}."""
    # By name, not by an import statement: the questions import `checks`, which imports this module.
    folder = importlib.import_module("tlhelpers.course.exercises")
    pages = sorted(info.name for info in pkgutil.iter_modules(folder.__path__) if info.name.startswith("page_"))
    modules = {name.removeprefix("page_"): importlib.import_module(f"{folder.__name__}.{name}") for name in pages}
    return {page: [n for n in vars(module) if re.fullmatch(r"q\d+", n)] for page, module in modules.items()}


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        print(text)
