import pytest
import torch
from toys import toy_model, weights_of

from tlhelpers.models.backbones import load_backbone
from tlhelpers.data.examples import few_shot
from tlhelpers.data.named import load_dataset
from tlhelpers.experiments.distillation import lesson, rounded, taught, tiny_cnn, with_rounded_weights


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


def test_a_student_of_an_unknown_method_is_refused_and_one_of_a_known_method_learns():
    backbone, train = load_backbone("glyphs-all"), load_dataset("digits").train
    given = lesson(backbone, few_shot(train, 10, seed=0), seed=0)
    start = tiny_cnn()
    student = taught(given, "soft targets", lr=1e-2, jitter="bend", steps=2)
    assert [p.shape for p in student.parameters()] == [p.shape for p in start.parameters()]
    assert not any(
        torch.equal(p, q) for p, q in zip(student.parameters(), start.parameters(), strict=True) if p.ndim > 1
    )
    with pytest.raises(ValueError, match="how is 'magic'; choose one of"):
        taught(given, "magic", lr=1e-2, jitter="bend", steps=2)
