"""Processes that tests starve, kill or run side by side: `python fault_children.py NAME FOLDER`; prints counts."""

import contextlib
import io
import json
import os
import random
import resource
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset
from toys import CPU, toy_backbone, toy_images

from tlhelpers.analysis import cached_features, extract_features, fit_probe, h_score, logme, proxy_a_distance
from tlhelpers.analysis.features import feature_key
from tlhelpers.data import Jitter, few_shot, load_dataset, make_loaders
from tlhelpers.files import Remote, fetch
from tlhelpers.models import attach_head, load_backbone
from tlhelpers.objectives import classification
from tlhelpers.runtime import seed_everything
from tlhelpers.training import fit


def work(n: int = 400):
    """A backbone and images that are the same in every process."""
    torch.manual_seed(0)
    return toy_backbone(), toy_images(n)


def right(features) -> bool:
    """Are they those of `work`?"""
    return torch.equal(features.x, extract_features(*work()).x)


def full_disk(folder: Path) -> list[int]:
    """Keep features while no file may grow beyond k bytes, for many k, as on a full disk."""
    count = [0, 0]
    whole = cached_features(*work(), folder=folder / "whole")
    size = next((folder / "whole").glob("*.safetensors")).stat().st_size
    for k in sorted({0, 1, 7, 8, size - 1, *random.Random(0).sample(range(size), 30)}):
        place = folder / str(k)
        resource.setrlimit(resource.RLIMIT_FSIZE, (k, resource.RLIM_INFINITY))
        with warnings.catch_warnings(record=True) as remarks:
            warnings.simplefilter("always")
            features = cached_features(*work(), folder=place)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        named = any("cannot keep features" in str(w.message) for w in remarks)
        clean = not [path for path in place.glob("*") if path.suffix != ".lock"]
        again = cached_features(*work(), folder=place)
        count[0] += 1
        count[1] += named and clean and torch.equal(features.x, whole.x) and torch.equal(again.x, whole.x)
    return count


def full_disk_download(folder: Path) -> list[int]:
    """Download while no file may grow beyond k bytes; FOLDER/port names the server."""
    port = (folder / "port").read_text()
    digest = (folder / "digest").read_text()
    size = int((folder / "size").read_text())
    count = [0, 0]
    for k in random.Random(0).sample(range(1, size - 1), 20):
        path = folder / str(k) / "weights.bin"
        remote = Remote(f"http://127.0.0.1:{port}/weights.bin", f"sha256:{digest}", size)
        resource.setrlimit(resource.RLIMIT_FSIZE, (k, resource.RLIM_INFINITY))
        try:
            fetch(remote, path)
            named = False
        except OSError as error:
            named = "could not be kept" in str(error) and not path.exists()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        count[0] += 1
        count[1] += named and fetch(remote, path).stat().st_size == size
    return count


def full_disk_progress(folder: Path) -> list[int]:
    """Answer an exercise while the progress file may not grow beyond k bytes, for every k that is too few."""
    from tlhelpers.course import scorebook
    from tlhelpers.course.exercises.page_05 import q1

    book = folder / "book.json"
    before = {"05.q2": "2026-01-01T00:00:00+00:00"}
    count = [0, 0]
    os.environ["TLHELPERS_PROGRESS"] = str(book)
    with contextlib.redirect_stdout(io.StringIO()):
        q1.check("b")
    size = book.stat().st_size + len(', "05.q2": "2026-01-01T00:00:00+00:00"')
    for k in range(size):
        scorebook.write(book, before)
        scorebook._complaints.clear()
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            resource.setrlimit(resource.RLIMIT_FSIZE, (k, resource.RLIM_INFINITY))
            q1.check("b")
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        judged = "Right" in output.getvalue() and "cannot be kept" in output.getvalue()
        whole = scorebook.read(book) == before and list(folder.iterdir()) == [book]
        with contextlib.redirect_stdout(io.StringIO()):
            q1.check("b")
        count[0] += 1
        count[1] += judged and whole and set(scorebook.read(book)) == {"05.q1", "05.q2"}
    return count


def read_only(folder: Path) -> list[int]:
    """Keep features in folders without the right to write; root gives its rights up first."""
    prepared = folder / "prepared"
    locked = folder / "locked"
    first = cached_features(*work(), folder=prepared)
    locked.mkdir()
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
    else:
        prepared.chmod(0o555)
        locked.chmod(0o555)
    count = [0, 0]
    for place, warns in ((prepared, False), (locked, True), (locked / "below", True)):
        with warnings.catch_warnings(record=True) as remarks:
            warnings.simplefilter("always")
            features = cached_features(*work(), folder=place)
        named = any("cannot keep features" in str(w.message) for w in remarks)
        count[0] += 1
        count[1] += torch.equal(features.x, first.x) and named == warns
    try:
        fetch(Remote("http://127.0.0.1:9/w", "md5:0"), locked / "w")
    except OSError as error:
        count[1] += str(locked) in str(error)
    count[0] += 1
    return count


def killed(folder: Path) -> list[int]:
    """SIGKILL a process while it fills the cache, at random moments; the next one must get what is right."""
    chance = random.Random(0)
    count = [0, 0]
    began = time.perf_counter()
    cached_features(*work(), folder=folder / "timing")
    usual = time.perf_counter() - began
    backbone, images = work()
    for i in range(60):
        place = folder / str(i)
        child = os.fork()
        if child == 0:
            cached_features(backbone, images, folder=place)
            os._exit(0)
        time.sleep(chance.uniform(0, 1.5 * usual))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what was left behind must not even need a remark
            features = cached_features(backbone, images, folder=place)
        count[0] += 1
        count[1] += right(features) and len(list(place.glob("*.safetensors"))) == 1
    return count


def fill(folder: Path) -> list[int]:
    """One of several processes that fill one cache at once; they begin together, when FOLDER/go appears."""
    backbone, images = work()
    (folder / f"ready-{os.getpid()}").touch()
    while not (folder / "go").exists():
        time.sleep(0.002)
    count = [0, 0]
    for i in range(15):
        features = cached_features(backbone, images, folder=folder / str(i))
        path = folder / str(i) / f"{feature_key(backbone, images, None)}.safetensors"
        count[0] += 1
        count[1] += right(features) and path.exists()
    return count


def kernel(folder: Path) -> list[int]:
    """A whole small job: features of digits from a shipped body, and a probe; returns [accuracy in 1e-6, peak MiB]."""
    digits = load_dataset("digits")
    backbone = load_backbone("glyphs-all")
    train, test = (cached_features(backbone, examples, folder=folder) for examples in (digits.train, digits.test))
    accuracy = fit_probe(train).score(test)
    # Not getrusage: there, a child begins with the peak of the process that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))
    return [round(1e6 * accuracy), peak]


def numbers(folder: Path) -> list:
    """What the same seed gives: a short training, a few-shot draw, a probe and scores, as exact texts."""
    digits = load_dataset("digits")
    backbone = load_backbone("glyphs-all")
    few = few_shot(digits.train, 5, seed=0)
    seed_everything(0)
    model = attach_head(backbone, 10)
    loaders = make_loaders(few, few, augment=Jitter(degrees=5), device=CPU)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    results = fit(model, loaders, classification(), optimizer, epochs=2, device=CPU)
    one = extract_features(backbone, few, device=CPU)
    other = extract_features(backbone, digits.test, device=CPU)
    results += [fit_probe(one).score(other), h_score(one.x, one.y), logme(one.x, one.y)]
    results += [proxy_a_distance(one.x, other.x)]
    for workers in (0, 1, 2):  # the order comes from the generator, and not from who loads
        seed_everything(0)
        model = attach_head(backbone, 10)
        order = torch.Generator().manual_seed(0)
        loader = DataLoader(TensorDataset(few.x, few.y), 16, shuffle=True, num_workers=workers, generator=order)
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        results.append(fit(model, (loader, None), classification(), optimizer, epochs=2, device=CPU)[-1])
    without_times = [
        {name: value for name, value in result.items() if name != "seconds"} if isinstance(result, dict) else result
        for result in results
    ]
    assert without_times[-1] == without_times[-2] == without_times[-3]
    return [str(result) for result in without_times]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))))
