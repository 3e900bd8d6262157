"""Who may import whom, and how large things may grow."""

import ast
from pathlib import Path

import pytest

import tlhelpers

ROOT = Path(tlhelpers.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
    if path != ROOT / "__init__.py"
}
LEAVES = {
    "augment",
    "badges",
    "diagnose",
    "runtime",
    "schedules",
    "surgery",
    "objectives",
    "transferability",
    "glyphs",
    "plots",
    "strategy",
    "tensor_files",
}
MAY_IMPORT = {name: set() for name in LEAVES} | {
    "downloads": {"runtime"},
    "folders": {"data"},
    "photos": {"data", "downloads", "folders", "runtime"},
    "backbones": {"downloads", "runtime", "text"},
    "data": {"diagnose", "runtime"},
    "datasets": {"augment", "data", "folders", "glyphs", "messages", "photos"},
    "messages": {"data", "runtime", "text"},
    "text": {"runtime"},
    "scorebook": {"runtime"},
    "checks": {"scorebook"},
    "progress": {"schedules"},
    "distributed": {"progress", "runtime"},
    "checkpoint": {"distributed", "progress"},
    "train": {"checkpoint", "distributed", "progress", "runtime", "schedules", "surgery"},
    "features": {"backbones", "data", "runtime", "tensor_files"},
    "feature_files": {"backbones", "features"},
    "alignment": {"objectives", "transferability"},
    "pseudo_labels": {"features", "transferability"},
    "widgets": {"scorebook"},
    "doctor": {"backbones", "runtime"},
    "cli": {"backbones", "badges", "doctor", "downloads", "photos", "runtime", "scorebook"},
    "__main__": {"cli"},
}
CORE = set(MAY_IMPORT) - {"widgets"}
MAX_MODULE_LINES, MAX_FUNCTION_LINES, MAX_BODY_LINES = 275, 60, 40


def imports_of(source: str) -> set[str]:
    """Dotted names of everything that a file imports, wherever the import stands."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
    return names


def own_imports(source: str) -> set[str]:
    """First names below `tlhelpers` of what a file imports from the package."""
    dotted = [name.split(".") for name in imports_of(source)]
    assert all(parts[0] for parts in dotted), "relative imports hide who is meant; write tlhelpers.NAME"
    return {parts[1] for parts in dotted if parts[0] == "tlhelpers" and len(parts) > 1}


def allowed(module: str) -> set[str]:
    if module.startswith("recipes"):
        return CORE | {"recipes", "exercises"}
    if module.startswith("exercises"):
        return CORE
    return MAY_IMPORT[module]


def functions_in(source: str) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def lengths(function: ast.FunctionDef) -> tuple[int, int]:
    """Lines of a function without its docstring, and without its signature as well."""
    rest = function.body[1:] if ast.get_docstring(function) is not None else function.body
    docstring = function.body[0].end_lineno - function.body[0].lineno + 1 if rest is not function.body else 0
    whole = function.end_lineno - function.lineno + 1 - docstring
    return whole, function.end_lineno - rest[0].lineno + 1 if rest else 0


@pytest.mark.parametrize(("name", "path"), MODULES.items(), ids=MODULES)
def test_a_module_imports_only_what_the_table_allows(name, path):
    assert own_imports(path.read_text("utf-8")) - allowed(name) == set()


def test_the_package_itself_imports_nothing():
    assert imports_of((ROOT / "__init__.py").read_text("utf-8")) == set()


def test_imports_hold_no_cycle():
    below = {name: own_imports(path.read_text("utf-8")) for name, path in MODULES.items() if name in MAY_IMPORT}
    while below:
        ready = [name for name, imported in below.items() if not imported & set(below)]
        assert ready, f"a cycle among {sorted(below)}"
        below = {name: imported for name, imported in below.items() if name not in ready}


def test_only_widgets_imports_ipywidgets():
    users = [name for name, path in MODULES.items() if "ipywidgets" in path.read_text("utf-8")]
    importers = [
        name for name in users if any(i.startswith("ipywidgets") for i in imports_of(MODULES[name].read_text("utf-8")))
    ]
    assert importers == ["widgets"]


@pytest.mark.parametrize(("name", "path"), MODULES.items(), ids=MODULES)
def test_modules_and_functions_fit_one_sitting(name, path):
    source = path.read_text("utf-8")
    assert len(source.splitlines()) <= MAX_MODULE_LINES
    sizes = {function.name: lengths(function) for function in functions_in(source)}
    assert {n: s for n, s in sizes.items() if s[0] > MAX_FUNCTION_LINES or s[1] > MAX_BODY_LINES} == {}


@pytest.mark.parametrize(("name", "path"), MODULES.items(), ids=MODULES)
def test_everything_public_has_a_docstring(name, path):
    tree = ast.parse(path.read_text("utf-8"))
    assert name == "recipes" or ast.get_docstring(tree)
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and node.name != "main"
    ]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


def test_no_file_is_a_drawer_for_everything():
    assert not {path.name for path in MODULES.values()} & {"utils.py", "util.py", "helpers.py", "misc.py", "common.py"}


def test_the_map_in_the_package_docstring_names_every_module():
    named = {line.split()[0].rstrip("/") for line in tlhelpers.__doc__.splitlines() if line.startswith("    ")}
    assert named - {"assets"} == {name.split(".")[0] for name in MODULES} - {"__main__"}


def test_this_file_sees_imports_that_hide_in_functions_and_refuses_relative_ones():
    assert own_imports("def f():\n    import os\n    from tlhelpers import widgets\n    import tlhelpers.data") == {
        "widgets",
        "data",
    }
    with pytest.raises(AssertionError, match=r"write tlhelpers\.NAME"):
        own_imports("from . import data")


def test_this_file_counts_lines_as_a_reader_does():
    (function,) = functions_in('def f(\n    x,\n):\n    """One.\n\n    Three.\n    """\n    y = x\n    return y\n')
    assert lengths(function) == (5, 2)
