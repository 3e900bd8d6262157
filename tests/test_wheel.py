"""A page alone is enough: `make test-wheel` runs each from an empty folder with only the wheel installed.

The wheel's environment is named by TLHELPERS_WHEEL_PYTHON; the network is blocked, and the source tree is out of reach.
"""

import os
import shutil
import subprocess

import pytest
from test_notebooks import PAGES

pytestmark = pytest.mark.wheel
PYTHON = os.environ.get("TLHELPERS_WHEEL_PYTHON", "")
RUN = """
import sys, nbformat
from tlhelpers.recipes.pages import PageClient
page = nbformat.read(sys.argv[1], as_version=4)
PageClient(page, timeout=600, kernel_name="python3").execute()
"""
COLAB = "import sys, types\nsys.modules['google.colab'] = types.ModuleType('google.colab')\n"


@pytest.fixture
def outside(tmp_path, monkeypatch) -> dict[str, str]:
    """Variables of a process that knows the wheel only, in a folder that holds nothing."""
    assert PYTHON, "set TLHELPERS_WHEEL_PYTHON to a Python that has the wheel, nbclient and ipykernel"
    hidden = ("PYTHONPATH", "TLHELPERS_PROGRESS")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return kept | {"TLHELPERS_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path / "home")}


def test_the_package_comes_from_the_wheel(outside, tmp_path):
    asked = [PYTHON, "-c", "import tlhelpers; print(tlhelpers.__file__)"]
    found = subprocess.run(asked, cwd=tmp_path, env=outside, capture_output=True, text=True, check=True).stdout
    assert "site-packages" in found


@pytest.mark.parametrize("like_colab", [False, True], ids=["plain", "colab"])
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_runs_alone(page, like_colab, outside, tmp_path):
    folder = tmp_path / "content"
    folder.mkdir()
    shutil.copy(page, folder)
    if like_colab:  # a second start-up file beside the one that blocks the network
        profile = tmp_path / "ipython"
        shutil.copytree(outside["IPYTHONDIR"], profile)
        (profile / "profile_default" / "startup" / "01-colab.py").write_text(COLAB, "utf-8")
        outside |= {"IPYTHONDIR": str(profile)}
        outside.pop("DISPLAY", None)
    command = [PYTHON, "-c", RUN, page.name]
    done = subprocess.run(command, cwd=folder, env=outside, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name for path in folder.iterdir()} <= {page.name, "my_progress.json"}
