"""Record the label curve: `python -m tlhelpers.experiments.label_curve` (45 minutes on one CPU core).

The three ways to use few labels that are too slow to repeat at every seed inside a page: training
from scratch, fine-tuning, and fine-tuning from the linear probe (LP-FT).  Settings are chosen on
the validation part with draws of labels that are not used afterwards; the test part is scored once
per run.  Pages import the same functions of `strategies`, run one seed live and compare it with the record.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean

from torch import nn

from tlhelpers.data import Splits, few_shot, load_dataset
from tlhelpers.experiments.records import RECORDED, choose, provenance, write_record
from tlhelpers.experiments.strategies import JITTERS, fine_tuned, from_scratch, probed_then_tuned
from tlhelpers.models import load_backbone
from tlhelpers.training import accuracy

RECORD = RECORDED / "label_curve.json"
LABELS = (1, 2, 5, 10, 20, 50)  # per class
SEEDS = {1: 20, 2: 10, 5: 10, 10: 5, 20: 5, 50: 5}  # the fewer labels, the more the draw matters
TUNING_SEEDS = (1000, 1001, 1002)
MANY = 10  # labels per class from which the settings tuned with many labels are used

Method = Callable[..., nn.Module]  # (train, seed=..., **setting) -> a trained model


def one_run(method: Method, digits: Splits, *, labels: int, seed: int, **setting) -> nn.Module:
    """One point of the curve: draw the labels of a seed and train on them."""
    return method(few_shot(digits.train, labels, seed=seed), seed=seed, **setting)


def methods() -> dict[str, tuple[Method, dict[str, tuple], dict[str, tuple]]]:
    """Per method: how to run it, and what to choose from with few and with many labels.

    With many labels the pretrained network may take as many steps as the one from scratch.
    """
    backbone = load_backbone("glyphs-all")
    letters = load_backbone("glyphs-letters")
    jitters = tuple(JITTERS)
    rates = {"lr": (3e-3, 1e-2, 3e-2), "body_scale": (0.03, 0.1, 0.3)}
    longer = {"lr": (1e-2,), "body_scale": (0.03, 0.3), "steps": (60, 400)}
    return {
        "scratch": (
            from_scratch,
            {"lr": (1e-3, 3e-3, 1e-2), "jitter": jitters},
            {"lr": (3e-3, 1e-2), "jitter": jitters},
        ),
        "fine-tuned": (partial(fine_tuned, backbone), rates, longer),
        "fine-tuned letters": (partial(fine_tuned, letters), rates, longer),
        "LP-FT": (
            partial(probed_then_tuned, backbone),
            {"lr": (3e-4, 1e-3, 3e-3)},
            {"lr": (1e-3, 3e-3), "steps": (60, 400)},
        ),
    }


def tune(method: Method, grid: dict[str, tuple], digits: Splits, *, labels: tuple[int, ...]) -> dict:
    """The setting with the best mean validation accuracy over tuning seeds and numbers of labels per class."""

    def score(**setting) -> float:
        models = [one_run(method, digits, labels=n, seed=s, **setting) for n in labels for s in TUNING_SEEDS]
        return mean(accuracy(model, digits.validation) for model in models)

    return choose(score, grid)


def test_scores(method: Method, setting: dict, digits: Splits, *, labels: int) -> list[float]:
    """Test accuracies over the seeds of one number of labels per class."""
    models = (one_run(method, digits, labels=labels, seed=seed, **setting) for seed in range(SEEDS[labels]))
    return [round(accuracy(model, digits.test), 4) for model in models]


def record(path: Path) -> None:
    """Tune on validation, then score every method, label budget and seed once on the test part."""
    digits = load_dataset("digits")
    tuning, tuning_many, runs = {}, {}, {}
    for name, (method, few_grid, many_grid) in methods().items():
        tuning[name] = tune(method, few_grid, digits, labels=(1, 5))
        tuning_many[name] = tune(method, many_grid, digits, labels=(20,))
        runs[name] = {}
        for n in LABELS:
            setting = (tuning if n < MANY else tuning_many)[name]["chosen"]
            runs[name][n] = test_scores(method, setting, digits, labels=n)
        print(name, runs[name], flush=True)
    facts = {
        "what": "test accuracy by method, labels per class and seed",
        "runs": runs,
        "tuning": tuning,  # for fewer than MANY labels per class
        "tuning_many": tuning_many,
    }
    write_record(path, facts | provenance("python -m tlhelpers.experiments.label_curve"))


if __name__ == "__main__":
    record(RECORD)
