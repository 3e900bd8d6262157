"""Record the grids of page 03: `python -m tlhelpers.experiments.fine_tuning` (about 13 minutes on one CPU core).

Four experiments with 5 labels per class, from the body "glyphs-all" to handwritten digits: how many
layers to transfer, how many to freeze (after Yosinski et al. 2014, arXiv:1411.1792), which learning
rates, and how hard L2-SP should pull.  Settings are chosen on the validation part.  Page 03 imports
these same functions, runs one cell of each grid live and compares it with the record.
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from tlhelpers.models.backbones import ASSETS, Backbone, GlyphNet, load_backbone
from tlhelpers.data.examples import Part, Splits, few_shot
from tlhelpers.data.named import load_dataset
from tlhelpers.experiments.records import provenance
from tlhelpers.experiments.label_curve import TUNING_SEEDS, accuracy, train_small
from tlhelpers.runtime import seed_everything
from tlhelpers.models.surgery import attach_head, freeze, param_groups

RECORD = ASSETS / "recorded" / "fine_tuning.json"
STAGES = ("stem", "block1", "block2", "block3", "block4")  # the parts of GlyphNet that have parameters
LABELS = 5  # per class
SEEDS = range(5)
DEPTH_SEEDS = range(10)  # the differences between freezing depths are small
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
RATE_PLANS = {  # what `param_groups` makes of one learning rate
    "one rate for all": {"body_scale": 1.0, "layer_decay": 1.0},
    "body at a tenth": {"body_scale": 0.1, "layer_decay": 1.0},
    "falling by 2.6 per stage": {"body_scale": 1 / 2.6, "layer_decay": 1 / 2.6},
}
FAST = {"lr": 1e-2, "body_scale": 0.3}  # rates at which the body moves far, for L2-SP to hold it back
PULLS = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3)  # alpha of L2-SP


def adapted(
    backbone: Backbone,
    train: Part,
    *,
    seed: int,
    frozen: int = 0,
    lr: float = 1e-2,
    body_scale: float = 0.1,
    layer_decay: float = 1.0,
    alpha: float = 0.0,
    steps: int = 60,
) -> nn.Sequential:
    """`few_shot.fine_tuned` with three more choices; with their defaults it gives the same bits.

    Args:
        frozen: number of stages, counted from the input, that stay as they were.
        layer_decay: see `surgery.param_groups`.
        alpha: strength of L2-SP, which takes the place of weight decay; none when 0.
    """
    seed_everything(seed)
    model = attach_head(backbone, len(train.classes))
    for name in STAGES[:frozen]:
        freeze(model.body.get_submodule(name))
    groups = param_groups(model.body, model.head, lr=lr, body_scale=body_scale, layer_decay=layer_decay)
    return train_small(model, train, backbone.transform, groups=groups, seed=seed, steps=steps, alpha=alpha)


def partly_transferred(
    backbone: Backbone,
    train: Part,
    *,
    seed: int,
    keep: int,
    frozen: bool,
    lr: float = 1e-2,
    body_scale: float = 0.1,
    steps: int = 150,
) -> nn.Sequential:
    """The first `keep` stages from the backbone, frozen or trained at `lr * body_scale`; the rest starts at random."""
    seed_everything(seed)
    model = attach_head(backbone, len(train.classes))
    blank = GlyphNet()
    for name in STAGES[keep:]:
        setattr(model.body, name, blank.get_submodule(name))
    old = [model.body.get_submodule(name) for name in STAGES[:keep]]
    new = [*(model.body.get_submodule(name) for name in STAGES[keep:]), model.head]
    groups = [{"params": [p for part in new for p in part.parameters()], "lr": lr}]
    if frozen:
        for part in old:
            freeze(part)
    elif keep:
        groups.append({"params": [p for part in old for p in part.parameters()], "lr": lr * body_scale})
    return train_small(model, train, backbone.transform, groups=groups, seed=seed, steps=steps)


def drift_per_stage(body: nn.Module, start: nn.Module) -> dict[str, float]:
    """||theta_t - theta_s|| of every stage's parameters (buffers are not parameters)."""
    drift = {}
    for name in STAGES:
        pairs = zip(body.get_submodule(name).parameters(), start.get_submodule(name).parameters(), strict=True)
        drift[name] = float(sum((p - q).detach().square().sum() for p, q in pairs)) ** 0.5
    return drift


def total_drift(body: nn.Module, start: nn.Module) -> float:
    """||theta_t - theta_s|| over the whole body."""
    return sum(d**2 for d in drift_per_stage(body, start).values()) ** 0.5


def source_accuracy(body: nn.Module, backbone: Backbone, test: Part) -> float:
    """What a changed body still knows: accuracy on the source task with the old head."""
    return accuracy(nn.Sequential(body, backbone.head), test, backbone.transform)


@dataclass(frozen=True)
class Task:
    """What every experiment works on: few digits, a body, and the source task that it may forget."""

    digits: Splits
    source_test: Part
    backbone: Backbone

    def few(self, seed: int) -> Part:
        """The labelled digits of one seed."""
        return few_shot(self.digits.train, LABELS, seed=seed)

    def tuned_and_scored(self, run: Callable[..., nn.Sequential], grid: dict[str, tuple], seeds: range) -> dict:
        """Choose the setting with the best mean validation accuracy over two tuning seeds, then score it on test.

        Args:
            run: `(few, seed=..., **setting) -> model`.
        """
        transform, table = self.backbone.transform, []
        for values in itertools.product(*grid.values()):
            setting = dict(zip(grid, values, strict=True))
            tries = [run(self.few(s), seed=s, **setting) for s in TUNING_SEEDS[:2]]
            scores = [accuracy(model, self.digits.validation, transform) for model in tries]
            table.append({"setting": setting, "validation_accuracy": round(sum(scores) / len(scores), 4)})
        chosen = max(table, key=lambda row: row["validation_accuracy"])["setting"]
        models = [run(self.few(s), seed=s, **chosen) for s in seeds]
        test = [round(accuracy(model, self.digits.test, transform), 4) for model in models]
        print(chosen, test, flush=True)
        return {"setting": chosen, "accuracy": test, "table": table}

    def old_and_new(self, **setting: float) -> dict[str, list[float]]:
        """Of `adapted` with one setting, over SEEDS: both tasks' accuracies and the drift."""
        columns: dict[str, list[float]] = {
            "accuracy": [],
            "validation_accuracy": [],
            "source_accuracy": [],
            "drift": [],
        }
        for seed in SEEDS:
            model = adapted(self.backbone, self.few(seed), seed=seed, **setting)
            columns["accuracy"].append(accuracy(model, self.digits.test, self.backbone.transform))
            columns["validation_accuracy"].append(accuracy(model, self.digits.validation, self.backbone.transform))
            columns["source_accuracy"].append(source_accuracy(model.body, self.backbone, self.source_test))
            columns["drift"].append(total_drift(model.body, self.backbone.module))
        columns = {name: [round(value, 4) for value in values] for name, values in columns.items()}
        print(setting, columns, flush=True)
        return columns


def freezing_depth(task: Task) -> dict[str, dict]:
    """Everything transferred, the first k stages frozen: {k: ...}."""
    cells = {}
    for k in range(len(STAGES) + 1):
        grid = {"lr": (3e-3, 1e-2, 3e-2), "body_scale": (0.1, 0.3) if k < len(STAGES) else (0.1,)}
        cells[str(k)] = task.tuned_and_scored(partial(adapted, task.backbone, frozen=k), grid, DEPTH_SEEDS)
    return cells


def transferred_stages(task: Task) -> dict[str, dict]:
    """The first k stages transferred, frozen or trained, the rest at random: {how: {k: ...}}."""
    cells: dict[str, dict] = {"frozen": {}, "trained": {}}
    for k, how in itertools.product(range(len(STAGES) + 1), cells):
        if k == 0 and how == "trained":  # nothing is transferred, so there is nothing to freeze either
            cells[how]["0"] = cells["frozen"]["0"]
            continue
        run = partial(partly_transferred, task.backbone, keep=k, frozen=how == "frozen")
        cells[how][str(k)] = task.tuned_and_scored(run, {"lr": (3e-3, 1e-2)}, SEEDS)
    return cells


def record(path: Path) -> None:
    """Run all experiments and write the file."""
    task = Task(load_dataset("digits"), load_dataset("glyphs").test, load_backbone("glyphs-all"))
    facts = {
        "what": f"test accuracy with {LABELS} labels per class by setting and seed; settings chosen on validation",
        "depth": freezing_depth(task),
        "transferred": transferred_stages(task),
        "rates": {
            name: {str(lr): task.old_and_new(lr=lr, **plan) for lr in RATES} for name, plan in RATE_PLANS.items()
        },
        "pulls": {str(alpha): task.old_and_new(alpha=alpha, **FAST) for alpha in PULLS},
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(facts | provenance("python -m tlhelpers.experiments.fine_tuning"), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    record(RECORD)
