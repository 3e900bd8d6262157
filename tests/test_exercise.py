import math

import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from tlhelpers.course.exercise import near, question


@pytest.fixture
def square():
    """A question about a function; its judge prints, as the answer of a learner may."""

    def judge(function):
        print("noise")
        return None if function(3) == 9 else f"3 squared is 9, not {function(3)}"

    return question(
        None,
        "Write the square.",
        judge,
        hints=["Think of areas.", "x * x"],
        solution="\nanswer = lambda x: x * x\n",
        wrong=[("answer = lambda x: x", "not 3")],
    )


def bare_stub(x, y): ...


def documented_stub(x, y):
    """Shapes and so on."""
    ...


def docstring_alone(x):
    """What a learner leaves who takes the dots away."""


@torch.no_grad()
def decorated_stub(x): ...


@pytest.mark.parametrize(
    "answer", [..., None, bare_stub, documented_stub, docstring_alone, decorated_stub, lambda x: ...]
)
def test_an_untouched_answer_is_not_judged(answer, square, capsys):
    square.check(answer)
    assert capsys.readouterr().out.startswith("Not attempted yet")


def test_check_without_an_answer_is_not_attempted(square):
    assert square.verdict(...) == square.verdict(None)
    square.judge = lambda answer: "judged"
    assert square.verdict(...).startswith("Not attempted")


def half_written(x):
    ...
    return x


def without_source():
    names = {}
    exec("def answer(x): return x", names)
    return names["answer"]


@pytest.mark.parametrize("answer", [half_written, without_source(), 0, "", lambda x: x])
def test_what_holds_more_than_dots_is_judged(answer, square):
    assert square.verdict(answer).startswith("\N{MULTIPLICATION X} Not yet: ")


def test_a_stub_in_a_cell_of_a_notebook_is_seen(square):
    shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}))
    for line, untouched in {"...": True, "return 3 * x": False}.items():
        assert shell.run_cell(f"def square(x):\n    {line}").success
        assert square.verdict(shell.user_ns["square"]).startswith("Not attempted") == untouched


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
    reply = capsys.readouterr().out
    assert reply.startswith("\N{MULTIPLICATION X} Not yet: running your answer raised")
    assert words in reply


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
        question("05.q1", "What is it", lambda answer: None, solution="answer = 2", **given)


@pytest.mark.parametrize("name", ["q1", "5.q1", "05.1", "05", "What is it", ""])
def test_a_name_that_is_not_page_and_number_is_refused(name):
    with pytest.raises(ValueError, match=r"must be page and number, such as '05\.q1', or None"):
        question(name, "What is it?", lambda answer: None, hints=["look"], solution="answer = 2", wrong=[("1", "no")])


def test_near_is_the_absolute_distance_for_every_kind_of_number():
    assert all(near(value, 2.0, 0.1) for value in (2, 2.09, np.float32(1.95), torch.tensor(2.05)))
    assert not near(2.2, 2.0, 0.1)
    assert not near(math.nan, 2.0, 0.1)
    for value in ([2.0], "2", b"2", "abc", None, torch.ones(2), np.ones(2), 1j):
        with pytest.raises(TypeError, match="is not a number; give one, without quotes or brackets"):
            near(value, 2.0, 0.1)
