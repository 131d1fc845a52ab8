"""Devkits of Pascal VOC: sets, presence, boxes and masks as they were written; and whatever is wrong, by name."""

import os
import shutil

import numpy as np
import pytest
import torch
from devkits import SEGMENTATION, SIZE, names_of, shown, shrink, write_devkit, write_mask
from pictures import elsewhere, write_image  # noqa: F401
from PIL import Image
from torchvision import datasets as torchvision
from trainings import log, record, start

from results.errors import UserError
from zoo.datasets import DATASETS, find
from zoo.datasets.dataset import Missing
from zoo.datasets.verify import exclude, verify
from zoo.run import registry
from zoo.views import Stretch
from zoo.voc import VOCS
from zoo.voc.annotation import Box
from zoo.voc.devkit import CLASSES, Voc2007, Voc2012
from zoo.voc.masks import read_mask

PUBLISHED = {kind.name: kind.counts for kind in (Voc2007, Voc2012)}
YEARS = ("voc2007", "voc2012")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    for kind in (Voc2007, Voc2012):
        shrink(monkeypatch, kind)


@pytest.fixture
def kit(tmp_path):
    """The folder of a devkit of 2007."""
    return write_devkit(tmp_path / "data")


def said(kit, look=lambda dataset: dataset.preflight()):
    """The error, as the person sees it: it says where, and how to mend it."""
    with pytest.raises(UserError) as caught:
        look(Voc2007(kit))
    assert not isinstance(caught.value, Missing)
    assert caught.value.looked.startswith(str(kit))
    assert caught.value.fix == f"unpack it again: {Voc2007.source}"
    return str(caught.value)


def test_the_data_sets_are_those_of_voc():
    assert set(VOCS) < set(DATASETS)
    assert all(type(find(name)) is VOCS[name] for name in VOCS)
    assert {kind.name for kind in VOCS.values()} == set(VOCS)


def test_the_published_counts_add_up():
    assert PUBLISHED["voc2007"]["Main"] == {"train": 2501, "val": 2510, "trainval": 5011, "test": 4952}
    assert PUBLISHED["voc2012"]["Main"] == {"train": 5717, "val": 5823, "trainval": 11540}
    assert PUBLISHED["voc2007"]["Segmentation"] == {"train": 209, "val": 213, "trainval": 422, "test": 210}
    assert PUBLISHED["voc2012"]["Segmentation"] == {"train": 1464, "val": 1449, "trainval": 2913}
    for counts in (counts for kind in PUBLISHED.values() for counts in kind.values()):
        assert counts["train"] + counts["val"] == counts["trainval"]


@pytest.mark.parametrize("name", YEARS)
@pytest.mark.parametrize("given", ["", "VOCdevkit", "VOCdevkit/VOC"])
def test_it_is_found_by_any_of_its_folders(tmp_path, name, given):
    kit = write_devkit(tmp_path, name[3:])
    given = tmp_path / (f"{given}{name[3:]}" if given.endswith("VOC") else given)
    dataset = find(name, given)
    dataset.preflight()
    assert dataset.location == kit
    assert dataset.splits == ({"trainval": 6, "test": 3} if name == "voc2007" else {"train": 3, "val": 3})
    assert (dataset.name, dataset.classes, dataset.channels, dataset.flips) == (name, CLASSES, 3, True)


@pytest.mark.parametrize("root", ["env", "clone/data"])
def test_it_is_found_without_being_told(tmp_path, monkeypatch, root):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "env"))
    kit = write_devkit(tmp_path / root)
    assert find("voc2007").location == kit
    with pytest.raises(Missing, match="voc2012 is not here"):
        find("voc2012").preflight()


def test_sets_are_read_as_they_were_written(kit):
    dataset = Voc2007(kit)
    for split in ("train", "val", "trainval", "test"):
        assert dataset.ids(split) == names_of(split)
        assert dataset.ids(split, "Segmentation") == names_of(split, "Segmentation")
        assert dataset.masks(split) == [kit / f"SegmentationClass/{n}.png" for n in names_of(split, "Segmentation")]
    assert [len(dataset.masks(split)) for split in SEGMENTATION] == list(SEGMENTATION.values())


@pytest.mark.parametrize(("of", "split"), [("Main", "tset"), ("Segmentation", "merged")])
def test_an_unknown_set_is_an_error(kit, of, split):
    with pytest.raises(UserError, match=f"voc2007 has no set '{split}' of {of}") as caught:
        Voc2007(kit).ids(split, of)
    assert caught.value.fix == "one of train, val, trainval, test"
    with pytest.raises(UserError, match="voc2012 has no set 'test' of Main"):
        Voc2012(kit).ids("test")


def test_presence_is_1_minus_1_or_0_where_it_is_difficult(kit):
    dataset = Voc2007(kit)
    for split in ("train", "val", "trainval", "test"):
        found = dataset.presence(split)
        assert found.dtype == np.int8
        assert found.tolist() == [[shown(name).get(label, -1) for label in CLASSES] for name in names_of(split)]


def test_an_image_that_the_list_of_a_class_leaves_out_is_not_scored(kit):
    path = kit / "ImageSets/Main/cat_test.txt"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[2], lines[1]]))  # nor does their order matter
    column = Voc2007(kit).presence("test")[:, CLASSES.index("cat")]
    assert column.tolist() == [0, *(shown(name).get("cat", -1) for name in names_of("test")[1:])]


def test_boxes_are_those_that_were_written(kit):
    dataset = Voc2007(kit)
    found = dataset.annotations("trainval")
    assert [annotation.name for annotation in found] == names_of("trainval")
    for annotation in found:
        assert annotation.size == SIZE[::-1]
        wanted = shown(annotation.name).items()
        assert annotation.boxes == tuple(
            Box(label, (1, 2, *SIZE), not said, True, False, "Left") for label, said in wanted
        )


def test_images_have_no_labels(kit):
    dataset = Voc2007(kit)
    for split, of in (("trainval", "Main"), ("test", "Main"), ("val", "Segmentation")):
        images = dataset.read(split, of)
        assert images.labels is None
        assert [images.path(n) for n in range(len(images))] == [
            kit / f"JPEGImages/{n}.jpg" for n in names_of(split, of)
        ]
    assert not dataset.labelled
    assert len(dataset.open("merged")) == 9
    ((_, pixels),) = dataset.open("test").batches(np.arange(3), 3, Stretch(12), seed=0)
    assert pixels.shape == (3, 3, 12, 12)


def test_torchvision_reads_the_same(kit):
    dataset, root = Voc2007(kit), str(kit.parent.parent)
    boxes = torchvision.VOCDetection(root, year="2007", image_set="test")
    assert len(boxes) == len(dataset.annotations("test"))
    for (_, found), annotation in zip(boxes, dataset.annotations("test")):
        assert [one["name"] for one in found["annotation"]["object"]] == [box.name for box in annotation.boxes]
    masks = torchvision.VOCSegmentation(root, year="2007", image_set="train")
    for (_, found), path in zip(masks, dataset.masks("train")):
        assert np.array_equal(np.asarray(found), read_mask(path, SIZE[::-1]))


# What a devkit is refused for.


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("JPEGImages/000012.jpg", "the image 000012.jpg, which ImageSets/Main/trainval.txt lists, {}"),
        ("Annotations/000032.xml", "the annotation 000032.xml, which ImageSets/Main/test.txt lists, {}"),
        ("SegmentationClass/000020.png", "the mask 000020.png, which ImageSets/Segmentation/trainval.txt lists, {}"),
    ],
)
def test_an_image_annotation_or_mask_that_is_not_there_or_empty_is_named(kit, path, message):
    (kit / path).write_bytes(b"")
    assert said(kit).startswith(message.format("is empty") + "\n")
    (kit / path).unlink()
    assert said(kit).startswith(message.format("is not there") + "\n")
    (kit / path).symlink_to(kit / "nowhere")
    assert said(kit).startswith(message.format("is not there") + "\n")
    for look in (lambda d: d.fingerprint(), lambda d: d.open("test"), lambda d: d.read("val", "Segmentation")):
        assert message.format("is not there") in said(kit, look)  # none goes round it


def test_all_that_is_missing_is_counted(kit):
    shutil.rmtree(kit / "Annotations")
    told = said(kit)
    assert "the annotation 000010.xml, which ImageSets/Main/trainval.txt lists, is not there (and 8 more files)" in told


@pytest.mark.parametrize(
    "path", ["Main/test.txt", "Segmentation/trainval.txt", "Main/cat_val.txt", "Main/dog_test.txt"]
)
def test_a_list_that_is_not_there_is_named(kit, path):
    (kit / "ImageSets" / path).unlink()
    assert said(kit).startswith(f"ImageSets/{path} is not there\n")


@pytest.mark.parametrize(
    ("lines", "held"),
    [
        ([], "0 images in 0 lines"),
        (names_of("test")[:2], "2 images in 2 lines"),
        (["000030"] * 3, "1 images in 3 lines"),
    ],
)
def test_a_set_of_another_size_is_refused(kit, lines, held):
    (kit / "ImageSets/Main/test.txt").write_text("\n".join(lines))
    for look in (lambda d: d.preflight(), lambda d: d.ids("test"), lambda d: d.fingerprint()):
        assert said(kit, look).startswith(f"ImageSets/Main/test.txt lists {held}, where 3 are expected\n")


def test_an_image_of_both_splits_is_refused(kit):
    (kit / "ImageSets/Main/test.txt").write_text("000030\n000021\n000032\n")
    message = "ImageSets/Main/test.txt lists 000021, which is also in ImageSets/Main/trainval.txt"
    assert said(kit).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("000030\n000031\n", "is not as expected: a line for each image, which ends in 1, -1 or 0"),
        ("000030 -1\n000031\n000032 1\n", "is not as expected"),
        ("000030 2\n", "is not as expected"),
        ("000030 1\n000030 -1\n", "is not as expected"),
        ("000030 1\n000010 -1\n", "lists 000010, which ImageSets/Main/test.txt does not"),
        ("", "has no image that shows a cat: its AP is not defined"),
        ("000030 -1\n000031 0\n000032 -1\n", "has no image that shows a cat: its AP is not defined"),
    ],
)
def test_a_list_of_a_class_that_is_wrong_is_named(kit, text, message):
    (kit / "ImageSets/Main/cat_test.txt").write_text(text)
    for look in (lambda d: d.preflight(), lambda d: d.presence("test")):
        assert said(kit, look).startswith(f"ImageSets/Main/cat_test.txt {message}")


def test_a_broken_annotation_is_named_when_it_is_read(kit):
    path = kit / "Annotations/000031.xml"
    path.write_text(path.read_text().replace("<xmin>1<", "<xmin>15<"))
    Voc2007(kit).preflight()
    assert "the annotation 000031.xml has an inverted box for object 1" in said(kit, lambda d: d.annotations("test"))
    shutil.copy(path, kit / "Annotations/000030.xml")  # the first of its set is looked at before
    assert "the annotation 000030.xml has an inverted box" in said(kit)


def test_a_class_that_there_is_not_is_named(kit):
    path = kit / "Annotations/000031.xml"
    path.write_text(path.read_text().replace("bicycle", "unicycle"))
    assert "000031.xml gives object 1 the class 'unicycle'" in said(kit, lambda d: d.annotations("test"))


def test_a_first_mask_of_another_size_is_named(kit):
    path = kit / "SegmentationClass/000010.png"
    write_mask(path, (13, 12))
    with pytest.raises(UserError, match=r"the mask 000010\.png has 13 x 12 pixels, and its image 14 x 12") as caught:
        Voc2007(kit).preflight()
    assert caught.value.looked == str(path)


def test_a_first_image_that_is_none_is_named(kit):
    (kit / "JPEGImages/000030.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cannot read the image 000030\.jpg"):
        Voc2007(kit).preflight()


def seen(kit, side):
    images = Voc2007(kit).read("test")
    ((_, pixels),) = images.batches(np.arange(len(images)), 3, Stretch(side), seed=0)
    return pixels


def test_images_of_one_pixel_and_in_cmyk_are_read_and_one_cut_short_is_named(kit):
    write_image(kit / "JPEGImages/000030.jpg", (1, 1))
    Image.new("CMYK", (9, 9), (0, 255, 255, 0)).save(kit / "JPEGImages/000031.jpg")  # red
    pixels = seen(kit, 4).float()
    assert torch.equal(pixels[0], pixels[0, :, :1, :1].expand(3, 4, 4))
    assert pixels[1].mean((1, 2))[0] > 200 > 60 > pixels[1].mean((1, 2))[1:].max()
    path = kit / "JPEGImages/000032.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"cannot read the image 000032\.jpg") as caught:
        seen(kit, 4)
    assert caught.value.looked == str(path)


# Its fingerprint.


def test_a_fingerprint_is_of_names_and_sizes_and_of_every_list(kit, tmp_path):
    first, full = Voc2007(kit).fingerprint(), Voc2007(kit).fingerprint(full=True)
    shutil.copytree(kit, tmp_path / "copy" / "VOC2007")
    assert Voc2007(tmp_path / "copy").fingerprint() == first
    (kit / "JPEGImages/999999.jpg").write_bytes(b"of no set")
    assert Voc2007(kit).fingerprint() == first
    for path in ("JPEGImages/000011.jpg", "Annotations/000030.xml", "SegmentationClass/000020.png"):
        content = (kit / path).read_bytes()
        (kit / path).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert Voc2007(kit).fingerprint() == first
        assert Voc2007(kit).fingerprint(full=True) != full
        (kit / path).write_bytes(content + b"\n")
        assert Voc2007(kit).fingerprint() != first
        (kit / path).write_bytes(content)
    lists = kit / "ImageSets/Main/cat_train.txt"
    lists.write_text(lists.read_text().replace("000010 -1", "000010  1"))
    assert Voc2007(kit).fingerprint() != first


def test_two_years_have_two_fingerprints(tmp_path):
    write_devkit(tmp_path, "2007")
    write_devkit(tmp_path, "2012")
    assert Voc2007(tmp_path).fingerprint() != Voc2012(tmp_path).fingerprint()


# As a data set of other commands.


def test_a_probe_of_single_classes_says_which_ones_to_use(kit, tmp_path, capsys):
    for name in ("probes.linear", "probes.knn", "probes.clustering"):
        words = ["--checkpoint", "random-alexnet32@0", "--dataset", "voc2007"]
        assert start(registry("probes")[name], tmp_path, *words, dataset=Voc2007(kit)) == 2
        told = capsys.readouterr().err
        assert "an image of voc2007 shows objects of several classes" in told
        assert "python -m probes.svm --dataset voc2007, or python -m transfer.voc_classification" in told


def test_a_classifier_is_not_pretrained_on_it(kit, tmp_path, capsys):
    assert start(registry("pretrain")["pretrain.supervised"], tmp_path, dataset=Voc2007(kit)) == 2
    assert "shows objects of several classes" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pretrain.deepcluster", "pretrain.mmdc"])
def test_a_method_without_labels_learns_from_it(name, kit, tmp_path, capsys):
    words = ["--dataset", "voc2007", "--epochs", "1", "--batch", "3", "--k", "2", "--images", "split"]
    words += ["--backbone", "small_vgg", *(["--pca", "2"] if name.endswith("cluster") else [])]
    assert start(registry("pretrain")[name], tmp_path, *words, dataset=Voc2007(kit)) == 0, capsys.readouterr().err
    assert np.isfinite(log(tmp_path)[0]["loss"])
    told = record(tmp_path)
    assert told.dataset == {
        **{"name": "voc2007", "protocol": "split", "splits": {"trainval": 6}},
        "fingerprint": Voc2007(kit).fingerprint(),
    }
    assert "acc" not in told.metrics


def test_corrupt_images_are_found_and_left_out(kit, tmp_path, capsys):
    (kit / "JPEGImages/000012.jpg").write_bytes(b"no image")
    assert verify(Voc2007(kit), tmp_path / "bad") == 1
    assert "voc2007  trainval  6 images, 1 corrupt" in capsys.readouterr().out
    dataset, whole = Voc2007(kit), Voc2007(kit)
    exclude(dataset, tmp_path / "bad")
    assert dataset.splits == {"trainval": 5, "test": 3}
    left = [name for name in names_of("train") if name != "000012"]
    assert dataset.ids("train") == left
    assert len(dataset.read("train")) == len(dataset.presence("train")) == len(dataset.annotations("train")) == 2
    assert dataset.fingerprint() != whole.fingerprint()


def test_a_devkit_of_full_size_is_looked_through_quickly(tmp_path, monkeypatch):
    """Ten thousand images: nothing is decoded or parsed but the first of each set."""
    kit = write_devkit(tmp_path)
    many = [f"1{n:05}" for n in range(3000)]
    (kit / "ImageSets/Main/test.txt").write_text("\n".join([*names_of("test"), *many]))
    for kind, ending, source in (("JPEGImages", ".jpg", "000030.jpg"), ("Annotations", ".xml", "000030.xml")):
        for name in many:
            os.link(kit / kind / source, kit / kind / f"{name}{ending}")
    shrink(monkeypatch, Voc2007, test=3003)
    opened = []
    monkeypatch.setattr("zoo.voc.devkit.read_annotation", lambda path, classes: opened.append(path))
    Voc2007(kit).preflight()
    assert [path.stem for path in opened] == ["000010", "000030"]
