"""The messages that page 04 will route: what their card says must be true of the file."""

import csv
import hashlib
import itertools
import json
import re
from collections import Counter

from tlhelpers.files import ASSETS

FILE = ASSETS / "intents.tsv"
CARD = json.loads((ASSETS / "intents.json").read_text("utf-8"))
ROWS = list(csv.DictReader(FILE.read_text("utf-8").splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))


def folded(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def overlap(a: set, b: set) -> float:
    return len(a & b) / len(a | b)


def test_the_file_is_the_one_that_the_card_describes():
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() == CARD["sha256"]
    assert CARD["licence"] == "CC-BY-4.0"


def test_every_intent_has_as_many_formal_as_informal_messages():
    counts = Counter((row["intent"], row["register"]) for row in ROWS)
    assert len({intent for intent, _ in counts}) >= 10
    assert {register for _, register in counts} == {"mail", "chat"}
    assert min(counts.values()) >= 30


def test_variants_of_one_request_share_a_group_and_a_group_has_one_intent():
    intents = {}
    for row in ROWS:
        intents.setdefault(row["group"], set()).add(row["intent"])
    assert all(len(labels) == 1 for labels in intents.values())


def test_no_two_groups_hold_near_duplicates():
    assert len({folded(row["text"]) for row in ROWS}) == len(ROWS)
    words = [set(folded(row["text"]).split()) for row in ROWS]
    trigrams = [{t[i : i + 3] for i in range(len(t) - 2)} for t in (folded(row["text"]) for row in ROWS)]
    apart = [(i, j) for i, j in itertools.combinations(range(len(ROWS)), 2) if ROWS[i]["group"] != ROWS[j]["group"]]
    assert max(overlap(words[i], words[j]) for i, j in apart) < 0.6
    assert max(overlap(trigrams[i], trigrams[j]) for i, j in apart) < 0.6
