from dataclasses import replace

import pytest
import torch
from toys import CPU, toy_examples

from tlhelpers.data import (
    Examples,
    Splits,
    TensorLoader,
    as_float,
    check_dataset,
    few_shot,
    load_dataset,
    make_loaders,
    overlap,
)


def labelled(y, classes=3, n=None):
    y = torch.as_tensor(y)
    return Examples("toy/examples", torch.rand(n or len(y), 2), y, tuple("abc"[:classes]), torch.arange(len(y)))


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
        (lambda: toy_examples().take(torch.tensor([], dtype=torch.long)), "toy/train is empty: it needs at least one"),
    ],
)
def test_examples_that_cannot_be_right_is_refused(make, message):
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


def test_taking_and_mapping_keep_rows_together_and_leave_the_examples_as_they_are():
    examples = toy_examples()
    rows = torch.tensor([5, 0, 9])
    taken = examples.take(rows).mapped(torch.neg)
    assert torch.equal(taken.x, -examples.x[rows])
    assert torch.equal(taken.y, examples.y[rows])
    assert torch.equal(taken.indices, rows)
    assert (examples.history, len(examples)) == ("", 24)
    assert "neg" in taken.history
    assert all(torch.equal(a, b) for a, b in zip(examples[5], (examples.x[5], examples.y[5]), strict=True))


def test_few_labels_are_balanced_nested_and_drawn_by_the_seed():
    examples = toy_examples(90)
    two, five = few_shot(examples, 2, seed=3), few_shot(examples, 5, seed=3)
    assert torch.bincount(five.y).tolist() == [5, 5, 5]
    assert set(two.indices.tolist()) < set(five.indices.tolist())
    assert torch.equal(examples.x[five.indices], five.x)
    assert torch.equal(few_shot(examples, 5, seed=3).indices, five.indices)
    assert set(few_shot(examples, 5, seed=4).indices.tolist()) != set(five.indices.tolist())


def test_more_labels_than_a_class_has_are_refused():
    with pytest.raises(ValueError, match=r"3 labels per class asked for, but class 'b' .* has 1 examples; ask for at"):
        few_shot(labelled([0, 0, 0, 1, 2, 2, 2]), 3, seed=0)
    with pytest.raises(ValueError, match="labels_per_class is 0; it must be at least 1"):
        few_shot(toy_examples(), 0, seed=0)


def rows_of(loader):
    """The positions in `toy_examples()` that each batch of one pass holds."""
    x = loader.examples.x
    return [(batch.cpu().unsqueeze(1) == x).all(2).float().argmax(1).tolist() for batch, _ in loader]


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_pass_visits_every_example_once(shuffle):
    loader = TensorLoader(toy_examples(), 7, shuffle=shuffle)
    batches = rows_of(loader)
    assert [len(rows) for rows in batches] == [7, 7, 7, 3]
    assert len(loader) == 4
    order = [row for rows in batches for row in rows]
    assert sorted(order) == list(range(24))
    assert (order == list(range(24))) is not shuffle


def test_inputs_and_labels_stay_together():
    for x, y in TensorLoader(toy_examples(), 5, shuffle=True, device=CPU):
        assert torch.equal(x[:, :3].argmax(1), y)


def test_the_order_depends_on_seed_and_epoch_alone():
    first, again = (TensorLoader(toy_examples(), 8, shuffle=True, seed=5) for _ in range(2))
    passes = []
    for _ in range(3):
        torch.rand(3)  # whatever else draws random numbers
        passes.append(rows_of(first))
    assert passes[0] != passes[1] != passes[2]
    again.epoch = 1
    torch.manual_seed(99)
    assert [rows_of(again), rows_of(again)] == passes[1:]
    assert rows_of(TensorLoader(toy_examples(), 8, shuffle=True, seed=6)) != passes[0]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_a_number_of_steps_gives_full_batches_and_balanced_visits(steps, shuffle):
    loader = TensorLoader(toy_examples(), 7, shuffle=shuffle, steps=steps)
    batches = rows_of(loader)
    assert [len(rows) for rows in batches] == [7] * steps == [7] * len(loader)
    visits = torch.bincount(torch.tensor(batches).flatten(), minlength=24)
    assert visits.max() - visits.min() <= 1


def test_batches_are_augmented_from_the_seed_and_the_examples_stay_clean():
    examples = toy_examples()
    before = examples.x.clone()
    noise = torch.empty(24, 4).uniform_(generator=generator(2 * 1_000_003))
    loader = TensorLoader(
        examples,
        24,
        augment=lambda x, g: x + torch.empty(x.shape).uniform_(generator=g),
        seed=2,
        device=CPU,
    )
    ((x, _),) = loader
    assert torch.allclose(x, before + noise)
    assert torch.equal(examples.x, before)


def test_a_loader_refuses_sizes_below_one():
    with pytest.raises(ValueError, match="batch_size=0 and steps=None must be at least 1"):
        TensorLoader(toy_examples(), 0)
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        TensorLoader(toy_examples(), 4, steps=0)


def test_the_pair_of_loaders_shuffles_and_augments_for_training_only():
    examples = replace(toy_examples(), name="toy/validation")
    learning, checking = make_loaders(
        toy_examples(), examples, batch_size=8, steps=5, augment=lambda x, g: x + 100, device=CPU
    )
    assert all((x > 90).all() for x, _ in learning)
    assert len(learning) == 5
    assert torch.equal(torch.cat([x for x, _ in checking]), examples.x)
    assert make_loaders(examples)[1] is None


def test_bytes_become_fractions_and_everything_else_stays():
    assert as_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [0, 1]
    x = torch.rand(2)
    assert as_float(x) is x
    examples = replace(labelled([0, 1, 2]), x=torch.full((3, 1, 2, 2), 255, dtype=torch.uint8))
    assert float(next(iter(TensorLoader(examples, device=CPU)))[0].max()) == 1


def test_a_clean_data_set_raises_no_suspicion(capsys):
    assert check_dataset(load_dataset("digits")) == []
    printed = capsys.readouterr().out
    assert "chance" in printed
    assert "nothing suspicious" in printed


def test_the_usual_disasters_are_named(capsys):
    digits = load_dataset("digits")
    ones = digits.validation.take((digits.validation.y == 1).nonzero().flatten())
    blank = replace(digits.test, x=torch.zeros_like(digits.test.x))
    leaky = digits.train.take(torch.arange(50))
    warnings = "\n".join(
        check_dataset(Splits(digits.train, ones, blank)) + check_dataset(Splits(digits.train, ones, leaky))
    )
    for words in (
        "validation has no example of 0",
        "one class only",
        "test: all inputs are equal",
        "50 inputs of test",
    ):
        assert words in warnings
    assert "! " in capsys.readouterr().out


def test_parts_of_unlike_shape_are_compared_where_they_can_share_an_input():
    def part(x):
        return Examples("toy/part", torch.tensor(x), torch.arange(3), tuple("abc"), torch.arange(3))

    train = part([[5, 6, 0], [7, 8, 9], [4, 0, 0]])  # ids of texts, padded at the end
    longer, shorter = part([[5, 6, 0, 0], [7, 8, 9, 1], [2, 0, 0, 0]]), part([[5, 6], [7, 8], [4, 0]])
    wide = part([[0.5] * 4, [1.0] * 4, [0.0] * 4])
    assert check_dataset(Splits(train, longer, wide)) == [
        "1 inputs of validation are in train too: the score will flatter"
    ]
    assert check_dataset(Splits(train, shorter, wide)) == [
        "2 inputs of validation are in train too: the score will flatter"
    ]


def test_overlap_finds_exactly_the_rows_that_were_put_in():
    x = torch.rand(20, 1, 8, 8)
    test = torch.cat([torch.rand(3, 1, 8, 8), x[5:7], torch.rand(1, 1, 8, 8), x[:1]])
    assert overlap(x, test).tolist() == [3, 4, 6]
    assert overlap(x[:5], x[5:]).tolist() == []


def test_overlap_does_not_depend_on_order_and_sees_through_strides():
    x = torch.rand(6, 4, 4)
    assert overlap(x.flip(0), x.transpose(1, 2).contiguous().transpose(1, 2)).tolist() == list(range(6))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64])
def test_overlap_takes_every_type(dtype):
    x = torch.eye(3).to(dtype)
    assert overlap(x[:1], x).tolist() == [0]


def test_rows_that_can_never_be_equal_are_refused():
    with pytest.raises(ValueError, match="before any transform"):
        overlap(torch.rand(3, 4), torch.rand(3, 5))
    with pytest.raises(ValueError, match=r"torch\.float64"):
        overlap(torch.rand(3, 4), torch.rand(3, 4).double())
