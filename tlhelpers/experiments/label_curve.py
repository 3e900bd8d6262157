"""Record the label curve: `python -m tlhelpers.experiments.label_curve` (about 50 minutes on two CPU cores).

Seven ways to read MNIST with few labels: tuned pixels, a linear probe on random weights and on two pretrained bodies,
training from scratch, fine-tuning, and fine-tuning from the linear probe (LP-FT), of which the last three are too slow
to repeat at every seed inside a page.  Settings are chosen on the validation part with draws of labels that are not
used afterwards; the test part is scored once per run.  Where the whole of MNIST is in the cache, the same models
also read its 10,000 test digits, by writers that nobody here has seen.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from torch import nn
from torch.nn import functional as F

from tlhelpers.analysis import extract_features, fit_probe, pixel_baseline
from tlhelpers.data import Examples, Splits, few_shot, load_dataset
from tlhelpers.experiments.records import RECORDED, choose, provenance, write_record
from tlhelpers.experiments.strategies import fine_tuned, from_scratch, probed_then_tuned
from tlhelpers.models import Backbone, load_backbone
from tlhelpers.training import accuracy

RECORD = RECORDED / "label_curve.json"
UCI_RECORD = RECORDED / "label_curve_uci.json"  # of the first edition, on "digits": most pages still draw from it
LABELS = (1, 2, 5, 10, 20, 50)  # per class
SEEDS = {1: 20, 2: 10, 5: 10, 10: 5, 20: 5, 50: 5}  # the fewer labels, the more the draw matters
TUNING_SEEDS = (1000, 1001, 1002)
MANY = 10  # labels per class from which the settings tuned with many labels are used

Method = Callable[..., nn.Module]  # (train, seed=..., **setting) -> a trained model


def one_run(method: Method, digits: Splits, *, labels: int, seed: int, **setting) -> nn.Module:
    """One point of the curve: draw the labels of a seed and train on them."""
    return method(few_shot(digits.train, labels, seed=seed), seed=seed, **setting)


def probed(backbone: Backbone, train: Examples, *, seed: int) -> nn.Module:
    """The frozen body with the linear probe as its head; its penalty is not tuned, and no draw depends on `seed`."""
    head = fit_probe(extract_features(backbone, train)).as_layer()
    return nn.Sequential(backbone.module, head)


def methods() -> dict[str, tuple[Method, dict[str, tuple], tuple[int, ...]]]:
    """Per method: how to run it, the grid to choose from, and the numbers of steps to choose from after that."""
    backbone = load_backbone("glyphs-all")
    letters = load_backbone("glyphs-letters")
    jitters = ("bend", "strong")
    rates = {"lr": (3e-3, 1e-2, 3e-2), "body_scale": (0.03, 0.1, 0.3), "jitter": jitters}
    return {  # the slowest first
        "from scratch": (from_scratch, {"lr": (3e-3, 1e-2, 3e-2), "jitter": jitters}, (400, 1000)),
        "fine-tuned": (partial(fine_tuned, backbone), rates, (60, 200)),
        "LP-FT": (
            partial(probed_then_tuned, backbone),
            {"lr": (3e-4, 1e-3, 3e-3), "jitter": jitters},
            (60, 200),
        ),
        "linear probe": (partial(probed, backbone), {}, ()),
        "linear probe, letters": (partial(probed, letters), {}, ()),
        "random weights": (partial(probed, load_backbone("glyphs-random")), {}, ()),
    }


def tune(
    method: Method, grid: dict[str, tuple], digits: Splits, *, labels: tuple[int, ...], steps: tuple[int, ...] = ()
) -> dict:
    """The setting with the best mean validation accuracy over tuning seeds and numbers of labels per class.

    The grid is searched at the first number of `steps`; the others are then tried with the setting it chose.
    """

    def score(**setting) -> float:
        models = [one_run(method, digits, labels=n, seed=s, **setting) for n in labels for s in TUNING_SEEDS]
        return mean(accuracy(model, digits.validation) for model in models)

    if not grid:
        return {"chosen": {}, "table": []}
    choice = choose(partial(score, **({"steps": steps[0]} if steps else {})), grid)
    if steps:
        longer = choose(partial(score, **choice["chosen"]), {"steps": steps})
        choice |= {"chosen": choice["chosen"] | longer["chosen"], "steps": longer["table"]}
    return choice


def method_scores(name: str) -> dict:
    """Tune one of `methods` on validation, then score every number of labels and seed once on the test parts."""
    torch.set_num_threads(1)
    digits = load_dataset("mnist-5k")
    others = other_writers()
    method, grid, steps = methods()[name]
    few = tune(method, grid, digits, labels=(1, 5), steps=steps)
    many = tune(method, grid, digits, labels=(20,), steps=steps)
    runs: dict[int, list[float]] = {}
    elsewhere: dict[int, list[float]] = {}
    for n in LABELS:
        setting = (few if n < MANY else many)["chosen"]
        runs[n] = []
        elsewhere[n] = []
        for seed in range(SEEDS[n]):
            model = one_run(method, digits, labels=n, seed=seed, **setting)
            runs[n].append(round(accuracy(model, digits.test), 4))
            if others is not None:
                elsewhere[n].append(round(accuracy(model, others), 4))
        print(name, n, runs[n], flush=True)
    return {"tuning": few, "tuning_many": many, "runs": runs, "other_writers": elsewhere}


def pixel_runs() -> dict:
    """As `method_scores`, of the SVM on pixels, which chooses its settings anew for every draw."""
    digits = load_dataset("mnist-5k")
    others = other_writers()
    runs: dict[int, list[float]] = {}
    elsewhere: dict[int, list[float]] = {}
    for n in LABELS:
        draws = [few_shot(digits.train, n, seed=seed) for seed in range(SEEDS[n])]
        runs[n] = [round(pixel_baseline(few, digits.validation, digits.test), 4) for few in draws]
        if others is not None:
            elsewhere[n] = [round(pixel_baseline(few, digits.validation, others), 4) for few in draws]
        print("pixels", n, runs[n], flush=True)
    return {"runs": runs, "other_writers": elsewhere}


def other_writers() -> Examples | None:
    """The test part of the whole MNIST, 10,000 digits on canvases of 32x32; None when it is not on this machine."""
    try:
        test = load_dataset("mnist").test
    except OSError as error:
        print(f"not confirmed on other writers: {error}")
        return None
    return test.mapped(lambda x: F.pad(x.float() / 255, (2, 2, 2, 2)))


def record(path: Path) -> None:
    """Score every method, two at a time, and write the file."""
    with ProcessPoolExecutor(max_workers=2, mp_context=multiprocessing.get_context("spawn")) as pool:
        pixels = pool.submit(pixel_runs)
        others = dict(zip(methods(), pool.map(method_scores, methods()), strict=True))
    results = {"pixels": pixels.result(), **others}
    facts: dict = {"what": "accuracy on MNIST by method, labels per class and seed"}
    # "runs" are on the test part, "other_writers" on that of the whole MNIST.
    for kind in ("runs", "other_writers", "tuning", "tuning_many"):
        facts[kind] = {name: result[kind] for name, result in results.items() if kind in result}
    seeds = range(max(SEEDS.values()))
    write_record(path, facts | provenance("python -m tlhelpers.experiments.label_curve", seeds=seeds))


if __name__ == "__main__":
    torch.set_num_threads(1)
    record(RECORD)
