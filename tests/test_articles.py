"""The table of mistakes in the source articles: complete, sourced, and true about where each is treated.

The articles, S0 to S4, are not part of the repository; the table and the pages are all that this file reads.
"""

import csv
import json
import re
from pathlib import Path

import pytest

from tlhelpers.files import ASSETS

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks"
COLUMNS = ["id", "article", "written", "correct", "source", "page"]
with (ASSETS / "articles.tsv").open(encoding="utf-8", newline="") as file:
    ROWS = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
EXPECTED = {f"{kind}{i}" for kind, last in {"C": 35, "F": 9, "K": 25, "X": 5}.items() for i in range(1, last + 1)}
EXPECTED |= {"N1"}
by_row = pytest.mark.parametrize("row", ROWS, ids=[row["id"] for row in ROWS])


def cells(page: str, kind: str) -> list[dict]:
    notebook = json.loads((NOTEBOOKS / f"{page}.ipynb").read_text("utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def headings(page: str) -> list[str]:
    text = "\n".join("".join(cell["source"]) for cell in cells(page, "markdown"))
    return re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)


def shown_on_the_faq_page() -> str:
    outputs = [output for cell in cells("13_faq", "code") for output in cell["outputs"]]
    return "\n".join("".join(output.get("data", {}).get("text/markdown", "")) for output in outputs)


def test_no_row_is_missing_and_none_is_double():
    ids = [row["id"] for row in ROWS]
    assert len(ids) == len(set(ids))
    assert set(ids) == EXPECTED


@by_row
def test_a_row_says_which_articles_make_the_mistake(row):
    if row["id"].startswith("X"):  # found while testing, in no article
        assert row["article"] == "-"
    else:
        assert re.fullmatch(r"S[0-4](, S[0-4])*", row["article"])


def test_the_bug_clinic_names_no_mistake_that_is_not_in_the_table():
    named = {number for title in headings("14_bug_clinic") for number in re.findall(r"\b[CFKN]\d+\b", title)}
    clinic = {row["id"] for row in ROWS if row["page"] == "14_bug_clinic" and not row["id"].startswith("X")}
    assert named == clinic


@by_row
def test_a_row_is_complete_and_names_its_evidence(row):
    assert list(row) == COLUMNS
    assert all(row[column] and row[column] == row[column].strip() for column in COLUMNS)
    measured = re.fullmatch(r"measured on page (\d\d)", row["source"])
    assert measured or re.search(r"\b(19|20)\d\d\b", row["source"]), "a year, or the page that measures it"
    if measured:
        assert list(NOTEBOOKS.glob(f"{measured[1]}_*.ipynb"))


@by_row
def test_a_row_leads_to_a_page_that_treats_it(row):
    assert (NOTEBOOKS / f"{row['page']}.ipynb").exists()
    if row["page"] == "14_bug_clinic":
        titles = headings("14_bug_clinic")
        if row["id"].startswith("X"):
            assert any("extra trap" in title.lower() for title in titles)
        else:
            assert any(re.search(rf"\b{row['id']}\b", title) for title in titles)
    elif row["page"] != "13_faq":
        prose = "\n".join("".join(cell["source"]) for cell in cells(row["page"], "markdown"))
        assert "A mistake you will meet" in prose or row["id"].startswith("X")


def test_the_faq_page_shows_every_row_with_a_link_to_its_page():
    shown = shown_on_the_faq_page()
    for row in ROWS:
        line = next(line for line in shown.splitlines() if re.match(rf"\| {row['id']} \|", line))
        assert f"{row['page']}.ipynb" in line or row["page"] == "13_faq", row["id"]
