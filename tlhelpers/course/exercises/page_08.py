"""Questions of page 08: a score without information, regret, and a term that counts only for N < D."""

import torch

from tlhelpers.course.exercise import choice, near, question

q1 = question(
    "08.q1",
    "A source head answers alike for all images of 10 equally frequent classes: what is its NCE?",
    choice(
        "b",
        a="0 means that the answer fixes the label; here it says nothing about it",
        c="every label still has probability 1/10 given the answer, so its logarithm is finite",
    ),
    hints=[
        "NCE is -H(Y | Z), the uncertainty of the label that is left when the answer is known.",
        "One answer for all: H(Y | Z) = H(Y), and ten equally frequent classes have H(Y) = log 10.",
    ],
    solution='answer = "b"  # -H(Y | Z) = -H(Y) = -log 10',
    wrong=[('answer = "a"', "says nothing"), ('answer = "c"', "finite"), ("answer = -2.3", "none of the choices")],
)


def _judge_regret(function) -> str | None:
    cases = [
        ({"probe": [0.5, 0.7], "fine-tune": [0.8, 0.6]}, "probe", 0.1),
        ({"probe": [0.5, 0.9], "fine-tune": [0.6, 0.6]}, "probe", 0.0),
        ({"pixels": [0.2, 0.2, 0.2], "probe": [0.1, 0.1, 0.9], "LP-FT": [0.5, 0.5, 0.5]}, "probe", 0.5 - 1.1 / 3),
        ({"pixels": [0.4]}, "pixels", 0.0),
    ]
    for accuracies, chosen, expected in cases:
        got = float(torch.as_tensor(function({name: list(v) for name, v in accuracies.items()}, chosen)))
        if near(got, expected, 1e-5):
            continue
        case = f"for {accuracies}, chosen {chosen!r},"
        if near(got, -expected, 1e-5):
            return f"{case} the sign is turned: regret is the best minus the chosen, never below 0"
        mine = torch.tensor(accuracies[chosen])
        every = torch.tensor(list(accuracies.values()))
        if near(got, float((every.max(0).values - mine).mean()), 1e-5):
            return f"{case} you take the best of each draw; no rule could know that: compare means over the draws"
        if near(got, float(every.max() - mine.mean()), 1e-5):
            return f"{case} you take the best single draw; average over the draws first"
        return f"{case} expected {expected:.4f}, got {got:.4f} (tolerance 0.00001)"
    return None


q2 = question(
    "08.q2",
    "Write regret_of(accuracies, chosen): the best mean accuracy minus the mean of the chosen strategy.",
    _judge_regret,
    hints=[
        "First the mean over the draws of every strategy.",
        "Then max(means.values()) - means[chosen].",
    ],
    solution="""
def regret_of(accuracies, chosen):
    means = {name: sum(values) / len(values) for name, values in accuracies.items()}
    return max(means.values()) - means[chosen]
answer = regret_of
""",
    wrong=[
        ("answer = lambda a, c: sum(a[c]) / len(a[c]) - max(sum(v) / len(v) for v in a.values())", "sign is turned"),
        ("answer = lambda a, c: max(max(v) for v in a.values()) - sum(a[c]) / len(a[c])", "best single draw"),
        (
            "answer = lambda a, c: sum(max(t) - m for t, m in zip(zip(*a.values()), a[c])) / len(a[c])",
            "best of each draw",
        ),
        ("answer = lambda a, c: 0.0", "expected"),
        ("answer = lambda a: 0.0", "raised TypeError"),
    ],
)


def _judge_excess(answer) -> str | None:
    answer = float(answer)
    if near(answer, 0.0, 0.02):
        return None
    if answer > 4:
        return "that is the answer for D = 200; set D to 30 in the same cell and run it again"
    if near(answer, -0.87, 0.1):
        return "that is the evidence itself; take the difference between 'term missing' and 'dense'"
    return "take 'term missing' minus 'dense' in the printed line for N = 60, D = 30 (tolerance 0.02)"


q3 = question(
    "08.q3",
    "With N = 60 and D = 30, by how much is the evidence without the missing term too high?",
    _judge_excess,
    hints=[
        "The missing term is (D - K) log(alpha) with K = min(N, D).",
        "For D = 30 < N = 60, K is D: there is nothing that could be missing.",
    ],
    solution="answer = 0.0  # K = min(60, 30) = D, so D - K = 0: the error exists only for N < D",
    wrong=[("answer = 9.5", "D = 200"), ("answer = -0.87", "evidence itself"), ("answer = 1.0", "take 'term missing'")],
)
