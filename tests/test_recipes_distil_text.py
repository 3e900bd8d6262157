"""The text student of page 06, on MiniLM itself but in few steps, and the record."""

import json

import numpy as np
import pytest
import torch

from tlhelpers.data.messages import load_messages
from tlhelpers.experiments import text_distillation as distil_text
from tlhelpers.models.encoders import load_text_body


@pytest.fixture(scope="module")
def lesson():
    return distil_text.lesson(load_messages(), load_text_body(), seed=0)


def test_every_intent_and_register_gives_equally_many_labels(lesson):
    splits, few, _ = lesson
    assert torch.bincount(few.y).tolist() == [2 * distil_text.LABELS] * 10
    assert set(few.indices.tolist()) <= set(splits.train.indices.tolist())


def test_features_come_back_in_the_order_of_the_texts(lesson):
    splits, _, teacher = lesson
    part = splits.test.take(torch.arange(5))
    with torch.inference_mode():
        alone = torch.cat([teacher[0](row[row != 0].unsqueeze(0)) for row in part.x])
    assert torch.allclose(distil_text.encoded(teacher[0], part).x, alone, atol=1e-4)


def test_the_student_is_two_layers_of_the_teacher_and_the_teacher_stays_as_it_is(lesson):
    splits, few, teacher = lesson
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = distil_text.taught(teacher, few, splits.train, "soft targets", seed=0, lr=3e-4, steps=2)
    assert len(student[0].transformer.encoder.layer) == 2
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    words = "transformer.embeddings.word_embeddings.weight"
    assert torch.equal(student[0].state_dict()[words], teacher[0].state_dict()[words])
    assert distil_text.answers(student, splits.test.take(torch.arange(3))).shape == (3,)


def test_an_unknown_way_of_teaching_is_refused(lesson):
    splits, few, teacher = lesson
    with pytest.raises(ValueError, match="choose one of"):
        distil_text.taught(teacher, few, splits.train, "by ear", seed=0, lr=1e-3)


def test_the_record_holds_every_way_with_five_seeds_and_says_who_made_it():
    record = json.loads(distil_text.RECORD.read_text("utf-8"))
    assert set(record["runs"]) == {"teacher", *distil_text.WAYS}
    assert {len(values) for values in record["runs"].values()} == {5}
    assert record["command"] == "python -m tlhelpers.experiments.text_distillation" and record["date"]
    gain = np.subtract(record["runs"]["soft targets"], record["runs"]["labels"])
    assert gain.mean() > 0
