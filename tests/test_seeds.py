"""Pages run with other seeds: what fails is named, and how near to its bound every claim is."""

import nbformat
import pytest

from tools import seeds

SOURCE = """
from tlhelpers.course import claim
from tlhelpers.runtime import shifted
claim("a moving number: with colons", 2 + shifted(0) / 100_000, at_least=1, at_most=10)
claim("a number that stays", 5, at_least=1)
claim("true of seed 0 alone", shifted(0), at_most=0)
"""


def test_claims_and_failures_of_a_page_are_found(tmp_path):
    path = tmp_path / "00_page.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SOURCE)]), path)
    failed, claims = seeds.run(path, 0)
    assert failed == []
    assert claims["a moving number: with colons"] == (2.0, "at least 1 and at most 10")
    failed, claims = seeds.run(path, 1)
    assert len(failed) == 1 and "AssertionError: not true here: true of seed 0 alone" in failed[0]
    assert claims["a moving number: with colons"][0] == 3.0 and "true of seed 0 alone" not in claims


def test_a_margin_counts_standard_deviations_to_the_nearest_bound():
    assert seeds.margin([2.0, 3.0, 4.0], "at least 1 and at most 10") == pytest.approx(2)
    assert seeds.margin([8.0, 9.0], "at least 1e-3 and at most 10") == pytest.approx(1.5 / 0.5**0.5)
    assert seeds.margin([5.0, 5.0], "at most 5") == float("inf")


def test_the_table_holds_what_moves_and_says_why_the_rest_does_not():
    runs = [{"a | b": (1.0 + seed, "at least 0"), "same": (1.0, "at least 0")} for seed in range(3)]
    runs[1]["only here"] = (1.0, "at least 0")
    reasons = {("05_page.ipynb", "same"): "about recorded runs"}
    text = seeds.as_markdown(seeds.rows_of("05_page.ipynb", runs), [0, 1, 2], reasons)
    assert "| 05 | a \\| b | at least 0 | 2 | 1 | 2.0 |" in text
    assert "1 more claims cannot move" in text and "only here" not in text
    assert "| 05 | same | at least 0 | 1 | about recorded runs |" in text


def test_a_claim_about_a_record_is_known_by_where_its_number_comes_from():
    cells = [
        "%pip install nothing\nrecord = json.loads(RECORD.read_text())\nlive = train()",
        "runs = {k: np.array(v) for k, v in record.items()}\ndef gain(name):\n    return runs[name].mean()",
        "claim(f'gain of {name}', gain(name), at_least=0)\nclaim('live', live, at_least=0)",
        "runs = train()\nclaim('live again', runs, at_most=1)",
    ]
    patterns = seeds.recorded_claims(cells)
    assert [bool(patterns[0].fullmatch(text)) for text in ("gain of LP-FT", "live")] == [True, False]
    assert len(patterns) == 1
