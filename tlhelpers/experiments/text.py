"""Record the slow runs of page 04: `python -m tlhelpers.experiments.text` (an hour on one busy CPU core).

MiniLM on the shipped messages: full fine-tuning, LoRA, the last layers over cached lower ones, and
the same network from random weights.  Each seed deals its own training pool and test part, in
whole groups; settings are chosen on the validation part, which no seed scores on.  If the cache
holds SST-2, word counts, frozen features and the last two layers are scored on it too.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional as F

from tlhelpers.models.backbones import ASSETS, Backbone, load_backbone
from tlhelpers.data.examples import Part, Splits, TensorLoader, few_shot, make_loaders
from tlhelpers.analysis.features import extract_features
from tlhelpers.data.messages import Messages, load_messages, load_sst2, read_table, split_messages
from tlhelpers.objectives.supervised import classification
from tlhelpers.experiments.records import provenance
from tlhelpers.runtime import cache_dir, seed_everything
from tlhelpers.models.surgery import attach_head, freeze, param_groups
from tlhelpers.models.encoders import cut_body, length_order, trimmed
from tlhelpers.training.loop import evaluate, fit, warmup_cosine

RECORD = ASSETS / "recorded" / "text.json"
SEEDS = range(5)
TUNING_SEEDS = (1000, 1001)
STEPS = {1: 30, 2: 30, 4: 30, 8: 40, 16: 40, 32: 40}  # batches of 16, by labels per class
TUNED_AT = (4, 16)  # learning rates are chosen at 4 labels per class for fewer than 16, and at 16 from there on
TOPS = (1, 2, 4)  # how many of the six layers "last k layers" trains
HEAD_LR = 3e-2  # the head starts from nothing; the body moves slower
RANK = 8  # of LoRA
STRENGTHS = (1.0, 10.0, 100.0)  # C of logistic regression: the larger, the weaker the penalty
NGRAMS = (1, 2)  # words alone, or pairs of neighbours too


def trained(
    model: nn.Sequential, train: Part, transform: Callable[[Tensor], Tensor], *, lr: float, seed: int, steps: int
) -> nn.Sequential:
    """AdamW, warm-up and cosine, batches of 16; `lr` is the body's, the head has its own."""
    loaders = make_loaders(train, batch_size=16, steps=steps, transform=transform, seed=seed)
    groups = param_groups(model.body, model.head, lr=HEAD_LR, body_scale=lr / HEAD_LR)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    fit(model, loaders, classification(), optimizer, epochs=1, schedule=warmup_cosine(), clip_norm=1.0)
    return model


def fully_tuned(backbone: Backbone, train: Part, *, seed: int, steps: int, lr: float = 3e-4) -> nn.Sequential:
    """Every layer trained; only the table of embeddings, half of all parameters, stays as it is."""
    seed_everything(seed)
    model = attach_head(backbone, len(train.classes), frozen=backbone.module.transformer.embeddings)
    freeze(model.body.transformer.embeddings)
    return trained(model, train, backbone.transform, lr=lr, seed=seed, steps=steps)


def lora_tuned(
    backbone: Backbone, train: Part, *, seed: int, steps: int, lr: float = 3e-3, rank: int = RANK
) -> nn.Sequential:
    """Updates of low rank to the queries and values of all layers (Hu et al. 2021, arXiv:2106.09685), with peft."""
    from peft import LoraConfig, get_peft_model

    seed_everything(seed)
    model = attach_head(backbone, len(train.classes), frozen=backbone.module)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["query", "value"])
    model.body.transformer = get_peft_model(model.body.transformer, config)
    return trained(model, train, backbone.transform, lr=lr, seed=seed, steps=steps)


def top_tuned(upper: Backbone, train: Part, *, seed: int, steps: int, lr: float = 1e-3) -> nn.Sequential:
    """The last layers trained, on cached outputs of the lower ones: `upper` and `train` come from `cached`."""
    seed_everything(seed)
    return trained(attach_head(upper, len(train.classes)), train, upper.transform, lr=lr, seed=seed, steps=steps)


def cached(backbone: Backbone, part: Part, *, top: int) -> tuple[Backbone, Part]:
    """The last `top` layers as a body, and the part with the hidden states below them, [N, L, D], as inputs."""
    lower, upper = cut_body(backbone.module, top)
    hidden = torch.zeros(*part.x.shape, backbone.feature_dim)
    with torch.inference_mode():
        for rows in length_order(part.x).split(32):
            states = lower(trimmed(part.x[rows]))
            hidden[rows, : states.shape[1]] = states
    body = Backbone(f"{backbone.name}, last {top}", upper, backbone.feature_dim, trimmed, None, (), {})
    return body, replace(part, x=hidden, transform=f"layers below the last {top}")


def features_of(backbone: Backbone, part: Part) -> np.ndarray:
    """Mean-pooled features of length 1, [N, D], in the order of the part."""
    order = length_order(part.x)
    x = extract_features(backbone, part.take(order), batch_size=32).x
    return F.normalize(x[order.argsort()]).numpy()


def logistic(train: np.ndarray, y: Tensor, *others: np.ndarray, C: float) -> list[np.ndarray]:
    """Predictions of a logistic regression on each of `others`."""
    with threadpool_limits(1):
        fitted = LogisticRegression(C=C, max_iter=2000).fit(train, y.numpy())
    return [fitted.predict(other) for other in others]


def word_counts(train: Sequence[str], *others: Sequence[str], ngrams: int) -> list:
    """TF-IDF vectors: words of the training texts counted, rare ones weighing more."""
    counter = TfidfVectorizer(ngram_range=(1, ngrams), sublinear_tf=True).fit(train)
    return [counter.transform(texts) for texts in (train, *others)]


def accuracy(model: nn.Module, part: Part, transform: Callable[[Tensor], Tensor]) -> float:
    """Accuracy of a model on a part."""
    return round(evaluate(model, TensorLoader(part.take(_by_length(part)), 32, transform=transform))["accuracy"], 4)


def _by_length(part: Part) -> Tensor:
    return length_order(part.x if part.x.ndim == 2 else part.x.any(-1).long())


Run = tuple[Callable[..., nn.Sequential], Callable[[int], Splits], Callable[[Tensor], Tensor]]


def pick(run: Run, labels: int, rates: tuple[float, ...]) -> dict:
    """The learning rate with the best mean validation accuracy, and the whole table."""
    train, splits_of, transform = run
    table = []
    for lr in rates:
        scores = []
        for seed in TUNING_SEEDS:
            splits = splits_of(seed)
            model = train(few_shot(splits.train, labels, seed=seed), seed=seed, steps=STEPS[labels], lr=lr)
            scores.append(accuracy(model, splits.validation, transform))
        table.append({"lr": lr, "validation_accuracy": round(float(np.mean(scores)), 4)})
        print(labels, table[-1], flush=True)
    return {"chosen": max(table, key=lambda row: row["validation_accuracy"])["lr"], "table": table}


def chosen_rate(tuning: dict, method: str, labels: int) -> float:
    """The learning rate of a method at a number of labels per class; `tuning` comes from the record."""
    return tuning[method][str(TUNED_AT[labels >= TUNED_AT[1]])]["chosen"]


def score(run: Run, labels: int, lr: float) -> list[float]:
    """Test accuracy per seed."""
    train, splits_of, transform = run
    found = []
    for seed in SEEDS:
        splits = splits_of(seed)
        model = train(few_shot(splits.train, labels, seed=seed), seed=seed, steps=STEPS[labels], lr=lr)
        found.append(accuracy(model, splits.test, transform))
    return found


def methods(messages: Messages) -> dict[str, tuple[Run, tuple[float, ...]]]:
    """Per method: how to run it, and the learning rates to choose from."""
    minilm = load_backbone("minilm")
    seed_everything(0)
    blank = load_backbone("minilm-random")
    split, slow, fast = partial(split_by_seed, messages), (1e-4, 3e-4), (3e-4, 1e-3)
    table: dict[str, tuple[Run, tuple[float, ...]]] = {
        "full fine-tuning": ((partial(fully_tuned, minilm), split, minilm.transform), slow),
        "LoRA": ((partial(lora_tuned, minilm), split, minilm.transform), (1e-3, 3e-3)),
        "random weights": ((partial(fully_tuned, blank), split, minilm.transform), fast),
    }
    for top in TOPS:
        upper, part = cached(minilm, messages.part, top=top)
        own = partial(split_by_seed, replace(messages, part=part))
        table[last(top)] = ((partial(top_tuned, upper), own, trimmed), fast)
    return table


def last(top: int) -> str:
    """The name of the method that trains the last `top` layers."""
    return f"last {top} layer{'s' * (top > 1)}"


def split_by_seed(messages: Messages, seed: int) -> Splits:
    """`split_messages` with the seed in second place."""
    return split_messages(messages, seed=seed)


def simple_scores(
    few: tuple[list[str], np.ndarray, Tensor], held: tuple[list[str], np.ndarray, Tensor], C: dict[str, float]
) -> dict[str, float]:
    """Accuracy on `held` of word counts and of frozen features, learnt from `few`: each texts, features, labels."""
    counts = word_counts(few[0], held[0], ngrams=2)
    said = {
        "TF-IDF": logistic(counts[0], few[2], counts[1], C=C["TF-IDF"])[0],
        "frozen features": logistic(few[1], few[2], held[1], C=C["frozen features"])[0],
    }
    return {method: round(float((answer == held[2].numpy()).mean()), 4) for method, answer in said.items()}


def sentiment() -> dict:
    """Word counts, frozen features and the last two layers on SST-2: C by validation, scores on its dev sentences."""
    minilm, folder = load_backbone("minilm"), cache_dir() / "text" / "sst2"
    splits = load_sst2(minilm.transform)
    texts = [read_table(folder / f"{name}.tsv")[0] for name in ("train", "dev")]
    draws = [few_shot(splits.train, 128, seed=seed) for seed in (*TUNING_SEEDS, *SEEDS)]
    used = splits.train.take(torch.cat([_places(splits.train, few) for few in draws]).unique())
    x = features_of(minilm, used)

    def learnable(seed: int, labels: int) -> tuple[list[str], np.ndarray, Tensor]:
        few = few_shot(splits.train, labels, seed=seed)
        return [texts[0][i] for i in few.indices], x[_places(used, few)], few.y

    choosing, scoring = (
        ([own[i] for i in part.indices], features_of(minilm, part), part.y)
        for own, part in ((texts[0], few_shot(splits.validation, 200, seed=0)), (texts[1], splits.test))
    )
    names, tuning = ("TF-IDF", "frozen features"), {}
    for C in STRENGTHS:
        found = [simple_scores(learnable(s, 32), choosing, dict.fromkeys(names, C)) for s in TUNING_SEEDS]
        tuning[C] = {name: round(float(np.mean([one[name] for one in found])), 4) for name in names}
    chosen = {name: max(STRENGTHS, key=lambda C: tuning[C][name]) for name in names}
    found = {k: [simple_scores(learnable(s, k), scoring, chosen) for s in SEEDS] for k in (8, 32, 128)}
    runs = {name: {k: [one[name] for one in seeds] for k, seeds in found.items()} for name in names}
    upper, hidden = cached(minilm, used, top=2)
    tests = cached(minilm, splits.test, top=2)[1]
    parts = [hidden.take(_places(used, few_shot(splits.train, 128, seed=seed))) for seed in SEEDS]
    models = (top_tuned(upper, part, seed=seed, steps=40, lr=3e-4) for seed, part in zip(SEEDS, parts, strict=True))
    runs["last 2 layers"] = {128: [accuracy(model, tests, trimmed) for model in models]}
    return {"runs": runs, "C": chosen, "tuning": tuning, "test_sentences": len(splits.test)}


def _places(part: Part, some: Part) -> Tensor:
    """Positions in `part` of the rows that `some` holds."""
    where = {int(row): place for place, row in enumerate(part.indices)}
    return torch.tensor([where[int(row)] for row in some.indices])


def record(path: Path) -> None:
    """Choose settings on validation, score every method and seed once on its test part, and keep what is done."""
    facts = {"what": "test accuracy by method, labels per class and seed", "runs": {}, "tuning": {}}
    facts |= provenance("python -m tlhelpers.experiments.text") | {"seeds": list(SEEDS)}
    for name, (run, rates) in methods(load_messages()).items():
        facts["tuning"][name] = {str(labels): pick(run, labels, rates) for labels in TUNED_AT}
        facts["runs"][name] = {n: score(run, n, chosen_rate(facts["tuning"], name, n)) for n in STEPS}
        print(name, facts["runs"][name], flush=True)
        path.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    if (cache_dir() / "text" / "sst2" / "dev.tsv").exists():
        facts["sst2"] = sentiment()
        path.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    record(RECORD)
