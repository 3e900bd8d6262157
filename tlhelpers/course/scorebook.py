"""Which exercises a learner has solved: one small file that can be looked at, merged and handed in.

It lies where the notebooks run, as `my_progress.json` (or where `TLHELPERS_PROGRESS` says), and in the
cache if that folder cannot be written.  Whatever happens to it, an exercise is still checked.
"""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from tlhelpers.files import atomic
from tlhelpers.runtime import cache_dir

FILE = "my_progress.json"
VERSION = 1  # of the file's form
_complaints: set[str] = set()  # those that were printed already


def note(name: str) -> None:
    """Write down that a question, such as "05.q1", was answered rightly; the first time counts.

    What goes wrong is said once, never raised.
    """
    problems = []
    for path in places():
        try:
            write(path, merged(_begun(path), {name: datetime.now(UTC).isoformat(timespec="seconds")}))
            return
        except OSError as error:
            problems.append(f"{path} ({error.strerror or error})")
    _complain_once(f"Your progress cannot be kept: {', '.join(problems)}. Exercises are checked all the same.")


def places() -> list[Path]:
    """Where the file may be, the best place first."""
    if chosen := os.environ.get("TLHELPERS_PROGRESS"):
        return [Path(chosen)]
    return [Path.cwd() / FILE, cache_dir() / FILE]


def read(path: Path) -> dict[str, str]:
    """Question -> time of the first right answer; empty if there is no file.

    Raises:
        OSError: the file is there but cannot be read.
        ValueError: it is damaged, or of a newer version.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["version"] > VERSION:
            raise ValueError(f"version {content['version']} is newer than this package, which reads {VERSION}")
        return {str(name): str(time) for name, time in content["solved"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} could not be understood ({error})") from error


def _begun(path: Path) -> dict[str, str]:
    """What the learner's own file holds; one that cannot be understood makes room under the name *.damaged."""
    try:
        return read(path)
    except ValueError as error:
        aside = path.with_name(path.name + ".damaged")
        path.replace(aside)
        print(f"{error}; it is now {aside.name}, and a new one begins.")
        return {}


def write(path: Path, solved: Mapping[str, str]) -> None:
    """Write all or nothing.

    Raises:
        OSError: no permission, or no space; the old file is still there then.
    """
    with atomic(path) as temporary:
        temporary.write_text(as_text(solved), "utf-8")


def as_text(solved: Mapping[str, str]) -> str:
    """What the file holds, as JSON."""
    return json.dumps({"version": VERSION, "solved": dict(sorted(solved.items()))}, indent=1)


def merged(*books: Mapping[str, str]) -> dict[str, str]:
    """What any of them holds, with the earliest time: for two copies of the file."""
    earliest: dict[str, str] = {}
    for name, time in (pair for book in books for pair in book.items()):
        earliest[name] = min(time, earliest.get(name, time))
    return earliest


def collected() -> dict[str, str]:
    """Everything that was solved, wherever it could be kept; a file that cannot be understood is named and passed over.

    Raises:
        OSError: a file is there but cannot be read.
    """
    books = []
    for path in places():
        try:
            books.append(read(path))
        except ValueError as error:
            print(error)
    return merged(*books)


def _complain_once(text: str) -> None:
    if text not in _complaints:
        _complaints.add(text)
        print(text)
