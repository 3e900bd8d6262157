"""What an instructor needs, made from the pages: `python -m tools.kit student|slides|guide [FOLDER]`.

student: copies without outputs and without the lines that show solutions.
slides: reveal.js slides; a heading starts a slide, its first paragraph is shown, the rest becomes notes.
guide: the table of pages in docs/instructors.md, from the pages' metadata and words.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbformat.v4 import new_markdown_cell

from tools import PAGE_FILES, with_block

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "notebooks").glob(PAGE_FILES))
SOLUTION = re.compile(r"^\s*#?\s*\w+\.solution\(\).*\n?", re.MULTILINE)
# Reading: 150 words a minute and half a minute per code cell; five minutes per exercise.
WORDS_A_MINUTE = 150
MINUTES_A_CELL = 0.5
MINUTES_AN_EXERCISE = 5
SHOWN_LINES = 15  # code longer than this is no slide
SLIDE_EXTENSIONS = "myst_nb,sphinx.ext.mathjax,sphinx-mathjax-offline,sphinx_revealjs"


def student_copy(page: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The page without outputs and without `q.solution()`; changed in place and returned."""
    for cell in page.cells:
        if cell.cell_type == "code":
            cell.source = SOLUTION.sub("", cell.source).rstrip()
            cell.outputs = []
            cell.execution_count = None
    return page


def slides_of(page: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The page as few words: headings, first paragraphs, figures, and the code written by hand."""
    slides = []
    heading = ""
    figures = 0
    for cell in page.cells:
        if cell.cell_type == "markdown":
            for part in re.split(r"(?m)^(?=#{1,3} )", cell.source):
                title = re.match(r"(#{1,3}) (.*)\n*", part)
                if title:
                    heading = title[2]
                    figures = 0
                    slides.append(new_markdown_cell(part if title[1] == "#" else _first_paragraph(part)))
                elif part.strip():
                    slides.append(new_markdown_cell(_notes(part)))
            continue
        images = [o for o in cell.outputs if {"image/png", "image/svg+xml"} & set(o.get("data", {}))]
        by_hand = "by hand" in heading.lower() and cell.source.count("\n") < SHOWN_LINES
        if not images and not by_hand:
            continue
        figures += 1
        if figures > 1:  # one figure or piece of code per slide
            slides.append(new_markdown_cell(f"### {heading} ({figures})"))
        cell.outputs = images
        if images:
            cell.metadata["tags"] = ["remove-input"]
        slides.append(cell)
    page.cells = slides
    return page


def _first_paragraph(part: str) -> str:
    heading, _, text = part.partition("\n")
    first, _, rest = text.strip().partition("\n\n")
    return "\n\n".join(filter(None, (heading, first, _notes(rest))))


def _notes(text: str) -> str:
    return f"`````{{revealjs-notes}}\n{text.strip()}\n`````" if text.strip() else ""


def minutes(page: nbformat.NotebookNode) -> tuple[int, int, int]:
    """Minutes of reading, of computing (measured when the page was saved) and of exercises."""
    prose = re.sub(r"```.*?```", "", " ".join(c.source for c in page.cells if c.cell_type == "markdown"), flags=re.S)
    code = [cell for cell in page.cells if cell.cell_type == "code"]
    exercises = sum(len(re.findall(r"^q\d+\.check\(", cell.source, flags=re.MULTILINE)) for cell in code)
    reading = len(prose.split()) / WORDS_A_MINUTE + MINUTES_A_CELL * len(code)
    return round(reading), max(1, round(page.metadata["tlcourse"]["seconds"] / 60)), MINUTES_AN_EXERCISE * exercises


def guide() -> str:
    """The Markdown between the marks of docs/instructors.md."""
    pages = [nbformat.read(path, as_version=4) for path in PAGES]
    rows = ["| page | reading | computing | exercises | minutes in all |", "|---|---|---|---|---|"]
    details = ["## What each page is for"]
    for path, page in zip(PAGES, pages, strict=True):
        facts = page.metadata["tlcourse"]
        spent = minutes(page)
        name = f"[{facts['page']} {facts['title']}](../notebooks/{path.name})"
        rows.append(f"| {name} | {spent[0]} | {spent[1]} | {spent[2]} | {sum(spent)} |")
        details.append(f"### {facts['page']} {facts['title']}")
        for title, key in (
            ("After it a learner can", "objectives"),
            ("Key points", "keypoints"),
            ("Common misconceptions", "misconceptions"),
        ):
            details.append("\n".join([f"{title}:\n", *(f"* {line}" for line in facts[key])]))
    return "\n".join(rows) + "\n\n" + "\n\n".join(details) + "\n"


def write_pages(folder: Path, change: Callable[[nbformat.NotebookNode], nbformat.NotebookNode]) -> None:
    """Write every page, changed, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in PAGES:
        nbformat.write(change(nbformat.read(path, as_version=4)), folder / path.name)


def build_slides(folder: Path) -> None:
    """Sphinx with the settings of the site and the builder of sphinx-revealjs, which carries reveal.js.

    Raises:
        subprocess.CalledProcessError: the build failed.
    """
    sources = folder / "sources"
    write_pages(sources, slides_of)
    links = "\n".join(path.stem for path in PAGES)
    (sources / "index.md").write_text(f"# Transfer learning, hands on\n\n```{{toctree}}\n{links}\n```\n", "utf-8")
    settings = {
        "extensions": SLIDE_EXTENSIONS,
        "root_doc": "index",
        "include_patterns": "*.md,*.ipynb",
        "exclude_patterns": "",
        "suppress_warnings": "myst.xref_missing,myst.header",
    }
    options = [word for name, value in settings.items() for word in ("-D", f"{name}={value}")]
    command = [sys.executable, "-m", "sphinx", "-E", "-q", "-b", "revealjs", "-c", str(ROOT / "docs"), *options]
    subprocess.run([*command, str(sources), str(folder)], check=True)


def write_guide() -> None:
    """Bring the part of docs/instructors.md between its marks up to date."""
    path = ROOT / "docs" / "instructors.md"
    path.write_text(with_block(path.read_text("utf-8"), "guide", guide()), "utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.kit", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("student", "slides", "guide"))
    parser.add_argument(
        "folder", nargs="?", type=Path, help="where to write; build/student or build/slides if left out"
    )
    options = parser.parse_args(arguments)
    if options.what == "guide":
        write_guide()
        return
    folder = options.folder or ROOT / "build" / options.what
    if options.what == "student":
        write_pages(folder, student_copy)
    else:
        build_slides(folder)
    print(f"open {folder}")


if __name__ == "__main__":
    main()
