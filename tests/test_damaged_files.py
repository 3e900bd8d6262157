"""A thousand damaged files: each is used, or named with the reason; nothing crashes and nothing hangs."""

import io
import os
import random
import signal
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_untrusted_files import png_with

from tlhelpers.data import read_folder, read_table
from tlhelpers.data.folders import examine

pytestmark = pytest.mark.fault_table
PATIENCE = 120  # seconds for a whole corpus; a hang is an error and not a long wait


@contextmanager
def no_hang():
    def stop(_signal, _frame):
        raise TimeoutError(f"nothing came for {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def picture(chance: random.Random, kind: str, mode: str) -> bytes:
    size = (chance.randint(1, 40), chance.randint(1, 40))
    noise = np.random.default_rng(chance.randint(0, 2**31)).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode)
    packed = io.BytesIO()
    more = {"save_all": True, "append_images": [image.copy()]} if kind == "GIF" and chance.random() < 0.5 else {}
    image.save(packed, kind, **more)
    return packed.getvalue()


def flipped(content: bytes, chance: random.Random, share: float = 0.01) -> bytes:
    changed = bytearray(content)
    for _ in range(max(1, int(share * len(content)))):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


KINDS = [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "1"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("GIF", "P")]
KINDS += [("BMP", "RGB"), ("TIFF", "RGB"), ("WEBP", "RGB")]


def damage_images(folder: Path, n: int, seed: int) -> None:
    """n files in two classes: sound, truncated, flipped, misnamed, empty, links, bombs, 16 bit."""
    chance = random.Random(seed)
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        (folder / label / "0.png").write_bytes(picture(chance, "PNG", "RGB"))
        (folder / label / "folder.png").mkdir()
    deep = io.BytesIO()
    Image.fromarray(np.full((9, 9), 40_000, dtype=np.uint16)).save(deep, "PNG")
    special = [b"", b"\0" * 100, deep.getvalue(), png_with(60_000, 60_000), b"GIF89a", b"\xff\xd8\xff"]
    for i in range(n - 2):
        place = folder / chance.choice("ab") / f"{i}.{chance.choice(['png', 'jpg', 'gif', 'txt', 'PNG', 'webp'])}"
        content = picture(chance, *chance.choice(KINDS))
        how = i % 8
        if how == 6:
            target = chance.choice(["nowhere", str(place), "0.png", "..", "/dev/zero", "/proc/self/mem"])
            place.symlink_to(target)
            continue
        if how == 7 and i % 3 == 0:
            os.mkfifo(place)
            continue
        cut = content[: chance.randrange(len(content))]
        choices = [
            content,
            cut,
            flipped(content, chance),
            flipped(content, chance, 0.3),
            special[i % len(special)],
            cut,
        ]
        place.write_bytes(choices[how] if how < 6 else content + os.urandom(9))


def test_damaged_images_are_used_or_named(tmp_path, fault_row, capsys):
    used_and_named = total = 0
    for seed in range(2):
        folder = tmp_path / str(seed)
        damage_images(folder, 320, seed)
        files = {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}
        with no_hang():
            splits = read_folder(folder, image_size=8, skip_unreadable=True)
            report = examine(folder)
        used = sum(map(len, (splits.train, splits.validation, splits.test)))
        assert set(report.unreadable) <= files and all(report.unreadable.values())
        assert used == len(report.images)
        total += len(files)
        used_and_named += used + len(report.unreadable)
        assert 0 < used < len(files)
        assert f"{len(report.unreadable)} not usable" in capsys.readouterr().out
    fault_row("damaged image file in a folder", "used, or named with the reason", total, used_and_named)


def damage_table(chance: random.Random, how: int) -> bytes:
    """A tab-separated file, whole or not: bytes flipped or lost, other encodings, odd line ends, odd widths."""
    rows = [
        f"{chance.choice(['good', 'très', '好', ''])} {i}\t{chance.choice('ab')}" for i in range(chance.randint(0, 9))
    ]
    text = "\n".join(["text\tlabel", *rows])
    whole = text.encode()
    return [
        whole,
        whole[: chance.randrange(len(whole))],
        flipped(whole, chance, 0.05),
        text.encode("utf-16"),
        text.encode("latin1", "replace"),
        text.encode("utf-8-sig"),
        text.replace("\n", "\r\n").encode(),
        text.replace("\n", "\r").encode(),
        text.replace("\t", "," if chance.random() < 0.5 else "\t\t").encode(),
        chance.randbytes(chance.randrange(200)),
        whole + b"\0" * 50,
        b"\n" * chance.randrange(5),
        b"text\tlabel\n" + b"x" * 1_000_000 + b"\ta",
    ][how]


def test_damaged_tables_are_used_or_refused_with_their_name(tmp_path, fault_row):
    chance = random.Random(0)
    count = [0, 0]
    path = tmp_path / "messages.tsv"
    used = 0
    with no_hang():
        for i in range(650):
            path.write_bytes(damage_table(chance, i % 13))
            count[0] += 1
            try:
                texts, labels = read_table(path, "text", "label")
            except ValueError as error:
                count[1] += str(path) in str(error)
                continue
            used += 1
            count[1] += len(texts) == len(labels) and all(isinstance(text, str) for text in texts)
    assert 100 < used < 600
    fault_row("damaged text file", "used, or refused with its name and line", *count)


def test_a_table_with_the_mark_that_spreadsheets_write_is_read(tmp_path):
    (tmp_path / "t.tsv").write_bytes("text\tlabel\nhello\ta\n".encode("utf-8-sig"))
    assert read_table(tmp_path / "t.tsv", "text") == [["hello"]]


@pytest.mark.parametrize("path", ["nowhere.tsv", "."])
def test_a_table_that_is_not_there_is_an_error_of_the_system_with_its_name(path, tmp_path):
    with pytest.raises(OSError, match=r"nowhere|test_a_table"):
        read_table(tmp_path / path)
