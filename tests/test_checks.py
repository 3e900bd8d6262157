import math

import numpy as np
import pytest
import torch

from tlhelpers.course import exercise as checks
from tlhelpers.course.exercise import claim, claims_table, near, question


@pytest.fixture(autouse=True)
def _no_claims_yet(monkeypatch):
    monkeypatch.setattr(checks, "_made", [])


@pytest.fixture
def square():
    """A question about a function; its judge prints, as the answer of a learner may."""

    def judge(function):
        print("noise")
        return None if function(3) == 9 else f"3 squared is 9, not {function(3)}"

    return question(
        "Write the square.",
        judge,
        hints=["Think of areas.", "x * x"],
        solution="\nanswer = lambda x: x * x\n",
        wrong=[("answer = lambda x: x", "not 3")],
    )


@pytest.mark.parametrize(
    ("value", "bounds"),
    [(0.5, {"at_least": 0.5}), (torch.tensor(0.5), {"at_most": 0.5}), (0.5, {"at_least": 0, "at_most": 1})],
)
def test_a_claim_that_holds_is_printed_with_its_number(value, bounds, capsys):
    claim("half is enough", value, **bounds)
    assert capsys.readouterr().out.startswith("\N{CHECK MARK} half is enough: 0.5 (")


@pytest.mark.parametrize(
    ("value", "bounds", "words"),
    [
        (0.49, {"at_least": 0.5}, "0.49, but the page claims at least 0.5"),
        (1.01, {"at_least": 0, "at_most": 1}, "1.01, but the page claims at least 0 and at most 1"),
        (math.nan, {"at_least": -1}, "nan, but the page claims at least -1"),
        (math.nan, {"at_most": 1}, "nan, but the page claims at most 1"),
    ],
)
def test_a_claim_that_does_not_hold_fails_and_is_not_counted(value, bounds, words, capsys):
    with pytest.raises(AssertionError, match=f"not true here: transfer helps: {words}"):
        claim("transfer helps", value, **bounds)
    claims_table()
    assert capsys.readouterr().out == ""


def test_a_claim_that_cannot_fail_is_refused():
    with pytest.raises(ValueError, match="'all is well' has no bound; give at_least or at_most"):
        claim("all is well", 1.0)


def test_the_table_lists_the_claims_in_order_and_in_columns(capsys):
    claim("first", 0.125, at_least=0)
    claim("the second", 2, at_most=3)
    capsys.readouterr()
    claims_table()
    assert capsys.readouterr().out.splitlines() == [
        "first          0.125  at least 0",
        "the second         2  at most 3",
    ]


def bare_stub(x, y): ...


def documented_stub(x, y):
    """Shapes and so on."""
    ...


@pytest.mark.parametrize("answer", [..., None, bare_stub, documented_stub, lambda x: ...])
def test_an_untouched_answer_is_not_judged(answer, square, capsys):
    square.check(answer)
    assert capsys.readouterr().out.startswith("Not attempted yet")


def test_check_without_an_answer_is_not_attempted(square):
    assert square.verdict(...) == square.verdict(None)
    square.judge = lambda answer: "judged"
    assert square.verdict(...).startswith("Not attempted")


def documented_constant(x):
    """A constant."""
    return 9


@pytest.mark.parametrize("answer", [lambda x: 9, lambda x: x**2, documented_constant, np.square])
def test_a_right_answer_is_told_so_whatever_kind_of_callable_it_is(answer, square, capsys):
    square.check(answer)
    assert capsys.readouterr().out == "\N{CHECK MARK} Right.\n"


@pytest.mark.parametrize("answer", [lambda x: x, lambda x: 3])
def test_a_wrong_answer_is_told_why(answer, square):
    assert square.verdict(answer) == "\N{MULTIPLICATION X} Not yet: 3 squared is 9, not 3"


@pytest.mark.parametrize(
    ("answer", "words"),
    [(lambda x: 1 / 0, "ZeroDivisionError: division by zero"), (7, "TypeError"), ("x*x", "TypeError")],
)
def test_an_answer_that_raises_never_breaks_the_page(answer, words, square, capsys):
    square.check(answer)
    said = capsys.readouterr().out
    assert said.startswith("\N{MULTIPLICATION X} Not yet: running your answer raised")
    assert words in said


def test_hints_escalate_and_stay_at_the_last_and_the_solution_is_printed(square, capsys):
    for _ in range(3):
        square.hint()
    square.solution()
    assert capsys.readouterr().out.splitlines() == [
        "Hint 1 of 2: Think of areas.",
        "Hint 2 of 2: x * x",
        "Hint 2 of 2: x * x",
        "answer = lambda x: x * x",
    ]


@pytest.mark.parametrize("lacking", ["hints", "wrong"])
def test_a_question_without_hints_or_wrong_answers_is_refused(lacking):
    given = {"hints": ["look"], "wrong": [("answer = 1", "no")]} | {lacking: []}
    with pytest.raises(ValueError, match="'What is it' needs at least one hint and one typical wrong answer"):
        question("What is it", lambda answer: None, solution="answer = 2", **given)


def test_near_is_the_absolute_distance_for_every_kind_of_number():
    assert all(near(value, 2.0, 0.1) for value in (2, 2.09, np.float32(1.95), torch.tensor(2.05)))
    assert not near(2.2, 2.0, 0.1)
    assert not near(math.nan, 2.0, 0.1)
    with pytest.raises(TypeError):
        near([2.0], 2.0, 0.1)
