"""Places: the folder that an image lies in is its class, however deep."""

import pytest
from miniatures import MINIATURES
from pictures import elsewhere, write_folder, write_image  # noqa: F401

from results.errors import UserError
from zoo.datasets import find
from zoo.datasets.places import Places205, Places365, scan_nested


@pytest.mark.parametrize("kind", [Places205, Places365])
def test_counts_are_the_published_ones(kind):
    classes, train, val = kind.counts.values()
    assert kind.name == f"places{classes}"
    assert val == 100 * classes
    assert {205: 2_448_873, 365: 1_803_460}[classes] == train


def test_classes_may_lie_in_folders(tmp_path):
    write_folder(tmp_path, ["train/a/abbey/1.jpg", "train/a/alley/up/3.jpg", "train/a/alley/2.jpg", "train/b/4.jpg"])
    split = scan_nested(tmp_path, tmp_path / "train")
    assert split.classes == ("a/abbey", "a/alley", "a/alley/up", "b")
    assert dict(zip(split.paths, split.labels.tolist())) == {
        "train/a/abbey/1.jpg": 0,
        "train/a/alley/2.jpg": 1,
        "train/a/alley/up/3.jpg": 2,
        "train/b/4.jpg": 3,
    }


@pytest.mark.parametrize("name", ["places205", "places365"])
def test_a_class_of_one_split_alone_is_named(tmp_path, monkeypatch, name):
    data = MINIATURES[name](tmp_path, monkeypatch)
    (train,) = data.rglob("train")
    write_image(train / "z" / "zoo" / "1.jpg")
    with pytest.raises(UserError, match="classes in train but not in val: z/zoo"):
        find(name, data).preflight()


def test_images_without_classes_are_refused(tmp_path, monkeypatch):
    data = MINIATURES["places205"](tmp_path, monkeypatch)
    write_image(data / "places205" / "train" / "1.jpg")
    with pytest.raises(UserError, match=r"classes in train but not in val: \."):
        find("places205", data).preflight()
