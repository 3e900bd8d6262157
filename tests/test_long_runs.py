"""Long runs and many of them: memory, files, threads and hooks stay what they were."""

import gc
import threading

import psutil
import pytest
import torch
from test_faults import child, counts
from toys import CPU

from tlhelpers.analysis import extract_features, fit_probe
from tlhelpers.data import few_shot, load_dataset, make_loaders
from tlhelpers.models import attach_head, freeze, load_backbone, unfreeze
from tlhelpers.objectives import classification
from tlhelpers.training import fit

pytestmark = pytest.mark.faults


def held(model=None) -> dict[str, float]:
    """What this process holds: MiB, open files, threads, and hooks of a model."""
    gc.collect()
    me = psutil.Process()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] if model is not None else [0]
    return {
        "MiB": me.memory_info().rss / 2**20,
        "files": me.num_fds(),
        "threads": threading.active_count(),
        "hooks": sum(hooks),
    }


def grown(first: dict[str, float], last: dict[str, float]) -> list[str]:
    """What was not flat: memory by more than 5 per cent, anything else at all."""
    return [name for name in first if last[name] > first[name] * (1.05 if name == "MiB" else 1)]


def a_run(epochs: int = 1, on_epoch=None):
    backbone = load_backbone("glyphs-all")
    digits = load_dataset("digits")
    few = few_shot(digits.train, 5, seed=0)
    model = attach_head(backbone, 10)
    freeze(model.body)
    unfreeze(model.body)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    loaders = make_loaders(few, few, device=CPU)
    fit(model, loaders, classification(), optimizer, epochs=epochs, device=CPU, on_epoch=on_epoch)
    features = extract_features(backbone, few, device=CPU)
    fit_probe(features).score(features)
    return backbone.module


def test_fifty_runs_in_one_kernel_leave_nothing_behind(fault_row, capsys):
    notes = [held(a_run()) for _ in range(50)]
    with capsys.disabled():
        print(f"\n50 runs: {notes[2]} after the third, {notes[-1]} after the last")
    flat = [not grown(notes[2], note) for note in notes[3:]]
    fault_row(
        "50 runs in one kernel", "memory within 5 %, no file, thread or hook more than after run 3", 47, sum(flat)
    )


def test_two_hundred_epochs_of_the_small_net_leave_nothing_behind(fault_row, capsys):
    notes = []

    def note(record: dict) -> None:
        if record["epoch"] <= 3 or record["epoch"] % 10 == 0:
            notes.append(held())

    a_run(200, on_epoch=note)
    assert len(notes) == 23
    with capsys.disabled():
        print(f"\n200 epochs: {notes[2]} after the third, {notes[-1]} after the last")
    flat = [not grown(notes[2], note) for note in notes[3:]]
    fault_row("200 epochs of the small net", "memory within 5 %, no file or thread more than after 3", 20, sum(flat))


def test_ten_kernels_at_once_finish_with_the_same_result(tmp_path, fault_row, capsys):
    running = [child("kernel", tmp_path) for _ in range(10)]
    accuracies, peaks = zip(*map(counts, running), strict=True)
    with capsys.disabled():
        print(f"\n10 kernels at once: {min(peaks)} to {max(peaks)} MiB each at most")
    assert len(set(accuracies)) == 1
    assert max(peaks) < 1536  # what Binder leaves to a kernel
    fault_row("ten kernels at once on one machine", "each finishes with the same accuracy", 10, len(accuracies))
