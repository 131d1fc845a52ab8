"""Places205 and Places365: photographs of scenes, in a folder for each class.

Zhou et al., "Learning Deep Features for Scene Recognition using Places Database", NeurIPS 2014, and "Places: A 10
Million Image Database for Scene Recognition", TPAMI 2018. Their class folders may lie in others, as in some of the
archives (train/a/abbey, train/a/apartment_building/outdoor). Mean and deviation are ImageNet's, as in the networks
released with the data sets.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from zoo.datasets.collection import Collection
from zoo.datasets.folder import CountedFolder, Split, below, check_classes


class Places(CountedFolder):
    """A folder of scenes: the folder that an image lies in is its class."""

    licence = "non-commercial research and education (the terms of places.csail.mit.edu)"

    def _unnamed(self, order: np.ndarray) -> bytes:
        """The classes: a plain folder of the same paths has the outer folders' names as its classes."""
        return Collection._unnamed(self, order)

    def gather(self) -> dict[str, Split]:
        """See CountedFolder.gather."""
        found = {split: scan_nested(self.location, self.location / split) for split in ("train", "val")}
        check_classes(found, self.location)
        return found


class Places205(Places):
    """205 classes of scenes."""

    name = "places205"
    folders = ("places205",)
    counts = {"classes": 205, "train": 2448873, "val": 20500}  # noqa: RUF012
    source = (
        "places.csail.mit.edu/downloadData.html, its images put into DIR/places205/train/CLASS and "
        "DIR/places205/val/CLASS as its lists say, then --data-dir DIR"
    )


class Places365(Places):
    """365 classes of scenes: Places365-Standard, large or small images."""

    name = "places365"
    folders = ("places365", "places365_standard")
    counts = {"classes": 365, "train": 1803460, "val": 36500}  # noqa: RUF012
    source = (
        "places2.csail.mit.edu/download.html (Places365-Standard, small images with easy directory structure), "
        "unpacked to DIR/places365_standard/train/CLASS and DIR/places365_standard/val/CLASS, then --data-dir DIR"
    )


def scan_nested(root: Path, base: Path) -> Split:
    """The images below `base`, a folder of `root`; the class of each is its folder's path below `base`."""
    paths = list(below(root, base))
    folders = [path.partition("/")[2].rpartition("/")[0] or "." for path in paths]
    classes = tuple(sorted(set(folders)))
    numbers = {name: number for number, name in enumerate(classes)}
    return Split(paths, np.array([numbers[folder] for folder in folders], dtype=np.int64), classes)
