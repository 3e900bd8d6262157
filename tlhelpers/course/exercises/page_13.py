"""Questions of page 13: what a saved head leaves out, saving what changed, when a frozen body is overtaken."""

import torch

from tlhelpers.course.exercise import choice, question

q1 = question(
    "13.q1",
    "A body with requires_grad = False in train mode, and only the head is saved: what does a fresh copy give?",
    choice(
        "b",
        a="the weights agree, but BatchNorm's buffers moved in train mode and were not saved",
        c="nothing complains: load_state_dict(..., strict=False) passes over what is not in the file",
    ),
    hints=[
        "Which entries of the body's state dict move in train mode although no gradient flows?",
        "Running means and variances are buffers, not parameters; a file with the head alone lacks them.",
    ],
    solution='answer = "b"  # the head learnt on features that the fresh body does not give',
    wrong=[
        ('answer = "a"', "buffers moved"),
        ('answer = "c"', "strict=False"),
        ('answer = "d"', "none of the choices"),
    ],
)


def _judge_changed(function) -> str | None:
    start = {"body.weight": torch.ones(3), "body.mean": torch.zeros(3), "body.count": torch.tensor(4)}
    start["head.weight"] = torch.ones(5, 3)
    state = {"body.weight": torch.ones(3), "body.mean": torch.full((3,), 0.25), "body.count": torch.tensor(5)}
    state |= {"head.weight": torch.ones(2, 3), "head.bias": torch.zeros(2)}
    before = {name: value.clone() for name, value in state.items()}
    saved = function(state, start)
    if not isinstance(saved, dict):
        return f"a dict of names and tensors is wanted, not a {type(saved).__name__}"
    if "body.weight" in saved:
        return "body.weight is equal in both state dicts, so it need not be saved"
    if "head.bias" not in saved:
        return "head.bias is missing: an entry that the start does not have must be saved too"
    if "head.weight" not in saved:
        return "head.weight is missing: its shape changed, [5, 3] to [2, 3]"
    if not {"body.mean", "body.count"} <= set(saved):
        return "a buffer is missing: running means and counters change too, also whole numbers"
    if any(not torch.equal(torch.as_tensor(saved[name]), before[name]) for name in saved):
        return "the new values are to be saved, unchanged; yours differ from those in state"
    if function(start, start) != {}:
        return "nothing changed between a state dict and itself: return an empty dict"
    return None


q2 = question(
    "13.q2",
    "Write changed(state, start): the entries of a state dict that are new, of another shape, or of other values.",
    _judge_changed,
    hints=[
        "A dict comprehension over state.items() with one condition is enough.",
        "torch.equal(a, b) is False for tensors of different shapes, and does not raise.",
        "Ask first whether the name is in start.",
    ],
    solution="""
import torch
def changed(state, start):
    return {k: v for k, v in state.items() if k not in start or not torch.equal(v, start[k])}
answer = changed
""",
    wrong=[
        ("answer = lambda state, start: dict(state)", "need not be saved"),
        ("answer = lambda state, start: {k: v for k, v in state.items() if k not in start}", "its shape changed"),
        (
            "answer = lambda state, start: {k: v for k, v in state.items() if k.startswith('head')}",
            "a buffer is missing",
        ),
        (
            "import torch\nanswer = lambda s, t: {k: v for k, v in s.items() if k in t and not torch.equal(v, t[k])}",
            "head.bias is missing",
        ),
        (
            "import torch\n"
            "answer = lambda s, t: {k: v + 1 for k, v in s.items() if k not in t or not torch.equal(v, t[k])}",
            "new values",
        ),
        ("answer = lambda state, start: list(state)", "a dict"),
    ],
)


def _judge_overtaken(answer) -> str | None:
    answer = float(answer)
    if answer == 20:
        return None
    if answer == 10:
        return "at 10 the difference is smaller than two standard errors: nobody is ahead yet"
    if answer == 50:
        return "true at 50, but it was true before: go one step to the left"
    if answer in (1, 2, 5):
        return "there the frozen body is still ahead: the difference is below zero"
    return "the budgets are 1, 2, 5, 10, 20 and 50"


q3 = question(
    "13.q3",
    "What is the smallest budget at which scratch is ahead of the linear probe by more than 2 standard errors?",
    _judge_overtaken,
    hints=[
        "Set against to 'linear probe' and look at the bar of 'from scratch'.",
        "The words below the figure give the mean and its standard error.",
    ],
    solution="answer = 20  # draw_budget(20, against='linear probe')",
    wrong=[
        ("answer = 10", "two standard errors"),
        ("answer = 50", "true before"),
        ("answer = 5", "still ahead"),
        ("answer = 30", "budgets"),
    ],
)
