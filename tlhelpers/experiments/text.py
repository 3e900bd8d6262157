"""Record the slow runs of page 04: `python -m tlhelpers.experiments.text` (an hour on one busy CPU core).

MiniLM on the shipped messages: full fine-tuning, LoRA, the last layers over cached lower ones, and
the same network from random weights.  Each seed deals its own training pool and test part, in
whole groups; settings are chosen on the validation part, which no seed scores on.  If the cache
holds SST-2, word counts, frozen features and the last two layers are scored on it too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional as F

from tlhelpers.analysis import Features, extract_features
from tlhelpers.data import (
    Examples,
    Messages,
    Splits,
    TensorLoader,
    few_shot,
    length_order,
    load_messages,
    load_sst2,
    make_loaders,
    read_table,
    split_messages,
    trimmed,
)
from tlhelpers.experiments.records import RECORDED, choose, provenance, write_record
from tlhelpers.models import Backbone, attach_head, cut_body, freeze, load_backbone, param_groups
from tlhelpers.objectives import classification
from tlhelpers.runtime import cache_dir, seed_everything
from tlhelpers.training import evaluate, fit, warmup_cosine

RECORD = RECORDED / "text.json"
SEEDS = range(5)
TUNING_SEEDS = (1000, 1001)
STEPS = {1: 30, 2: 30, 4: 30, 8: 40, 16: 40, 32: 40}  # batches of 16, by labels per class
TUNED_AT = (4, 16)  # learning rates are chosen at 4 labels per class for fewer than 16, and at 16 from there on
TOPS = {"last 1 layer": 1, "last 2 layers": 2, "last 4 layers": 4}  # how many of the six layers a method trains
HEAD_LR = 3e-2  # the head starts from nothing; the body moves slower
RANK = 8  # of LoRA
STRENGTHS = (1.0, 10.0, 100.0)  # C of logistic regression: the larger, the weaker the penalty
NGRAMS = (1, 2)  # words alone, or pairs of neighbours too
SST2_LABELS = (8, 32, 128)  # per class
SST2_TUNED_AT = 32


@dataclass(frozen=True)
class Method:
    """How to run a method on the messages.

    Attributes:
        train: `(few, seed=..., steps=..., lr=...) -> model`.
        messages: with the inputs that it takes: token ids, or hidden states.
        rates: learning rates to choose from.
    """

    train: Callable[..., nn.Sequential]
    messages: Messages
    rates: tuple[float, ...]


def one_run(method: Method, splits: Splits, *, labels: int, seed: int, lr: float) -> nn.Sequential:
    """One run, a point of the curve: draw the labels of a seed and train on them."""
    return method.train(few_shot(splits.train, labels, seed=seed), seed=seed, steps=STEPS[labels], lr=lr)


def trained(model: nn.Sequential, train: Examples, *, lr: float, seed: int, steps: int) -> nn.Sequential:
    """AdamW, warm-up and cosine, batches of 16; `lr` is the body's, the head has its own."""
    loaders = make_loaders(train, batch_size=16, steps=steps, seed=seed)
    groups = param_groups(model.body, model.head, lr=HEAD_LR, body_scale=lr / HEAD_LR)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    fit(model, loaders, classification(), optimizer, epochs=1, schedule=warmup_cosine(), clip_norm=1.0)
    return model


def fully_tuned(backbone: Backbone, train: Examples, *, seed: int, steps: int, lr: float = 3e-4) -> nn.Sequential:
    """Every layer trained; only the table of embeddings, half of all parameters, stays as it is."""
    seed_everything(seed)
    model = attach_head(backbone, len(train.classes), frozen=backbone.module.transformer.embeddings)
    freeze(model.body.transformer.embeddings)
    return trained(model, train, lr=lr, seed=seed, steps=steps)


def lora_tuned(
    backbone: Backbone, train: Examples, *, seed: int, steps: int, lr: float = 3e-3, rank: int = RANK
) -> nn.Sequential:
    """Updates of low rank to the queries and values of all layers (Hu et al. 2021, arXiv:2106.09685), with peft."""
    from peft import LoraConfig, get_peft_model

    seed_everything(seed)
    model = attach_head(backbone, len(train.classes), frozen=backbone.module)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["query", "value"])
    model.body.transformer = get_peft_model(model.body.transformer, config)
    return trained(model, train, lr=lr, seed=seed, steps=steps)


def top_tuned(upper: Backbone, train: Examples, *, seed: int, steps: int, lr: float = 1e-3) -> nn.Sequential:
    """The last layers trained, on cached outputs of the lower ones: `upper` and `train` come from `cached`."""
    seed_everything(seed)
    return trained(attach_head(upper, len(train.classes)), train, lr=lr, seed=seed, steps=steps)


def cached(backbone: Backbone, examples: Examples, *, top: int) -> tuple[Backbone, Examples]:
    """The last `top` layers as a body, and the examples with the hidden states below them, [N, L, D], as inputs."""
    lower, upper = cut_body(backbone.module, top)
    hidden = torch.zeros(*examples.x.shape, backbone.feature_dim)
    with torch.inference_mode():
        for rows in length_order(examples.x).split(32):
            states = lower(trimmed(examples.x[rows]))
            hidden[rows, : states.shape[1]] = states
    body = Backbone(upper, backbone.feature_dim, name=f"{backbone.name}, last {top}")
    return body, replace(examples, x=hidden, history=f"layers below the last {top}")


def outputs_of(module: Backbone | nn.Module, examples: Examples) -> Features:
    """What a body (features) or a model (logits) gives for texts, in their order.

    Computed from the shortest text to the longest, which saves padding.
    """
    order = length_order(examples.x)
    x = extract_features(module, examples.take(order), batch_size=32).x
    return Features(x[order.argsort()], examples.y)


def features_of(backbone: Backbone, examples: Examples) -> np.ndarray:
    """Mean-pooled features of length 1, [N, D], in the order of the texts."""
    return F.normalize(outputs_of(backbone, examples).x).numpy()


def word_counts(train: Sequence[str], *others: Sequence[str], ngrams: int) -> list:
    """TF-IDF vectors: words of the training texts counted, rare ones weighing more."""
    counter = TfidfVectorizer(ngram_range=(1, ngrams), sublinear_tf=True).fit(train)
    return [counter.transform(texts) for texts in (train, *others)]


def logistic(train: np.ndarray, y: Tensor, *others: np.ndarray, C: float) -> list[np.ndarray]:
    """Predictions of a logistic regression on each of `others`."""
    with threadpool_limits(1):
        classifier = LogisticRegression(C=C, max_iter=2000).fit(train, y.numpy())
    return [classifier.predict(other) for other in others]


def accuracy(model: nn.Module, examples: Examples) -> float:
    """Accuracy on texts (ids or hidden states), to four digits; from the shortest text to the longest."""
    ids = examples.x if examples.x.ndim == 2 else examples.x.any(-1).long()  # where there is no padding
    return round(evaluate(model, TensorLoader(examples.take(length_order(ids)), 32))["accuracy"], 4)


def methods(messages: Messages) -> dict[str, Method]:
    """Everything that is recorded, by name."""
    minilm = load_backbone("minilm")
    seed_everything(0)
    blank = load_backbone("minilm-random")
    table = {
        "full fine-tuning": Method(partial(fully_tuned, minilm), messages, (1e-4, 3e-4)),
        "LoRA": Method(partial(lora_tuned, minilm), messages, (1e-3, 3e-3)),
        "random weights": Method(partial(fully_tuned, blank), messages, (3e-4, 1e-3)),
    }
    for name, top in TOPS.items():
        upper, hidden = cached(minilm, messages.examples, top=top)
        table[name] = Method(partial(top_tuned, upper), replace(messages, examples=hidden), (3e-4, 1e-3))
    return table


def tune(method: Method, labels: int) -> dict:
    """The learning rate with the best mean validation accuracy at a number of labels per class."""

    def score(lr: float) -> float:
        accuracies = []
        for seed in TUNING_SEEDS:
            splits = split_messages(method.messages, seed=seed)
            accuracies.append(accuracy(one_run(method, splits, labels=labels, seed=seed, lr=lr), splits.validation))
        return mean(accuracies)

    return choose(score, {"lr": method.rates})


def chosen_rate(tuning: dict, method: str, labels: int) -> float:
    """The learning rate of a method at a number of labels per class; `tuning` comes from the record."""
    few, many = TUNED_AT
    return tuning[method][str(few if labels < many else many)]["chosen"]["lr"]


def test_scores(method: Method, *, labels: int, lr: float) -> list[float]:
    """Test accuracy per seed."""
    accuracies = []
    for seed in SEEDS:
        splits = split_messages(method.messages, seed=seed)
        accuracies.append(accuracy(one_run(method, splits, labels=labels, seed=seed, lr=lr), splits.test))
    return accuracies


@dataclass(frozen=True)
class Sentences:
    """Some of SST-2, seen in two ways: as texts, and through the frozen body as features [N, D]; labels y [N]."""

    texts: list[str]
    features: np.ndarray
    y: Tensor


def by_word_counts(few: Sentences, test: Sentences, *, C: float) -> float:
    """Accuracy of logistic regression on TF-IDF vectors."""
    train_counts, test_counts = word_counts(few.texts, test.texts, ngrams=2)
    predictions = logistic(train_counts, few.y, test_counts, C=C)[0]
    return round(float((predictions == test.y.numpy()).mean()), 4)


def by_features(few: Sentences, test: Sentences, *, C: float) -> float:
    """Accuracy of logistic regression on frozen features."""
    predictions = logistic(few.features, few.y, test.features, C=C)[0]
    return round(float((predictions == test.y.numpy()).mean()), 4)


def sentiment() -> dict:
    """Word counts, frozen features and the last two layers on SST-2: C by validation, scores on its dev sentences."""
    minilm = load_backbone("minilm")
    splits = load_sst2(minilm.tokens)
    folder = cache_dir() / "text" / "sst2"
    train_texts, dev_texts = (read_table(folder / f"{name}.tsv")[0] for name in ("train", "dev"))
    # Of 67,000 sentences only those go through the body that some seed draws: draws of one seed are nested.
    draws = [few_shot(splits.train, max(SST2_LABELS), seed=seed) for seed in (*TUNING_SEEDS, *SEEDS)]
    used = splits.train.take(torch.cat([positions(draw, splits.train) for draw in draws]).unique())
    used_features = features_of(minilm, used)

    def few_sentences(labels: int, seed: int) -> Sentences:
        few = few_shot(splits.train, labels, seed=seed)
        return Sentences([train_texts[i] for i in few.indices], used_features[positions(few, used)], few.y)

    held_out = few_shot(splits.validation, 200, seed=0)
    validation = Sentences([train_texts[i] for i in held_out.indices], features_of(minilm, held_out), held_out.y)
    test = Sentences([dev_texts[i] for i in splits.test.indices], features_of(minilm, splits.test), splits.test.y)
    runs = {}
    tuning = {}
    for name, classify in {"TF-IDF": by_word_counts, "frozen features": by_features}.items():

        def score(C: float, classify: Callable[..., float] = classify) -> float:
            return mean(classify(few_sentences(SST2_TUNED_AT, seed), validation, C=C) for seed in TUNING_SEEDS)

        tuning[name] = choose(score, {"C": STRENGTHS})
        chosen = tuning[name]["chosen"]
        runs[name] = {n: [classify(few_sentences(n, seed), test, **chosen) for seed in SEEDS] for n in SST2_LABELS}
    runs["last 2 layers"] = {max(SST2_LABELS): top_layers_on_sst2(minilm, splits, used)}
    return {"runs": runs, "tuning": tuning, "test_sentences": len(splits.test)}


def top_layers_on_sst2(minilm: Backbone, splits: Splits, used: Examples) -> list[float]:
    """Test accuracy per seed of the last two layers, tuned on as many labels as there are at most."""
    upper, hidden = cached(minilm, used, top=2)
    _, hidden_test = cached(minilm, splits.test, top=2)
    accuracies = []
    for seed in SEEDS:
        few = few_shot(splits.train, max(SST2_LABELS), seed=seed)
        model = top_tuned(upper, hidden.take(positions(few, used)), seed=seed, steps=40, lr=3e-4)
        accuracies.append(accuracy(model, hidden_test))
    return accuracies


def positions(some: Examples, examples: Examples) -> Tensor:
    """Where the rows of `some` stand within `examples`, int64 [len(some)]."""
    position = {int(row): number for number, row in enumerate(examples.indices)}
    return torch.tensor([position[int(row)] for row in some.indices])


def record(path: Path) -> None:
    """Choose settings on validation, score every method and seed once on its test part, and keep what is done."""
    facts = {"what": "test accuracy by method, labels per class and seed", "runs": {}, "tuning": {}}
    facts |= provenance("python -m tlhelpers.experiments.text", seeds=SEEDS)
    for name, method in methods(load_messages()).items():
        facts["tuning"][name] = {str(labels): tune(method, labels) for labels in TUNED_AT}
        rates = {labels: chosen_rate(facts["tuning"], name, labels) for labels in STEPS}
        facts["runs"][name] = {labels: test_scores(method, labels=labels, lr=lr) for labels, lr in rates.items()}
        print(name, facts["runs"][name], flush=True)
        write_record(path, facts)
    try:
        facts["sst2"] = sentiment()
    except OSError as error:
        print(f"not confirmed on SST-2: {error}")
    write_record(path, facts)


if __name__ == "__main__":
    record(RECORD)
