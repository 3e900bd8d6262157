import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tlhelpers import doctor, runtime
from tlhelpers.course import describe_machine

HEAVY = ("torchvision", "transformers", "sklearn", "matplotlib", "scipy", "ipywidgets", "IPython", "accelerate")


def test_importing_the_package_is_free_and_the_loop_costs_little_more_than_torch():
    script = (
        "import json, sys; import tlhelpers; bare = [m for m in ('torch', 'numpy') if m in sys.modules];"
        f"import tlhelpers.training; print(json.dumps([bare, [m for m in {HEAVY} if m in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], []]


@pytest.mark.parametrize(("device", "profile"), [("cpu", "quick"), ("cuda", "full")])
def test_the_device_decides_on_the_profile_unless_the_variable_does(device, profile, monkeypatch):
    monkeypatch.delenv("TLHELPERS_PROFILE", raising=False)
    assert runtime.choose_profile(torch.device(device))[0] == profile
    for chosen in runtime.PROFILES:
        monkeypatch.setenv("TLHELPERS_PROFILE", chosen)
        assert runtime.choose_profile(torch.device(device)) == (chosen, "TLHELPERS_PROFILE says so")


def test_a_profile_that_does_not_exist_is_named_with_the_choices(monkeypatch):
    monkeypatch.setenv("TLHELPERS_PROFILE", "fast")
    with pytest.raises(ValueError, match=r"'fast'; set it to 'quick' or 'full'"):
        runtime.choose_profile(torch.device("cpu"))


@pytest.mark.parametrize(
    ("variables", "device"),
    [
        ({}, "cuda"),
        ({"LOCAL_RANK": "3"}, "cuda:3"),
        ({"LOCAL_RANK": "3", "ACCELERATE_USE_CPU": "True"}, "cpu"),
        ({"ACCELERATE_USE_CPU": "false"}, "cuda"),
    ],
)
def test_a_process_has_the_accelerator_of_its_rank_unless_its_launcher_wants_the_cpu(variables, device, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    for name in ("LOCAL_RANK", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert runtime.pick_device() == torch.device(device)


def test_cores_are_at_least_one_and_no_more_than_the_scheduler_grants():
    assert 1 <= runtime.available_cores() <= os.cpu_count()


@pytest.mark.parametrize(("quota", "cores"), [("150000 100000", 2), ("20000 100000", 1), ("max 100000", 8)])
def test_a_container_quota_limits_the_cores_and_is_rounded_up(quota, cores, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(Path, "read_text", lambda _: quota)
    assert runtime.available_cores() == cores


def test_memory_is_known_where_the_system_tells_and_unknown_elsewhere(monkeypatch):
    assert 0 < runtime.memory_bytes(free=True) <= runtime.memory_bytes()
    assert "GB free" in doctor.CHECKS["memory"]() and "memory" in describe_machine()
    monkeypatch.delattr(os, "sysconf_names")  # as on Windows
    assert runtime.memory_bytes() is runtime.memory_bytes(free=True) is None
    assert doctor.CHECKS["memory"]() == "unknown on this system" and "memory" not in describe_machine()


def test_one_seed_gives_one_sequence_in_python_numpy_and_torch():
    def draw(seed):
        runtime.seed_everything(seed)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    reference = torch.Generator().manual_seed(3)
    assert draw(3)[2] == float(torch.rand((), generator=reference))


def test_the_cache_folder_is_the_users_choice_or_lies_in_the_home_folder(monkeypatch, tmp_path):
    assert runtime.cache_dir() == tmp_path / "cache"
    monkeypatch.setenv("TLHELPERS_CACHE", "~/elsewhere")
    assert runtime.cache_dir() == Path.home() / "elsewhere"
    monkeypatch.delenv("TLHELPERS_CACHE")
    assert runtime.cache_dir() == Path.home() / ".cache" / "tlhelpers"
