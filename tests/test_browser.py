"""Every page in JupyterLab, in a real browser: `make test-browser`.

Not in the default run: it needs Chromium and playwright, and minutes.  Screenshots and the seconds
that each page took go to build/browser/.
"""

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import nbformat
import pytest

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parent.parent
SHOTS = ROOT / "build" / "browser"
# The slowest page first, so that two workers end at about the same time.
PAGES = sorted(
    (ROOT / "notebooks").glob("*.ipynb"),
    key=lambda path: -json.loads(path.read_text("utf-8"))["metadata"]["tlcourse"]["seconds"],
)
FOLDERS = ("CONFIG", "DATA", "RUNTIME")
SETTINGS = {
    # Cells outside the window stay in the document, and no notice covers them.
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}
READY = """async () => {
    const panel = jupyterapp.shell.currentWidget;
    await panel.context.ready; await panel.sessionContext.ready; await panel.revealed;
}"""
IDLE = "() => jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'"
RUN_ALL = """() => {
    window.allRun = false;
    jupyterapp.commands.execute('notebook:run-all-cells').then(() => { window.allRun = true; });
}"""
# What the widget shows below its menus: figures by their source, and the text.
SHOWN = """menu => {
    const output = menu.closest('.widget-vbox').querySelector('.jupyter-widgets-output-area, .widget-output');
    return {figure: [...output.querySelectorAll('img')].map(img => img.src).join(), text: output.innerText};
}"""
CHANGED = """([menu, before]) => {
    const now = (%s)(menu);
    return now.figure && now.text && now.figure !== before.figure && now.text !== before.text;
}"""

PAD_CELLS = (
    """\
import torch
from tlhelpers.course import drawing_pad
from tlhelpers.models import load_backbone
body = load_backbone("glyphs-all")
digits = body.classes[:10]
@torch.no_grad()
def read(image):
    scores = body.head(body.module(image))[0, :10]
    return dict(zip(digits, scores.softmax(0).tolist()))
pad = drawing_pad(read)""",
    "pad.strokes = [[(0.2, 0.2), (0.8, 0.2), (0.4, 0.9)]]",
)
SEVEN = [(0.3, 0.2), (0.5, 0.2), (0.7, 0.2), (0.6, 0.4), (0.5, 0.6), (0.4, 0.8)]
# Milliseconds from each end of a stroke to the answer that follows it, as the browser sees them.
WATCH = """() => {
    window.delays = [];
    let ended;
    document.querySelector('.tl-pad-sheet').addEventListener('pointerup', () => { ended = performance.now(); }, true);
    new MutationObserver(() => { if (ended) { delays.push(performance.now() - ended); ended = 0; } })
        .observe(document.querySelector('.tl-pad-answer'), {childList: true, subtree: true});
}"""


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory):
    """Address of a JupyterLab on copies of the pages, their outputs cleared: what shows was computed here."""
    home = tmp_path_factory.mktemp("lab")
    (home / "notebooks").mkdir()
    for path in PAGES:
        page = nbformat.read(path, as_version=4)
        for cell in page.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(page, home / "notebooks" / path.name)
    (home / "notebooks" / "pad").mkdir()  # out of the way of those who count the pages
    cells = [nbformat.v4.new_code_cell(source) for source in PAD_CELLS]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}  # without it, JupyterLab asks
    page = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
    nbformat.write(page, home / "notebooks" / "pad" / "pad.ipynb")
    settings = home / "CONFIG" / "labconfig" / "default_setting_overrides.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps(SETTINGS), "utf-8")
    env = os.environ | {f"JUPYTER_{name}_DIR": str(home / name) for name in FOLDERS}
    env |= {f"JUPYTERLAB_{name}_DIR": str(home / name) for name in ("SETTINGS", "WORKSPACES")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--IdentityProvider.token=tests",
        f"--ServerApp.root_dir={home / 'notebooks'}",
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    log = (home / "lab.log").open("w")
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=env, stdout=log, stderr=log)
    try:
        _wait_for(port, server, home / "lab.log")
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token=tests&reset"
    finally:
        server.terminate()
        server.wait()
        log.close()


def _wait_for(port: int, server: subprocess.Popen, log: Path) -> None:
    for _ in range(240):
        assert server.poll() is None, log.read_text("utf-8")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.25)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text('utf-8')}")


@pytest.fixture
def tab(chromium):
    """A page of the browser; at the end of the test it must have logged no error."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    errors = []
    tab = chromium.new_page(viewport={"width": 1280, "height": 900})
    tab.set_default_timeout(120_000)
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: errors.append(str(error)))
    yield tab
    # The next test starts with a kernel of its own, and eleven kernels would need as many GB.
    tab.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    tab.close()
    assert errors == []


def open_page(tab, lab: str, name: str) -> None:
    """Until the kernel is idle; the notebook's own sign says idle before the page is loaded."""
    tab.goto(lab.format(name))
    tab.wait_for_selector(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook .jp-Cell")
    tab.evaluate(READY)
    tab.wait_for_function(IDLE)


def run_all(tab) -> list[dict]:
    """Run all cells; returns the code cells as the notebook then holds them."""
    tab.evaluate(RUN_ALL)
    tab.wait_for_function("() => window.allRun", timeout=400_000)
    page = tab.evaluate("() => jupyterapp.shell.currentWidget.content.model.toJSON()")
    return [cell for cell in page["cells"] if cell["cell_type"] == "code"]


def note(name: str, **seconds: float) -> None:
    words = ", ".join(f"{what} {value:.1f} s" for what, value in seconds.items())
    (SHOTS / f"{name}.txt").write_text(f"{name}: {words}\n", "utf-8")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_runs_and_its_widgets_answer_the_keyboard(tab, lab, path):
    from axe_playwright_python.sync_playwright import Axe

    began = time.perf_counter()
    open_page(tab, lab, path.name)
    opened = time.perf_counter()
    cells = run_all(tab)
    ran = time.perf_counter()
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert ["\n".join(out["traceback"]) for out in outputs if out["output_type"] == "error"] == []
    assert [cell["source"] for cell in cells if cell["source"] and not cell["execution_count"]] == []

    menus = tab.locator(".widget-vbox select")
    assert menus.count() > 0, "no widget on this page"
    for menu in menus.element_handles():
        menu.scroll_into_view_if_needed()
        tab.wait_for_function(f"menu => ({SHOWN})(menu).figure", arg=menu)
        before = menu.evaluate(SHOWN)
        menu.focus()
        for key in ("Space", "ArrowDown", "Enter"):  # a bare arrow key would move JupyterLab's cell cursor
            tab.keyboard.press(key)
        tab.wait_for_function(CHANGED % SHOWN, arg=[menu, before])
        assert "Error" not in menu.evaluate(SHOWN)["text"]
    tab.screenshot(path=SHOTS / f"{path.stem}.png")
    note(path.stem, open=opened - began, run=ran - opened, widgets=time.perf_counter() - ran)
    # JupyterLab draws saved images without their alt text (the words stand below): not the pages' fault.
    found = Axe().run(tab, context=".widget-vbox", options={"rules": {"image-alt": {"enabled": False}}})
    assert found.violations_count == 0, found.generate_report()


def test_a_newcomer_sees_the_first_result_of_page_00_and_takes_the_work_home(tab, lab, tmp_path):
    """The seconds from JupyterLab's address to the first figure are noted, not asserted."""
    began = time.perf_counter()
    open_page(tab, lab, "00_start_here.ipynb")
    tab.evaluate(RUN_ALL)
    tab.wait_for_selector(".jp-RenderedImage img", state="attached")
    note("newcomer", first_figure=time.perf_counter() - began)
    tab.wait_for_function("() => window.allRun")
    tab.locator("button.tl-pack-my-work").click()
    with tab.expect_download() as download:
        tab.get_by_text("Download my_work.zip").click()
    download.value.save_as(tmp_path / download.value.suggested_filename)
    with zipfile.ZipFile(tmp_path / "my_work.zip") as archive:
        assert {path.name for path in PAGES} | {"my_progress.json"} == set(archive.namelist())


def test_a_screen_of_400_pixels_shows_figures_and_menus_whole(tab, lab):
    tab.set_viewport_size({"width": 400, "height": 800})
    open_page(tab, lab, "00_start_here.ipynb")
    tab.evaluate("() => jupyterapp.shell.collapseLeft()")
    run_all(tab)
    menu = tab.locator(".widget-vbox select").first
    tab.wait_for_function(f"menu => ({SHOWN})(menu).figure", arg=menu.element_handle())
    menu.scroll_into_view_if_needed()
    tab.screenshot(path=SHOTS / "narrow.png")
    for box in [menu.bounding_box(), *(image.bounding_box() for image in tab.locator(".jp-OutputArea img").all())]:
        assert box["x"] >= 0 and box["x"] + box["width"] <= 400, box


def status(tab, text: str) -> None:
    """Wait until the line below the pad begins with a text."""
    tab.wait_for_function("text => document.querySelector('[role=status]')?.innerText.startsWith(text)", arg=text)


def draw(tab, points: list[tuple[float, float]]) -> None:
    """One stroke with the mouse; points in 0..1 across the pad."""
    box = tab.locator(".tl-pad-sheet").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    tab.mouse.move(*places[0])
    tab.mouse.down()
    for place in places[1:]:
        tab.mouse.move(*place, steps=5)
    tab.mouse.up()


@pytest.mark.parametrize("width", [1280, 400])
def test_what_is_drawn_on_the_pad_is_read_at_once(tab, lab, width):
    from axe_playwright_python.sync_playwright import Axe

    requests = []
    tab.on("request", lambda request: requests.append(request.url))
    tab.set_viewport_size({"width": width, "height": 900})
    open_page(tab, lab, "pad/pad.ipynb")
    if width < 1000:
        tab.evaluate("() => jupyterapp.shell.collapseLeft()")
    run_all(tab)
    lines = tab.locator(".tl-pad-sheet polyline")

    status(tab, "I read: 7")  # the drawing that the second cell has set
    assert lines.count() == 1
    tab.get_by_role("button", name="Clear").click()
    status(tab, "Nothing is drawn")
    assert lines.count() == 0

    tab.locator(".tl-pad").scroll_into_view_if_needed()
    tab.evaluate(WATCH)
    for _ in range(10):
        draw(tab, SEVEN)
        status(tab, "I read: 7")
        tab.get_by_role("button", name="Undo").click()
        status(tab, "Nothing is drawn")
    draw(tab, SEVEN)
    status(tab, "I read: 7")
    for theme in ("Light", "Dark"):
        tab.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", f"JupyterLab {theme}")
        tab.wait_for_function(
            "light => document.body.dataset.jpThemeLight === light", arg=str(theme == "Light").lower()
        )
        for part in (".tl-pad-row:last-child", ".tl-pad-sheet"):  # both are in the picture then
            tab.locator(part).scroll_into_view_if_needed()
        tab.wait_for_timeout(500)  # its colours fade in
        tab.screenshot(path=SHOTS / f"pad-{width}-{theme.lower()}.png")
        found = Axe().run(tab, context={"include": [[".tl-pad"], [".tl-pad-1"]]})
        assert found.violations_count == 0, found.generate_report()

    tab.locator(".tl-pad-sheet").focus()
    active = "() => jupyterapp.shell.currentWidget.content.activeCellIndex"
    before = tab.evaluate(active)
    for key in ("Backspace", *["ArrowUp"] * 8, "Space", *["ArrowDown"] * 16):
        tab.keyboard.press(key)
    tab.screenshot(path=SHOTS / f"pad-{width}-keys.png")
    assert lines.count() == 1
    tab.keyboard.press("Space")
    status(tab, "I read: 1")
    assert tab.evaluate(active) == before, "an arrow key has moved JupyterLab's cell cursor"
    tab.keyboard.press("Tab")
    assert tab.evaluate("() => document.activeElement.innerText") == "Undo"

    for part in (".tl-pad-sheet", ".tl-pad-answer", ".tl-pad-tools"):
        box = tab.locator(part).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width, (part, box)
    assert [
        url for url in requests if not url.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:"))
    ] == []
    delays = tab.evaluate("() => delays")
    words = (
        f"stroke to answer: median {statistics.median(delays):.0f} ms, longest {max(delays):.0f} ms of {len(delays)}"
    )
    print(words)
    (SHOTS / f"pad-{width}.txt").write_text(words + "\n", "utf-8")


@pytest.fixture
def bare_pad(chromium, tmp_path, monkeypatch):
    """A pad on a touch screen of 400 pixels, without Jupyter: two text fields stand for the widgets of the first."""
    from tlhelpers.course import pad

    pages = []
    monkeypatch.setattr(pad, "display", lambda thing, **_: pages.append(thing))
    for _ in range(2):
        pad.DrawingPad(lambda image: {"a": 1.0})._ipython_display_()
    first, _, second, _ = pages  # each with its widgets behind it
    name = re.search(r"tl-pad-\d+", first["text/html"])[0]
    widgets = (
        f'<div class="{name}"><textarea></textarea><p class="tl-pad-status"></p><p class="tl-pad-answer"></p></div>'
    )
    page = tmp_path / "pad.html"
    page.write_text(f"<main>{first['text/html']}{widgets}{second['text/html']}</main>", "utf-8")
    context = chromium.new_context(has_touch=True, viewport={"width": 400, "height": 900})
    tab = context.new_page()
    tab.goto(page.as_uri())
    yield tab
    context.close()


def test_a_finger_draws_a_palm_does_not_and_without_a_kernel_one_sentence_stays(bare_pad):
    touch = bare_pad.context.new_cdp_session(bare_pad)
    box = bare_pad.locator(".tl-pad-sheet").bounding_box()

    def fingers(kind: str, *places: tuple[float, float]) -> None:
        points = [
            {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"], "id": number}
            for number, (x, y) in enumerate(places)
        ]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    fingers("touchStart", (0.2, 0.2))
    fingers("touchMove", (0.5, 0.5))
    fingers("touchStart", (0.5, 0.5), (0.9, 0.9))
    fingers("touchMove", (0.6, 0.8), (0.8, 0.9))
    fingers("touchEnd")
    fingers("touchStart", (0.5, 0.5))
    fingers("touchMove", (1.4, -0.4))
    fingers("touchEnd")
    bare_pad.wait_for_function("() => document.querySelector('textarea').value.split(']]').length === 3")
    first, second = json.loads(bare_pad.locator("textarea").input_value())
    assert first == [pytest.approx(place, abs=0.01) for place in ([0.2, 0.2], [0.5, 0.5], [0.6, 0.8])]
    assert second == [pytest.approx(place, abs=0.01) for place in ([0.5, 0.5], [1, 0])], "the rim is as far as it goes"
    assert bare_pad.evaluate("() => scrollY") == 0, "a finger on the pad does not move the page"

    assert bare_pad.locator(".tl-pad").last.inner_text() == "Run this page to draw here."
    bare_pad.locator("textarea").evaluate("field => field.remove()")
    bare_pad.get_by_role("button", name="Undo").click()
    assert "No answer" in bare_pad.locator(".tl-pad-hint").inner_text()
