"""Folders of images: the layouts that are understood, those that are refused, and ImageNet's counts."""

import os
import shutil

import numpy as np
import pytest
from pictures import SPLIT, elsewhere, write_folder, write_image  # noqa: F401

from results.errors import UserError
from zoo.datasets import find
from zoo.datasets.dataset import Missing
from zoo.datasets.folder import Folder, ImageNet


def test_a_folder_with_two_splits(tmp_path):
    dataset = find(f"folder:{write_folder(tmp_path / 'pets', SPLIT)}")
    dataset.preflight()
    assert dataset.name == "folder:pets"
    assert dataset.splits == {"train": 3, "val": 2}
    assert (dataset.training, dataset.evaluation) == ("train", "val")
    assert dataset.classes == ("cat", "dog")
    assert dataset.labelled
    assert dataset.size == 10
    train = dataset.open("train")
    assert train.labels.tolist() == [0, 0, 1]
    assert train.labels.dtype == np.int64
    assert [train.path(n).name for n in range(3)] == ["1.jpg", "2.JPG", "3.png"]
    merged = dataset.open("merged")
    assert [merged.path(n).name for n in range(5)] == ["1.jpg", "2.JPG", "3.png", "4.jpeg", "5.bmp"]
    assert merged.labels.tolist() == [0, 0, 1, 0, 1]
    assert [dataset.open("merged", 2).path(n).name for n in range(2)] == ["1.jpg", "3.png"]


def test_val_may_be_called_test(tmp_path):
    write_folder(tmp_path, [path.replace("val/", "test/") for path in SPLIT])
    assert Folder(tmp_path).splits == {"train": 3, "test": 2}


def test_a_folder_of_classes_is_a_training_set(tmp_path):
    dataset = Folder(write_folder(tmp_path, ["b/1.webp", "a/2.tif", "a/3.tiff"]))
    dataset.preflight()
    assert dataset.splits == {"train": 3}
    assert dataset.classes == ("a", "b")
    assert dataset.open("train").labels.tolist() == [0, 0, 1]
    assert [dataset.open("train").path(n).name for n in range(3)] == ["2.tif", "3.tiff", "1.webp"]
    with pytest.raises(UserError, match="no images to evaluate on") as caught:
        _ = dataset.evaluation
    assert "PATH/val/CLASS" in caught.value.fix


def test_classes_of_a_training_set_may_lie_in_train(tmp_path):
    dataset = Folder(write_folder(tmp_path, ["train/b/1.webp", "train/a/2.tif", "other/3.jpg"]))
    assert (dataset.splits, dataset.classes) == ({"train": 2}, ("a", "b"))
    assert [dataset.open("train").path(n).name for n in range(2)] == ["2.tif", "1.webp"]


def test_with_an_evaluation_split_the_images_of_a_class_lie_in_any_depth(tmp_path):
    dataset = Folder(write_folder(tmp_path, [*SPLIT, "train/cat/deep/6.jpg"]))
    assert dataset.open("train").labels.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    "layout",
    [
        ["1.jpg", "sub/2.jpg"],
        ["train/1.jpg", "train/2.jpg"],
        ["train/1.jpg", "train/sub/2.jpg"],
        ["a/b/1.jpg", "x/2.jpg"],  # as YFCC100M is laid out
        ["a/b/1.jpg", "a/c/2.jpg"],
        ["a/1.jpg", "a/b/2.jpg"],
        ["train/a/b/1.jpg", "train/x/2.jpg"],
        ["a/1.jpg", "a/2.jpg", "b/readme.txt"],
    ],
)
def test_images_in_any_other_depth_have_no_labels(tmp_path, layout):
    for path in layout:
        if path.endswith(".txt"):
            (tmp_path / path).parent.mkdir()
            (tmp_path / path).write_text("")
    dataset = Folder(write_folder(tmp_path, [path for path in layout if path.endswith(".jpg")]))
    dataset.preflight()
    assert dataset.splits == {"train": 2}
    assert not dataset.labelled
    assert dataset.classes == ()
    assert dataset.open("merged").labels is None
    assert dataset.open("merged", 1).labels is None
    with pytest.raises(UserError, match="have no"):
        dataset.check_labelled()


def test_other_files_and_hidden_ones_are_no_images(tmp_path):
    write_folder(tmp_path, SPLIT)
    for path in ("train/notes.txt", "train/cat/list.csv", "train/cat/._1.jpg", ".hidden.jpg", "val/.trash/x.jpg"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("no image")
    assert Folder(tmp_path).splits == {"train": 3, "val": 2}


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ([*SPLIT, "train/fox/6.jpg"], "classes in train but not in val: fox"),
        ([*SPLIT, "val/fox/6.jpg"], "classes in val but not in train: fox"),
        ([*SPLIT, "train/fox/readme.txt"], "class folder fox has no images"),
        ([*SPLIT, "train/6.jpg"], "image 6.jpg lies beside the class folders of train"),
        ([*SPLIT, "val/6.jpg"], "image 6.jpg lies beside the class folders of val"),
        (["train/1.jpg", "val/cat/1.jpg"], "image 1.jpg lies beside the class folders of train"),
        (["val/cat/1.jpg"], "a folder val but no train"),
        (["readme.txt"], "there are no images"),
        (["train/readme.txt"], "there are no images"),
    ],
)
def test_a_folder_laid_out_otherwise_is_refused(tmp_path, layout, message):
    for path in layout:
        if path.endswith(".txt"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text("")
        else:
            write_image(tmp_path / path)
    with pytest.raises(UserError, match=message) as caught:
        Folder(tmp_path).preflight()
    assert caught.value.looked.startswith(str(tmp_path))
    assert caught.value.fix
    assert not isinstance(caught.value, Missing)


def test_a_folder_that_is_not_there_is_missing(tmp_path):
    with pytest.raises(Missing, match="no folder nowhere"):
        Folder(tmp_path / "nowhere").preflight()


@pytest.mark.parametrize("name", ["train", "train/cat", "train/cat/deep"])
def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch, name):
    write_folder(tmp_path, [*SPLIT, "train/cat/deep/6.jpg"])
    closed, scandir = str(tmp_path / name), os.scandir

    def refuse(path):
        if str(path) == closed:
            raise PermissionError(13, "Permission denied", closed)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # the tests may run as root, whom no mode stops
    with pytest.raises(UserError, match="cannot read a folder: Permission denied") as caught:
        Folder(tmp_path).preflight()
    assert caught.value.looked == closed


def test_preflight_opens_the_first_image_of_each_class(tmp_path):
    write_folder(tmp_path, SPLIT)
    (tmp_path / "train/cat/2.JPG").write_bytes(b"not the first")
    Folder(tmp_path).preflight()
    (tmp_path / "val/dog/5.bmp").write_bytes(b"the first")
    with pytest.raises(UserError, match=r"cannot read the image 5\.bmp"):
        Folder(tmp_path).preflight()


def test_a_folders_fingerprint_is_of_names_and_sizes(tmp_path):
    first = Folder(write_folder(tmp_path / "here", SPLIT)).fingerprint()
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert Folder(tmp_path / "there").fingerprint() == first
    bmp = tmp_path / "there" / "val/dog/5.bmp"
    bmp.write_bytes(bmp.read_bytes()[:-1] + b"!")
    assert Folder(tmp_path / "there").fingerprint() == first  # same size …
    assert Folder(tmp_path / "there").fingerprint(full=True) != Folder(tmp_path / "here").fingerprint(full=True)
    bmp.write_bytes(bmp.read_bytes() + b"!")
    assert Folder(tmp_path / "there").fingerprint() != first
    bmp.rename(bmp.with_name("6.bmp"))
    assert len({Folder(tmp_path / "there").fingerprint(), first, Folder(tmp_path / "here").fingerprint(True)}) == 3


def test_a_fingerprint_names_a_file_that_is_gone(tmp_path):
    write_folder(tmp_path, SPLIT)
    (tmp_path / "val/dog/9.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(UserError, match=r"cannot read the image 9\.jpg"):
        Folder(tmp_path).fingerprint()


class TinyNet(ImageNet):
    """ImageNet with two classes."""

    counts = {"classes": 2, "train": 3, "val": 2}  # noqa: RUF012


def test_a_folder_that_is_not_called_imagenet_is_not_taken_for_it(tmp_path):
    write_folder(tmp_path / "photographs", SPLIT)
    with pytest.raises(Missing, match="imagenet is not here"):
        TinyNet(tmp_path / "photographs").preflight()
    write_folder(tmp_path / "imagenet", SPLIT)
    TinyNet(tmp_path / "imagenet").preflight()


@pytest.mark.parametrize("place", ["imagenet", "imagenet-1k"])
def test_imagenet_is_a_folder_with_exact_counts(tmp_path, place):
    write_folder(tmp_path / place, SPLIT)
    dataset = TinyNet(tmp_path)
    dataset.preflight()
    assert (dataset.name, dataset.splits) == ("imagenet", {"train": 3, "val": 2})
    write_image(tmp_path / place / "val/dog/6.jpg")
    dataset = TinyNet(tmp_path)
    for look in (dataset.preflight, dataset.fingerprint, lambda: dataset.open("train")):  # none goes round it
        with pytest.raises(UserError, match="2 classes, 3 train, 3 val, not 2 classes, 3 train, 2 val") as caught:
            look()
        assert "for a part of it, --dataset folder:PATH" in caught.value.fix
