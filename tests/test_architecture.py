"""The house: what import-linter holds (the contracts are in pyproject.toml), and what it cannot say.

Docstrings and relative imports are ruff's part (`make lint`).
"""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import tlhelpers

ROOT = Path(__file__).parent.parent
PACKAGE = Path(tlhelpers.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = ("data", "models", "objectives", "training", "analysis", "course")
LINTER = Path(sys.executable).with_name("lint-imports")


def lint(folder: Path) -> subprocess.CompletedProcess:
    """What import-linter says of the package in a folder."""
    return subprocess.run([LINTER, "--no-cache", "--no-logo"], cwd=folder, capture_output=True, text=True)


def imports_of(path: Path) -> set[str]:
    """Modules that a file imports, wherever the import stands."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom)}


def map_in_the_docstring() -> set[str]:
    """Paths of the map, such as "data/examples.py", "data" and "runtime.py"."""
    paths = set()
    room = ""
    for indent, name in re.findall(r"^( {4}| {8})(\w+/?)  ", tlhelpers.__doc__, flags=re.MULTILINE):
        if len(indent) == 4:
            room = name if name.endswith("/") else ""
        path = name if len(indent) == 4 else room + name
        paths.add(path.rstrip("/") if (PACKAGE / path).is_dir() else f"{path}.py")
    return paths


def test_the_contracts_hold():
    answer = lint(ROOT)
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("data/examples.py", "from tlhelpers.training.loop import fit", "Imports point down"),
        ("runtime.py", "from tlhelpers.files import ASSETS", "Imports point down"),
        ("attic/__init__.py", "", "Imports point down"),
        ("objectives/supervised.py", "from tlhelpers.models.surgery import freeze", "An objective knows"),
        ("data/examples.py", "from tlhelpers.data.loaders import TensorLoader", "in circles"),
        ("data/named.py", "from tlhelpers.data import Examples", "that defines a name"),
        ("course/exercises/page_00.py", "from tlhelpers.models import freeze", "that defines a name"),
        ("course/page.py", "def late():\n    import tools.pages", "not in the wheel"),
    ],
)
def test_a_contract_notices_its_breach(file, line, broken, tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "tlhelpers", ignore=shutil.ignore_patterns("assets", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / "tlhelpers" / file
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    answer = lint(tmp_path)
    assert answer.returncode != 0
    assert re.search(rf"{broken}((?!KEPT).)*BROKEN", " ".join(answer.stdout.split()))


def test_the_package_itself_imports_nothing():
    assert imports_of(PACKAGE / "__init__.py") == set()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_and_imports_public_names_and_does_nothing_else(room):
    tree = ast.parse((PACKAGE / room / "__init__.py").read_text("utf-8"))
    assert ast.get_docstring(tree)
    assert {type(statement) for statement in tree.body[1:]} == {ast.ImportFrom}
    names = [alias.name for statement in tree.body[1:] for alias in statement.names]
    assert len(names) == len(set(names)), "a name twice"
    assert not [name for name in names if name.startswith("_")]


def test_every_room_is_among_those_whose_names_are_tested():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == {*ROOMS, "experiments"}


def test_every_package_that_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["lab"]]
    declared = {normal(Requirement(text).name) for text in listed}
    modules = {name.split(".")[0] for path in FILES for name in imports_of(path)}
    carriers = metadata.packages_distributions()
    foreign = modules - sys.stdlib_module_names - {"tlhelpers"}
    undeclared = {name for name in foreign if not declared & {normal(carrier) for carrier in carriers[name]}}
    assert undeclared == set()


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_map_in_the_package_docstring_is_the_house():
    here = {path.relative_to(PACKAGE) for path in FILES if path.name != "__init__.py"}
    files = {path.as_posix() for path in here if path.parent.name != "exercises"}
    folders = {*ROOMS, "experiments", "course/exercises", "assets"}
    assert map_in_the_docstring() == files | folders
