"""Row 3, larger than memory: memory and time of `stream_features`, and of a probe trained on its file.

Simulated rows of 16 numbers go through a linear layer to 64 features, 256 bytes per row.  Every size runs
in a process of its own, because the peak memory of a process never goes down.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.timing import SMOKE, save, summary, use_one_thread
from tlhelpers.analysis import stream_features
from tlhelpers.data import Examples, TensorLoader
from tlhelpers.objectives import classification
from tlhelpers.training import fit

SIZES = (1_000, 2_000, 4_000) if SMOKE else (10_000, 100_000, 1_000_000)
INPUTS, FEATURES, BATCH = 16, 64, 500


def simulated(rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches whose labels a linear layer can learn."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(rows // BATCH):
        x = torch.randn(BATCH, INPUTS, generator=generator)
        yield x, x[:, :10].argmax(1)


def memory(entry: str) -> float:
    """MiB of this process, from Linux: VmHWM is the peak, RssAnon what no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(entry))


def child(rows: int) -> dict[str, float]:
    """Stream, then train a probe for one epoch; seconds and MiB."""
    use_one_thread()
    torch.manual_seed(0)
    body = nn.Linear(INPUTS, FEATURES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        stream_features(body, simulated(BATCH), path, rows=BATCH)  # whatever is made at the first call is made now
        began, before = time.perf_counter(), memory("VmHWM")
        found = stream_features(body, simulated(rows), path, rows=rows)
        result = {"seconds": time.perf_counter() - began, "peak_mib": memory("VmHWM") - before}
        part = Examples("features", found.x, found.y, tuple("0123456789"), torch.arange(rows))
        head = nn.Linear(FEATURES, 10)
        began, before = time.perf_counter(), memory("RssAnon")
        history = fit(
            head,
            (TensorLoader(part, 10 * BATCH, shuffle=True), None),
            classification(),
            torch.optim.Adam(head.parameters(), lr=1e-2),
            epochs=1,
            on_epoch=lambda record: record.update(anonymous=memory("RssAnon")),
        )
        return result | {
            "file_mib": path.stat().st_size / 2**20,
            "probe_seconds": time.perf_counter() - began,
            "probe_anonymous_mib": history[-1]["anonymous"] - before,
            "probe_accuracy": history[-1]["train_accuracy"],
        }


def main() -> None:
    found: dict[int, list[dict]] = {size: [] for size in SIZES}
    for _ in range(1 if SMOKE else 3):
        for size in SIZES:
            command = [sys.executable, "-m", "benchmarks.streaming", str(size)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[size].append(json.loads(done.stdout))
    small, large = SIZES[0], SIZES[-1]
    pairs = list(zip(found[small], found[large], strict=True))
    rows = {
        "streaming/peak memory": summary([b["peak_mib"] - a["peak_mib"] for a, b in pairs]),
        "streaming/probe memory": summary([b["probe_anonymous_mib"] - a["probe_anonymous_mib"] for a, b in pairs]),
        "streaming/time": summary([math.log(b["seconds"] / a["seconds"]) / math.log(large / small) for a, b in pairs])
        | {"rows_per_second": large / min(b["seconds"] for b in found[large])},
    }
    save("streaming", rows, found)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(child(int(sys.argv[1]))))
    else:
        main()
