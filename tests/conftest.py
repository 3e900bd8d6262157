"""Seeds, no network, and the time and memory of every page."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KERNEL_LIMIT_MIB = 1536  # Binder kills a kernel at 2 GB in all, JupyterLab included

sys.path.insert(0, str(HERE))
import no_network  # noqa: E402, F401

_pages: dict[str, dict] = {}  # per notebook: seconds and peak MiB; filled where its cells run


def pytest_configure(config: pytest.Config) -> None:
    # Kernels are processes of their own: they take the guard from an IPython start-up file.
    profile = Path(tempfile.mkdtemp(prefix="tlhelpers-ipython-"))
    startup = profile / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-no-network.py").write_text((HERE / "no_network.py").read_text("utf-8"), "utf-8")
    os.environ |= {"IPYTHONDIR": str(profile), "HF_HUB_OFFLINE": "1", "TLHELPERS_CACHE": str(profile / "cache")}


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ["IPYTHONDIR"], ignore_errors=True)


def pytest_collectstart(collector: pytest.Collector) -> None:
    if hasattr(collector, "skip_compare"):  # an nbval notebook
        collector.skip_compare += ("stderr",)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    kernel = getattr(item.parent, "kernel", None)
    if kernel is not None and call.when == "call":
        page = _pages.setdefault(item.path.name, {"seconds": 0.0, "mib": 0.0})
        page["seconds"] += call.duration
        page["mib"] = max(page["mib"], _peak_mib(kernel))
        if page["mib"] > KERNEL_LIMIT_MIB and report.passed:
            report.outcome = "failed"
            report.longrepr = f"the kernel peaks at {page['mib']:.0f} MiB; the limit is {KERNEL_LIMIT_MIB}"
        report.user_properties.append(("page", (item.path.name, page["seconds"], page["mib"])))
    return report


def _peak_mib(kernel) -> float:
    """Peak resident memory of a kernel, from the operating system (0 where it does not tell)."""
    try:
        status = Path(f"/proc/{kernel.km.provisioner.pid}/status").read_text()
    except (OSError, AttributeError):
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


def pytest_terminal_summary(terminalreporter) -> None:
    pages: dict[str, tuple[float, float]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for key, value in getattr(report, "user_properties", []):
                if key == "page":
                    name, seconds, mib = value
                    before = pages.get(name, (0.0, 0.0))
                    pages[name] = (max(before[0], seconds), max(before[1], mib))
    if pages:
        terminalreporter.section("pages")
        for name, (seconds, mib) in sorted(pages.items()):
            terminalreporter.write_line(f"{name:<40} {seconds:6.1f} s {mib:7.0f} MiB at most")


@pytest.fixture(autouse=True)
def _seeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every unit test starts from seed 0 and has a cache folder of its own."""
    from tlhelpers.runtime import seed_everything

    seed_everything(0)
    monkeypatch.setenv("TLHELPERS_CACHE", str(tmp_path / "cache"))
