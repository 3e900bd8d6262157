"""A page alone is enough: `make test-wheel` runs each from an empty folder with only the wheel installed.

Once with the tested versions (TLHELPERS_WHEEL_PYTHON names that environment), once with Colab's and a stub of its
module (TLHELPERS_COLAB_PYTHON, made from colab.txt).  The network is blocked, and the source tree is out of reach.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_notebooks import PAGES

pytestmark = pytest.mark.wheel
NAMES = {"plain": "TLHELPERS_WHEEL_PYTHON", "colab": "TLHELPERS_COLAB_PYTHON"}
# The tools are in no wheel: this process takes a copy of them, its kernels do not.
RUN = """
import sys, nbformat
sys.path.insert(0, sys.argv[2])
from tools.pages import PageClient
page = nbformat.read(sys.argv[1], as_version=4)
PageClient(page, timeout=600, kernel_name="python3").execute()
"""
COLAB = """
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
sys.modules["google.colab"] = module_from_spec(ModuleSpec("google.colab", None))
"""


def python(where: str) -> str:
    """The interpreter of one of the two environments."""
    found = os.environ.get(NAMES[where])
    assert found, f"set {NAMES[where]} to a Python that has the wheel, nbclient and ipykernel, as make test-wheel does"
    return found


@pytest.fixture
def outside(tmp_path, monkeypatch) -> dict[str, str]:
    """Variables of a process that knows the wheel only, in a folder that holds nothing."""
    hidden = ("PYTHONPATH", "TLHELPERS_PROGRESS")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return kept | {"TLHELPERS_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path / "home")}


@pytest.mark.parametrize("where", NAMES)
def test_the_package_comes_from_the_wheel(where, outside, tmp_path):
    asked = [python(where), "-c", "import tlhelpers; print(tlhelpers.__file__)"]
    found = subprocess.run(asked, cwd=tmp_path, env=outside, capture_output=True, text=True, check=True).stdout
    assert "site-packages" in found


def test_the_versions_are_colabs(outside, tmp_path):
    pins = dict(re.findall(r"^(\w+)==(\S+)$", (Path(__file__).parent / "colab.txt").read_text("utf-8"), re.MULTILINE))
    code = f"from importlib.metadata import version; print({{name: version(name) for name in {list(pins)}}})"
    asked = [python("colab"), "-c", code]
    found = subprocess.run(asked, cwd=tmp_path, env=outside, capture_output=True, text=True, check=True).stdout
    assert found.strip() == str(pins)


@pytest.mark.parametrize("where", NAMES)
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_runs_alone(page, where, outside, tmp_path):
    folder = tmp_path / "content"
    folder.mkdir()
    shutil.copy(page, folder)
    if where == "colab":  # a second start-up file beside the one that blocks the network
        profile = tmp_path / "ipython"
        shutil.copytree(outside["IPYTHONDIR"], profile)
        (profile / "profile_default" / "startup" / "01-colab.py").write_text(COLAB, "utf-8")
        outside |= {"IPYTHONDIR": str(profile)}
        outside.pop("DISPLAY", None)
    shutil.copytree(Path(__file__).parent.parent / "tools", tmp_path / "copied" / "tools")
    command = [python(where), "-c", RUN, page.name, str(tmp_path / "copied")]
    done = subprocess.run(command, cwd=folder, env=outside, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name for path in folder.iterdir()} <= {page.name, "my_progress.json"}
