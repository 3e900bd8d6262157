"""Files from elsewhere: none is run, none leaves its folder, none is larger than it says."""

import ast
import contextlib
import gzip
import hashlib
import io
import json
import pickle
import re
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from toys import save_tiny_bert, toy_backbone, toy_images

import tlhelpers
from tlhelpers.__main__ import main
from tlhelpers.analysis import cached_features, open_features, stream_features
from tlhelpers.analysis.features import feature_key
from tlhelpers.data import load_dataset, photos, read_table
from tlhelpers.data.folders import decode
from tlhelpers.models import CUTS, load_backbone, load_hub_body, photo_weights
from tlhelpers.runtime import cache_dir
from tlhelpers.training import checkpoint

pytestmark = pytest.mark.fault_table
ROOT = Path(tlhelpers.__file__).parent
TREES = {path: ast.parse(path.read_text("utf-8")) for path in sorted(ROOT.rglob("*.py"))}


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.write_text, (self.marker, "it ran"))


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """Where a pickle would write; every cache is below the folder of the test."""
    for name in ("TORCH_HOME", "HF_HOME", "TLHELPERS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    return tmp_path / "marker"


def pickles(marker: Path) -> dict[str, bytes]:
    """The same bomb in every form that some reader unpickles."""
    new = io.BytesIO()
    old = io.BytesIO()
    torch.save({"weight": Bomb(marker)}, new)
    torch.save(Bomb(marker), old, _use_new_zipfile_serialization=False)
    plain = [pickle.dumps({"data": Bomb(marker)}, protocol) for protocol in (0, 2, 4)]
    return {
        "torch zip": new.getvalue(),
        "torch legacy": old.getvalue(),
        **{f"pickle {i}": p for i, p in enumerate(plain)},
    }


def photo_positions(root: Path) -> dict[Path, str]:
    """Files of data sets below the cache -> the name of the data set that reads them."""
    cifar = root / "cifar-10-batches-py"
    mnist = root / "MNIST"
    emnist = root / "EMNIST"
    batches = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "batches.meta"]
    idx = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    letters = [f"emnist-letters-{s}-{k}-ubyte" for s in ("train", "test") for k in ("images-idx3", "labels-idx1")]
    return (
        {cifar / name: "cifar10" for name in batches}
        | {root / "cifar-10-python.tar.gz": "cifar10"}
        | {mnist / "raw" / name: "mnist" for name in idx}
        | {mnist / "raw" / f"{name}.gz": "mnist" for name in idx}
        | {mnist / "processed" / name: "mnist" for name in ("training.pt", "test.pt")}
        | {emnist / "raw" / name: "emnist-letters" for name in [*letters, "gzip.zip"]}
        | {emnist / "processed" / f"{s}_letters.pt": "emnist-letters" for s in ("training", "test")}
    )


def refusals(marker: Path, cases, *, prepare=lambda: None, more: tuple[bytes, ...] = ()) -> tuple[int, int]:
    """Reads of a pickle at each of [(path, call)], and how many were an error of a documented kind and ran nothing."""
    reads = refused = 0
    for path, call in cases:
        for bomb in (*pickles(marker).values(), *more):
            prepare()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bomb)
            reads += 1
            with contextlib.suppress(OSError, ValueError, checkpoint.Damaged):
                call()
                continue
            refused += not marker.exists()
            path.unlink(missing_ok=True)
    return reads, refused


def test_a_bomb_does_go_off_where_it_is_unpickled(marker):
    for bomb in pickles(marker).values():
        marker.unlink(missing_ok=True)
        torch.load(io.BytesIO(bomb), weights_only=False) if b"PK" in bomb[:2] else pickle.loads(
            pickles(marker)["pickle 1"]
        )
        assert marker.exists()


def test_a_pickle_in_the_place_of_weights_is_refused(marker, fault_row):
    folder = cache_dir() / "hub" / "checkpoints"
    cases = [(folder / photo_weights(name)[1].name, partial(load_backbone, name)) for name in CUTS]
    fault_row("pickle with code as weights", "refused, the code never runs", *refusals(marker, cases))


def test_a_pickle_in_the_place_of_a_data_set_is_refused(marker, fault_row):
    positions = photo_positions(photos._root())

    def with_wrong_bytes():
        for path in positions:
            if "processed" not in path.parts:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"\0" * 16)

    cases = [(path, partial(load_dataset, name)) for path, name in positions.items()]
    counts = refusals(marker, cases, prepare=with_wrong_bytes)
    fault_row("pickle with code as a data set", "refused, the code never runs", *counts)


def test_a_pickle_in_the_feature_cache_is_replaced_by_features(marker, fault_row):
    backbone = toy_backbone()
    examples = toy_images()
    path = cache_dir() / "features" / f"{feature_key(backbone, examples, None)}.safetensors"
    expected = cached_features(backbone, examples).x
    counts = [0, 0]
    for bomb in pickles(marker).values():
        path.write_bytes(bomb)
        with pytest.warns(match="cannot be used"):
            features = cached_features(backbone, examples).x
        counts[0] += 1
        counts[1] += torch.equal(features, expected) and not marker.exists()
    fault_row("pickle with code in the feature cache", "features are computed again, the code never runs", *counts)


@pytest.mark.parametrize("name", ["f.npy", "f.labels.npy"])
def test_a_pickle_in_the_place_of_streamed_features_is_refused(name, marker, fault_row):
    examples = toy_images()
    path = marker.parent / "f.npy"
    with_array = io.BytesIO()
    np.save(with_array, np.array([Bomb(marker)], dtype=object), allow_pickle=True)  # NumPy's own way to hold a pickle
    counts = refusals(
        marker,
        [(path.with_name(name), lambda: open_features(path))],
        prepare=lambda: stream_features(toy_backbone(), [(examples.x, examples.y)], path, rows=10),
        more=(with_array.getvalue(),),
    )
    fault_row("pickle with code as streamed features", "refused, the code never runs", *counts)


def test_a_pickle_in_the_place_of_a_checkpoint_is_refused(marker, fault_row):
    path = marker.parent / "run.pt"
    counts = refusals(marker, [(path, lambda: checkpoint.read(path))])
    fault_row("pickle with code as a checkpoint", "refused, the code never runs", *counts)


def test_a_checkpoint_whose_parts_unpack_to_more_is_refused(tmp_path):
    torch.save({"x": torch.zeros(10)}, tmp_path / "run.pt")
    kind = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(tmp_path / "run.pt") as plain, zipfile.ZipFile(tmp_path / "packed.pt", "w", kind) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(checkpoint.Damaged, match="torch would not have written"):
        checkpoint.read(tmp_path / "packed.pt")


@pytest.mark.parametrize("position", ["pytorch_model.bin", "model.safetensors", "tokenizer.json", "config.json"])
def test_a_pickle_in_a_model_folder_is_refused(position, marker, fault_row):
    folder = marker.parent / "model"

    def saved():
        save_tiny_bert(folder)
        if position == "pytorch_model.bin":
            (folder / "model.safetensors").unlink()

    counts = refusals(marker, [(folder / position, lambda: load_hub_body(str(folder)))], prepare=saved)
    fault_row("pickle with code in a model folder", "refused, the code never runs", *counts)


def test_a_model_that_asks_for_its_own_code_is_refused_without_a_question(marker, fault_row):
    folder = marker.parent / "model"
    folder.mkdir()
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w').write('it ran')\n")
    auto = {"AutoConfig": "own.C", "AutoModel": "own.M", "AutoTokenizer": ["own.T", None]}
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": auto}))
    save_file({"w": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(OSError, match="could not be loaded"):
        load_hub_body(str(folder))
    fault_row("model of the hub with its own code", "refused without a question", 1, int(not marker.exists()))


def tar_with(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, size
    return member


BASE = "cifar-10-batches-py"


def escapes(out: Path) -> dict[str, bytes]:
    """Archives that write, or lead, to `out`, which is two folders above."""
    return {
        "parent": tar_with((entry("../../../out", size=1), b"x")),
        "deep parent": tar_with((entry(f"{BASE}/../../../../out", size=1), b"x")),
        "absolute": tar_with((entry(str(out), size=1), b"x")),
        "symbolic link": tar_with(
            (entry(f"{BASE}/way", tarfile.SYMTYPE, str(out.parent)), b""), (entry(f"{BASE}/way/out", size=1), b"x")
        ),
        "relative link": tar_with(
            (entry(f"{BASE}/way", tarfile.SYMTYPE, "../../../.."), b""), (entry(f"{BASE}/way/out", size=1), b"x")
        ),
        "hard link": tar_with((entry(f"{BASE}/way", tarfile.LNKTYPE, "../../../secret"), b"")),
        "device": tar_with((entry(f"{BASE}/null", tarfile.CHRTYPE), b"")),
    }


def test_an_archive_cannot_leave_its_folder(marker, fault_row):
    archive = photos._root() / "cifar-10-python.tar.gz"
    out = marker.parent / "out"
    (marker.parent / "secret").write_text("secret")
    archive.parent.mkdir(parents=True)
    counts = [0, 0]
    for name, content in escapes(out).items():
        archive.write_bytes(content)
        before = {path for path in marker.parent.rglob("*") if BASE not in path.parts}
        with pytest.raises((OSError, ValueError, tarfile.TarError)):
            load_dataset("cifar10")
        after = {path for path in marker.parent.rglob("*") if BASE not in path.parts}
        counts[0] += 1
        counts[1] += after <= before
        assert not out.exists(), name
    fault_row("archive that leads out of its folder", "refused, nothing is written outside", *counts)


def zip_with(name: str, content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(name, content)
    return packed.getvalue()


def archives(content: bytes) -> dict[Path, tuple[str, bytes]]:
    """Place of every archive that is unpacked -> its data set, and an archive of this content to put there."""
    root = photos._root()
    letters = zip_with("gzip/emnist-letters-train-images-idx3-ubyte.gz", gzip.compress(content))
    numbers = gzip.compress(content)
    idx = [f"{split}-{kind}-ubyte.gz" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    first, *others = idx
    for name in others:  # whoever reads the first finds the rest unpacked
        path = root / "MNIST" / "raw" / name.removesuffix(".gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0" * 16)
    return {
        root / "cifar-10-python.tar.gz": ("cifar10", tar_with((entry(f"{BASE}/big", size=len(content)), content))),
        root / "MNIST" / "raw" / first: ("mnist", numbers),
        root / "EMNIST" / "raw" / "gzip.zip": ("emnist-letters", letters),
    }


@pytest.mark.parametrize("content", [bytes(50_000_000), b"a few bytes"], ids=["bomb", "small"])
def test_an_archive_that_is_not_the_published_one_is_refused_before_it_is_unpacked(content, marker, fault_row):
    counts = [0, 0]
    for path, (name, archive) in archives(content).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(archive)
        before = {file: file.stat().st_size for file in marker.parent.rglob("*") if file.is_file()}
        tracemalloc.start()
        with pytest.raises(OSError, match=rf"{path.name} is not the published file \(its md5 is not .*\); remove it"):
            load_dataset(name)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        after = {file: file.stat().st_size for file in marker.parent.rglob("*") if file.is_file()}
        counts[0] += 1
        counts[1] += after == before and peak < 10_000_000
    fault_row("archive that is not the published one", "refused, nothing is unpacked", *counts)


def test_an_archive_with_the_published_bytes_is_unpacked(marker, monkeypatch):
    from torchvision.datasets import MNIST

    images = struct.pack(">HBB3I", 0, 8, 3, 30, 28, 28) + bytes(30 * 28 * 28)
    labels = struct.pack(">HBB1I", 0, 8, 1, 30) + bytes(number % 10 for number in range(30))
    resources = []
    for name, _ in MNIST.resources:
        packed = gzip.compress(images if "images" in name else labels)
        path = photos._root() / "MNIST" / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(packed)
        resources.append((name, hashlib.md5(packed).hexdigest()))
    with pytest.raises(OSError, match="is not the published file"):
        load_dataset("mnist")
    monkeypatch.setattr(MNIST, "resources", resources)
    monkeypatch.setattr(photos, "_torchvision_splits", lambda _name, train, test: (len(train), len(test)))
    assert load_dataset("mnist") == (30, 30)


def png_with(width: int, height: int, *extra: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = [chunk(kind, content) for kind, content in extra]
    return (
        b"\x89PNG\r\n\x1a\n" + header + b"".join(body) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "content",
    [
        png_with(2**31 - 1, 2**31 - 1),
        png_with(50_001, 1000),
        png_with(1, 50_000_001),
        png_with(10, 10, (b"zTXt", b"k\0\0" + zlib.compress(bytes(80_000_000), 9))),
        png_with(10, 10, (b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(80_000_000), 9))),
    ],
    ids=["huge", "wide", "high", "zTXt", "iTXt"],
)
def test_an_image_bomb_is_refused_before_it_is_decoded(content, tmp_path, fault_row):
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(Exception, match=r"pixels|exceeds limit|too large|truncated"):
        decode(tmp_path / "bomb.png", None)
    fault_row("image that unpacks to too much", "refused before it is decoded", 1, 1)


@pytest.mark.parametrize(
    "name", ["; touch marker", "$(touch marker)", "`touch marker`", "| touch marker", "-rf", "a\nb"]
)
def test_names_of_files_are_names_and_nothing_else(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("text\tlabel\nhello\ta\n")
    assert read_table(tmp_path / name, "label") == [["a"]]
    with pytest.raises(ValueError, match="not a folder"):
        load_dataset(f"folder:{name}/nowhere")
    main(["prefetch", "--pages", "99", f"--to={name}"])
    assert not (tmp_path / "marker").exists()


def calls(tree: ast.Module) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


FORBIDDEN = (
    r"os\.(system|popen|exec\w*|spawn\w*)|eval|exec|subprocess\.getoutput|pickle\.loads?|marshal\.loads?"
    r"|joblib\.load|shelve\.open|yaml\.load"
)


def suspicious(tree: ast.Module) -> list[str]:
    """Calls that could run a file or a shell."""
    names = []
    for call in calls(tree):
        name = ast.unparse(call.func)
        words = {word.arg: ast.unparse(word.value) for word in call.keywords}
        names += [name] if re.fullmatch(FORBIDDEN, name) else []
        names += [f"{name} shell"] if words.get("shell", "False") != "False" else []
        names += [name] if name == "torch.load" and words.get("weights_only") != "True" else []
        names += [name] if words.get("allow_pickle", "False") != "False" else []
        names += [f"{name} trust"] if words.get("trust_remote_code", "False") != "False" else []
        names += [name] if name.endswith("extractall") and words.get("filter") != "'data'" else []
    return names


def test_the_package_runs_no_shell_and_reads_no_pickle():
    assert {str(path): names for path, tree in TREES.items() if (names := suspicious(tree))} == {}
    # The name of its error is harmless, and needed to say what was refused.
    importer = re.compile(r"^\s*(import pickle|from pickle import (?!UnpicklingError$))", re.MULTILINE)
    importers = [path.name for path, tree in TREES.items() if importer.search(ast.unparse(tree))]
    assert importers == []


@pytest.mark.parametrize(
    "code",
    [
        "os.system(x)",
        "run(x, shell=True)",
        "torch.load(x)",
        "np.load(x, allow_pickle=True)",
        "f(trust_remote_code=True)",
    ],
)
def test_this_file_sees_what_it_forbids(code):
    assert suspicious(ast.parse(code))


def test_weights_of_the_hub_are_read_as_safetensors_and_never_with_code():
    tree = TREES[ROOT / "models" / "encoders.py"]
    hub = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "load_hub_body")
    source = ast.unparse(hub)
    assert "'trust_remote_code': False" in source
    assert "use_safetensors=True" in source


def test_jupyter_listens_on_this_machine_only_and_keeps_its_token():
    lab = next(line for line in (ROOT.parent / "Makefile").read_text().splitlines() if "jupyterlab" in line)
    assert "--ip=127.0.0.1" in lab
    assert not re.search(r"token|password|allow_origin|disable_check", lab)
