"""Record the distillation of page 06: `python -m tlhelpers.experiments.distillation` (6 minutes on one CPU core).

A teacher with a pretrained body is fine-tuned on 5 labels per class; a student 20 times smaller learns
from those labels alone, or from the teacher's answers on all training images.  Settings are chosen on
the validation part with draws of labels that are not used afterwards; the test part is scored once
per run.  Page 06 imports the same functions, runs one seed live and compares it with the record.
"""

from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn

from tlhelpers.data import Examples, few_shot, load_dataset, make_loaders
from tlhelpers.experiments import label_curve
from tlhelpers.experiments.records import RECORDED, choose, provenance, read_record, write_record
from tlhelpers.experiments.strategies import JITTERS, PRINT_MEAN, PRINT_STD, fine_tuned
from tlhelpers.models import Backbone, Normalize, load_backbone
from tlhelpers.objectives import (
    FrozenTeacher,
    Objective,
    attention_transfer,
    classification,
    distillation,
    feature_match,
)
from tlhelpers.runtime import seed_everything
from tlhelpers.training import accuracy, fit, warmup_cosine

RECORD = RECORDED / "distillation.json"
LABELS = 5  # per class
SEEDS = range(5)
TUNING_SEEDS = (1000, 1001)
STEPS = 200  # the same for every student, whatever it learns from
BATCH = 32
TEMPERATURE = 4.0
LAYERS = ("body.block3", "body.block3")  # of student and teacher: [N, 32, 4, 4] and [N, 64, 4, 4]
RATES = (3e-3, 1e-2, 3e-2)
GRIDS = {  # what is chosen on validation; the student without a teacher gets the widest choice
    "labels": {"lr": RATES, "jitter": ("bend", "place")},
    "pseudo-labels": {"lr": RATES, "jitter": ("bend",)},
    "soft targets": {"lr": RATES, "jitter": ("bend",)},
}
BETAS = {"FitNets": 1.0, "attention": 1000.0}  # fixed beforehand, not tuned
STUDENTS = {  # name in the record: arguments of `taught`, besides the setting that was chosen
    "labels": {"how": "labels"},
    "pseudo-labels": {"how": "pseudo-labels"},
    "soft targets T=1": {"how": "soft targets", "temperature": 1.0},
    "soft targets T=4": {"how": "soft targets", "temperature": TEMPERATURE},
    "FitNets": {"how": "FitNets"},
    "attention": {"how": "attention"},
}
ROUNDED_STUDENT = "soft targets T=4"  # the one whose weights become int8


@dataclass(frozen=True)
class Lesson:
    """What the students of one seed may learn from.

    Attributes:
        few: the labelled images.
        images: all training images; their labels are not read.
        teacher: fine-tuned on `few`.
    """

    few: Examples
    images: Examples
    teacher: nn.Module
    seed: int


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
    """One run: a student.  Whatever `how` is, it sees equally many images.

    Args:
        how: "labels" learns from the few labels alone; the others look at all training images:
            "pseudo-labels" the teacher's hard answers, "soft targets" its softened ones, "FitNets"
            and "attention" match `LAYERS` too.
        jitter: name of an augmentation in `strategies.JITTERS`.
        beta: weight of the matched layers.

    Raises:
        ValueError: `how` is none of these.
    """
    seed_everything(given.seed)
    student = tiny_cnn()
    objective = objective_of(how, given.teacher, temperature=temperature, beta=beta)
    examples = given.few if how == "labels" else given.images
    loaders = make_loaders(examples, batch_size=BATCH, steps=steps, augment=JITTERS[jitter], seed=given.seed)
    parameters = [*student.parameters()]
    if isinstance(objective, nn.Module):
        parameters += objective.parameters()  # the regressor of FitNets learns too
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.02)
    fit(student, loaders, objective, optimizer, epochs=1, schedule=warmup_cosine(), clip_norm=1.0)
    return student


def objective_of(how: str, teacher: nn.Module, *, temperature: float, beta: float) -> Objective:
    """What a student of `taught` minimises; arguments and errors as there."""
    frozen = FrozenTeacher(teacher)  # one for both terms of "FitNets" and "attention", which then ask it once per batch
    soft = distillation(frozen, temperature=temperature, alpha=1.0)
    match how:
        case "labels":
            return classification()
        case "pseudo-labels":
            return PseudoLabels(frozen)
        case "soft targets":
            return soft
        case "FitNets":
            return feature_match(soft, frozen, layers=LAYERS, regressor=nn.Conv2d(32, 64, 1), beta=beta)
        case "attention":
            return attention_transfer(soft, frozen, layers=LAYERS, beta=beta)
    raise ValueError(f"how is {how!r}; choose one of {[*GRIDS, *BETAS]}")


class PseudoLabels(nn.Module):
    """Cross-entropy against the teacher's most likely class for the same view of the image; y is not read."""

    def __init__(self, teacher: FrozenTeacher) -> None:
        super().__init__()
        self.teacher = teacher
        self.cross_entropy = classification()

    def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, _ = batch
        return self.cross_entropy(model, (x, self.teacher(x).argmax(1)))


def tiny_cnn(
    classes: int = 10, *, channels: int = 1, width: int = 1, mean: float = PRINT_MEAN, std: float = PRINT_STD
) -> nn.Sequential:
    """The student: images [N, channels, 32, 32] -> [N, classes] with about 11,000 * width^2 parameters."""

    def block(inputs: int, outputs: int, kernel: int) -> nn.Sequential:  # halves the image
        convolution = nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    body = OrderedDict(normalize=Normalize(mean, std))
    body["block1"] = block(channels, 12 * width, kernel=5)
    body["block2"] = block(12 * width, 24 * width, kernel=3)
    body["block3"] = block(24 * width, 32 * width, kernel=3)
    body["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())  # [N, D, 4, 4] -> [N, 4 * D]
    return nn.Sequential(OrderedDict(body=nn.Sequential(body), head=nn.Linear(4 * 32 * width, classes)))


def lesson(backbone: Backbone, train: Examples, *, seed: int) -> Lesson:
    """Draw the labels of a seed and fine-tune the teacher, with the settings of the recorded label curve."""
    setting = read_record(label_curve.UCI_RECORD)["tuning"]["fine-tuned"]["chosen"]
    few = few_shot(train, LABELS, seed=seed)
    return Lesson(few, train, fine_tuned(backbone, few, seed=seed, **setting), seed)


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
    state = {}
    size = 0
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
def answers(model: nn.Module, examples: Examples) -> Tensor:
    """The most likely class of every image, int64 [N], on the CPU; leaves the model in eval mode."""
    device = next(model.parameters()).device
    return model.eval()(examples.x.to(device)).argmax(1).cpu()


def int8_scores(student: nn.Module, teacher: nn.Module, test: Examples) -> dict[str, float]:
    """Accuracy of a student with int8 weights, and how often it answers as the float student and the teacher do."""
    rounded_student = tiny_cnn()
    state, _ = with_rounded_weights(student)
    rounded_student.load_state_dict(state)
    predictions = answers(rounded_student, test)
    others = {
        "accuracy": test.y,
        "agrees with float": answers(student, test),
        "agrees with teacher": answers(teacher, test),
    }
    return {name: round(float((predictions == other).float().mean()), 4) for name, other in others.items()}


def validation_accuracy(lessons: list[Lesson], validation: Examples, how: str, **setting) -> float:
    """Mean over the students of several lessons."""
    return mean(accuracy(taught(given, how, **setting), validation) for given in lessons)


def tune(lessons: list[Lesson], validation: Examples) -> dict[str, dict]:
    """Per way of teaching the setting with the best mean validation accuracy."""
    tuning = {}
    for how, grid in GRIDS.items():
        print(how, flush=True)
        tuning[how] = choose(partial(validation_accuracy, lessons, validation, how), grid)
    for how, beta in BETAS.items():  # at the rate of the soft targets, which they are added to
        tuning[how] = {"chosen": tuning["soft targets"]["chosen"] | {"beta": beta}}
    return tuning


def record(path: Path) -> None:
    """Tune on validation, then teach every student of every seed and score it once on the test part."""
    digits = load_dataset("digits")
    backbone = load_backbone("glyphs-all")
    tuning = tune([lesson(backbone, digits.train, seed=seed) for seed in TUNING_SEEDS], digits.validation)
    runs = defaultdict(list)
    int8 = defaultdict(list)
    for seed in SEEDS:
        given = lesson(backbone, digits.train, seed=seed)
        runs["teacher"].append(round(accuracy(given.teacher, digits.test), 4))
        for name, way in STUDENTS.items():
            student = taught(given, **way, **tuning[way["how"]]["chosen"])
            runs[name].append(round(accuracy(student, digits.test), 4))
            if name == ROUNDED_STUDENT:
                for column, value in int8_scores(student, given.teacher, digits.test).items():
                    int8[column].append(value)
        print(seed, {name: scores[-1] for name, scores in runs.items()}, flush=True)
    facts = {
        "what": f"test accuracy with {LABELS} labels per class by way of teaching and seed; int8: student at T=4",
        "runs": runs,
        "int8": int8,
        "tuning": tuning,
    }
    write_record(path, facts | provenance("python -m tlhelpers.experiments.distillation", seeds=SEEDS))


if __name__ == "__main__":
    record(RECORD)
