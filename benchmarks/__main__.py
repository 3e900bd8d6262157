"""`python -m benchmarks`: every script in a process of its own, then the table."""

import subprocess
import sys

import torch

from benchmarks.table import draw, load

SCRIPTS = ("loop", "features", "streaming", "rivals", "seeds", "threads", "processes", "pages", "scale")

if __name__ == "__main__":
    for script in SCRIPTS + (("gpu",) if torch.cuda.is_available() else ()):
        print(f"-- {script}", flush=True)
        subprocess.run([sys.executable, "-W", "ignore", "-m", f"benchmarks.{script}"], check=True)
    print(draw(load()))
