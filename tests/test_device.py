import pytest
import torch
from toys import CPU, Pair

from tlhelpers.training import device
from tlhelpers.training.device import autocast, batch_size, mixed_precision, to_device


def product_type():
    return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


def test_a_cpu_stays_in_float32():
    assert mixed_precision(CPU) is None
    with autocast(CPU):
        assert product_type() == torch.float32


@pytest.mark.parametrize(("has_bfloat16", "reduced"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_multiplies_in_bfloat16_or_where_there_is_none_in_float16(has_bfloat16, reduced, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bfloat16)
    assert mixed_precision(torch.device("cuda")) is reduced


def test_autocast_multiplies_in_the_reduced_type_inside_the_context_only(monkeypatch):
    monkeypatch.setattr(device, "mixed_precision", lambda _device: torch.bfloat16)
    precision = autocast(CPU)
    for _ in range(2):  # a loop enters it again and again
        with precision:
            assert product_type() == torch.bfloat16
        assert product_type() == torch.float32


def test_a_nested_batch_is_moved_whole_and_counted_by_its_first_tensor():
    batch = {"views": [torch.zeros(3, 2), torch.ones(3)], "pair": (torch.zeros(3), {"y": torch.ones(3)})}
    moved = to_device(batch, torch.device("meta"))
    tensors = [*moved["views"], moved["pair"][0], moved["pair"][1]["y"]]
    assert [tensor.device.type for tensor in tensors] == ["meta"] * 4
    assert batch_size(batch) == batch_size(torch.zeros(3, 9)) == 3


def test_a_batch_that_is_there_already_is_not_copied_and_keeps_its_names():
    batch = Pair(torch.zeros(3, 2), torch.ones(3))
    moved = to_device(batch, CPU)
    assert moved.x is batch.x
    assert moved.y is batch.y


@pytest.mark.parametrize(("thing", "kind"), [(None, "NoneType"), ("a word", "str"), (3, "int")])
def test_what_is_no_tensor_is_refused(thing, kind):
    with pytest.raises(ValueError, match=f"the batch holds a {kind}; let the loader give nothing but tensors"):
        to_device({"source": (torch.zeros(3), thing)}, CPU)


@pytest.mark.parametrize("empty", [(), [], {}, ([],), {"source": ()}])
def test_a_batch_without_a_tensor_is_refused(empty):
    with pytest.raises(ValueError, match="the batch is empty; the loader must yield at least one tensor"):
        batch_size(empty)
