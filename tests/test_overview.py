"""How far a learner is: every question is listed, shown, put into a table and packed."""

import csv
import io
import pkgutil
import re
import zipfile
from pathlib import Path

import pytest

from tlhelpers.__main__ import main
from tlhelpers.course import exercises, overview, scorebook

EARLY = "2026-01-01T10:00:00+00:00"


@pytest.fixture(autouse=True)
def book(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "notebooks" / "book.json"
    monkeypatch.setenv("TLHELPERS_PROGRESS", str(path))
    return path


def test_every_file_of_exercises_is_listed_with_its_questions():
    files = {module.name for module in pkgutil.iter_modules(exercises.__path__)}
    assert {module.__name__.rsplit(".", 1)[-1] for module in overview.PAGES} == files
    table = overview.questions()
    assert {f"page_{page}" for page in table} == files
    assert table["05"] == ["q1", "q2", "q3"] and table["14"] == ["q1", "q2", "q3", "q4", "q5"]


def test_what_is_solved_is_shown_a_line_per_page(book, capsys):
    scorebook.write(book, {"05.q1": EARLY})
    overview.show()
    shown = capsys.readouterr().out
    assert "page 05  \N{CHECK MARK} \N{MIDDLE DOT} \N{MIDDLE DOT}  1 of 3" in shown
    assert shown.endswith("kept in book.json\n")


def test_an_instructor_gets_a_table_of_the_class(tmp_path, capsys):
    for name, solved in {"ada": {"05.q1": EARLY}, "bob": {}}.items():
        scorebook.write(tmp_path / f"{name}.json", solved)
    files = [str(tmp_path / "ada.json"), str(tmp_path / "bob.json")]
    assert main(["progress", *files, "--csv", str(tmp_path / "class.csv")]) == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "class.csv").read_text("utf-8"))))
    total = sum(map(len, overview.questions().values()))
    assert len(rows) == 2 * total
    assert [row["question"] for row in rows if row["solved"]] == ["q1"]
    assert main(["progress", *files]) == 0 and f"1 of {total} exercises" in capsys.readouterr().out
    assert main(["progress", str(tmp_path / "nobody.json")]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["newer.json"], r"newer.json could not be understood \(version 2 is newer than this package"),
        (["ada.json", "newer.json", "--csv", "class.csv"], "upgrade tlhelpers, ask for the file again"),
        (["."], r"Is a directory.*nothing was changed"),
        (["ada.json", "--csv", "no/class.csv"], r"no/class.csv cannot be written \(No such file or directory\); name"),
    ],
)
def test_what_cannot_be_read_or_written_is_said_and_nothing_moves(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    scorebook.write(Path("ada.json"), {"05.q1": EARLY})
    Path("newer.json").write_text('{"version": 2, "solved": {}}', "utf-8")
    assert main(["progress", *arguments]) == 1
    assert re.search(words, capsys.readouterr().out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ada.json", "newer.json"]


def test_the_packed_work_holds_the_notebooks_and_what_was_solved(book, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scorebook.write(book, {"05.q1": EARLY})
    (tmp_path / "05_page.ipynb").write_text("{}", "utf-8")
    (tmp_path / "other.txt").touch()
    packed, names = overview.pack()
    assert names == ["05_page.ipynb", scorebook.FILE]
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        archive.extract(scorebook.FILE, tmp_path / "elsewhere")
        assert archive.read("05_page.ipynb") == b"{}"
    assert scorebook.read(tmp_path / "elsewhere" / scorebook.FILE) == {"05.q1": EARLY}
