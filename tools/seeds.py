"""Run the pages with other seeds and name every claim that fails: `python -m tools.seeds [PAGE ...]`.

Each page runs in a fresh kernel under `TLHELPERS_SEED`, which shifts the seeds of everything that draws
at random (`runtime.shifted`).  A cell that fails is reported and the page goes on, so that one run shows all.
Pages are not written.  A check that a live number equals, or falls near, a recorded one *of the same
seed* is a claim about seed 0 alone; such a check fails here, and the report shows it as what it is.
With two seeds or more, every claim whose value lies nearer to its bound than three standard deviations
between seeds is named too: the value of a page is a mean over its own seeds, so the spread of that value is
its standard error.  A spread of 0 belongs to what is recorded or exact.  `--table PATH` writes all claims.
Run it from the top folder.  The exit status is 1 if a cell failed.
"""

import argparse
import ast
import itertools
import math
import os
import re
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nbformat

from tools import PAGE_FILES
from tools.pages import PageClient

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# As `tlhelpers.course.claim` prints it.
CLAIM = re.compile(r"^\N{CHECK MARK} (.+): (\S+) \((at (?:least|most) .+)\)$", re.MULTILINE)
BOUND = re.compile(r"at (least|most) (\S+)")
RECORDED = "about recorded runs"
EXACT = "exact: no draw takes part, or every draw gives it"
LEAST_MARGIN = 3  # standard errors; another machine rounds otherwise, and must not turn a claim red


def run(path: Path, seed: int) -> tuple[list[str], dict[str, tuple[float, str]]]:
    """Run one page with `TLHELPERS_SEED`.

    Returns:
        "cell N: the error" for every cell that fails, and claim -> (its value, its bounds in words).
    """
    page = nbformat.read(path, as_version=4)
    client = PageClient(
        page,
        timeout=600,
        kernel_name="python3",
        allow_errors=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute(env=os.environ | {"TLHELPERS_SEED": str(seed)})
    outputs = [(number, out) for number, cell in enumerate(page.cells) for out in cell.get("outputs", [])]
    meant = {n for n, cell in enumerate(page.cells) if "raises-exception" in cell.metadata.get("tags", [])}
    failed = [(n, out) for n, out in outputs if out.output_type == "error" and n not in meant]
    printed = "\n".join(out.text for _, out in outputs if out.output_type == "stream" and out.name == "stdout")
    claims = {text: (float(value), bounds) for text, value, bounds in CLAIM.findall(printed)}
    return [f"cell {n}: {out.ename}: {COLOUR.sub('', out.evalue)}" for n, out in failed], claims


def margin(values: list[float], bounds: str) -> float:
    """Standard deviations between the mean of the values and the nearest bound; infinite if they are all equal."""
    mean = statistics.mean(values)
    spread = statistics.stdev(values)
    limits = [(kind, float(limit)) for kind, limit in BOUND.findall(bounds)]
    rooms = [mean - limit if kind == "least" else limit - mean for kind, limit in limits]
    return min(rooms) / spread if spread else math.inf


def rows_of(page: str, runs: list[dict[str, tuple[float, str]]]) -> list[tuple[str, str, str, list[float], float]]:
    """(page, claim, bounds, values, margin) for every claim that all runs made with the same bounds."""
    rows = []
    for text, (_, bounds) in runs[0].items():
        if all(text in run and run[text][1] == bounds for run in runs):
            values = [run[text][0] for run in runs]
            rows.append((page, text, bounds, values, margin(values, bounds)))
    return rows


def recorded_claims(sources: list[str]) -> list[re.Pattern]:
    """Texts of the claims whose numbers come out of a record, by following names through the code of a page.

    A name is recorded while what it was last made of is: a `RECORD`, the folder "recorded", or another recorded name.
    """
    reader = _RecordReader()
    for source in sources:
        # A line of IPython's own, such as %pip, is no Python.
        reader.visit(ast.parse(re.sub(r"^(\s*)%.*", r"\1pass", source, flags=re.MULTILINE)))
    return reader.claims


class _RecordReader(ast.NodeVisitor):
    """Walks through a page from top to bottom and keeps the names that hold something recorded."""

    def __init__(self) -> None:
        self.recorded: set[str] = set()
        self.claims: list[re.Pattern] = []

    def is_recorded(self, *parts: ast.AST) -> bool:
        nodes = [node for part in parts for node in ast.walk(part)]
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        words = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        return bool(names & (self.recorded | {"RECORD", "LABEL_CURVE"})) or "recorded" in words

    def visit_Assign(self, node: ast.Assign) -> None:
        recorded = self.is_recorded(node.value)
        for target in node.targets:
            # A container into which something else is put keeps what it holds.
            whole = isinstance(target, ast.Name | ast.Tuple | ast.List)
            names = {name.id for name in ast.walk(target) if isinstance(name, ast.Name)}
            if recorded:
                self.recorded |= names
            elif whole:
                self.recorded -= names

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if self.is_recorded(node.value):
            self.recorded |= {name.id for name in ast.walk(node.target) if isinstance(name, ast.Name)}

    def visit_For(self, node: ast.For) -> None:
        # The first name of a pair is a key or a number.
        values = node.target.elts[1:] if isinstance(node.target, ast.Tuple) else []
        names = {name.id for value in values for name in ast.walk(value) if isinstance(name, ast.Name)}
        if self.is_recorded(node.iter):
            self.recorded |= names
        else:
            self.recorded -= names
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        own = {argument.arg for argument in node.args.args}
        before = set(self.recorded)
        self.recorded -= own
        if self.is_recorded(*node.body):
            before.add(node.name)
        self.recorded = before

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id == "claim" and self.is_recorded(*node.args[1:]):
            self.claims.append(_pattern(node.args[0]))
        if isinstance(node.func, ast.Attribute) and node.func.attr == "append" and self.is_recorded(*node.args):
            self.recorded |= {name.id for name in ast.walk(node.func.value) if isinstance(name, ast.Name)}
        self.generic_visit(node)


def _pattern(text: ast.AST) -> re.Pattern:
    """What the text of a claim can look like; anything may stand where an f-string has a value."""
    parts = text.values if isinstance(text, ast.JoinedStr) else [text]
    known = [re.escape(part.value) if isinstance(part, ast.Constant) else ".+" for part in parts]
    return re.compile("".join(known))


def reasons_to_stay(path: Path, rows: list[tuple[str, str, str, list[float], float]]) -> dict[str, str]:
    """Claim -> why it cannot move, for those of a page that did not."""
    page = nbformat.read(path, as_version=4)
    patterns = recorded_claims([cell.source for cell in page.cells if cell.cell_type == "code"])
    reasons = {}
    for _, text, _, _, room in rows:
        if math.isinf(room):
            is_recorded = any(pattern.fullmatch(text) for pattern in patterns)
            reasons[text] = RECORDED if is_recorded else EXACT
    return reasons


def as_markdown(
    rows: list[tuple[str, str, str, list[float], float]], seeds: list[int], reasons: dict[tuple[str, str], str]
) -> str:
    """The claims that move with the seeds, the tightest first, and those that do not, with the reason.

    Args:
        reasons: (page, claim) -> why it cannot move.
    """
    moving = sorted((row for row in rows if math.isfinite(row[4])), key=lambda row: row[4])
    lines = [
        "# Margins",
        "",
        "Written by `make test-seeds`: every claim of every page that moves with the seeds, under "
        f"`TLHELPERS_SEED` = {', '.join(map(str, seeds))}. The value of a page is mostly a mean over seeds of its "
        "own, so the standard deviation between these runs is its standard error; the margin is the distance from "
        "the mean of the runs to the nearest bound, in standard errors. "
        f"{len(rows) - len(moving)} more claims cannot move; they follow below, with the reason.",
        "",
        "| page | claim | bound | mean | standard error | margin |",
        "|---|---|---|---|---|---|",
    ]
    for page, text, bounds, values, room in moving:
        escaped = text.replace("|", "\\|")
        mean = statistics.mean(values)
        spread = statistics.stdev(values)
        lines.append(f"| {page[:2]} | {escaped} | {bounds} | {mean:.3g} | {spread:.2g} | {room:.1f} |")
    lines += ["", "## Claims that cannot move", "", "| page | claim | bound | value | why |", "|---|---|---|---|---|"]
    for page, text, bounds, values, room in rows:
        if math.isinf(room):
            escaped = text.replace("|", "\\|")
            lines.append(f"| {page[:2]} | {escaped} | {bounds} | {values[0]:.3g} | {reasons[page, text]} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", type=Path, help="notebook files; all of notebooks/ when none is named")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)), help="values of TLHELPERS_SEED")
    parser.add_argument("--table", type=Path, help="write the margins of all claims to this Markdown file")
    parser.add_argument("--jobs", type=int, default=1, help="pages that run at a time")
    options = parser.parse_args()
    pages = options.pages or sorted(Path("notebooks").glob(PAGE_FILES))
    count = 0
    rows = []
    reasons = {}
    with ProcessPoolExecutor(options.jobs) as pool:
        answers = pool.map(run, *zip(*itertools.product(pages, options.seeds), strict=True))
        for path in pages:
            runs = []
            for seed in options.seeds:
                failures, claims = next(answers)
                runs.append(claims)
                count += len(failures)
                print(f"{path.name}, seed {seed}: {len(failures)} cells failed", *failures, sep="\n    ", flush=True)
            of_page = rows_of(path.name, runs) if len(runs) > 1 else []
            for _, text, bounds, values, room in (row for row in of_page if row[4] < LEAST_MARGIN):
                shown = ", ".join(f"{value:g}" for value in values)
                print(f"    margin {room:.1f}: {text}: {shown} ({bounds})", flush=True)
            rows += of_page
            reasons |= {(path.name, text): why for text, why in reasons_to_stay(path, of_page).items()}
    if options.table:
        options.table.write_text(as_markdown(rows, options.seeds, reasons), "utf-8")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
