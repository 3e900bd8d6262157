"""Downloads from a server on this machine that breaks off, lies, or cannot resume."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tlhelpers import files as downloads
from tlhelpers.files import Remote, digest_of, fetch

CONTENT = bytes(range(256)) * 40  # 10,240 bytes
SHA = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT. `cut`: bytes after which an answer breaks off; `ranges`: can it resume?"""

    content, cut, ranges = CONTENT, None, True
    requests: list[str | None]

    def handle_error(self, request, client_address) -> None:
        """A broken connection is what the tests ask for."""


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.ranges else 0
        body = self.server.content[start:]
        if asked and self.server.ranges and not body:
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


@pytest.mark.parametrize("cut", [0, 1, 4096, 10_239])
def test_a_broken_download_leaves_nothing_under_the_final_name_and_is_continued(cut, server, tmp_path):
    path, server.cut = tmp_path / "weights.bin", cut
    with pytest.raises(OSError, match=f"after {cut:,} of 10,240 bytes"):
        fetch(remote(server), path)
    assert not path.exists()
    server.cut = None
    assert fetch(remote(server), path).read_bytes() == CONTENT
    assert server.requests == [None, f"bytes={cut}-" if cut else None]


def test_a_server_that_cannot_resume_sends_everything_again(server, tmp_path):
    path, server.cut = tmp_path / "weights.bin", 5000
    with pytest.raises(OSError):
        fetch(remote(server), path)
    server.cut, server.ranges = None, False
    assert fetch(remote(server), path).read_bytes() == CONTENT


def test_wrong_bytes_of_the_right_length_are_removed(server, tmp_path):
    path, server.content = tmp_path / "weights.bin", CONTENT[:-1] + b"x"
    with pytest.raises(OSError, match="the bytes are removed"):
        fetch(remote(server), path)
    assert [p.suffix for p in tmp_path.iterdir()] == [".lock"]
    server.content = CONTENT
    assert fetch(remote(server), path).read_bytes() == CONTENT


@pytest.mark.parametrize("left", [CONTENT, CONTENT + b"too much", b"wrong" * 10])
def test_what_an_earlier_run_left_is_used_or_removed_but_never_taken_for_complete(left, server, tmp_path):
    path = tmp_path / "weights.bin"
    path.with_name("weights.bin.part").write_bytes(left)
    if left == CONTENT:
        assert fetch(remote(server), path).read_bytes() == CONTENT
    else:
        with pytest.raises(OSError, match="removed"):
            fetch(remote(server), path)
        assert fetch(remote(server), path).read_bytes() == CONTENT


def test_two_at_once_download_once(server, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch(remote(server), tmp_path / "w"), range(4)))
    assert {digest_of(path) for path in paths} == {SHA}
    assert server.requests == [None]


def test_a_full_disk_is_named_before_the_download_starts(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _folder: downloads.shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(OSError, match="MB left"):
        fetch(remote(server), tmp_path / "w")


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TLHELPERS_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_by_wish_says_what_is_missing_and_where_to_get_it(variable, server, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(OSError, match=r"weights\.bin.*prefetch.*http://127"):
        fetch(remote(server), tmp_path / "weights.bin")
    assert server.requests == []


def test_no_network_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(OSError, match=r"could not be kept.*put the file there by hand"):
        fetch(Remote("http://127.0.0.1:9/w", "md5:0"), tmp_path / "w")


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        fetch(remote(server), Path(tmp_path / "file" / "w"))
