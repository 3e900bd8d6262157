"""`python -m tlhelpers`: the doctor and the prefetch; the progress is in test_overview.py."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tlhelpers import doctor
from tlhelpers.__main__ import main
from tlhelpers.course import prefetch


def test_the_doctor_finds_this_machine_ready(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.count("\nok ") == len(doctor.CHECKS) - 1 and out.startswith("ok Python")
    assert "This machine is ready" in out


def test_a_failed_check_is_marked_explained_and_gives_exit_status_one(monkeypatch, capsys):
    def broken() -> str:
        raise RuntimeError("torch and torchvision do not match")

    monkeypatch.setitem(doctor.CHECKS, "torch pair", broken)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "NO torch pair      torch and torchvision do not match" in out
    assert f"1 of {len(doctor.CHECKS)} checks failed" in out


@pytest.mark.parametrize(
    ("check", "patch", "words"),
    [
        (doctor._memory, ("LEAST_GB", 1e6), "close other kernels"),
        (doctor._disk, ("LEAST_GB", 1e6), "larger disk"),
        (doctor._torch_pair, ("_run", lambda _code: (_ for _ in ()).throw(RuntimeError("no nms"))), "install both"),
    ],
)
def test_what_is_missing_is_said_with_the_remedy(check, patch, words, monkeypatch):
    monkeypatch.setattr(doctor, *patch)
    with pytest.raises(RuntimeError, match=words):
        check()


def test_packages_that_are_missing_or_too_old_are_named_and_those_of_other_extras_are_not(monkeypatch):
    needed = ["no-such-package>=1", "numpy>=999", "packaging", "never-heard-of; extra == 'docs'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: needed)
    with pytest.raises(RuntimeError, match=r"^install or upgrade: no-such-package>=1 \(have None\), numpy>=999 \("):
        doctor._packages()


def test_a_folder_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.os, "access", lambda place, _: place != tmp_path)  # root may write everywhere
    with pytest.raises(RuntimeError, match=rf"{tmp_path} cannot be written; set TLHELPERS_CACHE"):
        doctor._writing()


def test_a_kernel_that_is_missing_or_starts_another_python_is_a_finding(monkeypatch):
    for other in ("/bin/sh", "/removed/bin/python"):
        kernel = SimpleNamespace(argv=[other])
        monkeypatch.setattr("jupyter_client.kernelspec.KernelSpecManager.get_kernel_spec", lambda *_, k=kernel: k)
        with pytest.raises(RuntimeError, match=f"python3 starts {other}, not .*; python -m ipykernel install"):
            doctor._kernel()
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match="ipykernel is missing; pip install"):
        doctor._kernel()


def test_a_gpu_that_torch_does_not_see_is_a_finding(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: Tesla T4'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(doctor, "_run", lambda _code: "cpu")
    with pytest.raises(RuntimeError, match=r"does not see GPU 0: Tesla T4.*driver"):
        doctor._device()


def test_the_doctor_speaks_even_when_torch_cannot_be_imported(tmp_path):
    tries = tmp_path / "tries"
    (tmp_path / "torch.py").write_text(
        f"open({str(tries)!r}, 'a').write('x')\nraise ImportError('libcudart.so.13: cannot open shared object file')"
    )
    code = "import sys; sys.argv[1:] = ['doctor']; import runpy; runpy.run_module('tlhelpers', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={"PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 1
    assert "NO torch pair" in done.stdout and "libcudart" in done.stdout and "checks failed" in done.stdout
    assert done.stdout.count("not checked, because torch cannot be imported") == 7
    assert len(tries.read_text()) == 2  # the pair, and once for all others


@pytest.fixture
def mnist_files(tmp_path, monkeypatch):
    """Four files where MNIST's lie; the manifest does not read them."""
    raw = tmp_path / "shared" / "torchvision" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    for name in names:
        (raw / name).write_text(name)
    monkeypatch.setattr(prefetch, "NEEDS", {"05": ("mnist",)})
    for name in ("TLHELPERS_CACHE", "TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(name, "")  # restored after the test: prefetch sets them
    return raw


def test_prefetch_writes_a_manifest_and_a_second_run_verifies_it(mnist_files, tmp_path, capsys):
    command = ["prefetch", "--pages", "05", "--to", str(tmp_path / "shared")]
    assert main(command) == 0
    manifest = json.loads((tmp_path / "shared" / "manifest.json").read_text())
    assert len(manifest) == 4 and "torchvision/MNIST/raw/train-labels-idx1-ubyte" in manifest
    assert main(command) == 0
    assert capsys.readouterr().out.count("ok mnist: 4 files") == 2
    damaged = mnist_files / "train-labels-idx1-ubyte"
    damaged.write_text("rot")
    assert main(command) == 1
    assert "is not what was fetched before" in capsys.readouterr().out and not damaged.exists()


def test_a_model_of_the_hub_goes_to_the_folder_that_is_asked_for_and_a_damaged_one_goes(monkeypatch, tmp_path, capsys):
    for name in ("TLHELPERS_CACHE", "TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(name, "")
    folders = []

    def download(name, *, allow_patterns, cache_dir):
        folders.append(cache_dir)
        blob, link = cache_dir / "blobs" / "0123", cache_dir / "snapshot" / "config.json"
        if not blob.exists():  # as the hub's client: what is there is not fetched again
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_text("{}")
        if not link.exists():
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(blob)
        return str(link.parent)

    monkeypatch.setattr(prefetch, "snapshot_download", download)
    command = ["prefetch", "--pages", "04", "--to", str(tmp_path / "shared")]
    assert main(command) == 0
    assert folders == [tmp_path / "shared" / "huggingface" / "hub"]
    assert "ok google-bert/bert-base-uncased: 1 files" in capsys.readouterr().out
    (folders[0] / "blobs" / "0123").write_text("rot")
    assert [main(command), main(command)] == [1, 0]


def test_prefetch_without_a_network_says_what_is_missing_and_goes_on(tmp_path, monkeypatch, capsys):
    for name in ("TLHELPERS_CACHE", "TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(name, "")
    assert main(["prefetch", "--to", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    wanted = {name for names in prefetch.NEEDS.values() for name in names}
    assert out.count("NO ") == len(wanted) and all(f"NO {name}: " in out for name in wanted)


def test_a_page_that_needs_nothing_is_told_which_do(capsys):
    assert main(["prefetch", "--pages", "99"]) == 1
    assert "nothing to fetch for 99: the pages that need something are 02, 03" in capsys.readouterr().out


def test_a_page_that_is_no_number_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["prefetch", "--pages", "two"])
    assert "two digits per page" in capsys.readouterr().err
