"""Record the grids of page 03: `python -m tlhelpers.experiments.fine_tuning` (about 13 minutes on one CPU core).

Four experiments with 5 labels per class, from the body "glyphs-all" to handwritten digits: how many
layers to transfer, how many to freeze (after Yosinski et al. 2014, arXiv:1411.1792), which learning
rates, and how hard L2-SP should pull.  Settings are chosen on the validation part.  Page 03 imports
these same functions, runs one cell of each grid live and compares it with the record.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean

from torch import nn

from tlhelpers.data import Examples, Splits, few_shot, load_dataset
from tlhelpers.experiments.records import RECORDED, choose, provenance, write_record
from tlhelpers.experiments.strategies import STAGES, fine_tuned, train_small
from tlhelpers.models import Backbone, GlyphNet, attach_head, freeze, load_backbone
from tlhelpers.runtime import seed_everything
from tlhelpers.training import accuracy

RECORD = RECORDED / "fine_tuning.json"
LABELS = 5  # per class
SEEDS = range(5)
DEPTH_SEEDS = range(10)  # the differences between freezing depths are small
TUNING_SEEDS = (1000, 1001)
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
RATE_PLANS = {  # what `param_groups` makes of one learning rate
    "one rate for all": {"body_scale": 1.0, "layer_decay": 1.0},
    "body at a tenth": {"body_scale": 0.1, "layer_decay": 1.0},
    "falling by 2.6 per stage": {"body_scale": 1 / 2.6, "layer_decay": 1 / 2.6},
}
FAST = {"lr": 1e-2, "body_scale": 0.3}  # rates at which the body moves far, for L2-SP to hold it back
PULLS = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3)  # alpha of L2-SP

Method = Callable[..., nn.Sequential]  # (train, seed=..., **setting) -> a trained model


def partly_transferred(
    backbone: Backbone,
    train: Examples,
    *,
    seed: int,
    keep: int,
    frozen: bool,
    lr: float = 1e-2,
    body_scale: float = 0.1,
    steps: int = 150,
) -> nn.Sequential:
    """One run: the first `keep` stages from the backbone, the rest from random weights.

    Args:
        keep: number of stages, counted from the input, that are transferred.
        frozen: the transferred stages stay as they were; else they learn at `lr * body_scale`.
    """
    seed_everything(seed)
    model = attach_head(backbone, len(train.classes))
    blank = GlyphNet()
    for name in STAGES[keep:]:
        setattr(model.body, name, blank.get_submodule(name))
    transferred = nn.ModuleList(model.body.get_submodule(name) for name in STAGES[:keep])
    new = nn.ModuleList([*(model.body.get_submodule(name) for name in STAGES[keep:]), model.head])
    groups = [{"params": list(new.parameters()), "lr": lr}]
    if frozen:
        freeze(transferred)
    elif keep:
        groups.append({"params": list(transferred.parameters()), "lr": lr * body_scale})
    return train_small(model, train, groups=groups, seed=seed, steps=steps)


def drift_per_stage(body: nn.Module, start: nn.Module) -> dict[str, float]:
    """||theta_t - theta_s|| of every stage's parameters (buffers are not parameters)."""
    drift = {}
    for name in STAGES:
        pairs = zip(body.get_submodule(name).parameters(), start.get_submodule(name).parameters(), strict=True)
        drift[name] = float(sum((p - q.to(p.device)).detach().square().sum() for p, q in pairs)) ** 0.5
    return drift


def total_drift(body: nn.Module, start: nn.Module) -> float:
    """||theta_t - theta_s|| over the whole body."""
    return sum(d**2 for d in drift_per_stage(body, start).values()) ** 0.5


def source_accuracy(body: nn.Module, head: nn.Module, test: Examples) -> float:
    """What a changed body still knows: accuracy on the source task with that task's own head."""
    return accuracy(nn.Sequential(body, head), test)


def tune(method: Method, grid: dict[str, tuple], digits: Splits) -> dict:
    """The setting with the best mean validation accuracy over the tuning seeds."""

    def score(**setting) -> float:
        models = [method(few_shot(digits.train, LABELS, seed=s), seed=s, **setting) for s in TUNING_SEEDS]
        return mean(accuracy(model, digits.validation) for model in models)

    return choose(score, grid)


def tuned_and_scored(method: Method, grid: dict[str, tuple], digits: Splits, *, seeds: range) -> dict:
    """One cell of a grid: the setting chosen on validation, its test accuracy per seed, and the table behind it."""
    tuning = tune(method, grid, digits)
    models = (method(few_shot(digits.train, LABELS, seed=s), seed=s, **tuning["chosen"]) for s in seeds)
    test = [round(accuracy(model, digits.test), 4) for model in models]
    print(tuning["chosen"], test, flush=True)
    return {"setting": tuning.pop("chosen"), "accuracy": test, **tuning}


def freezing_depth(backbone: Backbone, digits: Splits) -> dict[str, dict]:
    """Everything transferred, the first k stages frozen: {k: cell}."""
    cells = {}
    for k in range(len(STAGES) + 1):
        body_scales = (0.1, 0.3) if k < len(STAGES) else (0.1,)  # with all frozen there is no body to train
        grid = {"lr": (3e-3, 1e-2, 3e-2), "body_scale": body_scales}
        cells[str(k)] = tuned_and_scored(partial(fine_tuned, backbone, frozen=k), grid, digits, seeds=DEPTH_SEEDS)
    return cells


def transferred_stages(backbone: Backbone, digits: Splits) -> dict[str, dict]:
    """The first k stages transferred, frozen or trained, the rest at random: {how: {k: cell}}."""
    cells: dict[str, dict] = {"frozen": {}, "trained": {}}
    for k in range(len(STAGES) + 1):
        for how, column in cells.items():
            if k == 0 and how == "trained":  # nothing is transferred, so there is nothing to freeze either
                column["0"] = cells["frozen"]["0"]
                continue
            method = partial(partly_transferred, backbone, keep=k, frozen=how == "frozen")
            column[str(k)] = tuned_and_scored(method, {"lr": (3e-3, 1e-2)}, digits, seeds=SEEDS)
    return cells


def old_and_new(backbone: Backbone, digits: Splits, source_test: Examples, **setting: float) -> dict[str, list[float]]:
    """Of `fine_tuned` with one setting, per seed: accuracies on the new and the old task, and the drift."""
    columns: dict[str, list[float]] = {"accuracy": [], "validation_accuracy": [], "source_accuracy": [], "drift": []}
    for seed in SEEDS:
        model = fine_tuned(backbone, few_shot(digits.train, LABELS, seed=seed), seed=seed, **setting)
        columns["accuracy"].append(accuracy(model, digits.test))
        columns["validation_accuracy"].append(accuracy(model, digits.validation))
        columns["source_accuracy"].append(source_accuracy(model.body, backbone.head, source_test))
        columns["drift"].append(total_drift(model.body, backbone.module))
    columns = {name: [round(value, 4) for value in values] for name, values in columns.items()}
    print(setting, columns, flush=True)
    return columns


def record(path: Path) -> None:
    """Run all experiments and write the file."""
    digits = load_dataset("digits")
    backbone = load_backbone("glyphs-all")
    both_tasks = partial(old_and_new, backbone, digits, load_dataset("glyphs").test)
    facts = {
        "what": f"test accuracy with {LABELS} labels per class by setting and seed; settings chosen on validation",
        "depth": freezing_depth(backbone, digits),
        "transferred": transferred_stages(backbone, digits),
        "rates": {name: {str(lr): both_tasks(lr=lr, **plan) for lr in RATES} for name, plan in RATE_PLANS.items()},
        "pulls": {str(alpha): both_tasks(alpha=alpha, **FAST) for alpha in PULLS},
    }
    write_record(path, facts | provenance("python -m tlhelpers.experiments.fine_tuning", seeds=DEPTH_SEEDS))


if __name__ == "__main__":
    record(RECORD)
