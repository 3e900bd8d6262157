"""The scripts that made what `assets/` holds.  Each runs with `python -m tlhelpers.experiments.records.NAME`."""

import platform
from datetime import UTC, datetime

import torch


def provenance(command: str) -> dict:
    """Who made a recorded file: command, machine, versions, date."""
    return {
        "command": command,
        "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "date": datetime.now(UTC).date().isoformat(),
    }
