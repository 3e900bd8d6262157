from dataclasses import replace

import numpy as np
import pytest
import torch

from tlhelpers.data import few_shot, load_messages, split_messages
from tlhelpers.experiments.records import read_record
from tlhelpers.experiments.text import (
    RECORD,
    STEPS,
    accuracy,
    cached,
    chosen_rate,
    features_of,
    logistic,
    lora_tuned,
    methods,
    positions,
    top_tuned,
    word_counts,
)
from tlhelpers.models import attach_head, load_backbone


@pytest.fixture(scope="module")
def minilm():
    return load_backbone("minilm")


@pytest.fixture(scope="module")
def few(minilm):
    return few_shot(split_messages(load_messages(minilm.tokens)).train, 2, seed=0)


def test_lora_merges_into_w_plus_alpha_over_r_b_a(minilm, few):
    model = lora_tuned(minilm, few, seed=0, steps=2, rank=3).eval()
    layer = model.body.transformer.base_model.model.encoder.layer[5].attention.self.value
    A, B = (side["default"].weight.detach() for side in (layer.lora_A, layer.lora_B))
    assert A.shape == (3, 384) and B.shape == (384, 3) and B.any()
    expected = layer.base_layer.weight.detach() + 6 / 3 * B @ A
    with torch.inference_mode():
        before = model(few.x)
    model.body.transformer = model.body.transformer.merge_and_unload()
    merged = model.body.transformer.encoder.layer[5].attention.self.value.weight
    assert torch.allclose(merged, expected, atol=1e-6)
    with torch.inference_mode():
        assert torch.allclose(model(few.x), before, atol=1e-4)


def test_lora_trains_r_times_both_sides_and_leaves_the_encoder_alone(minilm, few):
    model = lora_tuned(minilm, few, seed=0, steps=1, rank=4)
    small = [p.numel() for name, p in model.body.named_parameters() if p.requires_grad]
    assert sum(small) == 6 * 2 * 4 * (384 + 384)
    word = model.body.transformer.base_model.model.embeddings.word_embeddings.weight
    assert torch.equal(word, minilm.module.transformer.embeddings.word_embeddings.weight)


def test_cached_states_train_the_last_layers_and_keep_the_shared_weights(minilm, few):
    body, hidden = cached(minilm, few, top=1)
    with torch.inference_mode():
        assert torch.allclose(body.module(hidden.x), minilm.module(few.x), atol=1e-5)
    before = minilm.module.transformer.encoder.layer[5].output.dense.weight.clone()
    model = top_tuned(body, hidden, seed=0, steps=2)
    assert torch.equal(minilm.module.transformer.encoder.layer[5].output.dense.weight, before)
    assert not torch.equal(model.body.encoder.layer[0].output.dense.weight, before)


def test_features_have_length_one_and_the_order_of_the_texts(minilm, few):
    x = features_of(minilm, few)
    assert np.allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)
    turned = replace(few, x=few.x.flip(0), y=few.y.flip(0), indices=few.indices.flip(0))
    assert np.allclose(features_of(minilm, turned), x[::-1], atol=1e-5)


def test_word_counts_know_the_words_of_the_training_texts_only():
    train, other = word_counts(["renew loan", "lost loan", "lost book"], ["fine lost", "unheard of"], ngrams=1)
    assert train.shape == (3, 4) and other.shape == (2, 4)
    assert other[0].nnz == 1 and other[1].nnz == 0
    predictions = logistic(train, torch.tensor([0, 1, 1]), other, C=10.0)[0]
    assert predictions[0] == 1


def test_accuracy_does_not_depend_on_the_order_and_counts_hidden_states_as_it_counts_ids(minilm, few):
    upper, hidden = cached(minilm, few, top=1)
    model = attach_head(upper, 10)
    by_hidden = accuracy(model, hidden)
    assert accuracy(model, hidden.take(torch.arange(len(hidden)).flip(0))) == by_hidden
    whole = attach_head(minilm, model.head)
    assert accuracy(whole, few) == by_hidden


def test_positions_of_a_draw_within_the_examples_that_it_was_drawn_from(few):
    some = few.take(torch.tensor([4, 0, 7]))
    assert positions(some, few).tolist() == [4, 0, 7]


def test_the_rate_of_few_labels_holds_below_sixteen_and_that_of_many_from_there_on():
    tuning = {"LoRA": {"4": {"chosen": {"lr": 0.1}}, "16": {"chosen": {"lr": 0.2}}}}
    assert [chosen_rate(tuning, "LoRA", labels) for labels in (1, 8, 16, 32)] == [0.1, 0.1, 0.2, 0.2]


def test_the_record_holds_every_seed_and_says_how_it_was_made():
    facts = read_record(RECORD)
    assert {"command", "machine", "versions", "date", "seeds"} <= facts.keys()
    assert set(methods(load_messages())) == facts["runs"].keys()
    assert all(by_labels.keys() == {str(n) for n in STEPS} for by_labels in facts["runs"].values())
    for by_labels in (*facts["runs"].values(), *facts["sst2"]["runs"].values()):
        assert all(len(runs) == len(facts["seeds"]) for runs in by_labels.values())
    assert all(chosen_rate(facts["tuning"], name, 16) > 0 for name in facts["runs"])
