"""Row 1: what `fit` costs beside the shortest hand-written loop, on the same loader, model and steps."""

from functools import partial

import torch
from torch import nn

from benchmarks.nets import hand_loop, noise, resnet18, tiny_cnn
from benchmarks.timing import SMOKE, interleaved, keep_freed_memory, ratio, save, use_one_thread
from tlhelpers.data import TensorLoader
from tlhelpers.objectives import classification
from tlhelpers.training import fit

# Row: network, shape of an example, batches of 32 per round, rounds.
CASES = {
    "loop/resnet18": (resnet18, (3, 64, 64), 2, 15),
    "loop/smallest network": (tiny_cnn, (1, 32, 32), 40, 15),
    "loop/linear head": (partial(nn.Linear, 96, 10), (96,), 200, 15),
}


def measure(network, shape: tuple[int, ...], batches: int, rounds: int) -> dict[str, list[float]]:
    """Seconds per round of both loops; each trains a network of its own, on and on."""
    torch.manual_seed(0)
    models = {name: network() for name in ("hand", "fit")}
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-3) for name, model in models.items()}
    loader = TensorLoader(noise(32 * batches, *shape), 32, shuffle=True)
    runs = {
        "hand": lambda: hand_loop(models["hand"], loader, optimizers["hand"]),
        "fit": lambda: fit(models["fit"], (loader, None), classification(), optimizers["fit"], epochs=1),
    }
    return interleaved(runs, rounds)


def main() -> None:
    use_one_thread()
    keep_freed_memory()
    raw = {row: measure(*case[:2], *((1, 1) if SMOKE else case[2:])) for row, case in CASES.items()}
    save("loop", {row: ratio(seconds, "fit", "hand") for row, seconds in raw.items()}, raw)


if __name__ == "__main__":
    main()
