"""Row 2, several seeds: ten networks trained at once with `torch.func` against one after the other.

At once means: all weights stacked, the loss mapped over networks and batches with `vmap`, one AdamW for
everything (https://docs.pytorch.org/tutorials/intermediate/ensembling.html).  The losses of both ways are
compared before anything is timed.
"""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from benchmarks.nets import glyph_net, tiny_cnn
from benchmarks.timing import SMOKE, interleaved, ratio, save, use_one_thread

SEEDS, BATCH = 10, 32
# Row: network, shape of an example, steps per round, rounds.
CASES = {
    "seeds/linear head": (partial(nn.Linear, 96, 10), (96,), 50, 9),
    "seeds/network of two layers": (
        lambda: nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10)),
        (96,),
        50,
        9,
    ),
    "seeds/student of page 06": (tiny_cnn, (1, 32, 32), 5, 5),
    "seeds/GlyphNet": (glyph_net, (1, 32, 32), 2, 5),
}


def one_by_one(models: list[nn.Module], x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """A function that makes one step of every network in turn and returns the losses [S]."""
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in models]

    def step() -> Tensor:
        losses = []
        for model, optimizer, mine, labels in zip(models, optimizers, x, y, strict=True):
            loss = F.cross_entropy(model(mine), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    return step


def at_once(models: list[nn.Module], x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """The same for all networks together."""
    skeleton = copy.deepcopy(models[0]).to("meta")
    stacked, buffers = stack_module_state(models)
    weights = {name: nn.Parameter(tensor.detach().clone()) for name, tensor in stacked.items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-3)

    def loss(weights: dict, buffers: dict, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(skeleton, (weights, buffers), (x,)), y)

    def step() -> Tensor:
        losses = vmap(loss)(weights, buffers, x, y)
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        return losses.detach()

    return step


def without_running_statistics(model: nn.Module) -> nn.Module:
    """BatchNorm by the statistics of the batch alone: `vmap` cannot write the running ones."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.track_running_stats, part.running_mean, part.running_var = False, None, None
            part.num_batches_tracked = None
    return model.train()


def measure(network: Callable[[], nn.Module], shape: tuple[int, ...], steps: int, rounds: int) -> dict:
    """Seconds of both ways, after checking that their losses agree over three steps."""
    torch.manual_seed(0)
    models = [without_running_statistics(network()) for _ in range(SEEDS)]
    x, y = torch.rand(SEEDS, BATCH, *shape), torch.randint(0, 10, (SEEDS, BATCH))
    together, in_turn = at_once(models, x, y), one_by_one(models, x, y)
    for _ in range(3):
        torch.testing.assert_close(together(), in_turn(), atol=2e-3, rtol=2e-3)
    runs = {"in turn": in_turn, "at once": together}
    return interleaved({name: lambda step=step: [step() for _ in range(steps)] for name, step in runs.items()}, rounds)


def main() -> None:
    use_one_thread()
    raw = {row: measure(*case[:2], *((1, 1) if SMOKE else case[2:])) for row, case in CASES.items()}
    save("seeds", {row: ratio(seconds, "in turn", "at once") for row, seconds in raw.items()}, raw)


if __name__ == "__main__":
    main()
