"""Side-by-side timing: contenders take turns in one process, and neighbours in time are compared.

Whatever else the machine does hits all contenders of a round alike, so a ratio within a round is steadier
than any of its two times.  A result is the median of these ratios; its spread is the middle half of them.
"""

import ctypes
import json
import os
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch

from tlhelpers.experiments.records import provenance
from tlhelpers.runtime import available_cores

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torchvision", "scikit-learn", "pytorch-lightning", "transformers", "fastai", "skorch", "accelerate")
SMOKE = os.environ.get("BENCH_SMOKE") == "1"  # once around at tiny sizes: do the scripts still run?


def interleaved(contenders: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Wall seconds of every contender in every round, after one round that is not counted.

    Every other round goes backwards, and after two the order is turned by one, so that nobody is always first or
    always follows the same neighbour.
    """
    names = list(contenders)
    for name in names:
        contenders[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(repeats):
        start = i // 2 % len(names)
        for name in (names[start:] + names[:start])[:: -1 if i % 2 else 1]:
            began = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def summary(values: list[float]) -> dict[str, float]:
    """Median and quartiles: {"value", "low", "high"}; all three are the value itself if there is one only."""
    low, middle, high = statistics.quantiles(values, method="inclusive") if len(values) > 1 else values * 3
    return {"value": round(middle, 4), "low": round(low, 4), "high": round(high, 4)}


def ratio(seconds: dict[str, list[float]], ours: str, theirs: str) -> dict[str, float]:
    """Summary of `ours / theirs`, round by round."""
    return summary([a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True)])


def fastest(seconds: dict[str, list[float]], names: list[str]) -> str:
    """The contender among `names` with the smallest median."""
    return min(names, key=lambda name: statistics.median(seconds[name]))


def save(name: str, rows: dict[str, dict], raw: dict) -> None:
    """Write `results/NAME.json`: the rows of the table, what was measured, and where and when.

    Args:
        rows: {row: {"value", "low", "high", ...}}; rows are those of `table.ROWS`.
        raw: everything that the rows were computed from.
    """
    versions = {package: metadata.version(package) for package in PACKAGES if _installed(package)}
    facts = provenance(f"python -m benchmarks.{name}")
    facts["versions"] |= versions
    facts |= {"cores": available_cores(), "load_average": [round(load, 2) for load in os.getloadavg()]}
    rounded = json.loads(json.dumps({"rows": rows, "raw": raw}), parse_float=lambda text: float(f"{float(text):.5g}"))
    text = json.dumps(facts | rounded, indent=1) + "\n"
    for row, found in rows.items():
        print(f"{row:<40} {found['value']:.4g} [{found['low']:.4g}, {found['high']:.4g}]", flush=True)
    if not SMOKE:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(text, "utf-8")


def use_one_thread() -> None:
    """One torch thread, unless OMP_NUM_THREADS says otherwise."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))


def keep_freed_memory() -> None:
    """Let the process keep what it frees, where the C library is glibc.

    Otherwise glibc hands freed memory back and gets it again, page by page, in every step or in none: with
    ResNet-18 that is up to 6 % of the time, decided by what lies at the end of the heap, not by the loop.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # M_... of malloc.h
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**25)  # the largest that it takes


def _installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False
