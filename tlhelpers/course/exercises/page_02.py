"""Questions of page 02: feature extraction."""

import torch

from tlhelpers.course.exercise import choice, near, question

q1 = question(
    "02.q1",
    "Every feature is multiplied by a positive number of its own: whose predictions can change?",
    choice(
        "b",
        a="k-NN compares angles, and stretching some features more than others changes angles",
        c="fit_probe standardises first: z_j and a_j z_j become the same number",
    ),
    hints=[
        "What does fit_probe do to the features before it fits?",
        "Draw two vectors in the plane and stretch one axis: does the angle between them stay?",
    ],
    solution='answer = "b"  # standardising undoes the scaling; angles between raw features do not survive it',
    wrong=[
        ("answer = 'a'", "changes angles"),
        ("answer = 'c'", "standardises"),
        ("answer = 'd'", "none of the choices"),
    ],
)


def _judge_standardise(function) -> str | None:
    train = torch.tensor([[1.0, 10.0, 3.0], [3.0, 30.0, 3.0], [5.0, 20.0, 3.0], [7.0, 60.0, 3.0]])
    new = torch.tensor([[2.0, 0.0, 3.0], [9.0, 50.0, 5.0]])
    got = function(train.clone(), new.clone())
    if not isinstance(got, tuple | list) or len(got) != 2:
        return "return two things, the standardised train and the standardised new"
    got = [torch.as_tensor(features).float() for features in got]
    for name, features, given in zip(("train", "new"), got, (train, new), strict=True):
        if features.shape != given.shape:
            return (
                f"{name} is {list(given.shape)}, yours comes back as {list(features.shape)}; statistics are per feature"
            )
    if not all(torch.isfinite(features).all() for features in got):
        return "a constant feature has standard deviation 0, and dividing by it gives NaN or infinity"
    mean = train.mean(0)
    spread = train.std(0, unbiased=False)
    scale = torch.where(spread > 0, spread, 1.0)

    def same(a, b):
        return torch.allclose(a, b, atol=1e-3)

    if same(got[0], (train - mean) / scale) and same(got[1], (new - mean) / scale):
        return None
    unbiased = torch.where(spread > 0, train.std(0), 1.0)
    if same(got[0], (train - mean) / unbiased):
        return "that divides by N - 1 inside the standard deviation; take unbiased=False (torch) or ddof=0 (NumPy)"
    if same(got[0], train - mean):
        return "the mean is off, but the spread is not: divide by the standard deviation of train"
    if same(got[0], (train - train.mean()) / train.std(unbiased=False)):
        return "that is one mean for all numbers; every feature (column) has its own"
    if same(got[0], (train - mean) / scale):
        return "train is right; new must use the statistics of train, also where it has other or no spread of its own"
    return f"the first column of train should become {((train - mean) / scale)[:, 0].tolist()}"


q2 = question(
    "02.q2",
    "Write standardise(train, new): both [N, D], both standardised with the mean and deviation of train.",
    _judge_standardise,
    hints=[
        "train.mean(0) and train.std(0, unbiased=False) have one number per feature.",
        "Set the deviations that are 0 to 1 before you divide: s[s == 0] = 1.",
    ],
    solution="""
def standardise(train, new):
    m = train.mean(0)
    s = train.std(0, unbiased=False)
    s[s == 0] = 1
    return (train - m) / s, (new - m) / s
answer = standardise
""",
    wrong=[
        ("answer = lambda t, n: tuple((x - t.mean(0)) / t.std(0, unbiased=False) for x in (t, n))", "constant feature"),
        (
            "answer = lambda t, n: tuple((x - x.mean(0)) / x.std(0, unbiased=False).clamp(min=1e-9) for x in (t, n))",
            "statistics of train",
        ),
        ("answer = lambda t, n: tuple((x - t.mean(0)) / t.std(0).clamp(min=1e-9) for x in (t, n))", "N - 1"),
        ("answer = lambda t, n: (t - t.mean(0), n - t.mean(0))", "the spread is not"),
        ("answer = lambda t, n: tuple((x - t.mean()) / t.std(unbiased=False) for x in (t, n))", "one mean for all"),
        ("answer = lambda t, n: t - t.mean(0)", "return two things"),
        ("answer = lambda t, n: (t * 0, n * 0)", "first column"),
        ("answer = lambda t: t", "raised TypeError"),
    ],
)

GAIN = 5.1  # points; page 02 runs everything that this needs


def _judge_crop(answer) -> str | None:
    answer = float(answer)
    if near(answer, GAIN, 1):
        return None
    if near(answer, GAIN / 100, 0.01):
        return "that is the difference of two fractions; times 100 gives points"
    if near(answer, 2.1, 0.7):
        return "that looks like the last layer; take layer='block3' for the crops and for the whole images"
    if near(answer, -2.1, 0.9):
        return "that looks like the other body, which read the whole images well already; take glyphs-letters"
    if 70 < answer < 100 or 0.7 < answer < 1:
        return "that is an accuracy; the question is about the difference: crops minus whole images"
    return "crop the training and the test part, probe block3 for the same ten draws, and subtract draw by draw"


q3 = question(
    "02.q3",
    "How many points does the letters-only body gain at block3 and five labels when its inputs are cropped?",
    _judge_crop,
    hints=[
        "cropped = {name: extract_features(bodies['glyphs-letters'], examples.mapped(crop), layer='block3') for ...}",
        "probe_draws(cropped, 5, 'test') gives ten accuracies; so does letters['block3'] in place of cropped.",
        "It lies between 3 and 8.",
    ],
    solution=f"""
# def crop(images):
#     return crop_to_ink(images, size=32)
# parts = {{"train": digits.train, "test": digits.test}}
# body = bodies["glyphs-letters"]
# cropped = {{
#     name: extract_features(body, examples.mapped(crop), layer="block3") for name, examples in parts.items()
# }}
# print(100 * (probe_draws(cropped, 5, "test") - probe_draws(letters["block3"], 5, "test")).mean())
answer = {GAIN}
""",
    wrong=[
        (f"answer = {GAIN / 100}", "times 100"),
        ("answer = 2.1", "last layer"),
        ("answer = -2.1", "other body"),
        ("answer = 86.0", "an accuracy"),
        ("answer = 0.86", "an accuracy"),
        ("answer = 20", "subtract"),
    ],
)
