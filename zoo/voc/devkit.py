"""Pascal VOC's devkit of one year: images with the classes, boxes and masks of the objects in them.

    VOCdevkit/VOC2007/JPEGImages/000005.jpg
    VOCdevkit/VOC2007/Annotations/000005.xml            the boxes: see zoo/voc/annotation.py
    VOCdevkit/VOC2007/SegmentationClass/000032.png      the mask, of some images: see zoo/voc/masks.py
    VOCdevkit/VOC2007/ImageSets/Main/trainval.txt       an image a line
    VOCdevkit/VOC2007/ImageSets/Main/dog_trainval.txt   the same, each with 1, -1 or 0 (shown, but difficult to see)
    VOCdevkit/VOC2007/ImageSets/Segmentation/trainval.txt   those that have a mask

Everingham, Van Gool, Williams, Winn, Zisserman, "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from results.errors import UserError, did_you_mean
from zoo.datasets.collection import Collection, Split
from zoo.datasets.dataset import Missing
from zoo.datasets.decoding import Place, read_rgb
from zoo.datasets.files import list_places
from zoo.datasets.images import FileImages
from zoo.voc.annotation import Annotation, read_annotation
from zoo.voc.masks import read_mask

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
MAIN, SEGMENTATION = "Main", "Segmentation"
IMAGES, ANNOTATIONS, MASKS = ("JPEGImages", ".jpg"), ("Annotations", ".xml"), ("SegmentationClass", ".png")
KINDS = {"JPEGImages": "image", "Annotations": "annotation", "SegmentationClass": "mask"}
WANTED = {MAIN: (IMAGES, ANNOTATIONS), SEGMENTATION: (IMAGES, MASKS)}  # the files of an image in these sets


class Devkit(Collection):
    """The devkit of one year. Its splits are sets of Main; an image has several classes, and so no label."""

    year: str
    classes: tuple[str, ...] = CLASSES
    labelled = False
    counts: dict[str, dict[str, int]]  # images in each set of Main and of Segmentation
    used: tuple[str, str]  # the sets that are learned from and evaluated on
    licence = "flickr's terms of use, image by image"

    def __init__(self, data_dir: Path | None) -> None:
        folder = f"VOC{self.year}"
        # a folder that was given is taken for this year's only by its name
        places = [place for place in list_places(data_dir, f"VOCdevkit/{folder}", folder) if place.name == folder]
        self.places = places
        self.location = next((place for place in places if place.is_dir()), places[-1])

    @property
    def origin(self) -> list[str]:
        """See Collection.origin."""
        return [str(self.location.resolve())]

    @property
    def published(self) -> dict[str, int]:
        """See Collection.published."""
        return {split: self.counts[MAIN][split] for split in self.used}

    @property
    def mend(self) -> str:
        """What to do about a file that is not as it should be."""
        return f"unpack it again: {self.source}"

    def check_labelled(self, evaluation: bool = False) -> None:
        """UserError: a probe that wants one class an image has none here."""
        happened = f"an image of {self.name} shows objects of several classes: it has no single one to score against"
        commands = (f"python -m {task} --dataset {self.name}" for task in ("probes.svm", "transfer.voc_classification"))
        raise UserError(happened, fix=", or ".join(commands))

    def check_sets(self, images: str, of: str = MAIN) -> None:
        """UserError unless there are both sets of Main or Segmentation that `--images` names: "trainval-test"."""
        for split in images.split("-"):
            if split not in self.counts[of]:
                raise UserError(f"{self.name} has no set '{split}' of {of}", fix="--images train-val")

    def ids(self, split: str, of: str = MAIN) -> list[str]:
        """The images of a set (train, val …) of Main or Segmentation, in its order. UserError for an unknown one."""
        if split not in self.counts[of]:
            happened = f"{self.name} has no set '{split}' of {of}{did_you_mean(split, self.counts[of])}"
            raise UserError(happened, fix=f"one of {', '.join(self.counts[of])}")
        return [name for name in self._sets[of, split] if os.fsencode(path_of(name, IMAGES)) not in self.excluded]

    def read(self, split: str, of: str = MAIN) -> FileImages:
        """The images of any set, without labels, in the order of `ids`."""
        _ = self._scan  # they are there, all of them
        return FileImages(self.location, [path_of(name, IMAGES) for name in self.ids(split, of)], None)

    def presence(self, split: str) -> np.ndarray:
        """int8 (N, C), of the images of a set of Main: 1 they show the class; -1 they do not; 0 not to be scored.

        0: all its objects are difficult; or the image is not in the list of this class at all (deepcluster.md 2.2).
        UserError for a list that is damaged, and for a class that no image shows: it has no average precision.
        """
        found = np.stack([self._column(name, split) for name in self.classes], axis=1)
        for name, shown in zip(self.classes, (found == 1).any(axis=0)):
            if not shown:
                raise self.broken(list_of(name, split), f"has no image that shows a {name}: its AP is not defined")
        return found

    def annotations(self, split: str) -> list[Annotation]:
        """The boxes of each image of a set of Main; all its files are read."""
        return [self.annotation(name) for name in self.ids(split)]

    def annotation(self, name: str) -> Annotation:
        """The boxes of one image. UserError naming its file, and the object, that is not as it should be."""
        try:
            return read_annotation(self.location / path_of(name, ANNOTATIONS), self.classes)
        except UserError as error:
            raise UserError(error.happened, error.looked, self.mend) from error

    def masks(self, split: str) -> list[Path]:
        """The masks of the images of a set of Segmentation; zoo.voc.masks.read_mask reads one."""
        return [self.location / path_of(name, MASKS) for name in self.ids(split, SEGMENTATION)]

    def preflight(self) -> None:
        """See Dataset.preflight: every file is there and not empty, all lists are read, of the rest the first of each.

        Image, annotation and mask are decoded where a task asks for them, which then names what is broken.
        """
        super().preflight()
        for split in self.used:
            self.presence(split)
            self.annotation(self.ids(split)[0])
        first = self.read(next(iter(self.counts[SEGMENTATION])), SEGMENTATION).place(0)
        width, height = read_rgb(first).size
        read_mask(self.location / path_of(first.path.stem, MASKS), (height, width), len(self.classes))

    def broken(self, file: str, what: str) -> UserError:
        """The error of a file of the devkit that is not what it should be."""
        return UserError(f"{file} {what}", str(self.location / file), self.mend)

    def prepare(self) -> None:
        """Missing if there is no devkit."""
        if not self.location.is_dir():
            raise Missing(f"{self.name} is not here", ", ".join(map(str, self.places)), self.source)

    @cached_property
    def _sets(self) -> dict[tuple[str, str], list[str]]:
        """The images of each set. UserError if there are not as many as were published."""
        self.prepare()
        found = {}
        for of, counts in self.counts.items():
            for split, count in counts.items():
                names = found[of, split] = self._words(set_of(split, of))
                if not len(names) == len(set(names)) == count:
                    held = f"lists {len(set(names))} images in {len(names)} lines"
                    raise self.broken(set_of(split, of), f"{held}, where {count} are expected")
        training, evaluation = (set(found[MAIN, split]) for split in self.used)
        if training & evaluation:
            held = f"lists {min(training & evaluation)}, which is also in {set_of(self.used[0], MAIN)}"
            raise self.broken(set_of(self.used[1], MAIN), held)
        return found

    def _look(self) -> dict[str, Split]:
        """See Collection._look. UserError naming the first of the files that are not there, or empty."""
        self._sets  # noqa: B018  # before the folders: this prepares them
        sizes = {f"{folder}/{name}": size for folder in KINDS for name, size in list_sizes(self.location / folder)}
        lacking = {path: by for path, by in self._files() if not sizes.get(path)}
        for path, by in lacking.items():
            kind, what = KINDS[Path(path).parent.name], "is empty" if path in sizes else "is not there"
            more = f" (and {len(lacking) - 1} more files)" if len(lacking) > 1 else ""
            happened = f"the {kind} {Path(path).name}, which {by} lists, {what}{more}"
            raise UserError(happened, str(self.location / path), self.mend)
        for path in self._lists():
            if not (self.location / path).is_file():
                raise self.broken(path, "is not there")
        return {split: Split([path_of(name, IMAGES) for name in self._sets[MAIN, split]], None) for split in self.used}

    def _files(self) -> Iterator[tuple[str, str]]:
        """(file, the set that lists it) of every image, annotation and mask, some several times."""
        for of, split in self._sets:
            for kind in WANTED[of]:
                yield from ((path_of(name, kind), set_of(split, of)) for name in self.ids(split, of))

    def _lists(self) -> list[str]:
        """The files that list images, sorted."""
        sets = [set_of(split, of) for of, split in self._sets]
        return sorted(sets + [list_of(name, split) for split in self.counts[MAIN] for name in self.classes])

    def _column(self, name: str, split: str) -> np.ndarray:
        """int8 (N,): what the list of one class says of the images of a set; see presence."""
        file, ids = list_of(name, split), self.ids(split)
        words = self._words(file)
        said = dict(zip(words[::2], words[1::2]))
        if len(words) != 2 * len(said) or not {"1", "-1", "0"}.issuperset(said.values()):
            raise self.broken(file, "is not as expected: a line for each image, which ends in 1, -1 or 0")
        foreign = said.keys() - set(self._sets[MAIN, split])
        if foreign:
            raise self.broken(file, f"lists {min(foreign)}, which {set_of(split, MAIN)} does not")
        return np.array([int(said.get(image, 0)) for image in ids], dtype=np.int8)

    def _words(self, file: str) -> list[str]:
        """The words in a text of the devkit. UserError naming it if it cannot be read."""
        try:
            return (self.location / file).read_text(errors="replace").split()
        except FileNotFoundError as error:
            raise self.broken(file, "is not there") from error
        except OSError as error:
            raise self.broken(file, f"cannot be read: {error.strerror}") from error

    def _hash(self, full: bool) -> str:
        """See Collection._hash; and the other files, likewise. Lists are read always: they hold the classes."""
        content = hashlib.sha256(super()._hash(full).encode())
        beside = sorted({path for path, _ in self._files() if not path.endswith(IMAGES[1])})
        for paths, read in ((self._lists(), True), (beside, full)):
            for path in paths:
                content.update(path.encode() + b"\0" + Place(self.location / path).content(read) + b"\n")
        return content.hexdigest()


class Voc2007(Devkit):
    """9 963 photographs of flickr; 632 of them have masks."""

    name = "voc2007"
    year = "2007"
    used = ("trainval", "test")
    counts = {  # noqa: RUF012
        MAIN: {"train": 2501, "val": 2510, "trainval": 5011, "test": 4952},
        SEGMENTATION: {"train": 209, "val": 213, "trainval": 422, "test": 210},
    }
    source = (
        "VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2007/, "
        "both unpacked in DIR, which makes DIR/VOCdevkit/VOC2007, then --data-dir DIR"
    )


class Voc2012(Devkit):
    """11 540 photographs of flickr; 2 913 of them have masks. What the test images show was never published."""

    name = "voc2012"
    year = "2012"
    used = ("train", "val")
    counts = {  # noqa: RUF012
        MAIN: {"train": 5717, "val": 5823, "trainval": 11540},
        SEGMENTATION: {"train": 1464, "val": 1449, "trainval": 2913},
    }
    source = (
        "VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/, "
        "unpacked in DIR, which makes DIR/VOCdevkit/VOC2012, then --data-dir DIR"
    )


def path_of(name: str, kind: tuple[str, str]) -> str:
    """The path of an image's file of one kind, in the devkit."""
    folder, ending = kind
    return f"{folder}/{name}{ending}"


def set_of(split: str, of: str) -> str:
    """The path of the file that lists the images of a set."""
    return f"ImageSets/{of}/{split}.txt"


def list_of(name: str, split: str) -> str:
    """The path of the file that says which images of a set of Main show the class `name`."""
    return f"ImageSets/{MAIN}/{name}_{split}.txt"


def list_sizes(folder: Path) -> Iterator[tuple[str, int]]:
    """(name, bytes) of each file in a folder; nothing if that is not there."""
    if folder.is_dir():
        yield from ((entry.name, entry.stat().st_size) for entry in os.scandir(folder) if entry.is_file())
