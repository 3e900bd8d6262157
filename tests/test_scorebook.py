"""What is solved is kept, whatever happens to the file."""

import errno
import json
from pathlib import Path

import pytest

from tlhelpers.course import scorebook
from tlhelpers.course.exercise import Question
from tlhelpers.course.exercises.page_05 import q1

EARLY, LATE = "2026-01-01T10:00:00+00:00", "2026-02-01T10:00:00+00:00"


@pytest.fixture(autouse=True)
def book(tmp_path, monkeypatch) -> Path:
    scorebook._complaints.clear()
    path = tmp_path / "notebooks" / "book.json"
    monkeypatch.setenv("TLHELPERS_PROGRESS", str(path))
    return path


def test_only_right_answers_are_kept_and_the_first_time_counts(book, capsys):
    q1.check("a")
    q1.check(...)
    assert not book.exists()
    scorebook.write(book, {"05.q1": EARLY})
    q1.check("b")
    assert scorebook.read(book) == {"05.q1": EARLY}
    assert capsys.readouterr().out.count("Right") == 1


def test_a_question_of_no_page_is_checked_but_not_kept(book, capsys):
    Question(None, "mine?", lambda answer: None, ["none"], "answer = 1").check(1)
    assert "Right" in capsys.readouterr().out and not book.exists()


def test_merging_is_commutative_and_idempotent_and_keeps_the_earliest_time():
    one, other = {"05.q1": LATE, "05.q2": EARLY}, {"05.q1": EARLY, "06.q1": LATE}
    both = scorebook.merged(one, other)
    assert both == scorebook.merged(other, one) == scorebook.merged(both, one, other)
    assert both == {"05.q1": EARLY, "05.q2": EARLY, "06.q1": LATE}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 1}', '{"version": 99, "solved": {}}', "\x00\xff", '{"a":']
)
def test_a_damaged_file_stays_where_it_is_read_and_makes_room_where_it_is_written(book, capsys, text):
    book.parent.mkdir()
    book.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"book\.json could not be understood"):
        scorebook.read(book)
    assert scorebook.collected() == {} and "could not be understood" in capsys.readouterr().out
    assert [path.name for path in book.parent.iterdir()] == ["book.json"]
    q1.check("b")
    assert set(scorebook.read(book)) == {"05.q1"}
    assert book.with_name("book.json.damaged").read_text("utf-8") == text
    assert "it is now book.json.damaged" in capsys.readouterr().out


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_without_a_place_to_write_the_answer_is_judged_and_the_reason_said_once(book, capsys, monkeypatch, code):
    scorebook.write(book, {"05.q2": EARLY})

    def refuse(self, *_, **__):
        raise OSError(code, "not here")

    monkeypatch.setattr(Path, "write_text", refuse)
    q1.check("b")
    q1.check("b")
    printed = capsys.readouterr().out
    assert printed.count("Right") == 2 and printed.count("cannot be kept") == 1 and "not here" in printed
    assert scorebook.read(book) == {"05.q2": EARLY}


def test_a_folder_that_cannot_be_written_gives_way_to_the_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("TLHELPERS_PROGRESS")
    monkeypatch.chdir(tmp_path)
    write = scorebook.write

    def only_the_cache(path, solved):
        if path.parent == tmp_path:
            raise OSError(errno.EROFS, "read-only")
        write(path, solved)

    monkeypatch.setattr(scorebook, "write", only_the_cache)
    scorebook.note("05.q2")
    assert set(scorebook.collected()) == {"05.q2"} and not (tmp_path / scorebook.FILE).exists()


def test_the_file_says_its_version(book):
    scorebook.write(book, {"05.q1": EARLY})
    assert json.loads(book.read_text("utf-8")) == {"version": 1, "solved": {"05.q1": EARLY}}
