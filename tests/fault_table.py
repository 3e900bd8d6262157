"""The table of faults: what was done to the course on purpose, and how often it held.

A test reports with the fixture `fault_row(fault, must_hold, injected, survived)`, which notes a row and
fails when they differ:

    def test_...(fault_row):
        fault_row("connection cut at byte k", "the next call continues it", injected=40, survived=40)

Rows with the same first two columns are added up.  The table is printed at the end of every run that has
a row; `--fault-table PATH` writes it as Markdown too (`make test-faults` keeps it in docs/faults.md).
"""

import platform
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path

import pytest

TITLE = ("fault", "what must hold", "injected", "survived")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", type=Path, help="write the table of faults to this Markdown file")


@pytest.fixture
def fault_row(record_property) -> Callable[..., None]:
    """See the top of tests/fault_table.py."""

    def row(fault: str, must_hold: str, injected: int, survived: int) -> None:
        record_property("fault_row", (fault, must_hold, injected, survived))
        assert injected > 0
        assert survived == injected, f"{fault}: {must_hold}: {survived} of {injected}"

    return row


def rows_of(reports) -> list[tuple[str, str, int, int]]:
    """Rows in the order of their first two columns, numbers added up."""
    total: dict[tuple[str, str], tuple[int, int]] = {}
    called = [report for report in reports if getattr(report, "when", "") == "call"]
    for key, value in (pair for report in called for pair in report.user_properties):
        if key == "fault_row":
            fault, must_hold, injected, survived = value
            before = total.get((fault, must_hold), (0, 0))
            total[fault, must_hold] = (before[0] + injected, before[1] + survived)
    return [(*names, *numbers) for names, numbers in sorted(total.items())]


def as_markdown(rows: list[tuple[str, str, int, int]]) -> str:
    lines = ["| fault | what must hold | injected | survived | |", "|---|---|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(map(str, row))} | {row[3] / row[2]:.0%} |" for row in rows])


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    rows = rows_of(report for group in terminalreporter.stats.values() for report in group)
    if not rows:
        return
    terminalreporter.section("faults")
    for fault, must_hold, injected, survived in rows:
        terminalreporter.write_line(f"{survived:>5} of {injected:<5} {survived / injected:>5.0%}  {fault}: {must_hold}")
    if path := config.getoption("--fault-table"):
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "torchvision", "safetensors"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "# Faults\n\nWritten by `make test-faults`; each row is a test under `tests/` that injects the fault and "
            "checks what must hold.\n\n"
            f"{date.today()}, Python {platform.python_version()} on {platform.system()}, {versions}.\n\n"
            f"{as_markdown(rows)}\n",
            "utf-8",
        )
