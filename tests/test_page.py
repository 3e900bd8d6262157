"""What a page begins and ends with: `setup`, claims, the machine."""

import math
import sys

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from tlhelpers.course import page
from tlhelpers.course.page import claim, claims_table
from tlhelpers.runtime import PROFILES


@pytest.fixture(autouse=True)
def _no_claims_yet(monkeypatch):
    monkeypatch.setattr(page, "_claims", [])


@pytest.mark.parametrize("profile", PROFILES)
def test_setup_follows_the_environment_variable_and_says_how_to_change_it(profile, monkeypatch, capsys):
    monkeypatch.setenv("TLHELPERS_PROFILE", profile)
    machine = page.setup()
    printed = capsys.readouterr().out
    other = {"quick": "full", "full": "quick"}[profile]
    assert machine.profile == profile
    assert f"{profile} profile" in printed
    assert f"set TLHELPERS_PROFILE={other} and restart the kernel" in printed


@pytest.mark.parametrize(("device", "profile"), [("cpu", "quick"), ("cuda", "full")])
def test_without_the_variable_the_device_decides(device, profile, monkeypatch):
    monkeypatch.delenv("TLHELPERS_PROFILE", raising=False)
    monkeypatch.setattr(page, "pick_device", lambda: torch.device(device))
    assert page.setup().profile == profile


def test_setup_leaves_a_thread_count_that_the_user_chose(monkeypatch):
    counts = []
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    page.setup()
    assert counts == []
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert counts == [page.setup().cores]


@pytest.mark.parametrize(
    ("value", "bounds"),
    [(0.5, {"at_least": 0.5}), (torch.tensor(0.5), {"at_most": 0.5}), (0.5, {"at_least": 0, "at_most": 1})],
)
def test_a_claim_that_holds_is_printed_with_its_number(value, bounds, capsys):
    claim("half is enough", value, **bounds)
    assert capsys.readouterr().out.startswith("\N{CHECK MARK} half is enough: 0.5 (")


@pytest.mark.parametrize(
    ("value", "bounds", "words"),
    [
        (0.49, {"at_least": 0.5}, "0.49, but the page claims at least 0.5"),
        (1.01, {"at_least": 0, "at_most": 1}, "1.01, but the page claims at least 0 and at most 1"),
        (math.nan, {"at_least": -1}, "nan, but the page claims at least -1"),
        (math.nan, {"at_most": 1}, "nan, but the page claims at most 1"),
    ],
)
def test_a_claim_that_does_not_hold_fails_and_is_not_counted(value, bounds, words, capsys):
    with pytest.raises(AssertionError, match=f"not true here: transfer helps: {words}"):
        claim("transfer helps", value, **bounds)
    claims_table()
    assert capsys.readouterr().out == ""


def test_a_claim_that_cannot_fail_is_refused():
    with pytest.raises(ValueError, match="'all is well' has no bound; give at_least or at_most"):
        claim("all is well", 1.0)


def test_the_table_lists_the_claims_in_order_and_in_columns(capsys):
    claim("first", 0.125, at_least=0)
    claim("the second", 2, at_most=3)
    capsys.readouterr()
    claims_table()
    assert capsys.readouterr().out.splitlines() == [
        "first          0.125  at least 0",
        "the second         2  at most 3",
    ]


def test_the_machine_describes_itself_with_the_versions_in_use():
    facts = page.describe_machine()
    assert torch.__version__.startswith(facts["torch"])
    assert facts["device"]


def cell_by_cell(*sources: str) -> list:
    """The outputs of cells that a kernel runs one after the other, errors included."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(notebook, kernel_name="python3", allow_errors=True, timeout=120).execute()
    return [cell.outputs for cell in notebook.cells]


def test_a_cell_run_before_those_above_it_says_what_to_run():
    _, missing, other, after = cell_by_cell(
        "from tlhelpers.course import setup; setup()", "print(history[-1])", "1 / 0", "print(2)"
    )
    assert [o.get("ename") for o in missing if o.output_type == "error"] == ["NameError"]
    printed = "".join(o.get("text", "") for o in missing)
    assert "'history'" in printed and "Run All Above Selected Cell" in printed
    assert [o.get("ename") for o in other] == ["ZeroDivisionError"]
    assert after[0].text == "2\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be asked to give memory back")
def test_what_a_cell_has_freed_goes_back_to_the_system_after_it():
    show = "print([int(line.split()[1]) // 1024 for line in open('/proc/self/status') if line.startswith('VmRSS')][0])"
    outputs = cell_by_cell(
        "from tlhelpers.course import setup; setup(); setup()",
        # Below the size from which the C library maps memory anew, which a first large tensor raises.
        "import torch; del_me = torch.zeros(7_000_000); del del_me\n"
        "many = [torch.ones(250_000) for _ in range(200)]; pin = torch.ones(9)",
        show,
        "many.clear()",
        show,
        "print(sum('memory' in f.__qualname__ for f in get_ipython().events.callbacks['post_run_cell']))",
    )
    full, empty, registered = (int(outputs[row][0].text) for row in (2, 4, 5))
    assert full - empty > 150  # MiB of the 190 that the list held
    assert registered == 1
