"""Questions of page 03: fine-tuning."""

import torch
from torch import nn

from tlhelpers.course.exercise import choice, near, question
from tlhelpers.models.glyphnet import GlyphNet
from tlhelpers.models.surgery import freeze

q1 = question(
    "03.q1",
    "What does L2-SP become when alpha grows without limit?",
    choice(
        "c",
        a="the pull of L2-SP grows with alpha; plain fine-tuning is the other end, alpha = 0",
        b="training from scratch starts at random weights; L2-SP pulls towards the pretrained ones",
    ),
    hints=[
        "With a huge alpha, which weights of the body minimise the objective?",
        "The head has no starting point: it is not pulled.",
    ],
    solution='answer = "c"  # the body stays at theta_s and only the new head learns',
    wrong=[("answer = 'a'", "other end"), ("answer = 'b'", "random weights"), ("answer = 'x'", "none of the choices")],
)


def _judge_penalty(function) -> str | None:
    start = [torch.tensor([1.0, 2.0]), torch.tensor([[0.0, -1.0], [3.0, 1.0]])]
    parameters = [nn.Parameter(start[0] + torch.tensor([1.0, 0.0])), nn.Parameter(start[1] + 2.0)]
    alpha = 0.5
    squared = 1 + 4 * 4  # the squared distance, summed over both tensors
    penalty = function(parameters, start, alpha)
    value = float(torch.as_tensor(penalty).detach())
    if near(value, alpha * squared, 1e-4):
        return "the formula has alpha / 2, so that the gradient is alpha * (w - w0)"
    if near(value, alpha / 2 * squared**0.5, 1e-4) or near(value, alpha / 2 * (1 + 4), 1e-4):
        return "the distance enters squared: sum the squares of all differences, and take no root"
    if near(value, alpha / 2 * sum((p**2).sum().item() for p in parameters), 1e-4):
        return "that is weight decay, a pull towards 0; L2-SP pulls towards the starting point"
    if near(value, alpha / 2 * (1 / 2 + 4), 1e-4):
        return "sum over the entries of every tensor; a mean would weigh small tensors more"
    if not near(value, alpha / 2 * squared, 1e-4):
        return f"w - w0 = [1, 0] and four times 2, alpha = {alpha}: expected {alpha / 2 * squared}, got {value}"
    if not (isinstance(penalty, torch.Tensor) and penalty.requires_grad):
        return "the value is right, but it carries no gradient; keep it a tensor, without item(), float() or detach()"
    penalty.backward()
    if not torch.allclose(parameters[1].grad, alpha * (parameters[1].detach() - start[1]), atol=1e-5):
        return "the value is right, but its gradient is not alpha * (w - w0)"
    at_start = float(function([w.clone() for w in start], start, alpha))
    return None if near(at_start, 0, 1e-6) else f"at the starting point the penalty must be 0, yours is {at_start}"


q2 = question(
    "03.q2",
    "Write l2_sp_penalty(parameters, start, alpha): two lists of tensors to alpha / 2 * ||w - w0||^2, with a gradient.",
    _judge_penalty,
    hints=[
        "((w - w0) ** 2).sum() is the share of one pair of tensors.",
        "zip(parameters, start) gives the pairs; Python's sum adds up tensors too.",
    ],
    solution="""
def l2_sp_penalty(parameters, start, alpha):
    return alpha / 2 * sum(((w - w0) ** 2).sum() for w, w0 in zip(parameters, start))
answer = l2_sp_penalty
""",
    wrong=[
        ("answer = lambda p, s, a: a * sum(((w - v) ** 2).sum() for w, v in zip(p, s))", "alpha / 2"),
        ("answer = lambda p, s, a: a / 2 * sum(((w - v) ** 2).sum() for w, v in zip(p, s)) ** 0.5", "no root"),
        ("answer = lambda p, s, a: a / 2 * sum((w ** 2).sum() for w in p)", "weight decay"),
        ("answer = lambda p, s, a: a / 2 * sum(((w - v) ** 2).mean() for w, v in zip(p, s))", "a mean"),
        ("answer = lambda p, s, a: a / 2 * sum(((w - v) ** 2).sum().item() for w, v in zip(p, s))", "no gradient"),
        ("answer = lambda p, s, a: a / 2 * sum(((w.detach() - v) ** 2).sum() for w, v in zip(p, s))", "no gradient"),
        ("answer = lambda p, s: 0", "raised TypeError"),
    ],
)


def _trainable_share() -> float:
    """Per cent of all parameters that stay trainable when the stem and the first two blocks are frozen."""
    with torch.random.fork_rng(devices=[]):  # the page's random numbers stay as they are
        model = nn.ModuleDict({"body": GlyphNet(), "head": nn.Linear(GlyphNet.feature_dim, 10)})
    for name in ("stem", "block1", "block2"):
        freeze(model["body"].get_submodule(name))
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return 100 * sum(n for n, free in sizes if free) / sum(n for n, _ in sizes)


def _judge_share(answer) -> str | None:
    answer = float(answer)
    right = _trainable_share()
    if near(answer, right, 1):
        return None
    if near(answer, right / 100, 0.01):
        return "that is the fraction; give it in per cent"
    if near(answer, 100 - right, 1):
        return "that is the share of the frozen parameters; the question is about the trainable ones"
    if near(answer, 40, 1) or near(answer, 50, 1) or near(answer, 60, 1):
        return "that counts stages; count parameters: a late block has many times more of them than an early one"
    if answer > 100:
        return "that looks like a number of parameters; divide by the total and multiply by 100"
    return "freeze exactly three stages, then take 100 * trainable / total of trainable_summary(model) (to +-1)"


q3 = question(
    "03.q3",
    "What per cent of the model's parameters is trainable when the stem, block1 and block2 are frozen?",
    _judge_share,
    hints=[
        "model = attach_head(body, 10), then freeze(model.body.stem) and so on.",
        "summary = trainable_summary(model) has .trainable and .total.",
    ],
    solution=f"answer = {_trainable_share():.1f}",
    wrong=[
        ("answer = 40", "counts stages"),
        (f"answer = {100 - _trainable_share():.1f}", "frozen parameters"),
        (f"answer = {_trainable_share() / 100:.3f}", "per cent"),
        ("answer = 200_000", "number of parameters"),
        ("answer = 75", "exactly three stages"),
    ],
)
