"""Record the text student of page 06: `python -m tlhelpers.experiments.text_distillation` (12 minutes on one CPU core).

The teacher is MiniLM, frozen, with a linear probe on 4 labelled messages per intent and register.  The
student keeps two of its six layers (Sanh et al. 2019, DistilBERT, arXiv:1910.01108, keep every other one)
and learns from those labels alone, or from the teacher's answers on all training messages.  Learning
rates are chosen on the validation part with other draws of labels; the test part is scored once per run.
"""

import copy
import time
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median

import torch
from torch import Tensor, nn

from tlhelpers.analysis import fit_probe
from tlhelpers.data import Examples, Messages, Splits, load_messages, make_loaders, split_messages
from tlhelpers.experiments.distillation import PseudoLabels
from tlhelpers.experiments.records import RECORDED, choose, provenance, write_record
from tlhelpers.experiments.text import outputs_of
from tlhelpers.models import TextBody, attach_head, freeze, load_text_body
from tlhelpers.objectives import FrozenTeacher, Objective, classification, distillation
from tlhelpers.runtime import seed_everything, shifted
from tlhelpers.training import fit, warmup_cosine

RECORD = RECORDED / "text_distillation.json"
SEEDS = range(5)
TUNING_SEEDS = (1000, 1001)
LABELS = 4  # per intent and register
LAYERS = (0, 5)  # of the teacher that the student starts from: the first and the last
STEPS = 80
BATCH = 16
TEMPERATURE = 2.0
RATES = (3e-4, 1e-3)
WAYS = ("labels", "pseudo-labels", "soft targets", "soft targets, random start")


@dataclass(frozen=True)
class Lesson:
    """What the students of one seed may learn from.

    Attributes:
        splits: all messages; the labels of the training part are not read.
        few: the labelled messages.
        teacher: MiniLM with a probe on `few`, [N, L] -> [N, classes].
    """

    splits: Splits
    few: Examples
    teacher: nn.Sequential
    seed: int


def taught(given: Lesson, how: str, *, lr: float, steps: int = STEPS) -> nn.Sequential:
    """One run: a student of two layers; whatever `how` (one of `WAYS`) is, it reads equally many messages.

    Raises:
        ValueError: `how` is none of `WAYS`.
    """
    objective = objective_of(how, given.teacher)
    random_start = how == "soft targets, random start"
    seed_everything(given.seed)
    body = some_layers(load_text_body(pretrained=False) if random_start else given.teacher.body)
    student = attach_head(body, len(given.few.classes))
    if not random_start:
        freeze(student.body.transformer.embeddings)  # word vectors, half of all parameters
    examples = given.few if how == "labels" else given.splits.train
    loaders = make_loaders(examples, batch_size=BATCH, steps=steps, seed=given.seed)
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=lr, weight_decay=0.01)
    fit(student, loaders, objective, optimizer, epochs=1, schedule=warmup_cosine(), clip_norm=1.0)
    return student


def objective_of(how: str, teacher: nn.Module) -> Objective:
    """What a student of `taught` minimises; errors as there."""
    match how:
        case "labels":
            return classification()
        case "pseudo-labels":
            return PseudoLabels(FrozenTeacher(teacher))
        case "soft targets" | "soft targets, random start":
            return distillation(teacher, temperature=TEMPERATURE, alpha=1.0)
    raise ValueError(f"how is {how!r}; choose one of {WAYS}")


def some_layers(body: TextBody, layers: tuple[int, ...] = LAYERS) -> TextBody:
    """A trainable copy of a transformer with some of its layers."""
    smaller = copy.deepcopy(body).requires_grad_(True)
    smaller.transformer.encoder.layer = nn.ModuleList(smaller.transformer.encoder.layer[i] for i in layers)
    smaller.transformer.config.num_hidden_layers = len(layers)
    return smaller


def lesson(messages: Messages, body: TextBody, *, seed: int) -> Lesson:
    """The split of a seed, its labelled messages and their teacher, which shares the memory of `body`."""
    splits = split_messages(messages, seed=seed)
    few = labelled(splits.train, messages.chat[splits.train.indices], seed=seed)
    probe = fit_probe(outputs_of(body, few))
    return Lesson(splits, few, attach_head(body, probe.as_layer(), frozen=body).eval(), seed)


def labelled(train: Examples, chat: Tensor, *, seed: int) -> Examples:
    """`LABELS` messages per intent and register; `chat` bool [N] tells the registers of `train` apart."""
    generator = torch.Generator().manual_seed(shifted(seed))
    rows = []
    for label in range(len(train.classes)):
        for register in (False, True):
            members = ((train.y == label) & (chat == register)).nonzero().flatten()
            rows.append(members[torch.randperm(len(members), generator=generator)[:LABELS]])
    return train.take(torch.cat(rows))


def answers(model: nn.Sequential, examples: Examples) -> Tensor:
    """The most likely class of every text, int64 [N]."""
    return outputs_of(model, examples).x.argmax(1)


def same(predictions: Tensor, others: Tensor) -> float:
    """How often two lists of classes [N] are equal: accuracy if one of them is the labels."""
    return round(float((predictions == others).float().mean()), 4)


def latency(model: nn.Sequential, examples: Examples, repeats: int = 5) -> float:
    """Seconds to answer all texts, median."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        answers(model, examples)
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def validation_accuracy(lessons: list[Lesson], how: str, *, lr: float) -> float:
    """Mean over the students of several lessons."""
    accuracies = []
    for given in lessons:
        student = taught(given, how, lr=lr)
        accuracies.append(same(answers(student, given.splits.validation), given.splits.validation.y))
    return mean(accuracies)


def tune(lessons: list[Lesson]) -> dict[str, dict]:
    """Per way of teaching the learning rate with the best mean validation accuracy."""
    tuning = {}
    for how in WAYS:
        print(how, flush=True)
        tuning[how] = choose(partial(validation_accuracy, lessons, how), {"lr": RATES})
    return tuning


def record(path: Path) -> None:
    """Tune on validation, then teach every student of every seed and score it once on the test part."""
    messages = load_messages()
    body = load_text_body()
    tuning = tune([lesson(messages, body, seed=seed) for seed in TUNING_SEEDS])
    runs = defaultdict(list)
    agreement = defaultdict(list)
    for seed in SEEDS:
        given = lesson(messages, body, seed=seed)
        test = given.splits.test
        teacher_answers = answers(given.teacher, test)
        runs["teacher"].append(same(teacher_answers, test.y))
        for how in WAYS:
            student = taught(given, how, **tuning[how]["chosen"])
            student_answers = answers(student, test)
            runs[how].append(same(student_answers, test.y))
            agreement[how].append(same(student_answers, teacher_answers))
        print(seed, {name: scores[-1] for name, scores in runs.items()}, flush=True)
    last = {"teacher": given.teacher, "student": student}
    facts = {
        "what": f"test accuracy on intents with {LABELS} labels per intent and register, by way of teaching and seed",
        "runs": runs,
        "agreement_with_teacher": agreement,
        "parameters": {name: sum(p.numel() for p in model.parameters()) for name, model in last.items()},
        "times_faster": round(latency(given.teacher, test) / latency(student, test), 2),
        "tuning": tuning,
    }
    write_record(path, facts | provenance("python -m tlhelpers.experiments.text_distillation", seeds=SEEDS))


if __name__ == "__main__":
    record(RECORD)
