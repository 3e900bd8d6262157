"""Labelled texts: tab-separated files, the shipped messages with their two registers, and SST-2 from a cache."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tlhelpers.data.examples import Examples, Splits
from tlhelpers.data.tokens import Tokens, load_tokens
from tlhelpers.files import ASSETS
from tlhelpers.runtime import cache_dir, shifted

INTENTS = ASSETS / "intents.tsv"
HELD_OUT = {"validation": 4, "test": 12}  # messages per intent and register; the rest is for training


def read_table(path: Path, *columns: str) -> list[list[str]]:
    """Columns of a tab-separated UTF-8 file, one list each.

    Args:
        columns: names in the first line; the columns of a file without such a line when none is given.

    Raises:
        ValueError: an empty file, bytes that are not UTF-8, a line with too few or too many fields, or no such
            column; the message names the line.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8; save the file as UTF-8 "
            "(if it is Latin-1: iconv -f latin1 -t utf-8)"
        ) from error
    rows = [line.rstrip("\r").split("\t") for line in lines]
    if rows == [[""]]:
        raise ValueError(f"{path} is empty; give a file with one example per line")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise ValueError(f"{path}, line {number}: {len(row)} fields, but the first line has {len(rows[0])}")
    if not columns:
        return [list(column) for column in zip(*rows, strict=True)]
    if missing := [name for name in columns if name not in rows[0]]:
        raise ValueError(f"{path} has no column {missing}; its first line names {rows[0]}")
    return [[row[rows[0].index(name)] for row in rows[1:]] for name in columns]


def text_examples(
    name: str, texts: Sequence[str], labels: Iterable[str], classes: Sequence[str], tokens: Tokens
) -> Examples:
    """Texts and their labels, by name, as `Examples` with x = token ids int64 [N, L].

    Raises:
        ValueError: a label that is none of the classes (the message names the nearest), or as `Tokens`.
    """
    numbers = {label: number for number, label in enumerate(classes)}
    labels = list(labels)
    for row, label in enumerate(labels):
        if label not in numbers:
            near = difflib.get_close_matches(label, list(classes), n=1) or list(classes)
            raise ValueError(f"{name}, row {row}: label {label!r} is unknown to the head; did you mean {near[0]!r}?")
    y = torch.tensor([numbers[label] for label in labels], dtype=torch.int64)
    return Examples(name, tokens(texts), y, tuple(classes), torch.arange(len(y)))


@dataclass(frozen=True)
class Messages:
    """All messages of the "intents" data set, before a split.

    Attributes:
        texts: the messages; `examples.indices` are their rows.
        examples: token ids and intents.
        chat: bool [N], True for chat, False for mail.
        group: int64 [N]; messages of one group ask much the same thing.
    """

    texts: tuple[str, ...]
    examples: Examples
    chat: Tensor
    group: Tensor


def load_messages(tokens: Tokens | None = None) -> Messages:
    """The 640 messages of assets/intents.tsv; `intents.json` beside it is the data card."""
    texts, intents, registers, groups = read_table(INTENTS, "text", "intent", "register", "group")
    examples = text_examples("intents", texts, intents, sorted(set(intents)), tokens or load_tokens())
    chat = torch.tensor([register == "chat" for register in registers])
    return Messages(tuple(texts), examples, chat, torch.tensor([int(group) for group in groups]))


def split_messages(messages: Messages, *, seed: int = 0) -> Splits:
    """Per intent and register 16 messages to learn from, 4 to choose on and 12 to score on, whole groups each.

    The validation part is the same for every seed; the seed deals the rest, so that a spread over
    seeds covers the choice of the test messages too.
    """
    place = torch.zeros(len(messages.examples), dtype=torch.int64)  # 0 train, 1 validation, 2 test
    for number, (name, deal) in enumerate([("validation", 0), ("test", shifted(seed) + 1)], start=1):
        generator = torch.Generator().manual_seed(deal)
        room = torch.full((len(messages.examples.classes), 2), HELD_OUT[name])
        groups = messages.group.unique()
        for group in groups[torch.randperm(len(groups), generator=generator)]:
            rows = (messages.group == group).nonzero().flatten()
            label = messages.examples.y[rows[0]]
            need = torch.bincount(messages.chat[rows].long(), minlength=2)
            if place[rows[0]] == 0 and (need <= room[label]).all():
                place[rows] = number
                room[label] -= need
    parts = [messages.examples.take((place == number).nonzero().flatten()) for number in range(3)]
    return Splits(*parts)


def load_sst2(tokens: Tokens | None = None) -> Splits:
    """The Stanford Sentiment Treebank with two classes (Socher et al. 2013), if a cache holds it.

    Read from `cache_dir() / "text" / "sst2"`: train.tsv and dev.tsv, a sentence, a tab, 0 or 1.  The last
    800 of a shuffled training file are for validation; dev.tsv is the test part.

    Raises:
        OSError: the files are not there; the message says what to put where.
    """
    folder, tokens = cache_dir() / "text" / "sst2", tokens or load_tokens()
    if not all((folder / name).exists() for name in ("train.tsv", "dev.tsv")):
        raise OSError(
            f"SST-2 is not in {folder}; put train.tsv and dev.tsv there (sentence, tab, 0 or 1), or set "
            "TLHELPERS_CACHE to the folder that holds text/sst2"
        )
    train, test = (
        text_examples(f"sst2/{split}", *read_table(folder / f"{split}.tsv"), ("0", "1"), tokens)
        for split in ("train", "dev")
    )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    return Splits(train.take(order[:-800]), train.take(order[-800:]), test)
