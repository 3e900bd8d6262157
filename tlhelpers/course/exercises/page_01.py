"""Questions of page 01: domains, tasks, and the distance between them."""

import torch

from tlhelpers.course.exercise import choice, near, question

q1 = question(
    "01.q1",
    "A target holds only the digits 0 to 4 of the source: what are the A-distance and the accuracy lost?",
    choice(
        "a",
        b="the classifier of domains profits from every 5 to 9: such an image is from the source for certain",
        c="the fonts and the rule from image to label are those of the source, so each digit is read as before",
    ),
    hints=[
        "P(X) also says how often each kind of image occurs.",
        "What should a classifier of domains answer when it sees a printed 7?",
        "Its best error is 1/4: only source images of 0 to 4 are mistaken. Put that into 2 (1 - 2 e).",
    ],
    solution='answer = "a"  # e = 1/4 at best, so the distance is about 1; yet every digit is read as before',
    wrong=[('answer = "b"', "profits"), ('answer = "c"', "read as before"), ("answer = 7", "none of the choices")],
)


def _judge_reading(function) -> str | None:
    logits = torch.tensor([[9.0, 1.0, 2.0, 3.0], [0.0, 5.0, 4.0, -1.0], [-9.0, -3.0, -2.0, -1.0]])
    cases = [([1, 3], [1, 0, 1]), ([3, 1], [0, 1, 0]), ([0, 1, 2, 3], [0, 1, 3]), ([2], [0, 0, 0])]
    for wanted, expected in cases:
        got = torch.as_tensor(function(logits, wanted))
        if got.shape != (3,):
            return f"logits [3, 4] must give one answer per row, [3]; yours is {list(got.shape)}"
        got = [float(v) for v in got]
        if got == expected:
            continue
        if got == [float(wanted[p]) for p in expected]:
            return f"for wanted={wanted} you return columns of logits, {got}; return positions in wanted, {expected}"
        if got == logits.argmax(1).tolist():
            return f"for wanted={wanted} you take the largest of all outputs; columns outside wanted must not compete"
        if got == logits[:, sorted(wanted)].argmax(1).tolist():
            return f"for wanted={wanted} you count positions in sorted order; keep the order of wanted, {expected}"
        return f"for wanted={wanted} expected {expected}, got {got}; are negative logits treated like the others?"
    return None


q2 = question(
    "01.q2",
    "Write read_with(logits, wanted): the position in wanted of the largest wanted output, for every row.",
    _judge_reading,
    hints=[
        "logits[:, wanted] has one column for each wanted output, in the order of wanted.",
        "argmax over axis 1 of that gives positions.",
    ],
    solution="""
def read_with(logits, wanted):
    return logits[:, wanted].argmax(1)
answer = read_with
""",
    wrong=[
        ("answer = lambda logits, wanted: logits.argmax(1)", "outside wanted must not compete"),
        (
            "import torch\nanswer = lambda logits, wanted: torch.tensor(wanted)[logits[:, wanted].argmax(1)]",
            "return positions",
        ),
        ("answer = lambda logits, wanted: logits[:, sorted(wanted)].argmax(1)", "keep the order"),
        (
            "import torch\ndef answer(logits, wanted):\n    mask = torch.zeros(4)\n    mask[wanted] = 1\n"
            "    return (logits * mask)[:, wanted].argmax(0)",
            "one answer per row",
        ),
        ("answer = lambda logits, wanted: logits[:, wanted].abs().argmax(1)", "negative logits"),
        ("answer = lambda logits: logits", "raised TypeError"),
    ],
)


def _judge_angle(answer) -> str | None:
    answer = float(answer)
    if near(answer, 60, 0.5):
        return None
    if answer in (10, 20, 30, 40, 50):
        return (
            f"at {answer:.0f} degrees more than half are still read; keep turning, and use the ten digit outputs only"
        )
    if answer in (70, 80, 90):
        return "that is too far: an angle before it already loses more than half"
    return "the answer is one of 10, 20, ..., 90, the angle in degrees that you gave to turned"


q3 = question(
    "01.q3",
    "At which of 10, 20, ... degrees does the source classifier first read fewer than half of the digits?",
    _judge_angle,
    hints=[
        "examples.mapped(lambda x: turned(x, degrees)) turns all images.",
        "zero_shot(f.x, f.y)[1] is the accuracy among the ten digits; average it over the five draws.",
        "It lies above 40 degrees.",
    ],
    solution="""
# for degrees in range(10, 100, 10):
#     draws = [draw.mapped(lambda x: turned(x, degrees)) for draw in sets["held-out fonts"]]
#     features = [extract_features(body, draw) for draw in draws]
#     print(degrees, np.mean([zero_shot(f.x, f.y)[1] for f in features]))
answer = 60
""",
    wrong=[
        ("answer = 30", "still read"),
        ("answer = 50", "still read"),
        ("answer = 80", "too far"),
        ("answer = 0.44", "one of 10"),
    ],
)
