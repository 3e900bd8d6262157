"""Whatever a public function is given, it answers sensibly or refuses with a reason; it never crashes or hangs.

Every public function and class of the package has an entry in `CASES` or a reason in `EXEMPT`; a new one
without either fails here.  `HYPOTHESIS_PROFILE=large` (make test-faults) draws five times as many.
"""

import importlib
import inspect
import io
import math
import os
import pkgutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from torch import Tensor, nn
from toys import toy_backbone, toy_images, toy_model, toy_part

import tlhelpers
from tlhelpers import (
    alignment,
    augment,
    backbones,
    checkpoint,
    checks,
    data,
    datasets,
    diagnose,
    distributed,
    downloads,
    feature_files,
    features,
    folders,
    glyphs,
    messages,
    objectives,
    plots,
    pseudo_labels,
    runtime,
    schedules,
    scorebook,
    strategy,
    surgery,
    text,
    train,
    transferability,
    widgets,
)

pytestmark = pytest.mark.fault_table
EXAMPLES = 40 if os.environ.get("HYPOTHESIS_PROFILE") == "large" else 8

# --- what is drawn -------------------------------------------------------------------------------------------------
DTYPES = (torch.float32, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool, torch.float16)
NUMBERS = st.sampled_from([-1, 0, 1, 2, 5, 0.3, 0.5, 1.0, -0.5, 1e-30, 1e30, 10**6, math.nan, math.inf, -math.inf])
COUNTS = st.sampled_from([-3, 0, 1, 2, 3, 7])  # where a number of things is asked for, and memory is at stake
NAMES = st.one_of(st.text(max_size=8), st.sampled_from(["", "0", "a", "digits", "resnet", "../x", "a\0b", "x" * 5000]))
FILLS = ("normal", "normal", "normal", "zero", "equal", "nan", "inf", "large")
CPU = torch.device("cpu")


def filled(shape: tuple[int, ...], dtype: torch.dtype, fill: str, seed: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = {"zero": x * 0, "equal": x * 0 + 3, "large": x * 1e4}.get(fill, x)
    if fill in ("nan", "inf") and x.numel() and dtype.is_floating_point:
        x.view(-1)[0] = float(fill)
    if dtype.is_floating_point:
        return x.to(dtype)
    return (x > 0) if dtype is torch.bool else x.abs().mul(2).to(dtype)


@st.composite
def tensors(draw, ndim: int | None = None, floating: bool = False) -> Tensor:
    """Any tensor of up to four dimensions; `ndim` is what the function wants, which it gets most of the time."""
    dims = draw(st.sampled_from([ndim] * 4 + [0, 1, 2, 3, 4])) if ndim is not None else draw(st.integers(0, 4))
    shape = tuple(draw(st.lists(st.sampled_from([0, 1, 2, 3, 4, 6, 6, 6]), min_size=dims, max_size=dims)))
    dtype = draw(st.sampled_from(DTYPES[:3] * 4 + DTYPES if floating else DTYPES))
    return filled(shape, dtype, draw(st.sampled_from(FILLS)), draw(st.integers(0, 9)))


@st.composite
def labels(draw, classes: int = 3) -> Tensor:
    low, high = draw(st.sampled_from([(0, classes), (0, classes), (0, 1), (-1, classes), (0, 50)]))
    n = draw(st.sampled_from([0, 1, 2, 6, 6, 6]))
    y = torch.randint(low, high, (n,), generator=torch.Generator().manual_seed(draw(st.integers(0, 9))))
    return y.to(draw(st.sampled_from([torch.int64] * 5 + [torch.float32, torch.int32, torch.bool])))


def feature_sets() -> st.SearchStrategy:
    return st.builds(features.Features, tensors(2, True), labels())


def parts() -> st.SearchStrategy:
    """Sound parts only: `data.Part` itself is a case."""
    return st.sampled_from([toy_part(), toy_images(), toy_part(1), toy_images(2)])


def of(function: Callable, *positional, also: tuple = (), **named) -> tuple[Callable, tuple, dict, tuple]:
    """A case: the function, a strategy (or a value) per argument, and errors allowed besides ValueError, TypeError."""
    return function, positional, named, also


def model_of() -> st.SearchStrategy:
    return st.builds(toy_model)


def axes() -> st.SearchStrategy:
    return st.builds(lambda: Figure().subplots())


def batches() -> st.SearchStrategy:
    return st.tuples(tensors(2, True), labels())


def splits() -> st.SearchStrategy:
    return st.builds(lambda part: data.Splits(part, part, part), st.just(toy_part()))


def objective_call(make: Callable) -> Callable:
    """Make an objective, and use it on a batch."""

    def call(batch, *arguments, **named):
        model = toy_model()
        model.train(False)
        return make(*arguments, **named)(model, batch)

    return call


def domains_call(make: Callable) -> Callable:
    def call(source, target, *arguments, **named):
        model = toy_model().eval()
        return make(*arguments, **named)(model, {"source": source, "target": target})

    return call


def multi_call(make: Callable) -> Callable:
    def call(batch, weights):
        model = nn.Module()
        model.body, model.heads = nn.Identity(), nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)})
        return make(weights)(model, batch)

    return call


def fitted(x, y, epochs, lr) -> list[dict]:
    part = data.Part("drawn", x, y, ("a", "b", "c"), torch.arange(len(x)))
    model = toy_model()
    loaders = data.make_loaders(part, part, batch_size=4, device=CPU)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return train.fit(model, loaders, objectives.classification(), optimizer, epochs=epochs, device=CPU)


def one_epoch(x, y):
    model, part = toy_model(), data.Part("drawn", x, y, ("a", "b", "c"), torch.arange(len(x)))
    loader = data.TensorLoader(part, 4, device=CPU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return train.train_one_epoch(model, loader, objectives.classification(), optimizer, device=CPU)


def loaded(batch) -> list:
    return [batch]


def pair(function: Callable) -> Callable:
    return lambda a, b: function(toy_model(), [a, b])


def with_tokens(texts, max_length):
    return text.Tokens(text.load_tokens().tokenizer, max_length)(texts)


def tiny_body() -> text.TextBody:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    return text.TextBody(BertModel(BertConfig(vocab_size=200, **sizes), add_pooling_layer=False)).eval()


def table(tmp: str, content: bytes, *columns: str):
    path = Path(tmp) / "table.tsv"
    path.write_bytes(content)
    return messages.read_table(path, *columns)


def in_file(function: Callable) -> Callable:
    """The function on a file with these bytes."""

    def call(tmp: str, content: bytes):
        path = Path(tmp) / "file"
        path.write_bytes(content)
        return function(path)

    return call


BOOKS = st.dictionaries(NAMES, NAMES, max_size=3)
BYTES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([b"{}", b"[]", b"null", b'{"version": 1, "solved": []}', b'{"version": "1", "solved": {}}']),
)
SMALL = {"gen": st.builds(lambda: torch.Generator().manual_seed(0))}
TASKS = st.dictionaries(st.sampled_from(["a", "b", "c"]), NUMBERS, max_size=3)
STATES = st.dictionaries(st.sampled_from("ab"), tensors(), max_size=2)
MODEL_ERRORS = (RuntimeError, IndexError)  # of the caller's own model, on inputs that it was not made for
SEEDS = st.sampled_from([0, 1, 2**31])

CASES = {
    "alignment.coral": of(domains_call(alignment.coral), batches(), batches(), NUMBERS, also=MODEL_ERRORS),
    "alignment.mmd": of(
        domains_call(alignment.mmd), batches(), batches(), NUMBERS, bandwidth=NUMBERS, also=MODEL_ERRORS
    ),
    "alignment.dann": of(
        domains_call(lambda weight, steps: alignment.dann(nn.Linear(6, 1), steps=steps, weight=weight)),
        batches(),
        batches(),
        NUMBERS,
        COUNTS,
        also=MODEL_ERRORS,
    ),
    "alignment.coral_distance": of(alignment.coral_distance, tensors(2, True), tensors(2, True)),
    "alignment.coral_transform": of(
        alignment.coral_transform, tensors(2, True), tensors(2, True), regularisation=NUMBERS
    ),
    "alignment.dann_lambda": of(alignment.dann_lambda, NUMBERS),
    "alignment.reverse_gradient": of(alignment.reverse_gradient, tensors(), NUMBERS),
    "alignment.adabn": of(pair(alignment.adabn), batches(), batches(), also=MODEL_ERRORS),
    "alignment.gradient_cosine": of(alignment.gradient_cosine, tensors(1, True), tensors(1, True)),
    "alignment.project_conflicting": of(alignment.project_conflicting, tensors(1, True), tensors(1, True)),
    "augment.Jitter": of(
        lambda images, size, degrees, noise: augment.Jitter(size=size, degrees=degrees, noise=noise)(
            images, torch.Generator().manual_seed(0)
        ),
        tensors(4, True),
        COUNTS,
        NUMBERS,
        NUMBERS,
    ),
    "augment.random_flip": of(augment.random_flip, tensors(4), SMALL["gen"]),
    "backbones.Normalize": of(
        lambda x, m, s: backbones.Normalize(m, s)(x), tensors(4), NUMBERS, st.sampled_from([1, 0.5])
    ),
    "backbones.ResidualBlock": of(
        lambda x: backbones.ResidualBlock(3, 4, 2).eval()(x), tensors(4, True), also=MODEL_ERRORS
    ),
    "backbones.GlyphNet": of(lambda x: backbones.GlyphNet().eval()(x), tensors(4, True), also=MODEL_ERRORS),
    "backbones.load_backbone": of(
        backbones.load_backbone,
        NAMES.filter(lambda name: not name.startswith("hub:")),
        image_size=st.sampled_from([None, -1, 8]),
        also=(OSError,),
    ),
    "backbones.photo_weights": of(backbones.photo_weights, NAMES),
    "checkpoint.read": of(in_file(checkpoint.read), "TMP", BYTES, also=(checkpoint.Damaged,)),
    "checks.claim": of(checks.claim, NAMES, NUMBERS, at_least=NUMBERS, at_most=NUMBERS, also=(AssertionError,)),
    "checks.claims_table": of(checks.claims_table),
    "checks.question": of(
        lambda hints, answer: checks.question(
            "q", lambda a: None, hints=hints, solution="", wrong=[("1", "x")]
        ).verdict(answer),
        st.lists(NAMES, max_size=2),
        st.one_of(NUMBERS, NAMES, st.none(), tensors()),
    ),
    "checks.choice": of(lambda answer: checks.choice("a", b="no")(answer), st.one_of(NUMBERS, NAMES, st.none())),
    "checks.near": of(checks.near, st.one_of(NUMBERS, NAMES, st.none()), NUMBERS, NUMBERS),
    "data.Part": of(
        lambda name, x, y, classes: data.Part(name, x, y, classes, torch.arange(len(y))),
        NAMES,
        tensors(),
        labels(),
        st.sampled_from([(), ("a",), ("a", "b", "c")]),
    ),
    "data.Splits": of(data.Splits, parts(), parts(), parts()),
    "data.as_float": of(data.as_float, tensors()),
    "data.check_dataset": of(data.check_dataset, splits()),
    "data.few_shot": of(data.few_shot, parts(), COUNTS, seed=SEEDS),
    "data.TensorLoader": of(
        lambda part, size, steps, shuffle: list(data.TensorLoader(part, size, steps=steps, shuffle=shuffle)),
        parts(),
        COUNTS,
        st.one_of(st.none(), COUNTS),
        st.booleans(),
    ),
    "data.JointLoader": of(
        lambda loaders, steps: list(data.JointLoader(loaders, steps=steps)),
        st.dictionaries(NAMES, st.lists(st.integers(), max_size=3), max_size=3),
        st.one_of(st.none(), COUNTS),
    ),
    "data.make_loaders": of(data.make_loaders, parts(), st.one_of(st.none(), parts()), batch_size=COUNTS),
    "datasets.load_dataset": of(datasets.load_dataset, NAMES.filter(lambda name: name != "digits"), also=(OSError,)),
    "datasets.glyph_masters": of(datasets.glyph_masters, st.sampled_from([(), ("a",), ("?",), ("0", "1")])),
    "datasets.crop_to_ink": of(datasets.crop_to_ink, tensors(4, True), size=COUNTS, threshold=NUMBERS),
    "diagnose.first_loss": of(diagnose.first_loss, model_of(), batches(), classes=COUNTS, also=MODEL_ERRORS),
    "diagnose.batch_dependence": of(
        diagnose.batch_dependence, model_of(), tensors(2, True), parts=COUNTS, also=MODEL_ERRORS
    ),
    "diagnose.snapshot": of(diagnose.snapshot, model_of()),
    "diagnose.changed_tensors": of(diagnose.changed_tensors, STATES, model_of()),
    "diagnose.not_in_optimizer": of(
        lambda model: diagnose.not_in_optimizer(model, torch.optim.SGD(model.head.parameters(), 0.1)), model_of()
    ),
    "diagnose.missing_gradients": of(diagnose.missing_gradients, model_of(), tensors()),
    "diagnose.saved_graph_bytes": of(diagnose.saved_graph_bytes, model_of(), tensors(2, True), also=MODEL_ERRORS),
    "diagnose.overlap": of(diagnose.overlap, tensors(), tensors()),
    "diagnose.input_shift": of(diagnose.input_shift, tensors(4, True), tensors(4, True)),
    "diagnose.can_overfit": of(
        lambda model, batch, steps: diagnose.can_overfit(model, batch, objectives.classification(), steps=steps),
        model_of(),
        batches(),
        COUNTS,
        also=MODEL_ERRORS,
    ),
    "distributed.cut": of(
        distributed.cut,
        st.recursive(tensors(2), lambda x: st.lists(x, min_size=1, max_size=2), max_leaves=3),
        COUNTS,
        also=(RuntimeError,),
    ),
    "distributed.halve_until_it_fits": of(
        lambda size: distributed.halve_until_it_fits(lambda n: n, size), st.sampled_from([1, 2, 7, 64])
    ),
    "downloads.Remote": of(lambda url: downloads.Remote(url, "md5:0").name, NAMES),
    "features.extract_features": of(
        features.extract_features,
        st.builds(toy_backbone),
        parts(),
        layer=st.sampled_from([None, "conv", "nowhere", ""]),
        batch_size=COUNTS,
        also=MODEL_ERRORS,
    ),
    "features.feature_key": of(
        features.feature_key, st.builds(toy_backbone), parts(), st.one_of(st.none(), NAMES), also=MODEL_ERRORS
    ),
    "features.cached_features": of(
        features.cached_features, st.builds(toy_backbone), st.just(toy_images()), layer=st.sampled_from([None, "x"])
    ),
    "features.linear_probe": of(features.linear_probe, feature_sets(), feature_sets(), C=NUMBERS),
    "features.knn_probe": of(features.knn_probe, feature_sets(), feature_sets(), k=COUNTS),
    "feature_files.open_features": of(in_file(feature_files.open_features), "TMP", BYTES, also=(OSError,)),
    "folders.read_folder": of(lambda name: folders.read_folder(Path(name)), NAMES, also=(OSError,)),
    "glyphs.character_class": of(glyphs.character_class, NAMES),
    "glyphs.draw_masters": of(
        glyphs.draw_masters,
        st.sampled_from([(), ("a",), ("?",), ("A", "A"), ("0", "1")]),
        fonts=st.sampled_from([None, (), (0,), (-1,), (99,)]),
    ),
    "messages.read_table": of(
        table,
        "TMP",
        st.one_of(st.binary(max_size=60), st.text("ab\t\n\r\0é", max_size=40).map(str.encode)),
        st.sampled_from(["a", "b", ""]),
    ),
    "messages.text_part": of(
        lambda texts, names: messages.text_part("t", texts, names, ("a", "b"), text.load_tokens()),
        st.lists(NAMES, max_size=3),
        st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=3),
    ),
    "messages.split_messages": of(lambda seed: messages.split_messages(messages.load_messages(), seed=seed), SEEDS),
    "objectives.classification": of(
        objective_call(objectives.classification), batches(), label_smoothing=NUMBERS, also=MODEL_ERRORS
    ),
    "objectives.l2_sp": of(
        objective_call(
            lambda alpha, beta: objectives.l2_sp(objectives.classification(), toy_model().body, alpha=alpha, beta=beta)
        ),
        batches(),
        NUMBERS,
        NUMBERS,
        also=MODEL_ERRORS,
    ),
    "objectives.multitask": of(
        multi_call(objectives.multitask),
        st.dictionaries(st.sampled_from("ab"), batches(), max_size=2),
        TASKS,
        also=MODEL_ERRORS,
    ),
    "objectives.uncertainty_weighted": of(
        multi_call(
            lambda tasks: objectives.uncertainty_weighted(nn.ParameterDict({t: torch.zeros(()) for t in tasks}))
        ),
        st.dictionaries(st.sampled_from("ab"), batches(), max_size=2),
        TASKS,
        also=MODEL_ERRORS,
    ),
    "objectives.distillation": of(
        objective_call(lambda t, a: objectives.distillation(toy_model(), temperature=t, alpha=a)),
        batches(),
        NUMBERS,
        NUMBERS,
        also=MODEL_ERRORS,
    ),
    "objectives.feature_match": of(
        objective_call(
            lambda beta: objectives.feature_match(
                objectives.classification(), toy_model(), nn.Identity(), layers=("body", "body"), beta=beta
            )
        ),
        batches(),
        NUMBERS,
        also=MODEL_ERRORS,
    ),
    "objectives.attention_transfer": of(
        objective_call(
            lambda beta: objectives.attention_transfer(
                objectives.classification(), toy_model(), layers=("body", "body"), beta=beta
            )
        ),
        batches(),
        NUMBERS,
        also=MODEL_ERRORS,
    ),
    "objectives.attention_map": of(objectives.attention_map, tensors(4, True)),
    "plots.mean_and_error": of(plots.mean_and_error, st.lists(NUMBERS, max_size=4)),
    "plots.show_images": of(plots.show_images, axes(), tensors(3, True).map(Tensor.numpy)),
    "plots.plot_label_curve": of(
        plots.plot_label_curve,
        axes(),
        st.lists(st.integers(1, 50), max_size=3),
        st.dictionaries(NAMES, st.lists(st.lists(NUMBERS, max_size=3), max_size=3), max_size=2),
    ),
    "plots.plot_sweep": of(
        plots.plot_sweep,
        axes(),
        st.lists(st.integers(), max_size=3),
        st.dictionaries(NAMES, tensors(2, True).map(Tensor.numpy), max_size=2),
        xlabel="x",
        ylabel="y",
    ),
    "plots.plot_bars": of(
        plots.plot_bars, axes(), st.dictionaries(NAMES, st.lists(NUMBERS, max_size=3), max_size=2), ylabel="y"
    ),
    "plots.plot_history": of(
        plots.plot_history,
        axes(),
        st.lists(st.fixed_dictionaries({"epoch": COUNTS}, optional={"train_loss": NUMBERS}), max_size=3),
    ),
    "plots.plot_confusion": of(
        plots.plot_confusion,
        axes(),
        labels().map(Tensor.numpy),
        labels().map(Tensor.numpy),
        st.sampled_from([(), "abc"]),
    ),
    "plots.plot_embedding": of(
        plots.plot_embedding, axes(), st.dictionaries(NAMES, tensors(2, True).map(Tensor.numpy), max_size=2)
    ),
    "plots.plot_scatter": of(
        plots.plot_scatter,
        axes(),
        st.dictionaries(NAMES, st.tuples(st.lists(NUMBERS, max_size=3), st.lists(NUMBERS, max_size=3)), max_size=2),
        xlabel="x",
        ylabel="y",
    ),
    "pseudo_labels.class_prototypes": of(pseudo_labels.class_prototypes, feature_sets()),
    "pseudo_labels.nearest_prototype": of(pseudo_labels.nearest_prototype, tensors(2, True), tensors(2, True)),
    "pseudo_labels.spherical_kmeans": of(
        pseudo_labels.spherical_kmeans, tensors(2, True), tensors(2, True), passes=COUNTS
    ),
    "pseudo_labels.self_training": of(
        pseudo_labels.self_training, feature_sets(), tensors(2, True), confidence=NUMBERS, rounds=COUNTS
    ),
    "runtime.seed_everything": of(runtime.seed_everything, st.integers(-5, 2**33)),
    "runtime.shifted": of(runtime.shifted, st.integers()),
    "runtime.to_device": of(
        lambda batch: runtime.to_device(batch, CPU),
        st.recursive(tensors(), lambda x: st.lists(x, max_size=2), max_leaves=4),
    ),
    "runtime.batch_size": of(
        runtime.batch_size, st.recursive(tensors(), lambda x: st.lists(x, max_size=2), max_leaves=4)
    ),
    "runtime.autocast": of(lambda dtype: runtime.autocast(CPU, dtype), st.sampled_from([None, torch.bfloat16])),
    "scorebook.read": of(in_file(scorebook.read), "TMP", BYTES),
    "scorebook.merged": of(scorebook.merged, BOOKS, BOOKS),
    "scorebook.name_of": of(scorebook.name_of, st.one_of(NAMES, NUMBERS, st.none())),
    "scorebook.note": of(scorebook.note, st.one_of(NAMES, NUMBERS, st.none())),
    "scorebook.export": of(
        lambda books: scorebook.export(books, io.StringIO()), st.dictionaries(NAMES, BOOKS, max_size=2)
    ),
    "strategy.recommend": of(
        strategy.recommend,
        COUNTS,
        probe=st.one_of(st.none(), NUMBERS),
        pixels=NUMBERS,
        steps=COUNTS,
        must_shrink=st.booleans(),
    ),
    "surgery.attach_head": of(
        surgery.attach_head, st.builds(toy_backbone), st.one_of(COUNTS, st.builds(lambda: nn.Linear(3, 2)))
    ),
    "surgery.freeze": of(surgery.freeze, model_of()),
    "surgery.unfreeze": of(surgery.unfreeze, model_of()),
    "surgery.train_mode": of(surgery.train_mode, model_of()),
    "surgery.param_groups": of(
        lambda model, lr, scale, decay: surgery.param_groups(
            model.body, model.head, lr=lr, body_scale=scale, layer_decay=decay
        ),
        model_of(),
        NUMBERS,
        NUMBERS,
        NUMBERS,
    ),
    "surgery.trainable_summary": of(surgery.trainable_summary, model_of()),
    "surgery.interpolate_weights": of(surgery.interpolate_weights, STATES, STATES, NUMBERS),
    "text.Tokens": of(
        with_tokens, st.lists(st.one_of(NAMES, st.none(), st.integers()), max_size=3), st.sampled_from([8, 128])
    ),
    "text.load_tokens": of(text.load_tokens, max_length=COUNTS),
    "text.trimmed": of(text.trimmed, tensors(2)),
    "text.length_order": of(text.length_order, tensors(2)),
    "text.mean_pool": of(text.mean_pool, tensors(3, True), tensors(2)),
    "text.TextBody": of(lambda x: tiny_body()(x), tensors(2)),
    "text.LowerLayers": of(lambda x: text.cut_body(tiny_body(), 1)[0](x), tensors(2)),
    "text.UpperLayers": of(lambda x: text.cut_body(tiny_body(), 1)[1](x), tensors(3, True), also=MODEL_ERRORS),
    "text.cut_body": of(lambda top: text.cut_body(tiny_body(), top), COUNTS),
    "text.load_hub_body": of(text.load_hub_body, NAMES, also=(OSError,)),
    "train.fit": of(
        fitted,
        tensors(2, True),
        labels(),
        COUNTS,
        st.sampled_from([0.1, 1e30]),
        also=(*MODEL_ERRORS, FloatingPointError),
    ),
    "train.train_one_epoch": of(one_epoch, tensors(2, True), labels(), also=(*MODEL_ERRORS, FloatingPointError)),
    "train.evaluate": of(
        lambda batch: train.evaluate(toy_model(), loaded(batch), device=CPU), batches(), also=MODEL_ERRORS
    ),
    "schedules.warmup_cosine": of(
        lambda warmup, progress: schedules.warmup_cosine(warmup)(progress), NUMBERS, st.sampled_from([0, 0.5, 1.0])
    ),
    "transferability.proxy_a_distance": of(
        transferability.proxy_a_distance, tensors(2, True), tensors(2, True), seed=SEEDS
    ),
    "transferability.mmd_distance": of(
        transferability.mmd_distance, tensors(2, True), tensors(2, True), bandwidth=st.one_of(st.none(), NUMBERS)
    ),
    "transferability.squared_mmd": of(
        transferability.squared_mmd, tensors(2, True), tensors(2, True), bandwidth=st.one_of(st.none(), NUMBERS)
    ),
    "transferability.check_domains": of(transferability.check_domains, tensors(2), tensors(2), least=COUNTS),
    "transferability.h_score": of(transferability.h_score, tensors(2, True), labels()),
    "transferability.nce": of(transferability.nce, labels(), labels()),
    "transferability.leep": of(transferability.leep, tensors(2, True), labels()),
    "transferability.logme": of(transferability.logme, tensors(2, True), labels()),
    "widgets.explore": of(
        lambda values: widgets.explore(lambda x: None, x=values), st.lists(st.integers(), max_size=3, unique=True)
    ),
}

OF_FIT = "a part of `fit`, which is tried; tests/test_checkpoint.py, tests/test_distributed.py"
RECORD = "a record that the package fills and gives back"
EXEMPT = {
    **dict.fromkeys((f"badges.{n}" for n in ("address", "badges", "install_cell")), "files: tests/test_badges.py"),
    **dict.fromkeys(("badges.write_badges", "badges.remove_badges", "cli.badges"), "files: tests/test_badges.py"),
    **dict.fromkeys(("checks.Question", "features.Features", "features.ProbeResult", "folders.Reading"), RECORD),
    **dict.fromkeys(("pseudo_labels.SelfTraining", "strategy.Recommendation", "surgery.TrainableSummary"), RECORD),
    **dict.fromkeys(("backbones.Backbone", "backbones.Cut", "messages.Messages", "runtime.Machine"), RECORD),
    **dict.fromkeys(("progress.Means", "progress.Run", "progress.random_states", "progress.set_random_states"), OF_FIT),
    **dict.fromkeys(
        ("checkpoint.Checkpoint", "checkpoint.stop_button", "checkpoint.write", "distributed.Team"), OF_FIT
    ),
    "checkpoint.Damaged": "an error",
    "widgets.download_button": "takes nothing: tests/test_widgets.py",
    "features.feature_function": "the inside of extract_features, which is tried",
    "feature_files.stream_features": "extract_features by batches: tests/test_feature_files.py",
    **dict.fromkeys((f"scorebook.{n}" for n in ("collected", "places", "questions", "show")), "no argument"),
    "scorebook.pack": "takes the notebooks of a folder, whatever they hold: tests/test_scorebook.py",
    "scorebook.write": "writes what `read` gives: tests/test_scorebook.py",
    "backbones.cut_off": "takes torchvision's own networks only; each is cut in tests/test_backbones.py",
    **dict.fromkeys(
        ("cli.main", "cli.prefetch", "cli.progress", "doctor.doctor"),
        "a command; tests/test_cli.py, tests/test_faults.py",
    ),
    **dict.fromkeys(("downloads.fetch", "downloads.digest_of"), "files: tests/test_downloads.py, tests/test_faults.py"),
    **dict.fromkeys(("tensor_files.keep_tensor", "tensor_files.kept_tensor"), "files: tests/test_faults.py"),
    **dict.fromkeys(("folders.decode", "folders.examine"), "a thousand damaged files: tests/test_damaged_files.py"),
    **dict.fromkeys((f"photos.{n}" for n in ("cifar10", "mnist", "emnist_letters", "data_files")), "files: untrusted"),
    **dict.fromkeys(("messages.load_messages", "messages.load_sst2", "text.minilm_folder"), "no argument but files"),
    **dict.fromkeys((f"runtime.{n}" for n in ("setup", "pick_device", "available_cores", "is_offline")), "no argument"),
    **dict.fromkeys((f"runtime.{n}" for n in ("cache_dir", "torch_home", "describe_machine")), "no argument"),
    "runtime.mixed_precision": "takes a device, of which the tests have one",
    "text.load_text_body": "a single yes or no",
    "plots.show": "takes a figure and a text, and hands both to IPython",
    "schedules.Rates": "the part of `fit` that sets learning rates; driven there",
}


def public_names() -> set[str]:
    """module.name of every public function and class that a module of the package defines."""
    names = set()
    for module in pkgutil.iter_modules(tlhelpers.__path__):
        if module.name not in ("recipes", "exercises", "__main__"):
            found = vars(importlib.import_module(f"tlhelpers.{module.name}"))
            names |= {
                f"{module.name}.{name}"
                for name, thing in found.items()
                if not name.startswith("_")
                and (inspect.isclass(thing) or inspect.isfunction(inspect.unwrap(thing)))
                and thing.__module__ == f"tlhelpers.{module.name}"
            }
    return names


def test_every_public_function_is_tried_or_says_why_not():
    assert public_names() - set(CASES) - set(EXEMPT) == set(), "add a case, or a reason to EXEMPT"
    assert set(CASES) & set(EXEMPT) == set()
    assert (set(CASES) | set(EXEMPT)) - public_names() == set(), "gone from the package"


def numbers_in(thing) -> list[float]:
    """All floats in a result, tensors and arrays included."""
    if isinstance(thing, Tensor):
        return thing.detach().double().flatten().tolist() if thing.is_floating_point() else []
    if isinstance(thing, np.ndarray):
        return thing.astype(float).ravel().tolist() if thing.dtype.kind == "f" else []
    if isinstance(thing, float):
        return [thing]
    if isinstance(thing, dict):
        return [x for value in thing.values() for x in numbers_in(value)]
    if isinstance(thing, list | tuple):
        return [x for value in thing for x in numbers_in(value)]
    if hasattr(thing, "__dataclass_fields__"):
        return [x for name in thing.__dataclass_fields__ for x in numbers_in(getattr(thing, name))]
    return []


def wild(arguments) -> bool:
    """Do the arguments hold NaN, infinity, or numbers whose square leaves float32?"""
    return any(not math.isfinite(x) or abs(x) > 1e15 for x in numbers_in(arguments))


def draw_all(source: st.DataObject, case, tmp: str) -> tuple[list, dict]:
    def one(strategy):
        if strategy == "TMP":
            return tmp
        return source.draw(strategy) if isinstance(strategy, st.SearchStrategy) else strategy

    return [one(s) for s in case[1]], {name: one(s) for name, s in case[2].items()}


@pytest.mark.parametrize("name", CASES)
def test_it_answers_sensibly_or_refuses_with_a_reason(name, tmp_path, fault_row, capsys):
    case, count = CASES[name], [0, 0]

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def trial(source):
        positional, named = draw_all(source, case, str(tmp_path))
        count[0] += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                result = case[0](*positional, **named)
            except (ValueError, TypeError, *case[3]) as error:
                assert str(error), "an error without a message"
            else:
                broken = [x for x in numbers_in(result) if math.isnan(x)]
                assert not broken or wild([positional, named]), f"NaN from {positional} {named}"
        count[1] += 1

    try:
        trial()
    finally:  # a failure shows in the table, too
        fault_row("bad input to a public function", "a sensible result, or an error with a reason", *count)


def test_scores_never_hide_nan():
    x, y = torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 0, 1])
    for bad in (math.nan, math.inf):
        x[0, 0] = bad
        for score in (transferability.h_score, transferability.logme):
            with pytest.raises(ValueError, match="NaN or infinity"):
                score(x, y)
