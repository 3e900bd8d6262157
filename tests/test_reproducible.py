"""The same seed, the same numbers to the last bit: twice in one kernel, in two, with 0, 1 or 2 workers."""

from importlib import import_module
from pkgutil import iter_modules

import pytest
import torch
from fault_children import numbers
from test_faults import child, counts
from toys import CPU, toy_examples

from tlhelpers import experiments
from tlhelpers.course import setup
from tlhelpers.data import TensorLoader, few_shot, load_dataset, load_messages, split_messages
from tlhelpers.runtime import seed_everything, shifted

pytestmark = pytest.mark.fault_table


@pytest.mark.faults
def test_the_same_seed_gives_the_same_numbers_in_one_kernel_in_two_and_with_workers(tmp_path, fault_row):
    torch.set_num_threads(1)
    here = numbers(tmp_path)
    again = numbers(tmp_path)
    others = [counts(child("numbers", tmp_path)) for _ in range(2)]
    assert here == again
    equal = sum(a == b for other in others for a, b in zip(here, other, strict=True))
    fault_row("another kernel, 0, 1 or 2 workers", "the same seed gives the same numbers", 2 * len(here), equal)


def test_the_variable_moves_every_draw_and_no_data(monkeypatch, capsys):
    def draws() -> list[torch.Tensor]:
        seed_everything(0)
        batch = next(iter(TensorLoader(toy_examples(), 8, shuffle=True, device=CPU)))[0]
        messages = split_messages(load_messages()).test.indices
        return [torch.rand(3), few_shot(toy_examples(), 2, seed=0).indices, batch, messages]

    before = draws()
    digits = load_dataset("digits").train.x
    monkeypatch.setenv("TLHELPERS_SEED", "0")
    assert all(map(torch.equal, before, draws()))
    monkeypatch.setenv("TLHELPERS_SEED", "1")
    assert not any(torch.equal(a, b) for a, b in zip(before, draws(), strict=True))
    assert torch.equal(load_dataset("digits").train.x, digits)
    setup()
    assert "TLHELPERS_SEED shifts every seed by 100000" in capsys.readouterr().out


def test_no_shift_meets_the_seeds_of_another_shift_or_of_tuning(monkeypatch):
    modules = [import_module(module.name) for module in iter_modules(experiments.__path__, "tlhelpers.experiments.")]
    tuning = {seed for module in modules for seed in getattr(module, "TUNING_SEEDS", ())}
    assert tuning >= {1000, 1001}
    met = []
    for unit in range(10):
        monkeypatch.setenv("TLHELPERS_SEED", str(unit))
        met += [shifted(seed) for seed in (*range(200), *tuning)]
    assert met[:200] == list(range(200))
    assert len(set(met)) == len(met)


def test_a_seed_that_is_no_number_is_named(monkeypatch):
    monkeypatch.setenv("TLHELPERS_SEED", "one")
    with pytest.raises(ValueError, match=r"TLHELPERS_SEED is 'one'; set it to a whole number"):
        seed_everything(0)
