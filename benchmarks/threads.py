"""Row 5: what too many threads cost, and what the course does about it.

Two processes train at the same time, as two kernels under `make test` do: with two threads each, and with
one each.  And `fit_probe`, which holds scikit-learn's BLAS to one thread, against the same regression
without that limit, in a process whose torch uses all cores.
"""

import json
import os
import subprocess
import sys
import time

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from benchmarks.nets import glyph_net, hand_loop, noise
from benchmarks.timing import SMOKE, interleaved, ratio, save
from tlhelpers.analysis import C_GRID, Features, fit_probe
from tlhelpers.data import TensorLoader

STEPS = 2 if SMOKE else 10
LIMIT = 60.0  # seconds: threads that wait for each other may take minutes for what one does in a second


def child() -> None:
    """Train a little, after a warm-up; prints the seconds."""
    model, loader = glyph_net(), TensorLoader(noise(32 * STEPS, 1, 32, 32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    hand_loop(model, TensorLoader(noise(64, 1, 32, 32)), optimizer)
    began = time.perf_counter()
    hand_loop(model, loader, optimizer)
    print(time.perf_counter() - began)


def two_at_once(threads: int) -> float:
    """Seconds that the slower of two processes with so many threads each takes to train; `LIMIT` if it is not done."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    command = [sys.executable, "-m", "benchmarks.threads", "child"]
    pair = [subprocess.Popen(command, env=os.environ | limits, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        return max(float(process.communicate(timeout=LIMIT)[0]) for process in pair)
    except subprocess.TimeoutExpired:
        for process in pair:
            process.kill()
        return LIMIT


def unlimited_probe(train: Features) -> None:
    """`fit_probe` without its limit."""
    scaler = StandardScaler().fit(train.x)
    fit = LogisticRegression(C=C_GRID[1], max_iter=1000).fit(scaler.transform(train.x), train.y)
    fit.predict(scaler.transform(train.x))


def probes() -> None:
    """Time both regressions with as many threads as there are cores; prints {name: seconds of every round}."""
    x = torch.randn(1000, 96, generator=torch.Generator().manual_seed(0))
    train = Features(x, x[:, :10].argmax(1))
    contenders = {"unlimited": lambda: unlimited_probe(train), "fit_probe": lambda: fit_probe(train).predict(train.x)}
    print(json.dumps(interleaved(contenders, 1 if SMOKE else 9)))


def unlimited(role: str) -> str:
    """What this script prints in another role and without any limit on threads."""
    free = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    command = [sys.executable, "-m", "benchmarks.threads", role]
    return subprocess.run(command, env=free, stdout=subprocess.PIPE, text=True, check=True, timeout=300).stdout


def main() -> None:
    pairs = {"two threads each": [], "one thread each": []}
    for _ in range(1 if SMOKE else 3):
        for (name, seconds), threads in zip(pairs.items(), (2, 1), strict=True):
            print(name, seconds.append(two_at_once(threads)) or seconds[-1], flush=True)
    regressions = json.loads(unlimited("probes"))
    rows = {
        "threads/two processes": ratio(pairs, "two threads each", "one thread each"),
        "threads/probe": ratio(regressions, "unlimited", "fit_probe"),
    }
    save("threads", rows, {"two processes": pairs, "probe": regressions})


if __name__ == "__main__":
    {"": main, "child": child, "probes": probes}["".join(sys.argv[1:])]()
