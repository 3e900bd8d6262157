"""Questions of page 14: the bug hunt.  Each shows a broken program; the answer is the repaired function."""

import torch
from torch import Tensor, nn

from tlhelpers.analysis.diagnose import batch_dependence, changed_tensors, not_in_optimizer, snapshot
from tlhelpers.course.exercise import near, question

BROKEN_COLLECT = """
def collect(body, batches):
    features, labels = [], []
    for inputs, labels in batches:
        features.append(body(inputs))
        labels.append(labels)
    return torch.cat(features), torch.cat(labels)
"""
BROKEN_PREPARE = """
def prepare(model, classes):
    model.body.requires_grad_(False)
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    model.head = torch.nn.Linear(6, 1000)
    return model, optimizer
"""
BROKEN_LAST = """
def last_states(states, lengths):
    return states[:, -1]
"""
BROKEN_SOFT = """
def soft_loss(student, teacher, T):
    log_q, p = (student / T).log_softmax(1), (teacher / T).softmax(1)
    return torch.nn.functional.kl_div(log_q, p, reduction="none").mean()
"""
BROKEN_REPORT = """
def report(validation, test):
    return max(test)
"""
REPAIRED_COLLECT = """
def collect(body, batches):
    features, labels = [], []
    body.eval()
    with torch.no_grad():
        for x, y in batches:
            features.append(body(x))
            labels.append(y)
    return torch.cat(features), torch.cat(labels)
answer = collect
"""
REPAIRED_PREPARE = """
from tlhelpers.models import freeze
def prepare(model, classes):
    freeze(model.body)
    model.head = torch.nn.Linear(6, classes)
    return model, torch.optim.SGD(model.head.parameters(), lr=0.1)
answer = prepare
"""
REPAIRED_SOFT = """
def soft_loss(student, teacher, T):
    log_q, p = (student / T).log_softmax(1), (teacher.detach() / T).softmax(1)
    return T**2 * torch.nn.functional.kl_div(log_q, p, reduction="batchmean")
answer = soft_loss
"""


def _toy_body() -> nn.Module:
    """[N, 4] -> [N, 6] with BatchNorm and dropout, in training mode, the same weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 6)).train()


def _toy_batches() -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(11, 4, generator=torch.Generator().manual_seed(1))
    return list(zip(x.split(4), torch.arange(11).split(4), strict=True))  # the last batch is smaller


def _judge_collect(function) -> str | None:
    body = _toy_body()
    batches = _toy_batches()
    before = snapshot(body)
    try:
        features, labels = function(body, batches)
    except AttributeError as error:
        return f"it stops at the first batch ({error}): one name stands for a list and for the batch's labels"
    if not isinstance(features, Tensor) or not isinstance(labels, Tensor) or features.shape != (11, 6):
        return "return two tensors, features [N, D] and labels [N], for all batches (the last one may be smaller)"
    if not torch.equal(labels.cpu(), torch.arange(11)):
        return f"the labels must come in the order of the batches, 0 to 10; yours are {labels.tolist()}"
    if features.requires_grad:
        return "the features keep their graph (requires_grad is True); run the body under torch.no_grad()"
    if moved := changed_tensors(before, body):
        return f"the body's buffers moved ({len(moved)} tensors): BatchNorm is in training mode; call body.eval() first"
    whole = _toy_body().eval()(torch.cat([x for x, _ in batches]))
    if not torch.allclose(features.float(), whole, atol=1e-4):
        return "the features depend on the batch, or on dropout: the body must run in eval mode for every batch"
    return None


q1 = question(
    "14.q1",
    "Repair collect(body, batches): features [N, D] and labels [N] of a frozen body.",
    _judge_collect,
    hints=[
        "Run it: the first error is about names. More mistakes make no noise.",
        "What do requires_grad, batch_dependence and changed_tensors say about the features and the body?",
        "body.eval(), torch.no_grad(), and two names: labels for the list, y for the batch.",
    ],
    solution=REPAIRED_COLLECT,
    wrong=[
        (BROKEN_COLLECT + "answer = collect", "one name stands for a list"),
        (REPAIRED_COLLECT.replace("no_grad", "enable_grad"), "keep their graph"),
        (REPAIRED_COLLECT.replace("    body.eval()\n", ""), "buffers moved"),
        (REPAIRED_COLLECT.replace("    body.eval()\n", "    body[1].eval()\n"), "dropout"),
        (REPAIRED_COLLECT.replace("in batches", "in batches[::-1]"), "in the order"),
        (REPAIRED_COLLECT.replace("in batches", "in batches[:2]"), "for all batches"),
    ],
)


def _judge_prepare(function) -> str | None:
    model = nn.Module()
    model.body = _toy_body()
    model.head = nn.Linear(6, 1000)
    model, optimizer = function(model, 5)
    outputs = getattr(model.head, "out_features", None)
    if outputs != 5:
        return f"5 classes, but the head has {outputs} outputs: the first loss would be the logarithm of that number"
    if any(p.requires_grad for p in model.body.parameters()):
        return "the body is to be frozen, but some of its parameters still want gradients"
    if missing := not_in_optimizer(model, optimizer):
        return f"the optimizer does not hold {missing}: it was made before the head was replaced, so nothing will learn"
    before = snapshot(model.body)
    x = _toy_batches()[0][0]
    model.head(model.body(x)).sum().backward()
    optimizer.step()
    if moved := changed_tensors(before, model.body):
        return f"after one step {len(moved)} tensors of the frozen body moved: requires_grad does not stop BatchNorm"
    if batch_dependence(model.body, x) > 1e-4:
        return "the frozen body still runs dropout; put it into eval mode"
    return None


q2 = question(
    "14.q2",
    "Repair prepare(model, classes): a frozen body, a new head for `classes`, and an optimizer over that head.",
    _judge_prepare,
    hints=[
        "Which parameters does the optimizer hold, and when was it made? And what does BatchNorm do?",
        "freeze(model.body) of tlhelpers.models, then the head, then the optimizer.",
    ],
    solution=REPAIRED_PREPARE,
    wrong=[
        (BROKEN_PREPARE + "answer = prepare", "1000 outputs"),
        (BROKEN_PREPARE.replace("1000", "classes") + "answer = prepare", "made before the head was replaced"),
        (REPAIRED_PREPARE.replace("freeze(model.body)", "model.body.requires_grad_(False)"), "not stop BatchNorm"),
        (REPAIRED_PREPARE.replace("freeze(model.body)", "pass"), "still want gradients"),
        (REPAIRED_PREPARE.replace("model.body)", "model.body.requires_grad_(False)[1])"), "still runs dropout"),
    ],
)


def _judge_last(function) -> str | None:
    states = torch.arange(24.0).reshape(3, 4, 2)  # [N, T, D]
    for lengths in ([4, 4, 4], [4, 2, 1]):
        expected = torch.stack([states[i, n - 1] for i, n in enumerate(lengths)])
        got = torch.as_tensor(function(states, torch.tensor(lengths))).float()
        if got.shape != expected.shape:
            return f"states [3, 4, 2] must give [3, 2], one state per sequence; yours is {list(got.shape)}"
        if torch.equal(got, expected):
            continue
        if torch.equal(got, states[:, -1]):
            return f"for lengths {lengths} you return the last column, which is padding for the short sequences"
        return (
            f"lengths {lengths}: expected {expected.tolist()}, got {got.tolist()}; the last step has number length - 1"
        )
    return None


q3 = question(
    "14.q3",
    "Repair last_states(states, lengths): [N, T, D] and lengths [N] to the last valid state [N, D].",
    _judge_last,
    hints=[
        "Sequences shorter than T are padded at the end; which column holds their last real step?",
        "states[rows, columns] with two index tensors picks one state per sequence; counting starts at 0.",
    ],
    solution="answer = lambda states, lengths: states[torch.arange(len(states)), lengths - 1]",
    wrong=[
        (BROKEN_LAST + "answer = last_states", "which is padding"),
        ("answer = lambda h, n: h[torch.arange(len(h)), n.clamp(max=3)]", "has number length - 1"),
        ("answer = lambda h, n: h.mean(dim=1)", "has number length - 1"),
        ("answer = lambda h, n: h", "one state per sequence"),
        ("answer = lambda h, n: h[torch.arange(len(h)), n]", "raised IndexError"),
    ],
)


def _judge_soft(function) -> str | None:
    generator = torch.Generator().manual_seed(3)
    student, teacher = (3 * torch.randn(4, 5, generator=generator) for _ in range(2))
    for T in (1.0, 2.0):
        student, teacher = (t.detach().clone().requires_grad_() for t in (student, teacher))
        loss = torch.as_tensor(function(student, teacher, T))
        log_q = (student.detach() / T).log_softmax(1)
        log_p = (teacher.detach() / T).log_softmax(1)
        kl = float((log_p.exp() * (log_p - log_q)).sum(1).mean())
        reverse = float((log_q.exp() * (log_q - log_p)).sum(1).mean())
        value = float(loss.detach())
        at = f"at T = {T:g}"
        if near(value, kl / 5, 1e-5) or (T > 1 and near(value, T**2 * kl / 5, 1e-5)):
            return f"{at} it is too small by the number of classes: a mean over all entries; use 'batchmean'"
        if near(value, 4 * T**2 * kl, 1e-4):
            return f"{at} it is a sum over the batch; take the mean over its examples ('batchmean')"
        if T > 1 and near(value, kl, 1e-5):
            return f"{at} the factor T^2 is missing, so the gradient would shrink with the temperature"
        if near(value, T**2 * reverse, 1e-4):
            return f"{at} teacher and student are exchanged: kl_div takes the student's log-probabilities first"
        if not near(value, T**2 * kl, 1e-4):
            return f"{at} expected T^2 KL(teacher || student) = {T**2 * kl:.4f}, got {value:.4f} (tolerance 0.0001)"
    if not loss.requires_grad:
        return "the value is right, but it carries no gradient for the student"
    loss.backward()
    if teacher.grad is not None and teacher.grad.any():
        return "the value is right, but the teacher gets a gradient too; detach its logits"
    if student.grad is None:
        return "the value is right, but it carries no gradient for the student"
    return None


q4 = question(
    "14.q4",
    "Repair soft_loss(student, teacher, T): logits [N, C] to T^2 KL(teacher || student), mean over examples.",
    _judge_soft,
    hints=[
        "Compare with the sum of p (log p - log q) over classes, averaged over examples, at T = 1.",
        "reduction='batchmean', times T**2, and teacher.detach().",
    ],
    solution=REPAIRED_SOFT,
    wrong=[
        (BROKEN_SOFT + "answer = soft_loss", "number of classes"),
        (REPAIRED_SOFT.replace("T**2 *", ""), "T^2 is missing"),
        (REPAIRED_SOFT.replace("batchmean", "sum"), "sum over the batch"),
        (REPAIRED_SOFT.replace("teacher.detach()", "teacher"), "detach"),
        (REPAIRED_SOFT.replace("student, teacher,", "teacher, student,").replace(".detach()", ""), "exchanged"),
        (REPAIRED_SOFT.replace("(student /", "(student.detach() /"), "no gradient for the student"),
        ("answer = lambda s, t, T: (s.detach() - t).square().mean()", "expected T^2 KL"),
    ],
)


def _judge_report(function) -> str | None:
    cases = [
        ([0.70, 0.80, 0.75], [0.90, 0.78, 0.95], 0.78),
        ([0.6], [0.5], 0.5),
        ([0.2, 0.4, 0.4], [0.3, 0.1, 0.2], 0.1),
    ]
    for validation, test, expected in cases:
        value = float(function(list(validation), list(test)))
        case = f"validation {validation}, test {test}"
        if near(value, expected, 1e-9):
            continue
        if near(value, max(validation), 1e-9):
            return f"{case}: you report the validation score of the best setting; report its test score"
        if near(value, max(test), 1e-9):
            return f"{case}: you choose by the test scores, so what you report is too good; choose on validation"
        return f"{case}: expected {expected}, the test score of the setting that is best on validation; got {value}"
    return None


q5 = question(
    "14.q5",
    "Repair report(validation, test): lists of accuracies per setting to the one number that may be published.",
    _judge_report,
    hints=[
        "Which of the two lists may take part in the choice of the setting?",
        "validation.index(max(validation)) is the first of the best settings.",
    ],
    solution="answer = lambda validation, test: test[validation.index(max(validation))]",
    wrong=[
        (BROKEN_REPORT + "answer = report", "choose by the test scores"),
        ("answer = lambda v, t: max(v)", "the validation score"),
        ("answer = lambda v, t: t[len(v) - 1 - v[::-1].index(max(v))]", "expected 0.1"),
        ("answer = lambda v, t: sum(t) / len(t)", "expected 0.78"),
    ],
)
