"""Folders of images as people have them."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tlhelpers.data import check_dataset, load_dataset, read_folder
from tlhelpers.data.folders import decode


def save_image(path: Path, value: int, size=(40, 30), mode="RGB", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(value).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).convert(
        mode
    ).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two classes of ten images, with names in two scripts."""
    for label, name in enumerate(("chat", "狗")):
        for i in range(10):
            save_image(tmp_path / "photos" / name / f"ünï {i} 图.png", 100 * label + i, size=(30 + i, 40))
    return tmp_path / "photos"


def test_a_folder_becomes_three_parts_of_square_images_with_every_class_in_each(folder, capsys):
    splits = load_dataset(f"folder:{folder}", image_size=16)
    assert splits.classes == ("chat", "狗")
    for examples, n in ((splits.train, 12), (splits.validation, 4), (splits.test, 4)):
        assert examples.x.shape == (n, 3, 16, 16) and examples.x.dtype == torch.uint8
        assert torch.bincount(examples.y).tolist() == [n // 2, n // 2]
    assert "20 images from 30x40 to 39x40 pixels" in capsys.readouterr().out
    assert check_dataset(splits) == []


def test_the_same_folder_is_split_the_same_way_again(folder):
    a, b = (read_folder(folder, image_size=8) for _ in range(2))
    assert torch.equal(a.test.x, b.test.x) and torch.equal(a.train.x, b.train.x)


def test_copies_of_an_image_never_lie_on_both_sides_of_a_split(folder):
    for i in range(10):
        shutil.copy(folder / "chat" / f"ünï {i} 图.png", folder / "chat" / f"copy {i}.png")
    assert check_dataset(read_folder(folder, image_size=16)) == []


def test_given_parts_are_kept_and_a_missing_validation_part_is_drawn_from_training(folder, tmp_path):
    target = tmp_path / "split"
    shutil.copytree(folder, target / "train")
    shutil.copytree(folder, target / "test")
    splits = read_folder(target, image_size=8)
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [16, 4, 20]
    assert any("are in train too" in warning for warning in check_dataset(splits))


def test_train_is_a_class_like_any_other_while_it_holds_no_folders(folder):
    for i in range(3):
        save_image(folder / "train" / f"{i}.png", 200 + i)
    assert read_folder(folder, image_size=8).classes == ("chat", "train", "狗")
    shutil.copytree(folder / "chat", folder / "val" / "chat")
    with pytest.raises(ValueError, match=r"val holds folders, as a part does, but .*train holds none; add them"):
        read_folder(folder, image_size=8)


def test_nothing_is_distorted_the_centre_is_cut_out(tmp_path):
    wide = np.zeros((20, 60, 3), dtype=np.uint8)
    wide[:, 20:40] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    image, size, was = decode(tmp_path / "wide.png", 20)
    assert size == (60, 20) and was == "RGB"
    assert image.float().mean() > 240


def test_the_orientation_that_a_camera_noted_is_applied(tmp_path):
    image = Image.fromarray(np.arange(600, dtype=np.uint8).reshape(10, 20, 3))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert decode(tmp_path / "turned.jpg", None)[0].shape == (3, 20, 10)


def save_animated(path: Path) -> None:
    frames = [Image.fromarray(np.full((20, 20), v, dtype=np.uint8)) for v in (0, 90, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def save_enormous(path: Path) -> None:
    Image.new("1", (8000, 8000)).save(path)  # a kilobyte on disk, 192 MB as RGB


def save_sixteen_bit(path: Path) -> None:
    Image.fromarray(np.full((20, 20), 40_000, dtype=np.uint16)).save(path)


def save_truncated(path: Path) -> None:
    whole = save_image(path, 1).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


BROKEN = {
    "text.jpg": lambda path: path.write_text("not an image"),
    "empty.png": lambda path: path.write_bytes(b""),
    "half.png": save_truncated,
    "half.jpg": save_truncated,
    "deep.png": save_sixteen_bit,
    "huge.png": save_enormous,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_used_is_named_and_skipped_only_when_asked(name, folder, capsys):
    BROKEN[name](folder / "chat" / name)
    with pytest.raises(ValueError, match=rf"1 files cannot be used \(chat/{name}.*skip_unreadable"):
        read_folder(folder, image_size=16)
    assert name in capsys.readouterr().out
    splits = read_folder(folder, image_size=16, skip_unreadable=True)
    assert sum(len(p) for p in (splits.train, splits.validation, splits.test)) == 20


CHANGED = {
    "grey.png": lambda path: save_image(path, 1, mode="L"),
    "palette.gif": lambda path: save_image(path, 1, mode="P"),
    "print.jpg": lambda path: save_image(path, 1, mode="CMYK"),
    "glass.png": lambda path: save_image(path, 1, mode="RGBA"),
    "film.gif": save_animated,
}


@pytest.mark.parametrize("name", CHANGED)
def test_other_colour_modes_become_rgb_and_are_named(name, folder, capsys):
    CHANGED[name](folder / "chat" / name)
    splits = read_folder(folder, image_size=16)
    assert splits.train.x.shape[1] == 3
    assert "1 turned into RGB" in (out := capsys.readouterr().out) and name in out


def test_two_hundred_broken_files_are_counted_and_ten_named(folder, capsys):
    for i in range(200):
        (folder / "chat" / f"broken {i}.jpg").write_bytes(os.urandom(50))
    splits = read_folder(folder, image_size=16, skip_unreadable=True)
    assert len(splits.train) == 12
    assert "200 not usable" in (out := capsys.readouterr().out) and "and 190 more" in out


def test_folders_that_are_not_a_data_set_are_refused_with_the_reason(folder, tmp_path):
    with pytest.raises(ValueError, match="not a folder"):
        load_dataset(f"folder:{tmp_path / 'nowhere'}")
    (tmp_path / "one" / "only").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds 1 folders"):
        load_dataset(f"folder:{tmp_path / 'one'}")
    (tmp_path / "one" / "empty").mkdir()
    with pytest.raises(ValueError, match="no usable image"):
        load_dataset(f"folder:{tmp_path / 'one'}")
    with pytest.raises(ValueError, match=r"10 sizes.*image_size=128"):
        load_dataset(f"folder:{folder}")
    (folder / "bird").mkdir()
    save_image(folder / "bird" / "1.png", 1)
    with pytest.raises(ValueError, match="'bird' has 1 different image"):
        load_dataset(f"folder:{folder}", image_size=16)


def test_parts_with_other_classes_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "s" / "train")
    shutil.copytree(folder / "chat", tmp_path / "s" / "test" / "cat")
    shutil.copytree(folder / "chat", tmp_path / "s" / "test" / "dog")
    with pytest.raises(ValueError, match="make them equal"):
        read_folder(tmp_path / "s", image_size=16)
