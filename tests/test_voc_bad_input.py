"""Damaged devkits through the commands: each fault is named with its file and what to do, and there is no number."""

import re
import shutil

import devkits
import numpy as np
import pytest
from devkits import SIZE, shrink, write_devkit, write_mask
from pictures import elsewhere, write_image  # noqa: F401
from PIL import Image
from trainings import start

from probes import svm
from probes.svm import SVM
from results.store import Store
from transfer.finetuning import Finetuning
from transfer.voc_classification import VocClassification
from transfer.voc_detection import VocDetection
from transfer.voc_segmentation import VocSegmentation
from zoo.voc.devkit import Voc2007

SIX = {"train": 6, "val": 6, "test": 6}  # images: enough for the folds of the SVMs
STEPS = ("--iterations", "3", "--batch", "4")  # every image to learn from is seen
CLASSIFIED, FOUND, SEGMENTED = (kind.name for kind in (VocClassification, VocDetection, VocSegmentation))
COMMANDS = {
    CLASSIFIED: (VocClassification, STEPS),
    FOUND: (VocDetection, (*STEPS, "--sides", "24", "--side", "24", "--longest", "40", "--rois", "8")),
    SEGMENTED: (VocSegmentation, (*STEPS, "--crop", "14", "--scale", "2")),
    SVM.name: (SVM, ("--layer", "conv5")),
}
EVERY = tuple(COMMANDS)
LEARNED, SHOWN = "000011", "000031"  # of trainval and of test, and neither the first of its set
AGAIN = "try: unpack it again: VOCtrainval_06-Nov-2007.tar"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a devkit in which nothing is wrong."""
    with pytest.MonkeyPatch.context() as patch:
        sizes(patch)
        return write_devkit(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def kit(whole, tmp_path, monkeypatch):
    """A copy of it, to be damaged."""
    sizes(monkeypatch)
    monkeypatch.setattr(svm, "COSTS", (1.0,))
    return shutil.copytree(whole, tmp_path / "VOC2007")


def sizes(patch):
    """Let devkits be written, and expected, in six images a set, of which two have masks."""
    for name, counts in (("MAIN", SIX), ("SEGMENTATION", {"train": 2, "val": 2, "test": 2})):
        patch.setattr(devkits, name, counts)
    shrink(patch, Voc2007)


def run(command, kit, tmp_path, *more):
    """The exit code of a command on the devkit, and its records."""
    kind, words = COMMANDS[command]
    words = ("--checkpoint", "random-alexnet32@0", "--cache", str(tmp_path / "cache"), *words)
    code = start(kind, tmp_path, *words, *more, dataset=Voc2007(kit))
    return code, Store(tmp_path / "records").records()


def rewrite(file, pattern, new):
    """What replaces the text in a file that a pattern finds first."""

    def damage(kit):
        text, count = re.subn(pattern, new, (kit / file).read_text(), count=1, flags=re.DOTALL)
        assert count
        (kit / file).write_text(text)

    return damage


def remove(file):
    """What takes a file away."""
    return lambda kit: (kit / file).unlink()


def end_early(file):
    """What cuts off the end of a file."""
    return lambda kit: (kit / file).write_bytes((kit / file).read_bytes()[:-40])


def unbox(name):
    """What takes the first box out of an annotation."""
    return rewrite(f"Annotations/{name}.xml", r"\t*<bndbox>.*?</bndbox>\n", "")


def never_clear(label):
    """What makes all objects of a class in the annotations of test difficult, but not in the lists."""

    def damage(kit):
        for path in kit.glob("Annotations/00003*.xml"):
            head, name, tail = path.read_text().partition(f"<name>{label}</name>")
            path.write_text(head + name + tail.replace("<difficult>0<", "<difficult>1<", 1))

    return damage


def image_of(name, *size):
    """What puts another image in the place of one."""
    return lambda kit: write_image(kit / f"JPEGImages/{name}.jpg", size)


def mask_of(name, **options):
    """What puts another mask in the place of one."""
    return lambda kit: write_mask(kit / f"SegmentationClass/{name}.png", **options)


def grey_mask(name):
    """What puts a mask of grey levels in the place of one."""
    return lambda kit: Image.fromarray(np.ones(SIZE[::-1], np.uint8)).save(kit / f"SegmentationClass/{name}.png")


# a fault: how it is made, the file that is named, what is said of it, and by which commands
FAULTS = {
    "image gone": (
        remove(f"JPEGImages/{LEARNED}.jpg"),
        f"JPEGImages/{LEARNED}.jpg",
        f"the image {LEARNED}.jpg, which ImageSets/Segmentation/trainval.txt lists, is not there",
        EVERY,
    ),
    "image cut short": (
        end_early(f"JPEGImages/{SHOWN}.jpg"),
        f"JPEGImages/{SHOWN}.jpg",
        f"cannot read the image {SHOWN}.jpg: ",
        EVERY,
    ),
    "image of another size": (
        image_of(SHOWN, 28, 24),
        f"JPEGImages/{SHOWN}.jpg",
        f"the annotation {SHOWN}.xml is of 14 x 12 pixels, and the image has 28 x 24 pixels",
        (FOUND,),
    ),
    "image of one pixel": (
        image_of(LEARNED, 1, 1),
        f"JPEGImages/{LEARNED}.jpg",
        f"the annotation {LEARNED}.xml is of 14 x 12 pixels, and the image has 1 x 1 pixels",
        (FOUND,),
    ),
    "image of another size than its mask": (
        image_of(SHOWN, 28, 24),
        f"SegmentationClass/{SHOWN}.png",
        f"the mask {SHOWN}.png has 14 x 12 pixels, and its image 28 x 24",
        (SEGMENTED,),
    ),
    "image of one pixel with a larger mask": (
        image_of(LEARNED, 1, 1),
        f"SegmentationClass/{LEARNED}.png",
        f"the mask {LEARNED}.png has 14 x 12 pixels, and its image 1 x 1",
        (SEGMENTED,),
    ),
    "no XML": (
        end_early(f"Annotations/{LEARNED}.xml"),
        f"Annotations/{LEARNED}.xml",
        f"the annotation {LEARNED}.xml is not XML",
        (FOUND,),
    ),
    "no box": (
        unbox(SHOWN),
        f"Annotations/{SHOWN}.xml",
        f"the annotation {SHOWN}.xml has no <bndbox> for object 1 (bicycle)",
        (FOUND,),
    ),
    "no box in the first file": (
        unbox("000010"),
        "Annotations/000010.xml",
        "the annotation 000010.xml has no <bndbox> for object 1 (aeroplane)",
        EVERY,
    ),
    "no object": (
        rewrite(f"Annotations/{LEARNED}.xml", r"\t<object>.*</object>\n", ""),
        f"Annotations/{LEARNED}.xml",
        f"{LEARNED}.xml has no object, but ImageSets/Main/bicycle_trainval.txt says that the image shows a bicycle",
        (FOUND,),
    ),
    "box outside": (
        rewrite(f"Annotations/{LEARNED}.xml", "<xmax>14<", "<xmax>16<"),
        f"Annotations/{LEARNED}.xml",
        f"{LEARNED}.xml has a box outside the image (14 x 12 pixels) for object 1 (bicycle): xmin 1, ymin 2, xmax 16",
        (FOUND,),
    ),
    "box inverted": (
        rewrite(f"Annotations/{SHOWN}.xml", "<ymin>2<", "<ymin>13<"),
        f"Annotations/{SHOWN}.xml",
        f"{SHOWN}.xml has an inverted box for object 1 (bicycle): xmin 1, ymin 13",
        (FOUND,),
    ),
    "unknown class": (
        rewrite(f"Annotations/{SHOWN}.xml", "bicycle", "bicycles"),
        f"Annotations/{SHOWN}.xml",
        f"{SHOWN}.xml gives object 1 the class 'bicycles' (did you mean 'bicycle'?), which there is not",
        (FOUND,),
    ),
    "unknown class in a mask": (
        mask_of(LEARNED, values=(0, 21, 255)),
        f"SegmentationClass/{LEARNED}.png",
        f"the mask {LEARNED}.png has the class 21, where 0 to 20 and 255 are expected",
        (SEGMENTED,),
    ),
    "mask of another size": (
        mask_of(SHOWN, size=(12, 14)),
        f"SegmentationClass/{SHOWN}.png",
        f"the mask {SHOWN}.png has 12 x 14 pixels, and its image 14 x 12",
        (SEGMENTED,),
    ),
    "mask without a palette": (
        grey_mask(SHOWN),
        f"SegmentationClass/{SHOWN}.png",
        f"the mask {SHOWN}.png has no palette",
        (SEGMENTED,),
    ),
    "mask cut short": (
        end_early(f"SegmentationClass/{LEARNED}.png"),
        f"SegmentationClass/{LEARNED}.png",
        f"cannot read the mask {LEARNED}.png",
        (SEGMENTED,),
    ),
    "empty set": (
        lambda kit: (kit / "ImageSets/Main/test.txt").write_text(""),
        "ImageSets/Main/test.txt",
        "ImageSets/Main/test.txt lists 0 images in 0 lines, where 6 are expected",
        EVERY,
    ),
    "empty set of masks": (
        lambda kit: (kit / "ImageSets/Segmentation/trainval.txt").write_text(""),
        "ImageSets/Segmentation/trainval.txt",
        "ImageSets/Segmentation/trainval.txt lists 0 images in 0 lines, where 4 are expected",
        EVERY,
    ),
    "class without an image": (
        lambda kit: (kit / "ImageSets/Main/cat_test.txt").write_text(f"{SHOWN} -1\n"),
        "ImageSets/Main/cat_test.txt",
        "ImageSets/Main/cat_test.txt has no image that shows a cat: its AP is not defined",
        EVERY,
    ),
    "class without an object that counts": (
        never_clear("cat"),
        "annotations of the images evaluated on",
        "no image shows a cat that counts: its average precision is not defined",
        (FOUND,),
    ),
}


@pytest.mark.parametrize(
    ("fault", "command"), [(fault, command) for fault, (*_, commands) in FAULTS.items() for command in commands]
)
def test_a_fault_is_named(fault, command, kit, tmp_path, capsys, monkeypatch):
    """Before anything is learned."""
    monkeypatch.setattr(Finetuning, "descend", None)
    damage, file, message, _ = FAULTS[fault]
    damage(kit)
    assert run(command, kit, tmp_path) == (2, [])
    told = capsys.readouterr()
    assert message in told.err
    assert file in told.err
    assert AGAIN in told.err or "try: replace it" in told.err or "try: more images" in told.err
    assert "Traceback" not in told.err
    assert not told.out


@pytest.mark.parametrize("command", [CLASSIFIED, FOUND, SEGMENTED])
def test_images_beyond_the_limit_of_a_smoke_run_may_be_broken(command, kit, tmp_path):
    end_early(f"JPEGImages/{SHOWN}.jpg")(kit)
    assert run(command, kit, tmp_path, "--limit", "1") == (0, [])


@pytest.mark.parametrize("command", EVERY)
def test_what_a_command_does_not_read_changes_nothing(command, kit, tmp_path):
    """Its number is that on the whole devkit, whatever is wrong with annotations and masks that are not its own."""
    _, (usual,) = run(command, kit, tmp_path / "whole")
    for name, (damage, file, _, commands) in FAULTS.items():
        other = file.startswith(("Annotations", "SegmentationClass")) and command not in commands
        if other and not name.startswith("image"):
            damage(kit)
    code, (record,) = run(command, kit, tmp_path / "damaged")
    assert code == 0
    assert record.metrics == usual.metrics


def shrink_to_a_pixel(kit, name):
    """Make an image, its annotation and its mask one pixel large."""
    write_image(kit / f"JPEGImages/{name}.jpg", (1, 1))
    write_mask(kit / f"SegmentationClass/{name}.png", (1, 1), (1,))
    path = kit / f"Annotations/{name}.xml"
    path.write_text(re.sub(r"<(width|height|.min|.max)>\d+<", r"<\1>1<", path.read_text()))


@pytest.mark.parametrize("command", EVERY)
def test_images_of_one_pixel_and_in_cmyk_are_images_like_others(command, kit, tmp_path):
    for name in (LEARNED, SHOWN):
        shrink_to_a_pixel(kit, name)
    for name in ("000020", "000030"):
        Image.open(kit / f"JPEGImages/{name}.jpg").convert("CMYK").save(kit / f"JPEGImages/{name}.jpg")
    code, (record,) = run(command, kit, tmp_path)
    assert code == 0
    assert all(np.isfinite(value) for value in record.metrics.values())
