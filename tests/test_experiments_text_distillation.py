"""The text student of page 06, on MiniLM itself but in few steps, and the record."""

import numpy as np
import pytest
import torch

from tlhelpers.data import load_messages
from tlhelpers.experiments import text_distillation as distil_text
from tlhelpers.experiments.records import read_record
from tlhelpers.experiments.text import outputs_of
from tlhelpers.models import load_text_body


@pytest.fixture(scope="module")
def given():
    return distil_text.lesson(load_messages(), load_text_body(), seed=0)


def test_every_intent_and_register_gives_equally_many_labels(given):
    assert torch.bincount(given.few.y).tolist() == [2 * distil_text.LABELS] * 10
    assert set(given.few.indices.tolist()) <= set(given.splits.train.indices.tolist())


def test_features_come_back_in_the_order_of_the_texts(given):
    texts = given.splits.test.take(torch.arange(5))
    with torch.inference_mode():
        alone = torch.cat([given.teacher.body(row[row != 0].unsqueeze(0)) for row in texts.x])
    assert torch.allclose(outputs_of(given.teacher.body, texts).x, alone, atol=1e-4)


def test_the_student_is_two_layers_of_the_teacher_and_the_teacher_stays_as_it_is(given):
    before = {name: value.clone() for name, value in given.teacher.state_dict().items()}
    student = distil_text.taught(given, "soft targets", lr=3e-4, steps=2)
    assert len(student.body.transformer.encoder.layer) == 2
    assert all(torch.equal(before[name], value) for name, value in given.teacher.state_dict().items())
    words = "transformer.embeddings.word_embeddings.weight"
    assert torch.equal(student.body.state_dict()[words], given.teacher.body.state_dict()[words])
    assert distil_text.answers(student, given.splits.test.take(torch.arange(3))).shape == (3,)


def test_a_learner_who_shifts_the_seeds_meets_other_labels(given, monkeypatch):
    train = given.splits.train
    chat = load_messages().chat[train.indices]
    monkeypatch.setenv("TLHELPERS_SEED", "1")
    shifted = distil_text.labelled(train, chat, seed=0)
    assert set(shifted.indices.tolist()) != set(given.few.indices.tolist())


def test_an_unknown_way_of_teaching_is_refused(given):
    with pytest.raises(ValueError, match="choose one of"):
        distil_text.taught(given, "by ear", lr=1e-3)


def test_the_record_holds_every_way_with_five_seeds_and_says_who_made_it():
    record = read_record(distil_text.RECORD)
    assert set(record["runs"]) == {"teacher", *distil_text.WAYS}
    assert {len(values) for values in record["runs"].values()} == {5}
    assert record["command"] == "python -m tlhelpers.experiments.text_distillation" and record["date"]
    gain = np.subtract(record["runs"]["soft targets"], record["runs"]["labels"])
    assert gain.mean() > 0
