"""Record the text student of page 06: `python -m tlhelpers.experiments.text_distillation` (about 12 minutes on one CPU core).

The teacher is MiniLM, frozen, with a linear probe on 4 labelled messages per intent and register.  The
student keeps two of its six layers (Sanh et al. 2019, DistilBERT, arXiv:1910.01108, keep every other one)
and learns from those labels alone, or from the teacher's answers on all training messages.  Learning
rates are chosen on the validation part with other draws of labels; the test part is scored once per run.
"""

import copy
import json
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from tlhelpers.models.backbones import ASSETS
from tlhelpers.data.examples import Part, Splits, TensorLoader
from tlhelpers.analysis.features import Features, linear_probe
from tlhelpers.data.messages import load_messages, split_messages
from tlhelpers.objectives.supervised import classification, distillation
from tlhelpers.experiments.records import provenance
from tlhelpers.experiments.distillation import hard_answers
from tlhelpers.runtime import seed_everything
from tlhelpers.models.encoders import TextBody, length_order, load_text_body, trimmed
from tlhelpers.training.loop import fit, warmup_cosine

RECORD = ASSETS / "recorded" / "text_distillation.json"
SEEDS, TUNING_SEEDS = range(5), (1000, 1001)
LABELS = 4  # per intent and register
KEPT = (0, 5)  # layers of the teacher that the student starts from: the first and the last
STEPS, BATCH, TEMPERATURE = 80, 16, 2.0
RATES = (3e-4, 1e-3)
WAYS = ("labels", "pseudo-labels", "soft targets", "soft targets, random start")


def student_of(body: TextBody, kept: tuple[int, ...] = KEPT) -> TextBody:
    """A copy of a transformer with some of its layers; its word vectors stay frozen."""
    student = copy.deepcopy(body)
    layers = student.transformer.encoder.layer
    student.transformer.encoder.layer = nn.ModuleList(layers[i] for i in kept)
    student.transformer.config.num_hidden_layers = len(kept)
    student.transformer.embeddings.requires_grad_(False)
    return student


@torch.inference_mode()
def encoded(body: TextBody, part: Part) -> Features:
    """Features of texts, in order; computed from the shortest to the longest, which saves padding."""
    order = length_order(part.x)
    x = torch.cat([body.eval()(trimmed(rows)) for rows in part.x[order].split(32)])
    return Features(x[order.argsort()].clone(), part.y)


def teacher_of(body: TextBody, few: Part) -> nn.Sequential:
    """MiniLM with a probe on the labelled messages: [N, L] -> [N, classes]."""
    features = encoded(body, few)
    return nn.Sequential(body, linear_probe(features, features).as_layer()).requires_grad_(False).eval()


def labelled(train: Part, chat: Tensor, *, seed: int) -> Part:
    """`LABELS` messages per intent and register; `chat` bool [N] tells the registers of `train` apart."""
    generator, rows = torch.Generator().manual_seed(seed), []
    for label in range(len(train.classes)):
        for register in (False, True):
            members = ((train.y == label) & (chat == register)).nonzero().flatten()
            rows.append(members[torch.randperm(len(members), generator=generator)[:LABELS]])
    return train.take(torch.cat(rows))


def taught(
    teacher: nn.Sequential, few: Part, texts: Part, how: str, *, seed: int, lr: float, steps: int = STEPS
) -> nn.Sequential:
    """A student of two layers; whatever `how` (one of `WAYS`) is, it reads equally many messages.

    Args:
        few: the labelled messages.
        texts: all training messages; their labels are not read.

    Raises:
        ValueError: `how` is none of `WAYS`.
    """
    if how not in WAYS:
        raise ValueError(f"how is {how!r}; choose one of {WAYS}")
    seed_everything(seed)
    body = student_of(teacher[0] if "random" not in how else load_text_body(pretrained=False))
    student = nn.Sequential(body, nn.Linear(body.feature_dim, len(few.classes)))
    soft = distillation(teacher, temperature=TEMPERATURE, alpha=1.0)
    objective = {"labels": classification(), "pseudo-labels": hard_answers(teacher)}.get(how, soft)
    part = few if how == "labels" else texts
    loader = TensorLoader(part, BATCH, shuffle=True, steps=steps, transform=trimmed, seed=seed)
    body.requires_grad_(True).transformer.embeddings.requires_grad_("random" in how)
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.01)
    fit(student, (loader, None), objective, optimizer, epochs=1, schedule=warmup_cosine(), clip_norm=1.0)
    return student


@torch.inference_mode()
def answers(model: nn.Sequential, part: Part) -> Tensor:
    """The most likely class of every text, int64 [N]."""
    return model[1](encoded(model[0], part).x).argmax(1)


def latency(model: nn.Sequential, part: Part, repeats: int = 5) -> float:
    """Seconds to answer all texts of a part, median."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        answers(model, part)
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def lesson(messages, body: TextBody, *, seed: int) -> tuple[Splits, Part, nn.Sequential]:
    """The split of a seed, its labelled messages and the teacher."""
    splits = split_messages(messages, seed=seed)
    few = labelled(splits.train, messages.chat[splits.train.indices], seed=seed)
    return splits, few, teacher_of(body, few)


def tuned(messages, body: TextBody) -> dict[str, dict]:
    """Per way of teaching the learning rate with the best mean validation accuracy, and the whole table."""
    found = {}
    lessons = [lesson(messages, body, seed=seed) for seed in TUNING_SEEDS]
    for how in WAYS:
        table = {}
        for lr in RATES:
            right = []
            for seed, (splits, few, teacher) in zip(TUNING_SEEDS, lessons, strict=True):
                student = taught(teacher, few, splits.train, how, seed=seed, lr=lr)
                right.append((answers(student, splits.validation) == splits.validation.y).float().mean())
            table[lr] = round(float(sum(right) / len(right)), 4)
            print(how, lr, table[lr], flush=True)
        found[how] = {"chosen": max(table, key=table.get), "validation_accuracy": table}
    return found


def record(path: Path) -> None:
    """Tune on validation, then teach every student of every seed and score it once on the test part."""
    messages, body = load_messages(), load_text_body()
    tuning = tuned(messages, body)
    runs: dict[str, list[float]] = {}
    agreement: dict[str, list[float]] = {}
    for seed in SEEDS:
        splits, few, teacher = lesson(messages, body, seed=seed)
        theirs = answers(teacher, splits.test)
        runs.setdefault("teacher", []).append(float((theirs == splits.test.y).float().mean()))
        for how in WAYS:
            student = taught(teacher, few, splits.train, how, seed=seed, lr=tuning[how]["chosen"])
            mine = answers(student, splits.test)
            runs.setdefault(how, []).append(float((mine == splits.test.y).float().mean()))
            agreement.setdefault(how, []).append(float((mine == theirs).float().mean()))
        print(seed, {name: round(values[-1], 4) for name, values in runs.items()}, flush=True)
    sizes = {name: sum(p.numel() for p in m.parameters()) for name, m in (("teacher", teacher), ("student", student))}
    facts = {
        "what": f"test accuracy on intents with {LABELS} labels per intent and register, by way of teaching and seed",
        "runs": {name: [round(value, 4) for value in values] for name, values in runs.items()},
        "agreement_with_teacher": {name: [round(value, 4) for value in values] for name, values in agreement.items()},
        "parameters": sizes,
        "times_faster": round(latency(teacher, splits.test) / latency(student, splits.test), 2),
        "tuning": tuning,
    }
    path.parent.mkdir(exist_ok=True)
    told = provenance("python -m tlhelpers.experiments.text_distillation")
    path.write_text(json.dumps(facts | told, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    record(RECORD)
