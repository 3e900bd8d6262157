"""The command line of the course: `python -m tlhelpers doctor | prefetch | progress`.

The rooms are imported inside the functions: they import torch, and the doctor must speak when it is broken.
"""

import argparse
import re
import sys
from pathlib import Path

from tlhelpers.doctor import doctor


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tlhelpers", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="check Python, packages, GPU, memory, disk, caches, network and kernels")
    fill = commands.add_parser("prefetch", help="download what the full profile uses, to work offline later")
    fill.add_argument("--pages", help="such as 02,03; all pages when left out")
    fill.add_argument("--to", type=Path, metavar="DIR", help="one folder for everything, to be shared")
    solved = commands.add_parser("progress", help="show which exercises are solved, or make a table of a class")
    solved.add_argument("files", nargs="*", type=Path, help="progress files of learners; your own when left out")
    solved.add_argument("--csv", type=Path, metavar="FILE", help="write one row per learner and question")
    options = parser.parse_args(arguments)
    if options.command == "doctor":
        return doctor()
    if options.command == "progress":
        return _progress(options.files, options.csv)
    pages = options.pages.split(",") if options.pages else None
    if wrong := [page for page in pages or [] if not re.fullmatch(r"\d\d", page)]:
        parser.error(f"--pages {','.join(wrong)}: give two digits per page, such as 02,03")
    from tlhelpers.course.prefetch import NEEDS, prefetch

    return prefetch(pages or list(NEEDS), options.to)


def _progress(files: list[Path], table: Path | None) -> int:
    """Show what is solved; several files are the books of several learners, named by their paths."""
    from tlhelpers.course import overview, scorebook

    if missing := [path for path in files if not path.exists()]:
        print(f"{', '.join(map(str, missing))}: no such file; give the {scorebook.FILE} of each learner")
        return 1
    try:
        books = {str(path): scorebook.read(path) for path in files} or {"me": scorebook.collected()}
    except (OSError, ValueError) as error:
        print(f"{error}; nothing was changed: upgrade tlhelpers, ask for the file again, or leave it out")
        return 1
    if table is not None:
        try:
            with table.open("w", encoding="utf-8", newline="") as to:
                overview.export(books, to)
        except OSError as error:
            print(f"{table} cannot be written ({error.strerror}); name a file in a folder that you can write to")
            return 1
        print(f"{table}: {len(books)} learner(s)")
        return 0
    for learner, solved in books.items():
        print(f"{learner}: {len(solved)} of {sum(map(len, overview.questions().values()))} exercises")
    if not files:
        overview.show()
    return 0


if __name__ == "__main__":
    sys.exit(main())
