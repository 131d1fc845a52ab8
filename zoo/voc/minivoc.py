"""minivoc: devkits of Pascal VOC that are generated, for tests and first runs without a download.

Digits (scikit-learn's) or garments (fashion-mnist's) lie on scikit-learn's two photographs: see zoo/voc/scenes.py.
The pictures of train, val and test are different ones, of the sources' own training and test splits, and backgrounds
are cut from different parts of the photographs.

A devkit is generated once, in seconds, into the clone's cache/. Its fingerprint is of what it is generated from: the
version of the generator, the seed, the pictures and the photographs. Pillow of another version may resample or encode
some pixels otherwise: fingerprint(full=True) is of every byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from functools import cached_property
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from results.errors import UserError
from results.files import ROOT, as_user_error, digest
from zoo.datasets.dataset import Dataset, Missing
from zoo.datasets.digits import Digits
from zoo.datasets.idx import FashionMnist
from zoo.datasets.images import ArrayImages
from zoo.seeds import numpy_generator
from zoo.voc.annotation import Annotation, format_annotation
from zoo.voc.devkit import ANNOTATIONS, IMAGES, KINDS, MAIN, MASKS, SEGMENTATION, Devkit, list_of, path_of, set_of
from zoo.voc.masks import to_image
from zoo.voc.scenes import SHORT, Pictures, Scene, draw_scene

VERSION, SEED = 2, 0
COUNTS = {"train": 400, "val": 200, "trainval": 600, "test": 300}
PARTS = {"train": (0.0, 0.5), "val": (0.5, 0.7), "test": (0.7, 1.0)}  # of the photographs' width
CONTENTS = "contents.json"  # beside the devkit: the size of each of its files


class MiniVoc(Devkit):
    """600 + 300 images of 120 x 120 to 120 x 160 pixels with 1 to 4 digits each; every image has a mask."""

    name = "minivoc"
    year = "2007"  # the layout's, and that of the folder
    used = ("trainval", "test")
    counts = {MAIN: COUNTS, SEGMENTATION: COUNTS}  # noqa: RUF012
    classes = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    size = SHORT
    mean = (0.300, 0.297, 0.279)
    std = (0.205, 0.192, 0.203)
    flips = False
    licence = "CC BY 4.0 (the digits), CC BY 2.0 (the photographs: see NOTICE)"
    source = "part of scikit-learn: nothing to download"
    edge, floor = (0.35, 0.5), 0.45  # see Pictures

    def __init__(self, data_dir: Path | None) -> None:
        self.pictures: Dataset = Digits()

    @property
    def mend(self) -> str:
        """See Devkit.mend."""
        return f"remove {self.folder}: it is generated again"

    @cached_property
    def folder(self) -> Path:
        """Where the devkit is generated."""
        return ROOT / "cache" / f"{self.name}-{VERSION}-{self._generator[:12]}"

    @cached_property
    def location(self) -> Path:  # type: ignore[override]
        """See Collection.location."""
        return self.folder / "VOCdevkit" / f"VOC{self.year}"

    def preflight(self) -> None:
        """See Devkit.preflight; of a devkit that is not generated yet, that it can be."""
        if self.folder.is_dir():
            self.check_contents()
            super().preflight()
        else:
            self.pictures.preflight()

    def fingerprint(self, full: bool = False) -> str:
        """See Dataset.fingerprint: what the devkit is generated from; with `full` every byte that was."""
        if full:
            return super().fingerprint(full)
        left_out = sorted(name.hex() for name in self.excluded)
        return digest([self._generator, left_out]) if left_out else self._generator

    def check_contents(self) -> None:
        """UserError naming the first file that went or changed its size since the devkit was generated."""
        try:
            kept = json.loads((self.folder / CONTENTS).read_text()).items()
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"{CONTENTS} of {self.name} cannot be read", str(self.folder), self.mend) from error
        changed = sorted(path for path, _ in kept - dict(list_contents(self.folder)).items())
        if changed:
            more = f" (nor are {len(changed) - 1} more files)" if len(changed) > 1 else ""
            happened = f"{changed[0]} of {self.name} is not as it was generated{more}"
            raise UserError(happened, str(self.folder / changed[0]), self.mend)

    def prepare(self) -> None:
        """See Devkit.prepare: the devkit is generated, if it is not there."""
        if not self.folder.is_dir():
            generate(self)

    def draw(self, split: str) -> Iterator[Scene]:
        """The scenes of train, val or test, in order."""
        images = self.pictures.read("test" if split == "test" else "train")
        assert isinstance(images, ArrayImages)
        assert images.labels is not None
        mine = np.flatnonzero(np.isin(thirds(images.labels), {"train": (0, 1), "val": (2,), "test": (0, 1, 2)}[split]))
        pictures = Pictures(images.pixels[mine, 0].numpy(), images.labels[mine], self.edge, self.floor)
        photographs = [cut(photograph, *PARTS[split]) for photograph in open_photographs()]
        for number in range(COUNTS[split]):
            rng = numpy_generator(SEED, self.name, split, number)
            yield draw_scene(pictures, photographs[number % len(photographs)], rng)

    @cached_property
    def _generator(self) -> str:
        """The sha256 of all that the devkit is generated from. Missing if the pictures are not there."""
        try:
            pictures = self.pictures.fingerprint()
        except Missing as error:
            raise Missing(f"{self.name} is not here: {error.happened}", error.looked, error.fix) from error
        photographs = [hashlib.sha256(content).hexdigest() for content in read_photographs()]
        return digest([self.name, VERSION, SEED, pictures, photographs])


class MiniVocFashion(MiniVoc):
    """The same with garments of fashion-mnist."""

    name = "minivoc-fashion"
    classes = ("tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankleboot")
    mean = (0.306, 0.303, 0.286)
    std = (0.202, 0.188, 0.200)
    flips = True
    licence = "MIT (the garments), CC BY 2.0 (the photographs: see NOTICE)"
    source = f"generated from fashion-mnist: {FashionMnist.source}"
    edge, floor = (0.05, 0.2), 0.35

    def __init__(self, data_dir: Path | None) -> None:
        self.pictures = FashionMnist(data_dir)


def generate(kit: MiniVoc) -> None:
    """Write the devkit: beside where it belongs, and then moved there. Of two processes that do, one has its way."""
    beside = kit.folder.with_name(f".{kit.folder.name}.{secrets.token_hex(6)}")
    try:
        write_devkit(kit, beside / kit.location.relative_to(kit.folder))
        (beside / CONTENTS).write_text(json.dumps(dict(list_contents(beside))))
        if not kit.folder.is_dir():
            os.rename(beside, kit.folder)
    except OSError as error:
        if not kit.folder.is_dir():  # else another process was faster
            found = as_user_error(error, kit.folder)
            fix = "some room, and a folder that can be written in: it is always the clone's cache/"
            raise UserError(found.happened, found.looked, fix) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_devkit(kit: MiniVoc, root: Path) -> None:
    """Write the images of all splits with their annotations and masks, and the lists of them."""
    for folder in (*KINDS, *(f"ImageSets/{of}" for of in kit.counts)):
        (root / folder).mkdir(parents=True)
    sets: dict[str, list[Annotation]] = {}
    first = 1
    for split in PARTS:
        sets[split] = [write_scene(scene, f"{first + n:06}", kit, root) for n, scene in enumerate(kit.draw(split))]
        first += len(sets[split])
    for split, listed in {**sets, "trainval": sets["train"] + sets["val"]}.items():
        write_lists(split, listed, kit.classes, root)


def write_scene(scene: Scene, name: str, kit: MiniVoc, root: Path) -> Annotation:
    """Write the three files of a scene; its annotation."""
    boxes = tuple(item.describe(kit.classes) for item in scene.items)
    annotation = Annotation(name, scene.pixels.shape[:2], boxes)
    scene.image().save(root / path_of(name, IMAGES), quality=90)
    to_image(scene.mask()).save(root / path_of(name, MASKS))
    (root / path_of(name, ANNOTATIONS)).write_text(format_annotation(annotation, root.name))
    return annotation


def write_lists(split: str, annotations: list[Annotation], classes: tuple[str, ...], root: Path) -> None:
    """Write the list of a set's images, of Main and of Segmentation, and one for each class."""
    for of in (MAIN, SEGMENTATION):
        (root / set_of(split, of)).write_text("".join(f"{annotation.name}\n" for annotation in annotations))
    for name in classes:
        lines = (f"{annotation.name} {shows(annotation, name):2}\n" for annotation in annotations)
        (root / list_of(name, split)).write_text("".join(lines))


def shows(annotation: Annotation, name: str) -> int:
    """1 if an image shows the class; 0 if all its objects of that class are difficult; -1 if it has none."""
    found = [box.difficult for box in annotation.boxes if box.name == name]
    return -1 if not found else int(not all(found))


def list_contents(folder: Path) -> Iterator[tuple[str, int]]:
    """(path, bytes) of each file below a folder, but for the list of them."""
    for path in folder.rglob("*"):
        if path.is_file() and path.name != CONTENTS:
            yield path.relative_to(folder).as_posix(), path.stat().st_size


def thirds(labels: np.ndarray) -> np.ndarray:
    """0, 1, 2, 0, … for the images of each class in their order: int64 (N,)."""
    found = np.zeros_like(labels)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        found[mine] = np.arange(len(mine)) % 3
    return found


def read_photographs() -> list[bytes]:
    """The files of scikit-learn's two photographs."""
    folder = resources.files("sklearn.datasets.images")
    return [(folder / name).read_bytes() for name in ("china.jpg", "flower.jpg")]


def open_photographs() -> list[Image.Image]:
    """Both, decoded: 640 x 427 pixels."""
    from sklearn.datasets import load_sample_image  # a second's import, for these data sets alone

    return [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]


def cut(photograph: Image.Image, start: float, end: float) -> Image.Image:
    """The columns of a photograph between these shares of its width."""
    return photograph.crop((round(start * photograph.width), 0, round(end * photograph.width), photograph.height))
