"""Questions of page 05: the loss of two tasks, conflicting gradients, learnt weights."""

import torch

from tlhelpers.course.exercise import choice, near, question

q1 = question(
    "05.q1",
    "Sums over 1,000 source and 20 target images, lambda = 1: which lambda of the sweep, with means, is that?",
    choice(
        "b",
        a="that would need as many target images as source images: a sum over 20 is far shorter",
        c="that is upside down: the sum over 1,000 source images is the long one",
    ),
    hints=[
        "A sum over n examples is n times their mean.",
        "1000 L_S + 20 L_T = 1000 (L_S + ? L_T), with means L_S and L_T.",
    ],
    solution='answer = "b"  # lambda * n_T / n_S = 1 * 20 / 1000',
    wrong=[('answer = "a"', "far shorter"), ('answer = "C"', "upside down"), ("answer = 0.02", "none of the choices")],
)


def _judge_projection(function) -> str | None:
    cases = [
        ([1.0, 0.0], [-1.0, 1.0], [0.5, 0.5]),
        ([-1.0, 1.0], [1.0, 0.0], [0.0, 1.0]),
        ([2.0, 1.0], [1.0, 3.0], [2.0, 1.0]),
        ([3.0, -1.0, 2.0], [-2.0, 0.0, 0.0], [0.0, -1.0, 2.0]),
        ([1.0, -1.0], [0.0, 0.0], [1.0, -1.0]),
    ]
    for one, other, expected in cases:
        g_1 = torch.tensor(one)
        g_2 = torch.tensor(other)
        got = torch.as_tensor(function(g_1, g_2)).float()
        if got.shape != g_1.shape:
            return f"two gradients [{len(one)}] must give one vector of that length; yours is {list(got.shape)}"
        if torch.allclose(got, torch.tensor(expected), atol=1e-5):
            continue
        case = f"for g_1 = {one}, g_2 = {other}"
        if not torch.isfinite(got).all():
            return f"{case} you divide by zero: a zero gradient conflicts with nothing, so test g_1 @ g_2 < 0 first"
        if g_1 @ g_2 >= 0:
            return f"{case} the gradients do not conflict, so g_1 must stay {one}; you return {got.tolist()}"
        if torch.allclose(got, g_1 - (g_1 @ g_2) * g_2, atol=1e-5):
            return f"{case} expected {expected}: divide g_1 @ g_2 by the squared length of g_2"
        return f"{case} expected {expected}, got {[round(v, 4) for v in got.tolist()]} (tolerance 0.00001)"
    return None


q2 = question(
    "05.q2",
    "Write projected(g_1, g_2): g_1 without its part against g_2 if they conflict, else g_1 as it is.",
    _judge_projection,
    hints=[
        "They conflict if g_1 @ g_2 is below 0.",
        "The part of g_1 along g_2 is (g_1 @ g_2) / (g_2 @ g_2) times g_2.",
    ],
    solution="""
def projected(g_1, g_2):
    dot = g_1 @ g_2
    return g_1 - dot / (g_2 @ g_2) * g_2 if dot < 0 else g_1
answer = projected
""",
    wrong=[
        ("answer = lambda a, b: a - (a @ b) / (b @ b) * b", "must stay"),
        ("answer = lambda a, b: a - (a @ b) * b if a @ b < 0 else a", "squared length"),
        ("answer = lambda a, b: a - (a @ b) / (b @ b) * b if a @ b <= 0 else a", "divide by zero"),
        ("answer = lambda a, b: a", "expected"),
        ("answer = lambda a, b: a @ b", "one vector"),
        ("answer = lambda a: a", "raised TypeError"),
    ],
)


def _judge_learnt_weight(answer) -> str | None:
    answer = float(answer)
    if near(answer, 10, 0.1):
        return None
    if near(answer, 4, 0.05):
        return "that is the ratio for the losses 2.0 and 0.5 of the page; put 2.0 and 0.2 into FIXED and run it again"
    if near(answer, 0.1, 0.005):
        return "that is source over target; the question asks for target over source"
    if near(answer, 2.303, 0.02):
        return "that is the difference of the two s; the weights are exp(-s) / 2"
    return "divide the target's learnt weight by the source's after training (tolerance 0.1)"


q3 = question(
    "05.q3",
    "With fixed losses 2.0 (source) and 0.2 (target), how many times the source's weight is the target's?",
    _judge_learnt_weight,
    hints=[
        "Change FIXED in the section on uncertainty weighting and run that cell again.",
        "At the end s_t = log L_t, and the weight is exp(-s_t) / 2 = 1 / (2 L_t).",
    ],
    solution='answer = 10  # logged["target_weight"] / logged["source_weight"] = 2.5 / 0.25',
    wrong=[
        ("answer = 4", "2.0 and 0.5"),
        ("answer = 0.1", "source over target"),
        ("answer = 2.3026", "difference"),
        ("answer = 7", "divide"),
    ],
)
