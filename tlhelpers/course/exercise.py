"""Claims that a page makes about itself, and exercises that answer back."""

import contextlib
import html
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tlhelpers.course import scorebook

RIGHT = "\N{CHECK MARK} Right."
_made: list[tuple[str, float, str]] = []  # the claims of this kernel, for `claims_table`


def claim(text: str, value: float, *, at_least: float | None = None, at_most: float | None = None) -> None:
    """Assert a statement of the page, and print it with the number that carries it.

    Raises:
        AssertionError: the value is outside its bounds (or NaN): the statement is not true here.
        ValueError: no bound is given, so nothing could fail.
    """
    if at_least is None and at_most is None:
        raise ValueError(f"the claim {text!r} has no bound; give at_least or at_most")
    value = float(value)
    limits = [("at least", at_least), ("at most", at_most)]
    bound = " and ".join(f"{words} {limit:.4g}" for words, limit in limits if limit is not None)
    low_ok = at_least is None or value >= at_least
    high_ok = at_most is None or value <= at_most
    if not (low_ok and high_ok):  # written so that NaN fails
        raise AssertionError(f"not true here: {text}: {value:.4g}, but the page claims {bound}")
    _made.append((text, value, bound))
    print(f"\N{CHECK MARK} {text}: {value:.4g} ({bound})")


def claims_table() -> None:
    """Print every claim made so far in this kernel with its number and its bound."""
    width = max((len(text) for text, _, _ in _made), default=0)
    for text, value, bound in _made:
        print(f"{text:<{width}}  {value:>8.4g}  {bound}")


@dataclass
class Question:
    """An exercise that can be checked without a network.

    Nothing here raises: a wrong answer, or one that itself raises, is explained in words.

    Attributes:
        text: what is asked, one sentence.
        judge: `answer -> None` if it is right, else the reason why it is wrong.
        hints: from a nudge to almost the answer.
        solution: Python text that defines the answer under the name `answer`.
        wrong: typical wrong answers as Python text, each with words that the reply must hold; used
            by the tests.
    """

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
        if reply == RIGHT:
            scorebook.note(self)

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
    text: str,
    judge: Callable[[Any], str | None],
    *,
    hints: list[str],
    solution: str,
    wrong: list[tuple[str, str]],
) -> Question:
    """Make a `Question`; see there.

    Raises:
        ValueError: no hint, or no typical wrong answer to test it with.
    """
    if not hints or not wrong:
        raise ValueError(f"the question {text[:40]!r} needs at least one hint and one typical wrong answer")
    return Question(text, judge, list(hints), solution.strip(), list(wrong))


def _untouched(answer: Any) -> bool:
    """An answer still is the dots, or a function whose body still is."""
    if answer is ... or answer is None:
        return True
    code = getattr(answer, "__code__", None)
    if code is None or not set(code.co_consts) <= {None, ..., answer.__doc__}:  # `return 5` has the same code as dots
        return False
    return code.co_code in (_bare_stub.__code__.co_code, _documented_stub.__code__.co_code)


# What functions compile to that hold nothing but dots, or a docstring and dots.
def _bare_stub() -> None: ...


def _documented_stub() -> None:
    """Nothing yet."""
    ...


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
        TypeError: value is not a number.
    """
    return abs(float(value) - expected) <= tolerance
