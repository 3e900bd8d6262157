"""Choosing settings on validation, and writing down what came out: what every recorded experiment does."""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from sklearn.model_selection import ParameterGrid

from tlhelpers.files import ASSETS, atomic

RECORDED = ASSETS / "recorded"


def choose(score: Callable[..., float], grid: Mapping[str, Sequence]) -> dict:
    """The setting of a grid with the best validation accuracy.

    Args:
        score: `(**setting) -> accuracy` on validation, as a rule a mean over tuning seeds.
        grid: the values of every argument.

    Returns:
        {"chosen": the best setting (the first of equals), "table": every setting with its "validation_accuracy"}.
    """
    table = []
    for setting in ParameterGrid(dict(grid)):
        setting = {name: setting[name] for name in grid}  # in the order of the grid, not of the alphabet
        table.append({"setting": setting, "validation_accuracy": round(float(score(**setting)), 4)})
        print(table[-1], flush=True)
    best = max(table, key=lambda row: row["validation_accuracy"])
    return {"chosen": best["setting"], "table": table}


def provenance(command: str) -> dict:
    """Who made a recorded file: command, machine, versions, date."""
    return {
        "command": command,
        "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "date": datetime.now(UTC).date().isoformat(),
    }


def write_record(path: Path, facts: Mapping) -> None:
    """Write a record as JSON, all or nothing."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")


def read_record(path: Path) -> dict:
    """A record of `write_record`."""
    return json.loads(path.read_text("utf-8"))
