"""Any folder of images, and published ones with exact counts: ImageNet.

PATH/train/CLASS/… and PATH/val/CLASS/… (or test) have labels: a folder with an evaluation split is laid out so, or
refused. Without one, PATH/train or else PATH is a training set. It has labels if each of its images lies in
CLASS/IMAGE and each CLASS has some; else its images, in any depth, have none: folders within folders, or beside
images, say nothing of classes.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from results.errors import UserError
from zoo.datasets.collection import Collection, Split
from zoo.datasets.dataset import Missing
from zoo.datasets.files import list_places

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
EVALUATION = ("val", "test")  # the first of them that is there
LAYOUT = "PATH/train/CLASS/IMAGE and PATH/val/CLASS/IMAGE, or PATH/CLASS/IMAGE alone, or any depth (no labels)"


class Folder(Collection):
    """The images below a folder; hidden files and those with another ending are not images."""

    source = "a folder laid out as " + LAYOUT

    def __init__(self, location: Path) -> None:
        self.location = location
        self.name = f"folder:{location.resolve().name}"

    @property
    def origin(self) -> list[str]:
        """See Collection.origin."""
        return [str(self.location.resolve())]

    def _unnamed(self, order: np.ndarray) -> bytes:
        """Nothing: paths tell split and class."""
        return b""

    def _look(self) -> dict[str, Split]:
        """What the folder holds, by split. UserError if it is not laid out as this file's beginning says."""
        if not self.location.is_dir():
            raise Missing(f"there is no folder {self.location.name}", str(self.location), self.source)
        inside = subfolders(self.location)
        evaluation = [name for name in EVALUATION if name in inside][:1]
        if evaluation and "train" not in inside:
            happened = f"there is a folder {evaluation[0]} but no train"
            raise UserError(happened, str(self.location), self.source)
        if not evaluation:
            return {"train": scan_alone(self.location, "train" if "train" in inside else "")}
        found = {name: scan(self.location, self.location / name) for name in ["train", *evaluation]}
        check_classes(found, self.location)
        return found


class CountedFolder(Folder):
    """A published folder of images, in one of the usual places, with exactly the classes and images it should have."""

    folders: tuple[str, ...]  # what it may be called
    counts: dict[str, int]  # of the classes, and of each split's images

    def __init__(self, data_dir: Path | None) -> None:
        # a folder that was given is taken for this data set only by its name: every other one has a train in it too
        self.places = [place for place in list_places(data_dir, *self.folders) if place.name in self.folders]
        self.location = next((place for place in self.places if (place / "train").is_dir()), self.places[-1])

    @property
    def published(self) -> dict[str, int]:
        """See Collection.published."""
        return {name: count for name, count in self.counts.items() if name != "classes"}

    def gather(self) -> dict[str, Split]:
        """What the folder holds, by split."""
        return super()._look()

    def _look(self) -> dict[str, Split]:
        if not (self.location / "train").is_dir():
            raise Missing(f"{self.name} is not here", ", ".join(map(str, self.places)), self.source)
        found = self.gather()
        counts = {"classes": len(found["train"].classes), **{n: len(s.paths) for n, s in found.items()}}
        if counts != self.counts:
            held, wanted = (", ".join(f"{n} {k}" for k, n in c.items()) for c in (counts, self.counts))
            fix = f"{self.source}; for a part of it, --dataset folder:PATH"
            raise UserError(f"this is not all of {self.name}: {held}, not {wanted}", str(self.location), fix)
        return found


class ImageNet(CountedFolder):
    """ILSVRC 2012: 1 000 classes of photographs, train and val."""

    name = "imagenet"
    folders = ("imagenet", "imagenet-1k", "ILSVRC2012")
    counts = {"classes": 1000, "train": 1281167, "val": 50000}  # noqa: RUF012
    licence = "non-commercial research (image-net.org's terms)"
    source = (
        "image-net.org (ILSVRC 2012), unpacked to DIR/imagenet/train/CLASS and DIR/imagenet/val/CLASS, "
        "then --data-dir DIR"
    )


def scan_alone(root: Path, inside: str) -> Split:
    """All images below root/inside: with labels if the folders that hold them are just those that lie in it."""
    base = root / inside
    paths = list(below(base, base))
    if not paths:
        raise nothing_in(base)
    folders, classes = [os.path.dirname(path) for path in paths], subfolders(base)
    labels = None
    if sorted(set(folders)) == classes:
        numbers = {name: number for number, name in enumerate(classes)}
        labels = np.array([numbers[folder] for folder in folders], dtype=np.int64)
    found = [f"{inside}/{path}" for path in paths] if inside else paths
    return Split(found, labels, () if labels is None else tuple(classes))


def scan(root: Path, base: Path) -> Split:
    """The images in the class folders of `base`, class by class; paths relative to `root`."""
    stray, classes = images_in(base), subfolders(base)
    if stray:
        fix = "move it into the folder of its class"
        raise UserError(f"the image {stray[0]} lies beside the class folders of {base.name}", str(base), fix)
    if not classes:
        raise nothing_in(base)
    return scan_classes(root, base, classes)


def nothing_in(base: Path) -> UserError:
    """The error of a folder without images."""
    return UserError("there are no images", str(base), f"{LAYOUT}; IMAGE ends in {' '.join(ENDINGS)}")


def scan_classes(root: Path, base: Path, classes: Sequence[str]) -> Split:
    """The images in those class folders of `base`, class by class. UserError for an empty one."""
    found = [list(below(root, base / name)) for name in classes]
    empty = [name for name, paths in zip(classes, found) if not paths]
    if empty:
        happened = f"the class folder {empty[0]} has no images"
        raise UserError(happened, str(base / empty[0]), "fill it, or remove it")
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(paths) for paths in found])
    return Split([path for paths in found for path in paths], labels, tuple(classes))


def check_classes(found: dict[str, Split], location: Path) -> None:
    """UserError naming the classes that one split has and the other has not."""
    for first, second in itertools.permutations(found, 2):
        extra = sorted(set(found[first].classes) - set(found[second].classes))
        if extra:
            listed = ", ".join(extra[:5]) + (f" and {len(extra) - 5} more" if len(extra) > 5 else "")
            happened = f"classes in {first} but not in {second}: {listed}"
            raise UserError(happened, str(location), "the same class folders in both")


def below(root: Path, base: Path) -> Iterator[str]:
    """Images in `base` and all its folders, sorted, as paths relative to `root` with forward slashes."""
    for folder, inside, files in os.walk(base, onerror=refuse, followlinks=True):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        relative = Path(folder).relative_to(root).as_posix()
        prefix = "" if relative == "." else relative + "/"
        yield from (prefix + name for name in sorted(files) if is_image(name))


def refuse(error: OSError) -> None:
    """What os.walk is to do about a folder that cannot be read; left alone it would skip it."""
    raise error


def images_in(folder: Path) -> list[str]:
    """Names of the images directly in a folder, sorted."""
    return sorted(entry.name for entry in os.scandir(folder) if is_image(entry.name) and entry.is_file())


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones."""
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))


def is_image(name: str) -> bool:
    """Whether a file's name is an image's: by its ending; hidden ones (macOS's ._x.jpg) are not."""
    return name.lower().endswith(ENDINGS) and not name.startswith(".")
