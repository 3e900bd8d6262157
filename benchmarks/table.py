"""One table of all rows from `results/*.json`: `python -m benchmarks.table`."""

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.timing import RESULTS

NO_GPU = "no GPU was there when the results were made; run python -m benchmarks.gpu on one"
NOISE = "the network costs nearly everything; in so few rounds each contender's own time varies by 10 % and more"


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        key: name of the row in the file `results/{key up to the slash}.json`.
        what: what is measured, in words.
        at_most, at_least: the target; none for orientation.
        because: printed when the target is missed, or when nothing was measured.
    """

    key: str
    what: str
    at_most: float | None = None
    at_least: float | None = None
    because: str = ""


LOOP = "checks, means and the accuracy cost about 0.1 ms per step, and this network needs 0.4 ms for everything"
CONVOLUTIONS = "under vmap convolutions become grouped ones, which are slow on a CPU; so no page does this"
AFFINE = "PIL turns a 32x32 image in 0.05 ms, so the network is most of the time; bending is what costs"
SHORT = "20 epochs of so small a head cost half of what the body costs; the pages use fit_probe"


def _rivals(case: str) -> list[Row]:
    names = ("accelerate", "Lightning", "HF Trainer", "fastai", "skorch")
    return [
        Row(f"rivals/{case}, hand", f"fit / hand-written DataLoader loop, {case}", 1.00, because=NOISE),
        Row(f"rivals/{case}, fastest", f"fit / fastest alternative, {case}", 1.00, because=NOISE),
        *(Row(f"rivals/{case}, {name}", f"{name} / hand-written loop, {case}") for name in names),
        Row(f"rivals/{case}, accuracy", f"test accuracy of fit minus the others', +-2 SE, {case}"),
    ]


def _gpu() -> list[Row]:
    rows = []
    for case in ("ResNet-50 extract", "ResNet-50 probe", "ResNet-50 fine-tune", "BERT-base fine-tune"):
        rows += [
            Row(f"gpu/{case}, fraction", f"{case}: fraction of the measured bf16 matmul ceiling", because=NO_GPU),
            Row(f"gpu/{case}, hand", f"{case}: throughput / hand-optimised loop", at_least=0.95, because=NO_GPU),
        ]
    for option in ("bf16", "fp16", "channels_last", "compile", "pinned"):
        rows.append(Row(f"gpu/{option}", f"ResNet-50 fine-tune: gain by {option}", because=NO_GPU))
    return rows


ROWS = [
    Row("loop/resnet18", "fit / hand-written loop, ResNet-18, 64 px", 1.03),
    Row("loop/smallest network", "fit / hand-written loop, student of page 06", 1.10),
    Row("loop/linear head", "fit / hand-written loop, linear head on features", 1.10, because=LOOP),
    *_rivals("GlyphNet"),
    *_rivals("ResNet-18, 64 px"),
    Row("rivals/augmented, affine and elastic", "fastest per-sample loop / fit, affine and elastic", at_least=3.0),
    Row("rivals/augmented, affine and elastic, accuracy", "test accuracy of fit minus the others', +-2 SE, same"),
    Row("rivals/augmented, affine alone", "fastest per-sample loop / fit, affine alone", at_least=3.0, because=AFFINE),
    Row("rivals/augmented, affine alone, accuracy", "test accuracy of fit minus the others', +-2 SE, same"),
    Row("seeds/linear head", "ten seeds in turn / at once, linear head", at_least=2.0),
    Row("seeds/network of two layers", "ten seeds in turn / at once, two linear layers", at_least=2.0),
    Row(
        "seeds/student of page 06",
        "ten seeds in turn / at once, student of page 06",
        at_least=2.0,
        because=CONVOLUTIONS,
    ),
    Row("seeds/GlyphNet", "ten seeds in turn / at once, GlyphNet", at_least=2.0, because=CONVOLUTIONS),
    Row("features/probe, GlyphNet", "body in each of 20 epochs / cached + fit_probe, GlyphNet", at_least=15),
    Row("features/probe, ResNet-18, 64 px", "body in each of 20 epochs / cached + fit_probe, ResNet-18", at_least=15),
    Row("features/same head, GlyphNet", "the same / cached + the same head, GlyphNet", at_least=15, because=SHORT),
    Row("features/same head, ResNet-18, 64 px", "the same / cached + the same head, ResNet-18", at_least=15),
    Row("features/extraction, GlyphNet", "extraction: throughput / bare loop, GlyphNet", at_least=0.95),
    Row("features/extraction, ResNet-18, 64 px", "extraction: throughput / bare loop, ResNet-18", at_least=0.95),
    Row("streaming/peak memory", "10^4 to 10^6 rows streamed: growth of peak memory, MiB (file: 252)", 8),
    Row("streaming/probe memory", "10^4 to 10^6 rows, probe on the file: growth of memory, MiB", 32),
    Row("streaming/time", "10^4 to 10^6 rows: exponent of time over rows (1 is linear)", 1.1),
    Row(
        "pages/slowest",
        "slowest page as saved, seconds",
        60,
        because="pages 03 and 04 train more than the others (pages.json says how long each takes)",
    ),
    Row("pages/all", "all pages as saved, one after the other, seconds", 600),
    Row("threads/two processes", "two trainings at a time: two threads each / one each"),
    Row("threads/probe", "regression with BLAS on all cores / fit_probe"),
    Row("scale/side", "ResNet-18 at 128 px: measured time / predicted from 64 px by operations"),
    Row("scale/training", "ResNet-18 at 64 px: time of a training step / three forward passes"),
    Row("processes/GlyphNet", "two processes on accelerate: speed-up / 2, GlyphNet, batches of 64"),
    Row("processes/ResNet-18, 64 px", "two processes on accelerate: speed-up / 2, ResNet-18, batches of 64"),
    *_gpu(),
]


def verdict(row: Row, found: dict | None) -> str:
    """What a measured row says of its target."""
    if found is None:
        script = row.key.split("/")[0]
        return f"not measured: {row.because or f'run python -m benchmarks.{script}'}"
    if row.at_most is None and row.at_least is None:
        return "for orientation"
    target = row.at_most if row.at_most is not None else row.at_least
    missing = found["value"] - target if row.at_most is not None else target - found["value"]
    if missing <= 0:
        return "met"
    within = found["low"] <= target <= found["high"]
    return f"missed by {missing:.3g}{' (within the spread)' if within else ''} because {row.because or 'unknown'}"


def load(folder: Path = RESULTS) -> dict[str, dict]:
    """All measured rows, by key."""
    found: dict[str, dict] = {}
    for path in sorted(folder.glob("*.json")):
        found |= json.loads(path.read_text("utf-8"))["rows"]
    return found


def draw(found: dict[str, dict]) -> str:
    """The table as Markdown; the spread is the middle half of the rounds."""
    lines = ["| measured | value [spread] | target | verdict |", "|---|---|---|---|"]
    for row in ROWS:
        it = found.get(row.key)
        value = f"{it['value']:.3g} [{it['low']:.3g}, {it['high']:.3g}]" if it else "-"
        target = f"<= {row.at_most:g}" if row.at_most is not None else f">= {row.at_least:g}" if row.at_least else "-"
        lines.append(f"| {row.what} | {value} | {target} | {verdict(row, it)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(draw(load()))
