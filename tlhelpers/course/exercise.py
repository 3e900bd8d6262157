"""Exercises that answer back: a question, its judge, hints, a solution, and what is said to typical wrong answers."""

import ast
import contextlib
import html
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tlhelpers.course import scorebook

RIGHT = "\N{CHECK MARK} Right."


@dataclass
class Question:
    """An exercise that can be checked without a network.

    Nothing here raises: a wrong answer, or one that itself raises, is explained in words.

    Attributes:
        name: page and number, such as "05.q1", under which a right answer is kept; None for a question of no page.
        text: what is asked, one sentence.
        judge: `answer -> None` if it is right, else the reason why it is wrong.
        hints: from a nudge to almost the answer.
        solution_text: Python text that defines the answer under the name `answer`.
        wrong: typical wrong answers as Python text, each with words that the reply must hold; used
            by the tests.
    """

    name: str | None
    text: str
    judge: Callable[[Any], str | None]
    hints: list[str]
    solution_text: str
    wrong: list[tuple[str, str]] = field(default_factory=list)
    _hints_given: int = 0

    def check(self, answer: Any = ...) -> None:
        """Say whether the answer is right, and if not, why; a right one is kept in `scorebook`."""
        reply = self.verdict(answer)
        print(reply)
        if reply == RIGHT and self.name is not None:
            scorebook.note(self.name)

    def verdict(self, answer: Any) -> str:
        """What `check` prints."""
        if _untouched(answer):
            return "Not attempted yet: replace the dots (...) by your answer. hint() helps."
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                reason = self.judge(answer)
        except Exception as error:
            reason = f"running your answer raised {type(error).__name__}: {error}"
        return RIGHT if reason is None else f"\N{MULTIPLICATION X} Not yet: {reason}"

    def hint(self) -> None:
        """Print the next hint; the last one again when there are no more."""
        number = min(self._hints_given, len(self.hints) - 1)
        self._hints_given += 1
        print(f"Hint {number + 1} of {len(self.hints)}: {self.hints[number]}")

    def solution(self) -> None:
        """Show an answer that passes: folded up in a notebook, as plain text elsewhere."""
        from IPython import get_ipython
        from IPython.display import display

        if get_ipython() is None:
            print(self.solution_text)
            return
        folded = f"<details><summary>Show the solution</summary><pre>{html.escape(self.solution_text)}</pre></details>"
        display({"text/html": folded, "text/plain": self.solution_text}, raw=True)


def question(
    name: str | None,
    text: str,
    judge: Callable[[Any], str | None],
    *,
    hints: list[str],
    solution: str,
    wrong: list[tuple[str, str]],
) -> Question:
    """Make a `Question`; see there.

    Raises:
        ValueError: a name that is not page and number, no hint, or no typical wrong answer to test it with.
    """
    if name is not None and not re.fullmatch(r"\d\d\.q\d+", name):
        raise ValueError(f"the name {name!r} of a question must be page and number, such as '05.q1', or None")
    if not hints or not wrong:
        raise ValueError(f"the question {text[:40]!r} needs at least one hint and one typical wrong answer")
    return Question(name, text, judge, list(hints), solution.strip(), list(wrong))


def _untouched(answer: Any) -> bool:
    """Is an answer still the dots, or a function that holds nothing else?  Without source text it counts as written."""
    if answer is ... or answer is None:
        return True
    if not inspect.isfunction(answer):
        return False
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(answer)))
    except (OSError, SyntaxError, tokenize.TokenError):  # no source, or a lambda from the middle of a statement
        return False
    if isinstance(tree.body[0], ast.FunctionDef) and tree.body[0].name == answer.__name__:
        statements = tree.body[0].body
        if ast.get_docstring(tree.body[0]) is not None:
            statements = statements[1:]
        return all(isinstance(statement, ast.Expr) and _is_dots(statement.value) for statement in statements)
    # The source of a lambda is the whole line, which may hold several.
    lambdas = [node.body for node in ast.walk(tree) if isinstance(node, ast.Lambda)]
    return len(lambdas) > 0 and all(map(_is_dots, lambdas))


def _is_dots(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...


def choice(right: str, **replies: str) -> Callable[[Any], str | None]:
    """The judge of a question with lettered choices.

    Args:
        right: the letter of the right choice.
        replies: why each of the other letters is wrong.
    """
    letters = sorted([right, *replies])

    def judge(answer: Any) -> str | None:
        letter = str(answer).strip().lower().strip("().")
        if letter == right:
            return None
        return replies.get(letter, f"{answer!r} is none of the choices {', '.join(letters)}")

    return judge


def near(value: Any, expected: float, tolerance: float) -> bool:
    """Is `value` a number (also a NumPy or torch one) within `tolerance` of `expected`?

    Raises:
        TypeError: value is not a number; a number in quotes is none.
    """
    try:
        number = float(value if not isinstance(value, str | bytes) else None)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{value!r} is not a number; give one, without quotes or brackets") from error
    return abs(number - expected) <= tolerance
