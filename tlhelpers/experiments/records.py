"""Choosing settings on validation, and writing down what came out: what every recorded experiment does."""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from sklearn.model_selection import ParameterGrid

from tlhelpers.files import ASSETS, atomic
from tlhelpers.runtime import device_name, pick_device

RECORDED = ASSETS / "recorded"


def choose(score: Callable[..., float], grid: Mapping[str, Sequence]) -> dict:
    """The setting of a grid with the best validation accuracy.

    Args:
        score: `(**setting) -> accuracy` on validation, as a rule a mean over tuning seeds.
        grid: the values of every argument.

    Returns:
        {"chosen": the best setting (the first of equals), "table": every setting with its "validation_accuracy",
        "at_the_edge": the arguments of which the smallest or the largest of three numbers or more was chosen, so
        that something still better may lie outside the grid; that is printed, too}.
    """
    table = []
    for setting in ParameterGrid(dict(grid)):
        setting = {name: setting[name] for name in grid}  # in the order of the grid, not of the alphabet
        table.append({"setting": setting, "validation_accuracy": round(float(score(**setting)), 4)})
        print(table[-1], flush=True)
    best = max(table, key=lambda row: row["validation_accuracy"])
    edges = [name for name, value in best["setting"].items() if _is_an_end(value, grid[name])]
    if edges:
        print(f"at the edge of the grid: {', '.join(edges)}; a wider one may hold something better", flush=True)
    return {"chosen": best["setting"], "table": table, "at_the_edge": edges}


def _is_an_end(value: object, values: Sequence) -> bool:
    """Is a value the smallest or the largest of three numbers or more?"""
    are_numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)
    return are_numbers and len(values) >= 3 and value in (min(values), max(values))


def provenance(command: str, *, seeds: Sequence[int] = ()) -> dict:
    """Who made a recorded file: command, machine, versions, date, and the seeds of its runs, where there are any."""
    device = device_name(pick_device()).replace("cpu", "CPU")
    return {
        "command": command,
        "machine": f"{platform.machine()} {device}, {torch.get_num_threads()} thread(s)",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "date": datetime.now(UTC).date().isoformat(),
    } | ({"seeds": list(seeds)} if seeds else {})


def write_record(path: Path, facts: Mapping) -> None:
    """Write a record as JSON, all or nothing."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")


def read_record(path: Path) -> dict:
    """A record of `write_record`."""
    return json.loads(path.read_text("utf-8"))
