"""Questions of page 07: what CORAL cannot see, the unbiased MMD, and its sign."""

import torch

from tlhelpers.course.exercise import choice, near, question

q1 = question(
    "07.q1",
    "The target's features are the source's plus one fixed vector: what does the CORAL loss say?",
    choice(
        "b",
        a="the loss compares covariances, and a covariance is taken about the mean: adding a vector does not change it",
        c="2 is the largest proxy A-distance; a classifier could tell the domains apart, but CORAL does not ask one",
    ),
    hints=[
        "How does the variance of ten numbers change if you add 5 to each of them?",
        "C_T is computed from rows minus their own mean.",
    ],
    solution='answer = "b"  # C_S = C_T: Deep CORAL is blind to a shift of the mean',
    wrong=[
        ('answer = "a"', "about the mean"),
        ('answer = "(c)"', "does not ask"),
        ("answer = 0", "none of the choices"),
    ],
)


def _judge_mmd(function) -> str | None:
    generator = torch.Generator().manual_seed(0)
    for n, m in ((5, 5), (4, 7), (2, 2)):
        s = torch.rand(n, 2, generator=generator)
        t = torch.rand(m, 2, generator=generator) + 0.5
        k_ss, k_tt, k_st = (torch.exp(-torch.cdist(a, b).square()) for a, b in ((s, s), (t, t), (s, t)))
        within_s = (k_ss.sum() - n) / (n * (n - 1))
        within_t = (k_tt.sum() - m) / (m * (m - 1))
        expected = float(within_s + within_t - 2 * k_st.mean())
        got = float(function(k_ss, k_tt, k_st))
        if near(got, expected, 1e-4):
            continue
        case = f"for n = {n}, m = {m}"
        if near(got, float(k_ss.mean() + k_tt.mean() - 2 * k_st.mean()), 1e-4):
            return f"{case} this is the biased estimate: the diagonals compare rows with themselves; leave them out"
        if near(got, float(within_s + within_t - k_st.mean()), 1e-4):
            return f"{case} the mean between the domains counts twice"
        if near(got, float((k_ss.sum() - n) / n**2 + (k_tt.sum() - m) / m**2 - 2 * k_st.mean()), 1e-4):
            return f"{case} without its diagonal a matrix [n, n] has n (n - 1) entries: divide by that"
        return f"{case} expected {expected:.4f}, got {got:.4f} (tolerance 0.0001)"
    return None


q2 = question(
    "07.q2",
    "Write squared_mmd(k_ss, k_tt, k_st): the unbiased estimate of MMD squared from three kernel matrices.",
    _judge_mmd,
    hints=[
        "The diagonal of k_ss is k(s_i, s_i) = 1, n times.",
        "(k_ss.sum() - k_ss.diagonal().sum()) / (n * (n - 1)) is the mean within the source.",
    ],
    solution="""
def squared_mmd(k_ss, k_tt, k_st):
    n, m = k_st.shape
    within_s = (k_ss.sum() - k_ss.diagonal().sum()) / (n * (n - 1))
    within_t = (k_tt.sum() - k_tt.diagonal().sum()) / (m * (m - 1))
    return within_s + within_t - 2 * k_st.mean()
answer = squared_mmd
""",
    wrong=[
        ("answer = lambda a, b, c: a.mean() + b.mean() - 2 * c.mean()", "biased estimate"),
        (
            "def answer(a, b, c):\n    n, m = c.shape\n"
            "    return (a.sum() - n) / (n * n - n) + (b.sum() - m) / (m * m - m) - c.mean()",
            "counts twice",
        ),
        (
            "def answer(a, b, c):\n    n, m = c.shape\n"
            "    return (a.sum() - n) / n**2 + (b.sum() - m) / m**2 - 2 * c.mean()",
            "divide by that",
        ),
        (
            "def answer(a, b, c):\n    n = len(a)\n    return (a.sum() + b.sum() - 2 * n) / (n * n - n) - 2 * c.mean()",
            "n = 4, m = 7",
        ),
        ("answer = lambda a, b: 0", "raised TypeError"),
    ],
)

SHARE_BELOW_ZERO = 0.64  # of 400 estimates with 20 and 30 rows, sigma = 1, m = 0


def _judge_share(answer) -> str | None:
    answer = float(answer)
    if near(answer, SHARE_BELOW_ZERO, 0.1):
        return None
    if near(answer, 100 * SHARE_BELOW_ZERO, 10):
        return "that is per cent; give a share between 0 and 1"
    if near(answer, 0, 0.03):
        return "an unbiased estimate of 0 must fall below 0 as well as above; count with np.mean(np.array(draws) < 0)"
    if near(answer, 1 - SHARE_BELOW_ZERO, 0.1):
        return "that is the share above zero"
    return "set m = 0.0 in that cell, run it, and print np.mean(np.array(draws) < 0) (tolerance 0.1)"


q3 = question(
    "07.q3",
    "Of 400 unbiased estimates for two samples of one distribution, which share is below zero?",
    _judge_share,
    hints=[
        "The cell keeps its estimates in the list draws.",
        "np.mean(np.array(draws) < 0) is a share.",
    ],
    solution="answer = 0.64  # more than half: a few large values balance many slightly negative ones",
    wrong=[
        ("answer = 0", "as well as above"),
        ("answer = 64", "per cent"),
        ("answer = 0.36", "above zero"),
        ("answer = 0.95", "print np.mean"),
    ],
)
