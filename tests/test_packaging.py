"""One list of packages: conda, Binder and the wheel agree with pyproject.toml."""

import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LISTED = {
    Requirement(text).name.lower(): Requirement(text)
    for text in [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())]
}
ENVIRONMENTS = ["environment.yml", "binder/environment.yml"]


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))


def pip_lines(file: str) -> list[str]:
    listed = yaml.safe_load((ROOT / file).read_text("utf-8"))["dependencies"]
    return next(entry["pip"] for entry in listed if isinstance(entry, dict))


def test_pyproject_has_lower_bounds_only():
    for requirement in LISTED.values():
        assert {s.operator for s in requirement.specifier} == {">="}, requirement


def test_constraints_pin_what_pyproject_lists_within_its_bounds():
    versions = pinned()
    assert set(versions) == set(LISTED)
    assert all(LISTED[name].specifier.contains(version) for name, version in versions.items())


def test_no_file_can_make_pip_choose_torch_2_13():
    # There, a CPU wheel of torch can meet a CUDA wheel of torchvision, which then cannot be imported.
    for file in ("pyproject.toml", "constraints.txt", *ENVIRONMENTS):
        assert not re.search(r"torch\s*(==\s*2\.13|<)", (ROOT / file).read_text("utf-8")), file


@pytest.mark.parametrize("file", ENVIRONMENTS)
def test_conda_environments_name_a_supported_python_and_no_package_of_their_own(file):
    listed = yaml.safe_load((ROOT / file).read_text("utf-8"))["dependencies"]
    names = [entry for entry in listed if isinstance(entry, str)]
    assert {re.split("[=<>]", name)[0] for name in names} == {"python", "pip"}
    python = next(name.split("=")[1] for name in names if name.startswith("python"))
    assert SpecifierSet(PROJECT["requires-python"]).contains(Version(python))


def test_environment_yml_installs_the_project_itself():
    assert pip_lines("environment.yml") == ["--constraint constraints.txt", "--editable .[lab,test]"]


def test_binder_takes_torch_from_one_index_and_the_rest_from_the_project():
    index, *packages = pip_lines("binder/environment.yml")
    assert index.startswith("--index-url ") and index.endswith("/whl/cpu")
    assert {p: str(Requirement(p).specifier) for p in packages} == {
        f"{name}{LISTED[name].specifier}": str(LISTED[name].specifier) for name in ("torch", "torchvision")
    }
    assert '--editable ".[lab]"' in (ROOT / "binder" / "postBuild").read_text("utf-8")


def test_torch_torchvision_and_a_transformers_model_import_together():
    code = "import torch, torchvision; from transformers import BertConfig; torchvision.ops.nms; BertConfig()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
