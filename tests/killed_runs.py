"""Runs of `fit` in child processes that are killed: python killed_runs.py FOLDER KILLS.

A process of its own, that has done nothing with torch but import it, forks them: so each starts at once.
"""

import itertools
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # the first optimizer would import it, which takes seconds, in every child
from toys import CPU, toy_examples, toy_model, weights_of

from tlhelpers.data import TensorLoader
from tlhelpers.objectives import classification
from tlhelpers.runtime import seed_everything
from tlhelpers.training import checkpoint, fit, warmup_cosine

PAUSE = 0.004  # seconds


def whole_run(path, *, epochs=4, seed=0, objective=None, **options):
    """A small run with everything that a checkpoint must keep; returns history, weights and predictions."""
    seed_everything(seed)
    model = toy_model()  # its dropout draws from torch's generator
    examples = toy_examples()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)

    def noisy(x, generator):
        return x + 0.1 * torch.randn(x.shape, generator=generator) + 0.01 * (random.random() + np.random.rand())

    training = TensorLoader(examples, 4, shuffle=True, augment=noisy, device=CPU)
    validation = TensorLoader(examples, 24, device=CPU)
    options = {"schedule": warmup_cosine(), "clip_norm": 1.0, "device": CPU} | options
    options = {"epochs": epochs, "checkpoint": path} | options
    history = fit(model, (training, validation), objective or classification(), optimizer, **options)
    records = [{name: value for name, value in record.items() if name != "seconds"} for record in history]
    return records, weights_of(model), model(examples.x).detach(), torch.rand(1)


def same(one, other) -> bool:
    """Are two results of `whole_run` bit-equal?"""
    return (
        one[0] == other[0]
        and one[1].keys() == other[1].keys()
        and all(torch.equal(one[1][name], other[1][name]) for name in one[1])
        and torch.equal(one[2], other[2])
        and torch.equal(one[3], other[3])
    )


def slow(function, every=1):
    """The same function with a pause before and after every so many calls."""
    calls = itertools.count()

    def slowly(*arguments):
        pause = PAUSE if next(calls) % every == 0 else 0
        time.sleep(pause)
        result = function(*arguments)
        time.sleep(pause)
        return result

    return slowly


def slow_disk():
    """Make every stage of a write long enough for a signal to fall into it."""
    os.fsync = slow(os.fsync)
    os.link = slow(os.link)
    os.replace = slow(os.replace)
    checkpoint._Sink.write = slow(checkpoint._Sink.write, every=50)


def start(path, result):
    """Fork a child that does the whole run on a slow disk and saves what comes out; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        torch.set_num_threads(1)
        slow_disk()
        torch.save(whole_run(path), f"{result}.partial")
        os.replace(f"{result}.partial", result)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def kill_often(folder, *, kills, seed=0):
    """Kill runs at random moments and start them again until they finish; what came of it.

    Returns:
        kills; those of them that left a half-written file; finished runs; those bit-equal to a run
        that was never killed and has no checkpoint.
    """
    draw = random.Random(seed)
    folder = Path(folder)
    began = time.perf_counter()
    pid = start(folder / "whole.ckpt", folder / "whole.pt")
    assert os.waitpid(pid, 0)[1] == 0
    lasts = time.perf_counter() - began
    pid = start(None, folder / "reference.pt")
    assert os.waitpid(pid, 0)[1] == 0
    reference = torch.load(folder / "reference.pt")
    count = {"kills": 0, "inside a write": 0, "runs": 0, "equal": 0}
    while count["kills"] < kills:
        count["runs"] += 1
        path = folder / f"{count['runs']}.ckpt"
        result = folder / f"{count['runs']}.pt"
        partial = path.with_name(f"{path.name}.partial")
        while not result.exists():
            before = partial.stat().st_mtime_ns if partial.exists() else 0
            pid = start(path, result)
            time.sleep(draw.uniform(0, lasts))
            os.kill(pid, signal.SIGKILL)  # a child that has just finished is a zombie: nothing happens
            status = os.waitpid(pid, 0)[1]
            assert status in (0, signal.SIGKILL), "the run failed; see its output above"
            count["kills"] += status == signal.SIGKILL
            count["inside a write"] += partial.exists() and partial.stat().st_mtime_ns != before
        count["equal"] += same(torch.load(result), reference)
    return count


if __name__ == "__main__":
    print(json.dumps(kill_often(sys.argv[1], kills=int(sys.argv[2]))))
