"""Questions of page 04: the first step of LoRA, its merge, and what the first token is worth."""

import torch

from tlhelpers.course.exercise import choice, question

q1 = question(
    "04.q1",
    "LoRA has just been added, A random and B = 0. What do the first gradients look like?",
    choice(
        "b",
        a="that would be so if A were 0 as well; with A random, moving B changes the output at once",
        c="the gradient of A passes through B, which is 0; that of B passes through A, which is not",
    ),
    hints=[
        "Write y = W x + s B A x and differentiate by B: what stands on its right?",
        "dL/dB = s (dL/dy) (A x)^T and dL/dA = s B^T (dL/dy) x^T. Put B = 0.",
    ],
    solution='answer = "b"  # from the second step on B is not 0, and A moves too',
    wrong=[('answer = "a"', "A were 0"), ('answer = "c"', "passes through B"), ("answer = 8", "none of the choices")],
)


def _judge_merged(function) -> str | None:
    generator = torch.Generator().manual_seed(0)
    for outputs, inputs, rank, alpha in [(3, 5, 2, 8.0), (4, 4, 1, 3.0), (4, 4, 4, 2.0)]:
        W, A, B = (
            torch.randn(shape, generator=generator) for shape in ((outputs, inputs), (rank, inputs), (outputs, rank))
        )
        start = W.clone()
        got = torch.as_tensor(function(W, A, B, alpha))
        case = f"for W {[outputs, inputs]}, rank {rank}, alpha {alpha:g}"
        if not torch.equal(W, start):
            return f"{case} you change W itself; return a new matrix, or a second call merges twice"
        if got.shape != W.shape:
            return f"{case} you return the shape {list(got.shape)}; the merged weight has the shape of W"
        if torch.allclose(got, W + alpha / rank * B @ A, atol=1e-4):
            continue
        if torch.allclose(got, W + B @ A, atol=1e-4):
            return f"{case} the factor alpha / r is missing"
        if torch.allclose(got, W + alpha * B @ A, atol=1e-4):
            return f"{case} you multiply by alpha; divide by the rank too"
        if torch.allclose(got, alpha / rank * B @ A, atol=1e-4):
            return f"{case} you return the update alone; add W"
        if outputs == inputs and rank == outputs and torch.allclose(got, W + alpha / rank * A @ B, atol=1e-4):
            return f"{case} the order is B A: first A brings x down to r numbers, then B up again"
        return f"{case} the numbers differ (tolerance 0.0001): W + alpha / r * B A is expected"
    return None


q2 = question(
    "04.q2",
    "Write merged(W, A, B, alpha): the weight of the layer after LoRA's update is merged into it.",
    _judge_merged,
    hints=["The rank is A.shape[0].", "W + (alpha / r) * B @ A, and leave W as it is."],
    solution="""
def merged(W, A, B, alpha):
    return W + alpha / A.shape[0] * B @ A
answer = merged
""",
    wrong=[
        ("answer = lambda W, A, B, alpha: W + B @ A", "factor alpha / r is missing"),
        ("answer = lambda W, A, B, alpha: W + alpha * B @ A", "divide by the rank"),
        ("answer = lambda W, A, B, alpha: alpha / A.shape[0] * B @ A", "add W"),
        ("answer = lambda W, A, B, alpha: W.add_(alpha / A.shape[0] * B @ A)", "merges twice"),
        ("answer = lambda W, A, B, alpha: B", "shape of W"),
        (
            "answer = lambda W, A, B, alpha: W + alpha / A.shape[0] * (A @ B if A.shape == B.shape else B @ A)",
            "order is B A",
        ),
        ("answer = lambda W, A, B, alpha: W - alpha / A.shape[0] * B @ A", "numbers differ"),
    ],
)


def _judge_points(answer) -> str | None:
    points = float(answer)
    if 11 <= points <= 20:
        return None
    if 0.11 <= points <= 0.20:
        return "that is a share; in points it is a hundred times as much"
    if -20 <= points <= -11:
        return "the loss is a positive number: accuracy with the mean minus accuracy with [CLS]"
    if abs(points) < 11:
        return "it loses more; take the first position of last_hidden_state, scale to length 1, seeds 0 to 9"
    return "that is too much; did you pass the attention mask, and keep the rows in the order of the messages?"


q3 = question(
    "04.q3",
    "How many points of accuracy does [CLS] lose against the mean, at 4 labels per class?",
    _judge_points,
    hints=[
        "Run minilm.module.transformer(input_ids=ids, attention_mask=(ids != 0).long()) "
        "on batches of messages.examples.x.",
        "Keep last_hidden_state[:, 0], make a [640, 384] array of it, F.normalize, and give that to probe(...).",
        "It lies between 10 and 20.",
    ],
    solution="""
# with torch.inference_mode():
#     x = [minilm.module.transformer(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state[:, 0]
#          for ids in messages.examples.x.split(32)]
# first = F.normalize(torch.cat(x)).numpy()
# lost = []
# for seed in range(10):
#     parts = split_messages(messages, seed=seed)
#     few = few_shot(parts.train, 4, seed=seed)
#     lost.append(probe(frozen, few, parts.test)[0] - probe(first, few, parts.test)[0])
# print(100 * np.mean(lost))
answer = 15  # the encoder was trained with the mean; nothing ever asked [CLS] for the meaning of the sentence
""",
    wrong=[
        ("answer = 0", "loses more"),
        ("answer = 0.15", "hundred times"),
        ("answer = -15", "positive number"),
        ("answer = 60", "too much"),
    ],
)
