"""The student of page 06: its rounding to int8, and a lesson of a few steps."""

import pytest
import torch
from toys import toy_model, weights_of

from tlhelpers.data import few_shot, load_dataset
from tlhelpers.experiments.distillation import (
    PseudoLabels,
    lesson,
    objective_of,
    rounded,
    taught,
    tiny_cnn,
    with_rounded_weights,
)
from tlhelpers.models import load_backbone
from tlhelpers.objectives import FrozenTeacher


@pytest.fixture(scope="module")
def given():
    return lesson(load_backbone("glyphs-all"), few_shot(load_dataset("digits").train, 10, seed=0), seed=0)


def test_rounding_stays_within_half_a_step_and_reaches_the_largest_number_in_every_row():
    weight = torch.randn(5, 3, 3)
    q, scale = rounded(weight)
    assert q.dtype == torch.int8
    assert torch.all(q.flatten(1).abs().amax(1) == 127)
    error = (q.flatten(1) * scale - weight.flatten(1)).abs()
    assert torch.all(error <= scale / 2 + 1e-6)
    assert torch.equal(rounded(torch.zeros(2, 4))[0], torch.zeros(2, 4, dtype=torch.int8))
    with pytest.raises(ValueError, match="bits is 9; int8 holds 2 to 8"):
        rounded(weight, bits=9)


def test_rounded_weights_fit_the_model_leave_it_alone_and_cost_a_byte_each():
    model = toy_model()
    before = weights_of(model)
    state, size = with_rounded_weights(model)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(model).items())
    matrices = [value for value in before.values() if value.ndim >= 2]
    others = [value for value in before.values() if value.ndim < 2]
    stored = sum(m.numel() + 4 * len(m) for m in matrices) + sum(v.numel() * v.element_size() for v in others)
    assert size == stored
    model.load_state_dict(state)


def test_the_student_normalises_its_images_itself_and_takes_bytes_too():
    student = tiny_cnn(mean=0.5, std=0.25).eval()
    images = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        by_hand = student.head(student.body[1:]((images / 255 - 0.5) / 0.25))
        assert torch.allclose(student(images), by_hand, atol=1e-5)


@pytest.mark.parametrize("how", ["labels", "pseudo-labels", "soft targets", "FitNets", "attention"])
def test_a_student_learns_and_its_teacher_stays_as_it_is(given, how):
    before = weights_of(given.teacher)
    trainable = [parameter.requires_grad for parameter in given.teacher.parameters()]
    start = weights_of(tiny_cnn())
    student = taught(given, how, lr=1e-2, jitter="bend", beta=1.0, steps=2)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(given.teacher).items())
    assert [parameter.requires_grad for parameter in given.teacher.parameters()] == trainable
    assert not any(torch.equal(p, start[name]) for name, p in student.named_parameters() if p.ndim > 1)


def test_an_unknown_way_of_teaching_is_refused(given):
    with pytest.raises(ValueError, match="how is 'magic'; choose one of"):
        taught(given, "magic", lr=1e-2, jitter="bend", steps=2)


def test_pseudo_labels_are_the_answers_of_the_teacher_and_y_is_not_read(given):
    student = tiny_cnn().eval()
    x = given.few.x[:8]
    with torch.no_grad():
        answers = given.teacher.eval()(x).argmax(1)
        expected = torch.nn.functional.cross_entropy(student(x), answers)
    loss = PseudoLabels(FrozenTeacher(given.teacher))(student, (x, None))["loss"]
    assert torch.allclose(loss, expected)


def test_the_optimizer_gets_the_regressor_of_fitnets_and_nothing_of_the_teacher(given):
    objective = objective_of("FitNets", given.teacher, temperature=4.0, beta=1.0)
    learning = [name for name, parameter in objective.named_parameters() if parameter.requires_grad]
    assert learning == ["view_student.weight", "view_student.bias"]
