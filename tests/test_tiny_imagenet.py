"""Tiny ImageNet's layout: classes and annotations that do not agree with the images are named."""

import pytest
from miniatures import MINIATURES, SKETCHES
from pictures import elsewhere  # noqa: F401

from results.errors import UserError
from zoo.datasets import find

SKETCH = SKETCHES["tiny-imagenet"]


@pytest.fixture
def data(tmp_path, monkeypatch):
    return MINIATURES["tiny-imagenet"](tmp_path / "data", monkeypatch)


def change(data, name, old, new):
    """Replace a text in a file of the miniature."""
    path = data / "tiny-imagenet-200" / name
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))


def test_val_s_classes_are_those_of_the_annotations(data):
    val = find("tiny-imagenet", data).open("val")
    assert [val.path(number).name for number in range(len(val))] == [f"val_{number}.JPEG" for number in range(8)]
    assert [SKETCH.classes[label] for label in val.labels] == SKETCH.names("val")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("wnids.txt", "n04540053", "n04540054", "cannot read a folder: No such file"),
        ("wnids.txt", "n04540053", "", r"wnids.txt has 3 names in 3 lines, where 4 are expected"),
        ("wnids.txt", "n04540053", "n01443537", r"wnids.txt has 3 names in 4 lines, where 4 are expected"),
        (
            "val/val_annotations.txt",
            "n04067472",
            "n9",
            r"val_annotations.txt gives val_\d.JPEG the class 'n9', which wn",
        ),
        ("val/val_annotations.txt", "\t", " ", r"val_annotations.txt gives val_0.JPEG n\d+ the class '0'"),
        (
            "val/val_annotations.txt",
            "val_3.JPEG\t",
            "val_2.JPEG\t",
            "the image val_3.JPEG is in only one of val/val_an",
        ),
        (
            "val/val_annotations.txt",
            "val_3.JPEG\t",
            "val_8.JPEG\t",
            "the image val_3.JPEG is in only one of val/val_an",
        ),
    ],
)
def test_what_does_not_agree_is_named(data, name, old, new, message):
    change(data, name, old, new)
    with pytest.raises(UserError, match=message) as caught:
        find("tiny-imagenet", data).preflight()
    assert str(data / "tiny-imagenet-200") in caught.value.looked
    if "names in" in message or "the class" in message:
        assert "http://cs231n.stanford.edu/tiny-imagenet-200.zip" in caught.value.fix


@pytest.mark.parametrize("name", ["wnids.txt", "val/val_annotations.txt", "val/images"])
def test_what_is_not_there_is_named(data, name):
    path = data / "tiny-imagenet-200" / name
    path.rename(data / "away")
    with pytest.raises(UserError, match=r"cannot be read|cannot read") as caught:
        find("tiny-imagenet", data).preflight()
    assert caught.value.looked == str(path)


def test_an_image_of_val_that_is_not_there_is_named(data):
    (data / "tiny-imagenet-200/val/images/val_5.JPEG").unlink()
    with pytest.raises(UserError, match=r"the image val_5.JPEG is in only one of"):
        find("tiny-imagenet", data).preflight()


def test_other_annotations_are_another_fingerprint(data):
    first = find("tiny-imagenet", data).fingerprint()
    names = SKETCH.names("val")
    change(data, "val/val_annotations.txt", f"val_0.JPEG\t{names[0]}", f"val_0.JPEG\t{names[1]}")
    assert find("tiny-imagenet", data).fingerprint() != first
