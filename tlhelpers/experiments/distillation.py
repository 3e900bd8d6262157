"""Record the distillation of page 06: `python -m tlhelpers.experiments.distillation` (about 6 minutes on one CPU core).

A teacher with a pretrained body is fine-tuned on 5 labels per class; a student 20 times smaller learns
from those labels alone, or from the teacher's answers on all training images.  Settings are chosen on
the validation part with draws of labels that are not used afterwards; the test part is scored once
per run.  Page 06 imports these same functions, runs one seed live and compares it with the record.
"""

import itertools
import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tlhelpers.models.backbones import ASSETS, Backbone, load_backbone
from tlhelpers.data.examples import Part, Splits, few_shot, make_loaders
from tlhelpers.data.named import load_dataset
from tlhelpers.objectives.supervised import Objective, attention_transfer, classification, distillation, feature_match
from tlhelpers.experiments import label_curve as label_curve
from tlhelpers.experiments.records import provenance
from tlhelpers.experiments.label_curve import JITTERS, TUNING_SEEDS, accuracy, fine_tuned
from tlhelpers.runtime import seed_everything
from tlhelpers.training.loop import fit, warmup_cosine

RECORD = ASSETS / "recorded" / "distillation.json"
LABELS = 5  # per class
SEEDS = range(5)
STEPS, BATCH = 200, 32  # the same for every student, whatever it learns from
TEMPERATURE = 4.0
TEMPERATURES = (1.0, 4.0)
RATES = (3e-3, 1e-2, 3e-2)
GRIDS = {  # what is chosen on validation; the student without a teacher gets the widest choice
    "labels": {"lr": RATES, "jitter": tuple(JITTERS)},
    "pseudo-labels": {"lr": RATES, "jitter": ("bend",)},
    "soft targets": {"lr": RATES, "jitter": ("bend",)},
}
BETAS = {"FitNets": 1.0, "attention": 1000.0}  # fixed beforehand, not tuned
LAYERS = ("body.block3", "body.block3")  # of student and teacher: [N, 32, 4, 4] and [N, 64, 4, 4]


def tiny_cnn(classes: int = 10, *, channels: int = 1, width: int = 1) -> nn.Sequential:
    """The student: [N, channels, 32, 32] -> [N, classes] with about 11,000 * width^2 parameters."""

    def block(inputs: int, outputs: int, kernel: int) -> nn.Sequential:  # halves the image
        convolution = nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    first, second, third = 12 * width, 24 * width, 32 * width
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())  # [N, third, 4, 4] -> [N, 4 * third]
    blocks = {"block1": block(channels, first, 5), "block2": block(first, second, 3), "block3": block(second, third, 3)}
    body = nn.Sequential(OrderedDict(**blocks, pool=pool))
    return nn.Sequential(OrderedDict(body=body, head=nn.Linear(4 * third, classes)))


def hard_answers(teacher: nn.Module) -> Objective:
    """Cross-entropy against the teacher's most likely class for the same view of the image (pseudo-labels)."""
    learn = classification()

    def objective(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            answers = teacher.eval()(batch[0]).argmax(1)
        return learn(model, (batch[0], answers))

    return objective


@dataclass(frozen=True)
class Lesson:
    """What the students of one seed may learn from.

    Attributes:
        few: the labelled images.
        images: all training images; their labels are not read.
        teacher: fine-tuned on `few`.
    """

    few: Part
    images: Part
    teacher: nn.Module
    backbone: Backbone
    seed: int


def lesson(backbone: Backbone, train: Part, *, seed: int) -> Lesson:
    """Draw the labels of a seed and fine-tune the teacher, with the settings of the recorded label curve."""
    setting = json.loads(label_curve.RECORD.read_text("utf-8"))["tuning"]["fine-tuned"]["chosen"]
    few = few_shot(train, LABELS, seed=seed)
    return Lesson(few, train, fine_tuned(backbone, few, seed=seed, **setting), backbone, seed)


def taught(
    given: Lesson,
    how: str,
    *,
    lr: float,
    jitter: str,
    temperature: float = TEMPERATURE,
    beta: float = 0.0,
    steps: int = STEPS,
) -> nn.Sequential:
    """A student.  Whatever `how` is, it sees equally many images.

    Args:
        how: "labels" learns from the few labels alone; the others look at all training images:
            "pseudo-labels" the teacher's hard answers, "soft targets" its softened ones, "FitNets"
            and "attention" match `LAYERS` too.
        jitter: name of an augmentation in `few_shot.JITTERS`.
        beta: weight of the matched layers.

    Raises:
        ValueError: `how` is none of these.
    """
    seed_everything(given.seed)
    student, regressor = tiny_cnn(), nn.Conv2d(32, 64, 1)
    soft = distillation(given.teacher, temperature=temperature, alpha=1.0)
    objectives = {
        "labels": classification(),
        "pseudo-labels": hard_answers(given.teacher),
        "soft targets": soft,
        "FitNets": feature_match(soft, given.teacher, layers=LAYERS, regressor=regressor, beta=beta),
        "attention": attention_transfer(soft, given.teacher, layers=LAYERS, beta=beta),
    }
    if how not in objectives:
        raise ValueError(f"how is {how!r}; choose one of {sorted(objectives)}")
    parameters = [*student.parameters(), *(regressor.parameters() if how == "FitNets" else ())]
    loaders = make_loaders(
        given.few if how == "labels" else given.images,
        batch_size=BATCH,
        steps=steps,
        augment=JITTERS[jitter],
        transform=given.backbone.transform,
        seed=given.seed,
    )
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.02)
    fit(student, loaders, objectives[how], optimizer, epochs=1, schedule=warmup_cosine(), clip_norm=1.0)
    return student


def rounded(weight: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Whole numbers q int8 and a scale s per output channel (row) such that s * q is close to the weight.

    Symmetric: q runs from -(2^(bits-1) - 1) to 2^(bits-1) - 1, and 0 stays 0.

    Raises:
        ValueError: bits outside 2..8.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits is {bits}; int8 holds 2 to 8")
    largest = 2 ** (bits - 1) - 1
    rows = weight.detach().flatten(1)
    scale = rows.abs().amax(1, keepdim=True).clamp(min=1e-12) / largest
    return (rows / scale).round().to(torch.int8).view_as(weight), scale


def with_rounded_weights(model: nn.Module, bits: int = 8) -> tuple[dict[str, Tensor], int]:
    """A state dict whose matrices and kernels went through `rounded` and back, and the bytes to store it.

    Biases and BatchNorm stay float32; the scales count, and so does each weight with `bits` bits.
    """
    state, size = {}, 0
    for name, value in model.state_dict().items():
        if value.ndim < 2:
            state[name] = value.clone()
            size += value.numel() * value.element_size()
            continue
        q, scale = rounded(value, bits)
        state[name] = (q.flatten(1) * scale).view_as(value)
        size += -(-q.numel() * bits // 8) + scale.numel() * 4
    return state, size


@torch.inference_mode()
def answers(model: nn.Module, part: Part, backbone: Backbone) -> Tensor:
    """The most likely class of every image, int64 [N]."""
    return model.eval()(backbone.transform(part.x)).argmax(1)


def compressed(student: nn.Module, given: Lesson, test: Part) -> dict[str, float]:
    """Test accuracy of the student with int8 weights, and how often each student agrees with its elder."""
    small = tiny_cnn()
    small.load_state_dict(with_rounded_weights(student)[0])
    theirs, mine, rough = (answers(model, test, given.backbone) for model in (given.teacher, student, small))
    pairs = {"accuracy": (rough, test.y), "agrees with float": (rough, mine), "agrees with teacher": (rough, theirs)}
    return {name: round(float((a == b).float().mean()), 4) for name, (a, b) in pairs.items()}


def tuned(digits: Splits, lessons: list[Lesson]) -> dict[str, dict]:
    """Per way of teaching the setting with the best mean validation accuracy, and the whole table."""
    found: dict[str, dict] = {}
    for how, grid in GRIDS.items():
        table = []
        for values in itertools.product(*grid.values()):
            setting = dict(zip(grid, values, strict=True))
            models = [taught(given, how, **setting) for given in lessons]
            scores = [accuracy(model, digits.validation, lessons[0].backbone.transform) for model in models]
            table.append({"setting": setting, "validation_accuracy": round(sum(scores) / len(scores), 4)})
            print(how, table[-1], flush=True)
        found[how] = {"chosen": max(table, key=lambda row: row["validation_accuracy"])["setting"], "table": table}
    for how, beta in BETAS.items():  # at the rate of the soft targets, which they are added to
        found[how] = {"chosen": found["soft targets"]["chosen"] | {"beta": beta}}
    return found


def record(path: Path) -> None:
    """Tune on validation, then teach every student of every seed and score it once on the test part."""
    digits, backbone = load_dataset("digits"), load_backbone("glyphs-all")
    tuning = tuned(digits, [lesson(backbone, digits.train, seed=s) for s in TUNING_SEEDS[:2]])
    ways = [("labels", {}), ("pseudo-labels", {}), *(("soft targets", {"temperature": t}) for t in TEMPERATURES)]
    runs: dict[str, list[float]] = {}
    int8: dict[str, list[float]] = {}
    for seed in SEEDS:
        given = lesson(backbone, digits.train, seed=seed)
        runs.setdefault("teacher", []).append(accuracy(given.teacher, digits.test, backbone.transform))
        for how, extra in [*ways, *((name, {}) for name in BETAS)]:
            student = taught(given, how, **tuning[how]["chosen"], **extra)
            name = f"{how} T={extra['temperature']:g}" if extra else how
            runs.setdefault(name, []).append(accuracy(student, digits.test, backbone.transform))
            if extra.get("temperature") == TEMPERATURE:
                for column, value in compressed(student, given, digits.test).items():
                    int8.setdefault(column, []).append(value)
        print(seed, {name: round(values[-1], 4) for name, values in runs.items()}, flush=True)
    facts = {
        "what": f"test accuracy with {LABELS} labels per class by way of teaching and seed; int8: student at T=4",
        "runs": {name: [round(value, 4) for value in values] for name, values in runs.items()},
        "int8": int8,
        "tuning": tuning,
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(facts | provenance("python -m tlhelpers.experiments.distillation"), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    record(RECORD)
