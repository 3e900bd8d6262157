"""Row 6: what a second process gains: the same `fit` call, the same global batches, one process or two (gloo).

Each process has one thread, as each would have a core.  Perfect efficiency, 1.0, is half the time.
"""

import os
import subprocess
import sys
import time

import torch

from benchmarks.nets import glyph_net, noise, resnet18
from benchmarks.timing import SMOKE, save, summary
from tlhelpers.data import TensorLoader
from tlhelpers.objectives import classification
from tlhelpers.training import Team, fit

# Row: network, shape of an example, global batches of 64.
CASES = {"processes/GlyphNet": (glyph_net, (1, 32, 32), 10), "processes/ResNet-18, 64 px": (resnet18, (3, 64, 64), 3)}
ROUNDS = 1 if SMOKE else 3


def child(row: str) -> None:
    """Train after a warm-up; the first process prints the seconds."""
    network, shape, batches = CASES[row]
    cpu, model = torch.device("cpu"), network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for steps in (1, 1 if SMOKE else batches):
        loader = TensorLoader(noise(64 * steps, *shape), 64, device=cpu)
        began = time.perf_counter()
        fit(model, (loader, None), classification(), optimizer, epochs=1, device=cpu)
    if Team(cpu).rank == 0:
        print(time.perf_counter() - began)


def seconds(row: str, processes: int) -> float:
    """Wall seconds of one training by so many processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    limits = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*launcher, "-m", "benchmarks.processes", row],
        env=os.environ | limits,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    raw = {row: {"one": [], "two": []} for row in CASES}
    for row, times in raw.items():
        for _ in range(ROUNDS):
            times["one"].append(seconds(row, 1))
            times["two"].append(seconds(row, 2))
    rows = {
        row: summary([one / two / 2 for one, two in zip(times["one"], times["two"], strict=True)])
        for row, times in raw.items()
    }
    save("processes", rows, raw)


if __name__ == "__main__":
    child(sys.argv[1]) if sys.argv[1:] else main()
