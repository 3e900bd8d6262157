"""Questions of page 06: soft targets, partly labelled batches, and how few bits a weight needs."""

import torch
from torch.nn import functional as F

from tlhelpers.course.exercise import choice, near, question

q1 = question(
    "06.q1",
    "What does a student learn at a very high temperature, where all softened answers are nearly equal?",
    choice(
        "a",
        b="the answers of both become equal, but T^2 enlarges what is left of their difference",
        c="that is the other end: for T near 0 only the largest logit counts",
    ),
    hints=[
        "Look at the gradient for large T: it does not vanish once T^2 is there.",
        "It is (z - t) / C with both centred; where is it zero?",
    ],
    solution='answer = "a"  # the gradient is zero where centred logits agree, for all classes alike',
    wrong=[('answer = "b"', "difference"), ('answer = "c"', "other end"), ("answer = 7", "none of the choices")],
)


def _judge_hard_loss(function) -> str | None:
    z = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0], [0.0, 0.0, 3.0], [1.0, -2.0, 0.0]])
    cases = [[0, 2, 1, 0], [0, -1, 1, -1], [-1, -1, -1, 2], [-1, -1, -1, -1]]
    for labels in cases:
        y = torch.tensor(labels)
        known = y >= 0
        expected = float(F.cross_entropy(z[known], y[known])) if known.any() else 0.0
        got = float(function(z, y))
        if near(got, expected, 1e-4):
            continue
        if got != got:
            return f"for y={labels} you return NaN: 0 divided by 0; a batch without labels has a hard loss of 0"
        if near(got, expected * int(known.sum()) / len(y), 1e-4):
            return f"for y={labels} you divide by all {len(y)} images; divide by the {int(known.sum())} labelled ones"
        if near(got, expected * int(known.sum()), 1e-4):
            return f"for y={labels} you return the sum over the labelled images; return their mean"
        if near(got, float(F.cross_entropy(z, y.remainder(3))), 1e-4):
            return f"for y={labels} the label -1 is read as the last class; leave these images out"
        if near(got, float(F.cross_entropy(z, y.clamp(min=0))), 1e-4):
            return f"for y={labels} the label -1 is read as class 0; leave these images out"
        return f"for y={labels} expected {expected:.4f}, got {got:.4f} (tolerance 0.0001)"
    return None


q2 = question(
    "06.q2",
    "Write hard_loss(z, y): the mean cross-entropy over the labelled images of a batch, where y is -1 for the others.",
    _judge_hard_loss,
    hints=[
        "y >= 0 is True for the labelled images.",
        "F.cross_entropy(..., ignore_index=-1, reduction='sum') leaves out the images with label -1.",
        "Divide by the number of labelled images, but never by 0: clamp(min=1).",
    ],
    solution="""
from torch.nn import functional as F

def hard_loss(z, y):
    total = F.cross_entropy(z, y, ignore_index=-1, reduction="sum")
    return total / (y >= 0).sum().clamp(min=1)
answer = hard_loss
""",
    wrong=[
        ("import torch.nn.functional as F\nanswer = lambda z, y: F.cross_entropy(z, y, ignore_index=-1)", "NaN"),
        (
            "import torch.nn.functional as F\n"
            "answer = lambda z, y: F.cross_entropy(z, y, ignore_index=-1, reduction='none').mean()",
            "divide by all 4 images",
        ),
        (
            "import torch.nn.functional as F\n"
            "answer = lambda z, y: F.cross_entropy(z, y, ignore_index=-1, reduction='sum')",
            "return their mean",
        ),
        ("import torch.nn.functional as F\nanswer = lambda z, y: F.cross_entropy(z, y % 3)", "the last class"),
        ("import torch.nn.functional as F\nanswer = lambda z, y: F.cross_entropy(z, y.clamp(min=0))", "class 0"),
        ("import torch.nn.functional as F\nanswer = lambda z, y: F.cross_entropy(z, y)", "raised IndexError"),
    ],
)


def _judge_bits(answer) -> str | None:
    answer = float(answer)
    if answer in (3, 4):
        return None
    if answer in (5, 6, 7, 8):
        return f"with {answer:.0f} bits the answers hardly change; go on rounding more coarsely"
    if answer == 2:
        return "with 2 bits a weight is -s, 0 or s, and most answers change; one of the steps before is enough"
    return "the answer is one of 8, 7, 6, 5, 4, 3, 2, the number of bits per weight"


q3 = question(
    "06.q3",
    "How many bits per weight does the student need at least to give nine answers in ten as before?",
    _judge_bits,
    hints=[
        "Loop over bits from 8 down to 2; with_rounded_weights(student, bits)[0] is the new state dict.",
        "Load it into a fresh tiny_cnn(), and compare answers(...) with those of the student.",
        "It lies below 5.",
    ],
    solution="""
# before = answers(student, digits.test)
# for bits in range(8, 1, -1):
#     rough = tiny_cnn()
#     rough.load_state_dict(with_rounded_weights(student, bits)[0])
#     print(bits, (answers(rough, digits.test) == before).float().mean())
answer = 3  # 4 passes too: on another machine the student may lie the other side of the line
""",
    wrong=[("answer = 8", "hardly change"), ("answer = 2", "most answers change"), ("answer = 0.9", "one of 8")],
)
