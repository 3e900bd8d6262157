from dataclasses import replace

import pytest
import torch
from toys import CPU, toy_part

from tlhelpers.data.examples import Part, Splits, TensorLoader, as_float, check_dataset, few_shot, make_loaders
from tlhelpers.data.named import load_dataset


def labelled(y, classes=3, n=None):
    y = torch.as_tensor(y)
    return Part("toy/part", torch.rand(n or len(y), 2), y, tuple("abc"[:classes]), torch.arange(len(y)))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: labelled([0, 1, 3]), r"run from 0 to 3, outside 0\.\.2 for 3 classes; renumber them"),
        (lambda: labelled([0, -1, 2]), "run from -1 to 2"),
        (lambda: labelled([0.0, 1.0]), r"must be int64 \[N\], not torch.float32 \[2\]"),
        (lambda: labelled([[0], [1]]), r"not torch.int64 \[2, 1\]"),
        (lambda: labelled([0, 1], n=5), "5 inputs, 2 labels, 2 indices; they must be equally many"),
        (lambda: toy_part().take(torch.tensor([], dtype=torch.long)), "toy/train is empty: it needs at least one"),
    ],
)
def test_a_part_that_cannot_be_right_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_split_without_an_example_of_a_class_names_the_class():
    whole, lacking = labelled([0, 1, 2]), labelled([0, 2, 2])
    with pytest.raises(ValueError, match=r"no example of \['b'\]; add some or drop the class"):
        Splits(lacking, whole, whole)
    assert Splits(whole, lacking, lacking).classes == ("a", "b", "c")


def test_parts_of_other_classes_do_not_make_a_split():
    with pytest.raises(ValueError, match="do not share one list of classes"):
        Splits(labelled([0, 1]), labelled([0, 1], classes=2), labelled([0, 1]))


def test_taking_and_mapping_keep_rows_together_and_leave_the_part_as_it_is():
    part = toy_part()
    rows = torch.tensor([5, 0, 9])
    taken = part.take(rows).mapped(torch.neg)
    assert torch.equal(taken.x, -part.x[rows])
    assert torch.equal(taken.y, part.y[rows])
    assert torch.equal(taken.indices, rows)
    assert (part.transform, len(part)) == ("None", 24)
    assert "neg" in taken.transform
    assert all(torch.equal(a, b) for a, b in zip(part[5], (part.x[5], part.y[5]), strict=True))


def test_few_labels_are_balanced_nested_and_drawn_by_the_seed():
    part = toy_part(90)
    two, five = few_shot(part, 2, seed=3), few_shot(part, 5, seed=3)
    assert torch.bincount(five.y).tolist() == [5, 5, 5]
    assert set(two.indices.tolist()) < set(five.indices.tolist())
    assert torch.equal(part.x[five.indices], five.x)
    assert torch.equal(few_shot(part, 5, seed=3).indices, five.indices)
    assert set(few_shot(part, 5, seed=4).indices.tolist()) != set(five.indices.tolist())


def test_more_labels_than_a_class_has_are_refused():
    with pytest.raises(ValueError, match=r"3 labels per class asked for, but class 'b' .* has 1 examples; ask for at"):
        few_shot(labelled([0, 0, 0, 1, 2, 2, 2]), 3, seed=0)
    with pytest.raises(ValueError, match="labels_per_class is 0; it must be at least 1"):
        few_shot(toy_part(), 0, seed=0)


def rows_of(loader):
    """The positions in `toy_part()` that each batch of one pass holds."""
    x = loader.part.x
    return [(batch.cpu().unsqueeze(1) == x).all(2).float().argmax(1).tolist() for batch, _ in loader]


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_pass_visits_every_example_once(shuffle):
    loader = TensorLoader(toy_part(), 7, shuffle=shuffle)
    batches = rows_of(loader)
    assert [len(rows) for rows in batches] == [7, 7, 7, 3]
    assert len(loader) == 4
    order = [row for rows in batches for row in rows]
    assert sorted(order) == list(range(24))
    assert (order == list(range(24))) is not shuffle


def test_inputs_and_labels_stay_together():
    for x, y in TensorLoader(toy_part(), 5, shuffle=True, device=CPU):
        assert torch.equal(x[:, :3].argmax(1), y)


def test_the_order_depends_on_seed_and_epoch_alone():
    first, again = (TensorLoader(toy_part(), 8, shuffle=True, seed=5) for _ in range(2))
    passes = []
    for _ in range(3):
        torch.rand(3)  # whatever else draws random numbers
        passes.append(rows_of(first))
    assert passes[0] != passes[1] != passes[2]
    again.epoch = 1
    torch.manual_seed(99)
    assert [rows_of(again), rows_of(again)] == passes[1:]
    assert rows_of(TensorLoader(toy_part(), 8, shuffle=True, seed=6)) != passes[0]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_a_number_of_steps_gives_full_batches_and_balanced_visits(steps, shuffle):
    loader = TensorLoader(toy_part(), 7, shuffle=shuffle, steps=steps)
    batches = rows_of(loader)
    assert [len(rows) for rows in batches] == [7] * steps == [7] * len(loader)
    visits = torch.bincount(torch.tensor(batches).flatten(), minlength=24)
    assert visits.max() - visits.min() <= 1


def test_batches_are_augmented_first_and_transformed_last_and_the_part_stays_clean():
    part = toy_part()
    before = part.x.clone()
    noise = torch.empty(24, 4).uniform_(generator=generator(2 * 1_000_003))
    loader = TensorLoader(
        part,
        24,
        augment=lambda x, g: x + torch.empty(x.shape).uniform_(generator=g),
        transform=lambda x: 10 * x,
        seed=2,
        device=CPU,
    )
    ((x, _),) = loader
    assert torch.allclose(x, 10 * (before + noise))
    assert torch.equal(part.x, before)


def test_a_loader_refuses_sizes_below_one():
    with pytest.raises(ValueError, match="batch_size=0 and steps=None must be at least 1"):
        TensorLoader(toy_part(), 0)
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        TensorLoader(toy_part(), 4, steps=0)


def test_the_pair_of_loaders_shuffles_and_augments_for_training_only():
    part = replace(toy_part(), name="toy/validation")
    learning, checking = make_loaders(
        toy_part(), part, batch_size=8, steps=5, augment=lambda x, g: x + 100, transform=torch.neg, device=CPU
    )
    assert all((x < -90).all() for x, _ in learning)
    assert len(learning) == 5
    assert torch.equal(torch.cat([x for x, _ in checking]), -part.x)
    assert make_loaders(part)[1] is None


def test_bytes_become_fractions_and_everything_else_stays():
    assert as_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [0, 1]
    x = torch.rand(2)
    assert as_float(x) is x
    part = replace(labelled([0, 1, 2]), x=torch.full((3, 1, 2, 2), 255, dtype=torch.uint8))
    assert float(next(iter(TensorLoader(part, device=CPU)))[0].max()) == 1


def test_a_clean_data_set_raises_no_suspicion(capsys):
    assert check_dataset(load_dataset("digits")) == []
    assert "chance" in (out := capsys.readouterr().out) and "nothing suspicious" in out


def test_the_usual_disasters_are_named(capsys):
    digits = load_dataset("digits")
    ones = digits.validation.take((digits.validation.y == 1).nonzero().flatten())
    blank = replace(digits.test, x=torch.zeros_like(digits.test.x))
    leaky = digits.train.take(torch.arange(50))
    found = "\n".join(
        check_dataset(Splits(digits.train, ones, blank)) + check_dataset(Splits(digits.train, ones, leaky))
    )
    for words in (
        "validation has no example of 0",
        "one class only",
        "test: all inputs are equal",
        "50 inputs of test",
    ):
        assert words in found
    assert "! " in capsys.readouterr().out
