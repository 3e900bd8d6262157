import pytest
import torch
from toys import CPU, toy_examples

from tlhelpers.data import JointLoader, TensorLoader


def loader(n, batch_size=4, **options):
    return TensorLoader(toy_examples(n), batch_size, device=CPU, **options)


def test_each_task_cycles_through_its_own_batches():
    long = loader(20)
    short = loader(8)
    batches = list(JointLoader({"source": long, "target": short}))
    assert len(batches) == 5
    for k, batch in enumerate(batches):
        assert list(batch) == ["source", "target"]
        assert torch.equal(batch["source"][0], toy_examples(20).x[4 * k : 4 * k + 4])
        assert torch.equal(batch["target"][1], toy_examples(8).y[4 * (k % 2) : 4 * (k % 2) + 4])


@pytest.mark.parametrize(("steps", "expected"), [(None, 5), (2, 2), (13, 13)])
def test_its_length_is_the_longest_loader_or_what_was_asked_for(steps, expected):
    joint = JointLoader({"source": loader(20), "target": loader(8)}, steps=steps)
    assert len(joint) == len(list(joint)) == expected


def test_a_later_pass_is_shuffled_anew_and_two_loaders_of_one_seed_agree():
    first, second = (JointLoader({"a": loader(12, shuffle=True, seed=3)}, steps=2) for _ in range(2))
    passes = [[batch["a"][0] for batch in joint] for joint in (first, first, second, second)]
    assert not torch.equal(passes[0][0], passes[1][0])
    assert all(torch.equal(a, b) for a, b in zip(passes[0] + passes[1], passes[2] + passes[3], strict=True))


def test_a_short_loader_is_shuffled_anew_each_time_it_starts_again():
    batches = [batch["few"] for batch in JointLoader({"few": loader(12, 12, shuffle=True)}, steps=2)]
    assert not torch.equal(batches[0][0], batches[1][0])
    assert torch.equal(batches[0][0].sort(0).values, batches[1][0].sort(0).values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JointLoader({}), r"loaders of \{\} batches and steps=None: give at least one"),
        (lambda: JointLoader({"source": loader(8), "target": []}), r"'target': 0\} batches.*with 1 or more each"),
        (lambda: JointLoader({"source": loader(8)}, steps=0), "steps=0: give at least one"),
    ],
)
def test_nothing_to_iterate_over_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
