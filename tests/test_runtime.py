import json
import os
import random
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

from tlhelpers import runtime

HEAVY = ("torchvision", "transformers", "sklearn", "matplotlib", "scipy", "ipywidgets", "IPython", "accelerate")


def test_importing_the_package_is_free_and_the_loop_costs_little_more_than_torch():
    script = (
        "import json, sys; import tlhelpers; bare = [m for m in ('torch', 'numpy') if m in sys.modules];"
        f"import tlhelpers.train; print(json.dumps([bare, [m for m in {HEAVY} if m in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], []]


@pytest.mark.parametrize("profile", runtime.PROFILES)
def test_setup_follows_the_environment_variable_and_says_how_to_change_it(profile, monkeypatch, capsys):
    monkeypatch.setenv("TLHELPERS_PROFILE", profile)
    machine = runtime.setup()
    said = capsys.readouterr().out
    other = {"quick": "full", "full": "quick"}[profile]
    assert machine.profile == profile
    assert f"{profile} profile" in said
    assert f"set TLHELPERS_PROFILE={other} and restart the kernel" in said


@pytest.mark.parametrize(("device", "profile"), [("cpu", "quick"), ("cuda", "full")])
def test_without_the_variable_the_device_decides(device, profile, monkeypatch):
    monkeypatch.delenv("TLHELPERS_PROFILE", raising=False)
    monkeypatch.setattr(runtime, "pick_device", lambda: torch.device(device))
    assert runtime.setup().profile == profile


def test_a_profile_that_does_not_exist_is_named_with_the_choices(monkeypatch):
    monkeypatch.setenv("TLHELPERS_PROFILE", "fast")
    with pytest.raises(ValueError, match=r"'fast'; set it to 'quick' or 'full'"):
        runtime.setup()


def test_setup_leaves_a_thread_count_that_the_user_chose(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    runtime.setup()
    assert asked == []
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert asked == [runtime.setup().cores]


def test_cores_are_at_least_one_and_no_more_than_the_scheduler_grants():
    assert 1 <= runtime.available_cores() <= os.cpu_count()


@pytest.mark.parametrize(("quota", "cores"), [("150000 100000", 2), ("20000 100000", 1), ("max 100000", 8)])
def test_a_container_quota_limits_the_cores_and_is_rounded_up(quota, cores, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(Path, "read_text", lambda _: quota)
    assert runtime.available_cores() == cores


def test_one_seed_gives_one_sequence_in_python_numpy_and_torch():
    def draw(seed):
        runtime.seed_everything(seed)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    reference = torch.Generator().manual_seed(3)
    assert draw(3)[2] == float(torch.rand((), generator=reference))


def test_a_cpu_stays_in_float32():
    assert runtime.mixed_precision(torch.device("cpu")) is None
    with runtime.autocast(torch.device("cpu"), None):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_autocast_multiplies_in_the_type_it_is_given():
    with runtime.autocast(torch.device("cpu"), torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_a_nested_batch_is_moved_whole_and_counted_by_its_first_tensor():
    batch = {"views": [torch.zeros(3, 2), torch.ones(3)], "pair": (torch.zeros(3), {"y": torch.ones(3)})}
    moved = runtime.to_device(batch, torch.device("meta"))
    tensors = [*moved["views"], moved["pair"][0], moved["pair"][1]["y"]]
    assert [t.device.type for t in tensors] == ["meta"] * 4
    assert runtime.batch_size(batch) == runtime.batch_size(torch.zeros(3, 9)) == 3


def test_the_cache_folder_is_the_users_choice_or_lies_in_the_home_folder(monkeypatch, tmp_path):
    assert runtime.cache_dir() == tmp_path / "cache"
    monkeypatch.setenv("TLHELPERS_CACHE", "~/elsewhere")
    assert runtime.cache_dir() == Path.home() / "elsewhere"
    monkeypatch.delenv("TLHELPERS_CACHE")
    assert runtime.cache_dir() == Path.home() / ".cache" / "tlhelpers"


def test_the_machine_describes_itself_with_the_versions_in_use():
    facts = runtime.describe_machine()
    assert torch.__version__.startswith(facts["torch"])
    assert facts["device"]


def cell_by_cell(*sources: str) -> list:
    """The outputs of cells that a kernel runs one after the other, errors included."""
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(page, kernel_name="python3", allow_errors=True, timeout=120).execute()
    return [cell.outputs for cell in page.cells]


def test_a_cell_run_before_those_above_it_says_what_to_run():
    _, missing, other, after = cell_by_cell(
        "from tlhelpers.runtime import setup; setup()", "print(history[-1])", "1 / 0", "print(2)"
    )
    assert [o.get("ename") for o in missing if o.output_type == "error"] == ["NameError"]
    said = "".join(o.get("text", "") for o in missing)
    assert "'history'" in said and "Run All Above Selected Cell" in said
    assert [o.get("ename") for o in other] == ["ZeroDivisionError"]
    assert after[0].text == "2\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be asked to give memory back")
def test_what_a_cell_has_freed_goes_back_to_the_system_after_it():
    say = "print([int(line.split()[1]) // 1024 for line in open('/proc/self/status') if line.startswith('VmRSS')][0])"
    outputs = cell_by_cell(
        "from tlhelpers.runtime import setup; setup(); setup()",
        # Below the size from which the C library maps memory anew, which a first large tensor raises.
        "import torch; del_me = torch.zeros(7_000_000); del del_me\n"
        "many = [torch.ones(250_000) for _ in range(200)]; pin = torch.ones(9)",
        say,
        "many.clear()",
        say,
        "print(sum('memory' in f.__qualname__ for f in get_ipython().events.callbacks['post_run_cell']))",
    )
    full, empty, registered = (int(outputs[row][0].text) for row in (2, 4, 5))
    assert full - empty > 150  # MiB of the 190 that the list held
    assert registered == 1
