"""Tiny ImageNet: 200 of ImageNet's classes at 64 x 64, as Stanford's course CS231n unpacks it.

wnids.txt names the classes, train/CLASS/images/ holds their images, and val/val_annotations.txt says of each image of
val/images/ which class it has (name, class and four numbers of a box, between tabs). The test images have no labels.
"""

from __future__ import annotations

import numpy as np

from results.errors import UserError
from results.files import digest
from zoo.datasets.files import File, remembered
from zoo.datasets.folder import CountedFolder, Split, images_in, scan_classes

CLASSES, IMAGES, ANNOTATIONS = "wnids.txt", "val/images", "val/val_annotations.txt"


class TinyImageNet(CountedFolder):
    """100 000 + 10 000 photographs. The paper clusters those of train alone (mmdc.md 1.9)."""

    name = "tiny-imagenet"
    folders = ("tiny-imagenet", "tiny-imagenet-200")
    counts = {"classes": 200, "train": 100000, "val": 10000}  # noqa: RUF012
    merged = ("train",)
    size = 64
    mean = (0.4802, 0.4481, 0.3975)
    std = (0.2770, 0.2691, 0.2821)
    licence = "non-commercial research (image-net.org's terms)"
    source = "http://cs231n.stanford.edu/tiny-imagenet-200.zip, unpacked to DIR/tiny-imagenet-200, then --data-dir DIR"

    def file(self, name: str) -> File:
        """One of the files beside the images."""
        return File(self.location / name, self.source)

    def gather(self) -> dict[str, Split]:
        """See CountedFolder.gather; classes are sorted by name, images of val as the annotations are."""
        classes = tuple(sorted(self.file(CLASSES).read_names(self.counts["classes"])))
        train = scan_classes(self.location, self.location / "train", classes)
        return {"train": train, "val": self.read_annotations(classes)}

    def read_annotations(self, classes: tuple[str, ...]) -> Split:
        """The images of val. UserError naming one whose class is not known, or that is not listed or not there."""
        file = self.file(ANNOTATIONS)
        known = {name: number for number, name in enumerate(classes)}
        rows = [line.split("\t") for line in file.read_lines()]
        named = {image: box[0] if box else "" for image, *box in rows}
        unknown = [f"{image} the class '{name}'" for image, name in named.items() if name not in known]
        if unknown:
            raise file.broken(f"gives {unknown[0]}, which {CLASSES} does not name")
        unequal = sorted(set(named) ^ set(images_in(self.location / IMAGES)))
        if unequal:
            happened = f"the image {unequal[0]} is in only one of {ANNOTATIONS} and {IMAGES}"
            raise UserError(happened, str(self.location), self.source)
        labels = np.array([known[name] for name in named.values()], dtype=np.int64)
        return Split([f"{IMAGES}/{image}" for image in named], labels, classes)

    def fingerprint(self, full: bool = False) -> str:
        """See Folder.fingerprint; and the annotations."""
        return digest([super().fingerprint(full), remembered([self.file(ANNOTATIONS)], full)])
