"""Row 7: ResNet-50 at 224 px and BERT-base at 128 tokens on a GPU: `python -m benchmarks.gpu` (a few minutes).

Weights are random, which speed does not depend on; BERT's shape comes from transformers' default config.
The ceiling is a bf16 product of two large square matrices on the same device.  Operations are counted by
torch (`FlopCounterMode`).  On a CPU it runs at tiny sizes, to show that it runs.
"""

import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import SMOKE, save, summary
from tlhelpers.models import freeze
from tlhelpers.objectives import classification
from tlhelpers.runtime import pick_device
from tlhelpers.training import fit

DEVICE = pick_device()
TINY = DEVICE.type == "cpu"
BATCH, STEPS, ROUNDS, SIDE, TOKENS, MATRIX = (2, 2, 2, 32, 8, 64) if TINY else (128, 20, 7, 224, 128, 8192)


def wait() -> None:
    """Kernels run on after the call that started them; a clock must wait for them."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(run: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """Seconds of every round, after two that are not counted (kernels are chosen, code is compiled)."""
    found = []
    for i in range(rounds + 2):
        wait()
        began = time.perf_counter()
        run()
        wait()
        found += [time.perf_counter() - began] if i > 1 else []
    return found


def ceiling() -> float:
    """Operations per second of a bf16 matrix product, the fastest of the rounds."""
    a, b = (torch.randn(MATRIX, MATRIX, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 10 * 2 * MATRIX**3 / min(seconds_of(lambda: [a @ b for _ in range(10)]))


class BertClassifier(nn.Module):
    """BERT-base from random weights, token ids [N, L] -> [N, 2]."""

    def __init__(self) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        self.bert = BertModel(BertConfig(**(small if TINY else {})))
        self.head = nn.Linear(self.bert.config.hidden_size, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.bert(ids).last_hidden_state[:, 0])


def resnet50(*, channels_last: bool = True) -> nn.Module:
    """torchvision's ResNet-50 from random weights."""
    from torchvision.models import resnet50

    return resnet50().to(DEVICE, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def photographs(*, channels_last: bool = True) -> tuple[Tensor, Tensor]:
    """One batch of noise on the device."""
    x = torch.rand(BATCH, 3, SIDE, SIDE, device=DEVICE)
    y = torch.randint(0, 1000, (BATCH,), device=DEVICE)
    return x.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format), y


class Repeated:
    """A loader that yields one batch, resident on the device, again and again."""

    def __init__(self, batch: tuple[Tensor, Tensor]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([self.batch] * STEPS)


def train_by_hand(model: nn.Module, loader, dtype: torch.dtype | None = torch.bfloat16) -> Callable[[], None]:
    """A hand-optimised loop: reduced precision, a fused optimizer, no look at any value before the end."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, fused=True)
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=dtype is torch.float16 and not TINY)

    def run() -> None:
        model.train()
        for x, y in loader:
            x, y = x.to(DEVICE, non_blocking=True), y.to(DEVICE, non_blocking=True)
            with torch.autocast(DEVICE.type, dtype=dtype, enabled=dtype is not None):
                loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

    return run


def train_by_fit(model: nn.Module, loader) -> Callable[[], list[dict]]:
    """The loop of the course with the same optimizer."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    return lambda: fit(model, (loader, None), classification(), optimizer, epochs=1)


def pass_over(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    """Feature extraction: STEPS batches forward in bf16."""
    model.eval()
    with torch.inference_mode(), torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        for _ in range(STEPS):
            model(batch[0])


def operations(model: nn.Module, batch: tuple[Tensor, Tensor], *, backward: bool) -> float:
    """Floating-point operations per example, a multiplication and an addition counted as two."""
    with FlopCounterMode(display=False) as counter:
        loss = F.cross_entropy(model(batch[0]), batch[1])
        if backward:
            loss.backward()
    return counter.get_total_flops() / len(batch[1])


def case_rows(case: str, make: Callable[[], nn.Module], batch, top: float) -> tuple[dict, dict]:
    """Rows of one kind of training: fraction of the ceiling, and `fit` against the hand-optimised loop."""
    per_example = operations(make(), batch, backward=True)
    hand = seconds_of(train_by_hand(make(), Repeated(batch)))
    ours = seconds_of(train_by_fit(make(), Repeated(batch)))
    rate = BATCH * STEPS / statistics.median(ours)
    rows = {
        f"gpu/{case}, fraction": summary([rate * per_example / top]) | {"examples_per_second": rate},
        f"gpu/{case}, hand": summary([h / o for h, o in zip(hand, ours, strict=True)]),
    }
    return rows, {"hand": hand, "fit": ours, "operations_per_example": per_example}


def probe() -> nn.Module:
    """ResNet-50 of which only the last layer learns."""
    model = resnet50()
    freeze(model)
    model.fc.requires_grad_(True)
    return model


def extraction_rows(top: float) -> tuple[dict, dict]:
    """Forward passes of ResNet-50 on resident batches through `analysis.feature_function` and by hand."""
    from tlhelpers.analysis import feature_function

    model, batch = resnet50(), photographs()
    with feature_function(model) as outputs:
        ours = seconds_of(lambda: [outputs(batch[0]) for _ in range(STEPS)])
    hand = seconds_of(lambda: pass_over(model, batch))
    rate = BATCH * STEPS / statistics.median(ours)
    fraction = rate * operations(model, batch, backward=False) / top
    return {
        "gpu/ResNet-50 extract, fraction": summary([fraction]) | {"examples_per_second": rate},
        "gpu/ResNet-50 extract, hand": summary([h / o for h, o in zip(hand, ours, strict=True)]),
    }, {"hand": hand, "ours": ours}


def option_rows() -> tuple[dict, dict]:
    """What each option gains for fine-tuning ResNet-50: seconds without it over seconds with it, all else equal."""

    def seconds(*, dtype=torch.bfloat16, channels_last: bool = True, compiled: bool = False) -> list[float]:
        model = resnet50(channels_last=channels_last)
        model = torch.compile(model) if compiled else model
        return seconds_of(train_by_hand(model, Repeated(photographs(channels_last=channels_last)), dtype))

    def from_host(pinned: bool) -> list[float]:
        data = TensorDataset(torch.rand(BATCH * STEPS, 3, SIDE, SIDE), torch.zeros(BATCH * STEPS, dtype=torch.long))
        batches = DataLoader(data, BATCH, pin_memory=pinned)
        return seconds_of(train_by_hand(resnet50(), batches), rounds=3)

    full, reduced = seconds(dtype=None), seconds()
    pairs = {
        "bf16": (full, reduced),
        "fp16": (full, seconds(dtype=torch.float16)),
        "channels_last": (seconds(channels_last=False), reduced),
        "pinned": (from_host(pinned=False), from_host(pinned=DEVICE.type == "cuda")),
    }
    if not TINY:
        pairs["compile"] = (reduced, seconds(compiled=True))
    rows = {f"gpu/{name}": summary([a / b for a, b in zip(*pair, strict=True)]) for name, pair in pairs.items()}
    return rows, {name: {"without": pair[0], "with": pair[1]} for name, pair in pairs.items()}


def main() -> None:
    top = ceiling()
    rows, raw = extraction_rows(top)
    raw = {"ceiling_operations_per_second": top, "ResNet-50 extract": raw}
    texts = (torch.randint(0, 30_000, (BATCH, TOKENS), device=DEVICE), torch.randint(0, 2, (BATCH,), device=DEVICE))
    cases = {
        "ResNet-50 probe": (probe, photographs()),
        "ResNet-50 fine-tune": (resnet50, photographs()),
        "BERT-base fine-tune": (lambda: BertClassifier().to(DEVICE), texts),
    }
    for case, (make, batch) in cases.items():
        found, raw[case] = case_rows(case, make, batch, top)
        rows |= found
    found, raw["options"] = option_rows()
    rows |= found
    if TINY and not SMOKE:
        raise SystemExit("this machine has no GPU: the numbers above show that the script runs, nothing else")
    save("gpu", rows, raw)


if __name__ == "__main__":
    main()
