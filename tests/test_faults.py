"""Networks, disks, clocks, kernels and drivers that fail: what was said, and what was left."""

import hashlib
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from test_files import CONTENT, SHA, remote, server  # noqa: F401
from toys import CPU, differing, toy_backbone, toy_examples, toy_images, toy_model, weights_of

from tlhelpers import doctor, files
from tlhelpers.analysis import cached_features, extract_features
from tlhelpers.analysis.features import feature_key, read_tensor, write_tensor
from tlhelpers.data import make_loaders
from tlhelpers.files import Remote, digest_of, fetch
from tlhelpers.models import freeze
from tlhelpers.objectives import classification
from tlhelpers.training import fit

pytestmark = pytest.mark.fault_table
HERE = Path(__file__).parent


def child(name: str, folder: Path) -> subprocess.Popen:
    paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    one_thread = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "0"}
    return subprocess.Popen(
        [sys.executable, str(HERE / "fault_children.py"), name, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | one_thread,
    )


def counts(process: subprocess.Popen) -> list[int]:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


# --- the network ---------------------------------------------------------------------------------------------------
def test_no_network_is_said_with_a_remedy(tmp_path, monkeypatch, fault_row):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    errors = [socket.gaierror("no name"), ConnectionRefusedError(), ConnectionResetError("reset"), TimeoutError()]
    errors += [OSError(101, "Network is unreachable")]
    survived = 0
    for error in errors:

        def gone(*_args, error=error, **_more):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(files.urllib.request, "urlopen", gone)
            with pytest.raises(OSError, match=r"could not be kept.*put the file there by hand"):
                fetch(Remote("http://127.0.0.1:9/w", "md5:0"), tmp_path / "w")
        survived += not (tmp_path / "w").exists()
    fault_row("network gone", "an error with a remedy, nothing under the final name", len(errors), survived)


def test_a_download_cut_at_byte_k_goes_on(server, tmp_path, fault_row):  # noqa: F811
    places = sorted({0, 1, len(CONTENT) - 1, *range(3, len(CONTENT), 211)})
    survived = 0
    for k in places:
        path = tmp_path / str(k) / "weights.bin"
        server.cut = k
        with pytest.raises(OSError, match=f"after {k:,} of 10,240 bytes"):
            fetch(remote(server), path)
        missing = not path.exists()
        server.cut = None
        survived += missing and fetch(remote(server), path).read_bytes() == CONTENT
    fault_row(
        "network cut at byte k", "nothing under the final name; the next call fetches the rest", len(places), survived
    )


def test_a_server_that_falls_silent_is_given_up_and_a_slow_one_is_not(server, tmp_path, monkeypatch, fault_row):  # noqa: F811
    monkeypatch.setattr(files, "SILENCE", 0.5)
    answer = server.RequestHandlerClass
    write = answer.do_GET

    def drip(self, stop_at=None):
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        for i in range(0, len(CONTENT), 1024):
            if stop_at is not None and i >= stop_at:
                time.sleep(1.5)
                return
            self.wfile.write(CONTENT[i : i + 1024])
            time.sleep(0.02)

    monkeypatch.setattr(answer, "do_GET", drip)
    slow = fetch(remote(server), tmp_path / "slow").read_bytes() == CONTENT
    silent = 0
    for at in (0, 2048, 8192):
        monkeypatch.setattr(answer, "do_GET", lambda self, at=at: drip(self, at))
        with pytest.raises(OSError, match="could not be kept"):
            fetch(remote(server), tmp_path / f"silent {at}")
        monkeypatch.setattr(answer, "do_GET", write)
        silent += fetch(remote(server), tmp_path / f"silent {at}").read_bytes() == CONTENT
    fault_row("network slow", "the file arrives", 1, int(slow))
    fault_row("network falls silent", "given up; the next call fetches the rest", 3, silent)


def test_wrong_bytes_never_get_the_final_name(server, tmp_path, fault_row):  # noqa: F811
    same_length = 0
    lengths = 0
    for i, place in enumerate(range(0, len(CONTENT), 400)):
        wrong = bytearray(CONTENT)
        wrong[place] ^= 1 << (i % 8)
        server.content = bytes(wrong)
        with pytest.raises(OSError, match="the bytes are removed"):
            fetch(remote(server), tmp_path / "w")
        same_length += not (tmp_path / "w").exists() and not (tmp_path / "w.part").exists()
    for content in (b"", CONTENT[:100], CONTENT + b"x", b"<html>please log in</html>"):
        server.content = content
        with pytest.raises(OSError):
            fetch(remote(server), tmp_path / "w")
        lengths += not (tmp_path / "w").exists()
        (tmp_path / "w.part").unlink(missing_ok=True)
    fault_row("one wrong bit, right length", "removed, and said", i + 1, same_length)
    fault_row("another file than asked for (checksum)", "nothing under the final name", 4, lengths)


# --- disks ---------------------------------------------------------------------------------------------------------
@pytest.mark.faults
def test_a_full_disk_costs_no_features(tmp_path, fault_row):
    """Injected with RLIMIT_FSIZE: the system refuses to let a file grow beyond k bytes."""
    fault_row(
        "disk full at byte k of the feature cache",
        "a warning; features are right, nothing is left, and kept once there is room",
        *counts(child("full_disk", tmp_path)),
    )


@pytest.mark.faults
def test_a_full_disk_during_a_download_leaves_what_can_be_continued(server, tmp_path, fault_row):  # noqa: F811
    (tmp_path / "port").write_text(str(server.server_port))
    (tmp_path / "digest").write_text(SHA)
    (tmp_path / "size").write_text(str(len(CONTENT)))
    fault_row(
        "disk full at byte k of a download",
        "an error; the rest is fetched once there is room",
        *counts(child("full_disk_download", tmp_path)),
    )


def test_a_full_disk_costs_no_progress(tmp_path, fault_row):
    fault_row(
        "disk full at byte k of the progress file",
        "the answer is judged, the reason said, the old file whole; kept once there is room",
        *counts(child("full_disk_progress", tmp_path)),
    )


@pytest.mark.faults
def test_a_read_only_folder_is_read_and_costs_no_features(fault_row):
    """Root, whom permissions do not bind, becomes nobody first."""
    folder = Path(tempfile.mkdtemp(prefix="tlhelpers-faults-"))
    folder.chmod(0o755)
    try:
        fault_row(
            "read-only folder",
            "prepared features are read; else a warning, or an error that names it",
            *counts(child("read_only", folder)),
        )
    finally:
        shutil.rmtree(folder)


def test_damaged_kept_features_are_made_anew(tmp_path, fault_row):
    backbone = toy_backbone()
    images = toy_images()
    path = tmp_path / f"{feature_key(backbone, images, None)}.safetensors"
    right = cached_features(backbone, images, folder=tmp_path).x
    whole = path.read_bytes()
    count = [0, 0]
    damaged = [whole[:k] for k in range(0, len(whole), 29)]
    for k in range(len(whole) - right.numel() * 4, len(whole), 7):  # a bit of the numbers: right length, wrong bytes
        wrong = bytearray(whole)
        wrong[k] ^= 1 << (k % 8)
        damaged.append(bytes(wrong))
    for content in damaged:
        path.write_bytes(content)
        with pytest.warns(match="cannot be used"):
            again = cached_features(backbone, images, folder=tmp_path).x
        count[0] += 1
        count[1] += torch.equal(again, right) and path.read_bytes() == whole
    fault_row("feature cache truncated, or one wrong bit", "made anew, with a warning", *count)


def test_a_written_tensor_comes_back_as_it_was_and_another_length_is_refused(tmp_path):
    x = torch.randn(7, 3)
    path = tmp_path / "deep" / "x.safetensors"
    write_tensor(path, x)
    assert torch.equal(read_tensor(path, rows=7), x)
    with pytest.raises(ValueError, match="8 rows"):
        read_tensor(path, rows=8)
    with pytest.raises(FileNotFoundError):
        read_tensor(tmp_path / "nowhere", rows=7)


# --- several processes, and dead ones ------------------------------------------------------------------------------
@pytest.mark.faults
def test_processes_that_fill_one_cache_at_once_all_get_what_is_right(tmp_path, fault_row):
    running = [child("fill", tmp_path) for _ in range(3)]
    while len(list(tmp_path.glob("ready-*"))) < 3:
        assert all(process.poll() is None for process in running)
        time.sleep(0.05)
    (tmp_path / "go").touch()
    for count in [counts(process) for process in running]:
        fault_row(
            "three processes fill one cache at once", "each gets the right features, one whole file stays", *count
        )
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.faults
def test_a_kernel_killed_while_it_extracts_leaves_nothing_wrong(tmp_path, fault_row):
    count = counts(child("killed", tmp_path))
    assert count[0] >= 50
    fault_row("SIGKILL while features are extracted and kept", "the next call gets the right features", *count)


# --- clocks --------------------------------------------------------------------------------------------------------
def test_a_clock_that_jumps_changes_nothing(server, tmp_path, monkeypatch, fault_row):  # noqa: F811
    now = time.time
    count = [0, 0]
    backbone = toy_backbone()
    images = toy_images()
    for i, jump in enumerate((-3e8, -3600, 3600, 3e9)):
        calls = iter(range(10**9))
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda calls=calls, jump=jump: now() + (jump if next(calls) % 2 else 0))
            features = cached_features(backbone, images, folder=tmp_path / str(i)).x
            for file in (tmp_path / str(i)).iterdir():
                os.utime(file, (max(0, now() + jump),) * 2)
            again = cached_features(backbone, images, folder=tmp_path / str(i)).x
            arrived = fetch(remote(server), tmp_path / str(i) / "w")
            history = small_run(toy_model(), make_loaders(toy_examples(), toy_examples(), batch_size=8, device=CPU))
        count[0] += 1
        good = torch.equal(features, again) and digest_of(arrived) == hashlib.sha256(CONTENT).hexdigest()
        count[1] += good and all(0 <= record["seconds"] < 60 for record in history)
    fault_row("the clock jumps by an hour or years", "downloads, kept features and times of epochs are right", *count)


# --- training ------------------------------------------------------------------------------------------------------
def small_run(model, loaders, epochs: int = 2) -> list[dict]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    return fit(model, loaders, classification(), optimizer, epochs=epochs, device=CPU)


class Failing:
    """A loader whose k-th batch fails: it raises, or holds what `spoil` makes of it."""

    def __init__(self, loader, k: int, spoil=None) -> None:
        self.loader = loader
        self.k = k
        self.spoil = spoil

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        for x, y in self.loader:
            self.k -= 1
            if self.k < 0 and self.spoil is None:
                raise OSError("the disk of the images went away")
            yield (x if self.k != -1 or self.spoil is None else self.spoil(x)), y


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("spoil", [None, lambda x: x * math.nan, lambda x: x * math.inf], ids=["raises", "nan", "inf"])
def test_a_run_that_breaks_off_leaves_rates_and_frozen_parts_as_they_were(spoil, frozen, fault_row):
    error = OSError if spoil is None else FloatingPointError
    words = "went away" if spoil is None else r"epoch \d, step \d"
    count = [0, 0]
    for k in range(12):
        model = toy_model()
        if frozen:
            freeze(model.body)
        before = weights_of(model.body)
        optimizer = torch.optim.SGD((model.head if frozen else model).parameters(), lr=0.1)
        train, validation = make_loaders(toy_examples(), toy_examples(), batch_size=4, device=CPU)
        with pytest.raises(error, match=words):
            fit(
                model,
                (Failing(train, k, spoil), validation),
                classification(),
                optimizer,
                epochs=2,
                schedule=lambda progress: 1 - progress,
                device=CPU,
            )
        finite = all(tensor.isfinite().all() for tensor in weights_of(model).values())
        model.body(torch.randn(4, 4))
        still = not any(part.training for part in model.body.modules()) and differing(before, model.body) == []
        intact = finite and (still or not frozen) and optimizer.param_groups[0]["lr"] == 0.1
        count[0] += 1
        count[1] += intact and len(small_run(model, (train, validation))) == 2
    fault = "data loader raises half way" if spoil is None else "non-finite loss"
    fault_row(fault, "error names it; rates, frozen parts and weights are intact; the next run works", *count)


# --- drivers and installations -------------------------------------------------------------------------------------
BROKEN = {
    "a library is missing": "raise ImportError('libcudart.so.13: cannot open shared object file')",
    "torch is missing": "raise ModuleNotFoundError(\"No module named 'torch'\")",
    "an error of the system": "raise OSError('libtorch_cuda.so: undefined symbol')",
    "a crash at import": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "an exit at import": "import os; os._exit(3)",
    "a mismatch": "raise RuntimeError('CUDA driver version is insufficient for CUDA runtime version')",
}


def broken_doctor(folder: Path, module: str, code: str) -> subprocess.CompletedProcess:
    (folder / f"{module}.py").write_text(code)
    paths = os.pathsep.join([str(folder), str(HERE.parent)])
    return subprocess.run(
        [sys.executable, "-m", "tlhelpers", "doctor"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths, "TLHELPERS_OFFLINE": "1"},
    )


def test_the_doctor_speaks_to_the_end_whatever_breaks_torch(tmp_path, fault_row):
    spoken = 0
    for i, code in enumerate(BROKEN.values()):
        folder = tmp_path / str(i)
        folder.mkdir()
        done = broken_doctor(folder, "torch", code)
        lines = [line[3:].split("  ")[0].strip() for line in done.stdout.splitlines()[:-1]]
        complete = all(any(line.startswith(name) for line in lines) for name in doctor.CHECKS)
        spoken += complete and "NO torch pair" in done.stdout and done.returncode == 1
    fault_row("GPU stack broken, torch missing or crashing", "the doctor says so, exit status 1", len(BROKEN), spoken)


@pytest.mark.faults
def test_the_doctor_finds_a_torchvision_of_another_torch(tmp_path, fault_row):
    done = broken_doctor(tmp_path, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    noticed = done.returncode == 1 and "install both anew" in done.stdout
    fault_row("torchvision of another torch", "the doctor says so, exit status 1", 1, int(noticed))


def test_features_are_those_of_a_direct_pass_after_all_this():
    backbone = toy_backbone()
    images = toy_images()
    assert torch.equal(extract_features(backbone, images).x, extract_features(backbone, images).x)
