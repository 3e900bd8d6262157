"""Row 8: rates of one core, and how well one measured rate predicts another; `docs/scale.md` computes with them.

`python -m benchmarks.scale` measures; `python -m benchmarks.scale --page` writes the tables into the page.
"""

import io
import json
import statistics
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.nets import hand_loop, noise, resnet18
from benchmarks.timing import RESULTS, SMOKE, interleaved, save, summary, use_one_thread
from tlhelpers.data import TensorLoader
from tools import with_block

PAGE = Path(__file__).parent.parent / "docs" / "scale.md"
IMAGENET, EPOCHS, MANY = 1_281_167, 10, 10**9
GPU = 100e12  # assumed, not measured: operations per second that one data-centre GPU keeps up on convolutions
LINK = 1.25e9  # bytes per second of a 10 Gbit/s network


def operations(model: nn.Module, side: int) -> float:
    """Floating-point operations of one forward pass; a multiplication and an addition are two."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.eval()(torch.rand(1, 3, side, side))
    return counter.get_total_flops()


def jpeg() -> bytes:
    """A smooth random image of 500x375 pixels, the usual size in ImageNet."""
    from torchvision.transforms.v2 import functional

    coarse = torch.rand(1, 3, 94, 125, generator=torch.Generator().manual_seed(0))
    image = nn.functional.interpolate(coarse, size=(375, 500), mode="bilinear")[0]
    file = io.BytesIO()
    functional.to_pil_image(image).save(file, "JPEG", quality=95)
    return file.getvalue()


def decode(file: bytes) -> None:
    """JPEG to float32 [3, 224, 224], as an ImageFolder does it."""
    from PIL import Image
    from torchvision.transforms.v2 import functional

    image = Image.open(io.BytesIO(file)).convert("RGB").resize((224, 224))
    functional.to_dtype(functional.to_image(image), torch.float32, scale=True)


def main() -> None:
    use_one_thread()
    net, file = resnet18(), jpeg()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    inputs = {side: noise(32, 3, side, side) for side in (64, 128)}

    def forward(side: int) -> None:
        net.eval()
        with torch.inference_mode():
            net(inputs[side].x)

    runs = {
        "forward, 64 px": lambda: forward(64),
        "forward, 128 px": lambda: forward(128),
        "training, 64 px": lambda: hand_loop(net, TensorLoader(inputs[64]), optimizer),
        "decoding": lambda: [decode(file) for _ in range(32)],
    }
    seconds = interleaved(runs, 1 if SMOKE else 7)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    counted = {str(side): operations(net, side) for side in inputs}
    rounds = list(zip(*(seconds[name] for name in list(runs)[:3]), strict=True))
    rows = {
        "scale/side": summary([large / (small * counted["128"] / counted["64"]) for small, large, _ in rounds]),
        "scale/training": summary([train / (3 * small) for small, _, train in rounds]),
    }
    per_image = {name: value / 32 for name, value in median.items()}
    save("scale", rows, {"seconds": seconds, "operations": counted, "per_image": per_image, "jpeg_bytes": len(file)})


def results(name: str) -> dict:
    """One file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def span(seconds: float) -> str:
    """Seconds in the unit that a reader can picture."""
    for unit, size in (("years", 365.25 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.2g} s"


def rates_table() -> str:
    """What was measured, and the check of each rate against a second measurement."""
    scale, streaming = results("scale"), results("streaming")
    once = scale["raw"]["per_image"]
    small, large = ([run["seconds"] for run in streaming["raw"][rows]] for rows in ("100000", "1000000"))
    kilobytes = scale["raw"]["jpeg_bytes"] / 1e3
    flops = scale["raw"]["operations"]["64"] / once["forward, 64 px"]
    side, train = (scale["rows"][f"scale/{name}"]["value"] for name in ("side", "training"))
    write, growth = statistics.median(large) / 1e6, statistics.median(large) / (10 * statistics.median(small))
    lines = [
        "| rate of one core | measured | checked against | measured / predicted |",
        "|---|---|---|---|",
        f"| forward pass | {flops / 1e9:.0f} GFLOP/s (ResNet-18, 64 px) | the same at 128 px | {side:.2f} |",
        f"| training step | {once['training, 64 px'] * 1e3:.1f} ms per image | three forward passes | {train:.2f} |",
        f"| features to a file | {1 / write:,.0f} rows/s (256 bytes) | 10^6 rows from 10^5 | {growth:.2f} |",
        f"| JPEG to tensor | {1 / once['decoding']:,.0f} images/s ({kilobytes:.0f} kB) | - | - |",
    ]
    return "\n".join(lines)


def scale_table() -> str:
    """The two large jobs on one core and on one GPU, part by part."""
    from torchvision.models import resnet50

    once, flops_64 = (results("scale")["raw"][key] for key in ("per_image", "operations"))
    rate, bytes_ = flops_64["64"] / once["forward, 64 px"], results("scale")["raw"]["jpeg_bytes"]
    forward = operations(resnet50(), 224)
    jobs = {
        f"fine-tune on ImageNet, {EPOCHS} epochs": (IMAGENET * EPOCHS, 3),
        "features of 10^9 images": (MANY, 1),
    }
    lines = ["| ResNet-50, 224 px | " + " | ".join(jobs) + " |", "|---|---|---|"]
    columns = [
        {
            "images to read": f"{n:.2g}",
            "operations": f"{n * passes * forward:.1e}",
            "network on one core (measured rate)": span(n * passes * forward / rate),
            "network on one GPU (assumed 100 TFLOP/s)": span(n * passes * forward / GPU),
            "decoding on one core (measured rate)": span(n * once["decoding"]),
            "cores that decode as fast as that GPU computes": f"{GPU / (passes * forward) * once['decoding']:,.0f}",
            "bytes read": f"{n * bytes_ / 1e12:,.1f} TB",
            "reading them over 10 Gbit/s": span(n * bytes_ / LINK),
            "bytes written": f"{MANY * 2048 * 4 / 1e12:.1f} TB (2048 float32)" if n == MANY else "0.1 GB (weights)",
        }
        for n, passes in jobs.values()
    ]
    return "\n".join(lines + [f"| {name} | " + " | ".join(c[name] for c in columns) + " |" for name in columns[0]])


def with_tables(text: str) -> str:
    """The page with both tables made anew between their markers."""
    return with_block(with_block(text, "rates", rates_table()), "jobs", scale_table())


if __name__ == "__main__":
    if sys.argv[1:] == ["--page"]:
        PAGE.write_text(with_tables(PAGE.read_text("utf-8")), "utf-8")
    else:
        main()
