"""Badges and install cells go in, follow one address, and come out to the byte."""

import json
import shutil
import tomllib
from pathlib import Path

import pytest
import test_notebooks as rules
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from tools import badges
from tools.badges import main

ROOT = Path(__file__).parent.parent
FILES = ["pyproject.toml", "README.md", *(f"notebooks/{path.name}" for path in rules.PAGES)]
GIVEN = ["--repo", "octocat/transfer-learning", "--ref", "v0.1.0"]


@pytest.fixture
def course(tmp_path, monkeypatch) -> Path:
    """A copy of the files that the command edits, without badges, as working folder."""
    (tmp_path / "notebooks").mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path / name)
    badges.remove_badges(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(course: Path) -> dict[str, bytes]:
    return {name: (course / name).read_bytes() for name in FILES}


def test_what_is_put_in_comes_out_to_the_byte_and_twice_is_once(course):
    bare = contents(course)
    assert main(GIVEN) == 0
    full = contents(course)
    assert all(full[name] != bare[name] for name in FILES)
    assert main(GIVEN) == 0 and contents(course) == full
    assert main([]) == 0 and contents(course) == full, "the address that is kept serves again"
    assert main(["--remove"]) == 0 and contents(course) == bare
    assert main(["--remove"]) == 0 and contents(course) == bare


def test_another_address_takes_the_place_of_the_first(course):
    main(GIVEN)
    main(["--repo", "hubot/course", "--ref", "main"])
    assert badges.address(course) == ("hubot/course", "main")
    assert not [name for name, text in contents(course).items() if b"octocat" in text]
    tomllib.loads((course / "pyproject.toml").read_text("utf-8"))


@pytest.mark.parametrize("name", [path.name for path in rules.PAGES])
def test_a_page_with_badges_keeps_the_rules_and_links_to_itself(course, name):
    main(GIVEN)
    path = course / "notebooks" / name
    page = json.loads(path.read_text("utf-8")) | {"path": path}
    for rule, check in vars(rules).items():
        if rule.startswith("test_") and "readme" not in rule and "links" not in rule:
            check(page)
    first = rules.source(page["cells"][0])
    assert first.count(f"/notebooks/{name})") == 3 and first.count("v0.1.0") == 3
    install = rules.cells(page, "code")[0]
    assert install["metadata"]["tags"] == ["install"] and "--no-deps" in rules.source(install)
    assert "octocat/transfer-learning/archive/v0.1.0.zip" in rules.source(install)


def run_install(source: str, monkeypatch, *, installed: bool) -> list[str]:
    """What the cell asks pip for."""
    lines: list[str] = []
    shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}))
    shell.register_magic_function(lines.append, magic_name="pip")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: object() if installed else None)
    assert shell.run_cell(source).success
    return lines


def test_the_install_cell_does_nothing_here_and_never_asks_for_torch(monkeypatch):
    source = badges.install_cell("octocat/transfer-learning", "v0.1.0")
    assert run_install(source, monkeypatch, installed=True) == []
    (line,) = run_install(source, monkeypatch, installed=False)
    words = line.split()
    assert "--no-deps" in words and not {"torch", "torchvision", "transformers", "-U", "--upgrade"} & set(words)


@pytest.mark.parametrize(
    "wrong",
    [["--repo", "octocat"], ["--repo", "a/b/c"], ["--repo", "../x"], ["--repo", "o/n", "--ref", "a b"], ["--repo", ""]],
)
def test_a_wrong_address_is_refused_and_nothing_is_written(course, wrong, capsys):
    bare = contents(course)
    with pytest.raises(SystemExit):
        main(["--ref", "v1", *wrong])
    assert "give " in capsys.readouterr().err
    assert contents(course) == bare


def test_without_an_address_or_outside_the_course_the_remedy_is_said(course, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "--repo OWNER/NAME" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path / "notebooks")
    with pytest.raises(SystemExit):
        main(GIVEN)
    assert "top folder" in capsys.readouterr().err
