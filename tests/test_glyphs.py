import string
from pathlib import Path

import matplotlib
import pytest
import torch

from tlhelpers.data import glyphs


def test_there_are_47_classes_as_in_emnist_and_22_letters_unlike_any_digit():
    assert len(glyphs.ALL_CLASSES) == len(set(glyphs.ALL_CLASSES)) == 47
    assert len(glyphs.LETTER_CLASSES) == 22
    assert set(glyphs.LETTER_CLASSES) < set(glyphs.ALL_CLASSES)
    assert not set(glyphs.LETTER_CLASSES) & (set(string.digits) | set("OILZEASTGBQDbqg"))


def test_every_character_has_a_class_and_merged_cases_share_one():
    classes = {c: glyphs.character_class(c) for c in string.digits + string.ascii_letters}
    assert set(classes.values()) == set(glyphs.ALL_CLASSES)
    assert classes["c"] == classes["C"] == "C"
    assert (classes["a"], classes["A"], classes["7"]) == ("a", "A", "7")


def test_every_font_is_inside_the_matplotlib_wheel():
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    assert len(set(glyphs.FONTS)) == len(glyphs.FONTS) == 20
    assert [name for name in glyphs.FONTS if not (folder / name).exists()] == []


def test_drawings_are_counted_by_classes_fonts_and_weights():
    images, labels = glyphs.draw_masters(("7", "a", "C"), fonts=(0, 3, 19))
    assert images.dtype == torch.uint8
    assert images.shape == (36, 1, 48, 48)
    assert torch.bincount(labels).tolist() == [9, 9, 18]  # 3 fonts x 3 weights; C is drawn in both cases
    everything = torch.bincount(glyphs.draw_masters()[1]).tolist()
    merged = [c in "CIJKLMOPSUVWXYZ" for c in glyphs.ALL_CLASSES]
    assert everything == [120 if both else 60 for both in merged]


def test_labels_follow_the_order_of_the_classes_asked_for():
    images, labels = glyphs.draw_masters(("7", "C"))
    swapped, other = glyphs.draw_masters(("C", "7"))
    assert torch.equal(images, swapped)
    assert torch.equal(labels, 1 - other)


def test_characters_fill_one_box_and_strokes_grow_with_the_weight():
    thin, regular, bold = glyphs.draw_masters(fonts=(0, 8, 13))[0].chunk(3)
    assert (thin <= regular).all()
    assert (regular <= bold).all()
    assert bold.float().mean() > 1.2 * regular.float().mean()
    ink = regular[:, 0] > 0
    heights, widths = ink.any(2).sum(1), ink.any(1).sum(1)
    sides = torch.maximum(heights, widths)
    assert sides.max() == 40
    assert sides.min() >= 38  # the outermost pixels of a hairline may round to nothing


def test_a_class_or_font_that_does_not_exist_is_named_with_the_choices():
    with pytest.raises(ValueError, match=r"no drawings for the classes \['c', 'é'\]; choose from 0123456789ABC"):
        glyphs.draw_masters(("A", "c", "é"))
    with pytest.raises(ValueError, match=r"font numbers \(0, 20\) must lie in 0\.\.19"):
        glyphs.draw_masters(("A",), fonts=(0, 20))
