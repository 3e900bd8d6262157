"""The static site: built without a warning, complete, and whole without a network (`make test-browser`)."""

import importlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = pytest.mark.site

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "notebooks").glob("*.ipynb"))
LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
# Rules that the theme breaks, not the pages: its two sidebars have no names, its search page no heading.
NOT_OURS = ("landmark-unique", "page-has-heading-one")


class Reader(HTMLParser):
    """What one page loads, links to, and offers as targets; its headings and images."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads, self.links, self.ids, self.levels, self.alts = [], [], set(), [], []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if "id" in values:
            self.ids.add(values["id"])
        if tag in LOADS and values.get(LOADS[tag]):
            self.loads.append(values[LOADS[tag]])
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if tag == "img":
            self.alts.append(values.get("alt"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Reader]:
    """Every HTML page of a fresh build, in which a warning is an error."""
    out = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs"]
    build += ["-D", "html_extra_path=index.html", ".", str(out)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {path: Reader(path) for path in sorted(out.rglob("*.html")) if "_static" not in path.parts}


def folder(site: dict[Path, Reader]) -> Path:
    return next(path.parent for path in site if path.name == "search.html")


def test_every_page_is_there_and_can_be_searched(site):
    index = (folder(site) / "searchindex.js").read_text("utf-8")
    for path in PAGES:
        assert folder(site) / "notebooks" / f"{path.stem}.html" in site
        assert f'"notebooks/{path.stem}"' in index


def test_no_page_loads_anything_from_another_host(site):
    for path, page in site.items():
        assert not [url for url in page.loads if urlsplit(url).netloc], path.name


def test_all_links_within_the_site_resolve(site):
    broken = []
    for path, page in site.items():
        for link in page.loads + page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            ids = site[target].ids if target in site else set()
            if not target.exists() or (parts.fragment and target in site and unquote(parts.fragment) not in ids):
                broken.append((path.name, link))
    assert broken == []


def test_images_have_words_and_headings_skip_no_level(site):
    for path, page in site.items():
        assert all(page.alts), path.name
        assert not [alt for alt in page.alts if re.search(r"\.(png|svg)$", alt)], "a file name says nothing"
        if path.parent.name == "notebooks":
            assert page.levels.count(1) == 1
            assert all(after <= before + 1 for before, after in pairwise(page.levels)), path.name


def test_solutions_stay_out_of_sight(site):
    for path in PAGES:
        text = (folder(site) / "notebooks" / f"{path.stem}.html").read_text("utf-8")
        assert "Show the solution" not in text
        questions = importlib.import_module(f"tlhelpers.course.exercises.page_{path.stem[:2]}")
        for name in ("q1", "q2", "q3"):
            solution = getattr(questions, name).solution_text
            assert len(solution) < 30 or solution not in text


@pytest.mark.browser
def test_a_checker_finds_no_fault_and_no_request_leaves_the_site(site, chromium):
    from axe_playwright_python.sync_playwright import Axe

    options = {"rules": {rule: {"enabled": False} for rule in NOT_OURS}, "preload": False}
    faults, requests = {}, []
    tab = chromium.new_page(viewport={"width": 1280, "height": 900})
    tab.on("request", lambda request: requests.append(request.url))
    redirect = folder(site) / "index.html"  # it leads to docs/ at once, which may be while the checker runs
    for path in site.keys() - {redirect}:
        tab.goto(path.as_uri())
        tab.wait_for_load_state("load")
        found = Axe().run(tab, options=options)
        if found.violations_count:
            faults[path.name] = found.generate_report()
    tab.close()
    assert faults == {}
    assert {urlsplit(url).scheme for url in requests} <= {"file", "data"}
