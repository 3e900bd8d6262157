import base64
import io
import re
import zipfile

import ipywidgets
import pytest

from tlhelpers.course import widgets


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, instead of displaying it."""
    things = []
    monkeypatch.setattr(widgets, "display", things.append)
    return things


def menus_in(box):
    return [child for child in box.children if isinstance(child, ipywidgets.Dropdown)]


def test_the_function_is_drawn_at_once_and_again_at_every_change(shown):
    calls = []
    widgets.explore(lambda **values: calls.append(values), labels_per_class=[1, 5, 20], method=("probe", "scratch"))
    labels, method = menus_in(shown[0])
    assert calls == [{"labels_per_class": 1, "method": "probe"}]
    labels.value = 20
    method.value = "scratch"
    assert calls[1:] == [
        {"labels_per_class": 20, "method": "probe"},
        {"labels_per_class": 20, "method": "scratch"},
    ]
    labels.value = 20
    assert len(calls) == 3


def test_menus_offer_the_choices_in_order_under_a_readable_name(shown):
    widgets.explore(lambda **_: None, labels_per_class=[20, 1, 5])
    (menu,) = menus_in(shown[0])
    assert menu.options == (("20", 20), ("1", 1), ("5", 5))
    assert menu.description == "labels per class"
    assert "tl-labels-per-class" in menu._dom_classes


def test_an_argument_without_values_is_named_before_anything_is_drawn(shown):
    calls = []
    with pytest.raises(ValueError, match="method has no values to choose from"):
        widgets.explore(lambda **values: calls.append(values), labels=[1], method=[])
    assert calls == shown == []


def test_the_button_packs_what_lies_there_when_it_is_pressed(shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    widgets.download_button()
    (tmp_path / "00_page.ipynb").write_text("{}", "utf-8")
    button, _ = shown[0].children
    button.click()
    found = re.search(r'download="my_work.zip" href="data:application/zip;base64,([^"]+)"', shown[-1].data)
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(found[1]))) as archive:
        assert archive.namelist() == ["00_page.ipynb", "my_progress.json"]
    assert "2 files" in shown[-1].data
