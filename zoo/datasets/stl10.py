"""STL-10: labelled photographs of ten classes, and many more without labels, from the binary files.

Images are 3 x 96 x 96 bytes: red, green, blue, each column by column; labels are bytes from 1 to 10. Coates, Lee & Ng,
"An Analysis of Single-Layer Networks in Unsupervised Feature Learning", AISTATS 2011; cs.stanford.edu/~acoates/stl10.
"""

from __future__ import annotations

import torch

from zoo.datasets.dataset import UNLABELLED
from zoo.datasets.files import File, FileDataset, remembered
from zoo.datasets.images import ArrayImages

SIDE, CLASSES = 96, 10
NAMES = "class_names.txt"
STEMS = {"train": "train", "test": "test", UNLABELLED: "unlabeled"}  # the files' names begin so


class Stl10(FileDataset):
    """5 000 + 8 000 photographs with labels and 100 000 without, 96 x 96, in colour.

    Pixels stay on the disk until they are looked at: of the 2.7 GB without labels, preflight sees the size alone, and
    the fingerprint nothing unless it is `full` or for a run on them.
    """

    name = "stl10"
    folders = ("stl10", "stl10_binary")
    files = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", NAMES, "unlabeled_X.bin")
    channels = 3
    size = SIDE
    splits = {"train": 5000, "test": 8000, UNLABELLED: 100000}  # noqa: RUF012
    mean = (0.4467, 0.4398, 0.4066)
    std = (0.2603, 0.2566, 0.2713)
    flips = True
    licence = "none stated; the images are ImageNet's (image-net.org's terms)"
    source = (
        "python -m zoo.datasets --download stl10 --data-dir DIR, or "
        "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz, unpacked to DIR/stl10_binary; then --data-dir DIR"
    )

    @property
    def classes(self) -> tuple[str, ...]:
        """See Dataset.classes."""
        return self._files[NAMES].read_names(CLASSES)

    def fingerprint(self, full: bool = False) -> str:
        """See Dataset.fingerprint: all files, or without `full` those of labelled images."""
        return remembered([file for name, file in self._files.items() if full or name != "unlabeled_X.bin"], full)

    def fingerprint_of(self, split: str) -> str:
        """See Dataset.fingerprint_of; images without labels are read for it once, then remembered."""
        return remembered(list(self._files.values())) if split == UNLABELLED else self.fingerprint()

    def read(self, split: str) -> ArrayImages:
        """See Dataset.read."""
        stem, count = STEMS[split], self.splits[split]
        columns = torch.from_numpy(self._files[f"{stem}_X.bin"].map_records(count, 3 * SIDE**2))
        pixels = columns.reshape(count, 3, SIDE, SIDE).mT
        if split == UNLABELLED:
            return ArrayImages(pixels, None)
        labels: File = self._files[f"{stem}_y.bin"]
        return ArrayImages(pixels, labels.to_classes(labels.map_records(count, 1)[:, 0], 1, CLASSES))
