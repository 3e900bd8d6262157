"""Questions of page 00: what transfer buys."""

import torch

from tlhelpers.course.exercise import choice, near, question

q1 = question(
    "00.q1",
    "Where in the label curve is the gain from transfer largest?",
    choice(
        "b",
        a="one label per class is where the pretrained body helps most; look at the left end of the figure",
        c="at 20 labels per class and more, the baseline that sees only pixels has caught up",
    ),
    hints=[
        "Compare the two lines of the first figure at their left and at their right end.",
        "What falls as labels grow?",
    ],
    solution='answer = "b"  # with few labels: knowledge from the source replaces labels that are missing',
    wrong=[('answer = "a"', "left end"), ('answer = "c"', "caught up"), ('answer = "x"', "none of the choices")],
)


def _judge_class_means(function) -> str | None:
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [10.0, 0.0], [10.0, 4.0], [4.0, 0.0]])
    y = torch.tensor([0, 0, 1, 1, 0])
    means = torch.as_tensor(function(x, y))
    if means.shape != (2, 2):
        return f"features [5, 2] of 2 classes must give [2, 2], one mean per class; yours is {list(means.shape)}"
    expected = torch.tensor([[2.0, 0.0], [10.0, 2.0]])
    if torch.allclose(means.float(), expected, atol=1e-4):
        return None
    if torch.allclose(means.float(), x.mean(0).expand(2, 2), atol=1e-4):
        return "every row is the mean of all examples; take only the examples of one class for each row"
    return f"expected {expected.tolist()} (to 1e-4), got {means.tolist()}"


q2 = question(
    "00.q2",
    "Write class_means(x, y): features x [N, D] and labels y [N] to the mean feature of each class [C, D].",
    _judge_class_means,
    hints=["x[y == 0] are the features of class 0.", "torch.stack turns a list of C vectors [D] into [C, D]."],
    solution="""
import torch
def class_means(x, y):
    return torch.stack([x[y == c].mean(dim=0) for c in range(int(y.max()) + 1)])
answer = class_means
""",
    wrong=[
        ("answer = lambda x, y: x.mean(0, keepdim=True).expand(2, -1)", "mean of all examples"),
        ("answer = lambda x, y: x[y == 0].mean(0)", "one mean per class"),
        ("import torch\nanswer = lambda x, y: torch.stack([x[y == c].sum(0) for c in range(2)])", "expected"),
        ("answer = lambda x: x", "raised TypeError"),
    ],
)


def _judge_equal_labels(answer) -> str | None:
    answer = float(answer)
    if near(answer, 5, 2):
        return None
    if answer >= 20:
        return "that many labels give the pixels about the accuracy that the pretrained body has with far more than 2"
    if answer <= 2:
        return "with that few labels the pixel baseline is still below; move along its line to the right"
    return "read off the accuracy of the pretrained body at 2 labels, then find that height on the pixel line (to +-2)"


q3 = question(
    "00.q3",
    "About how many labels per class do the cropped pixels need for what the pretrained body reaches with 2?",
    _judge_equal_labels,
    hints=["The numbers stand in words below the figure.", "It lies between 2 and 10."],
    solution="answer = 5",
    wrong=[("answer = 20", "far more than 2"), ("answer = 2", "still below"), ("answer = 9", "read off")],
)
