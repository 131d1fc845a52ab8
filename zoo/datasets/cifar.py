"""CIFAR-10 and CIFAR-100, and the latter's 20 superclasses, from the binary versions of the files.

A record is the label and 3 x 32 x 32 pixels: red, green, blue, each row by row. In CIFAR-100 there are two labels, the
superclass ("coarse") before the class ("fine"). Krizhevsky, "Learning Multiple Layers of Features from Tiny Images",
2009; www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import numpy as np
import torch

from zoo.datasets.files import FileDataset
from zoo.datasets.images import ArrayImages

SIDE = 32


class Cifar(FileDataset):
    """50 000 + 10 000 photographs, 32 x 32, in colour."""

    parts: dict[str, tuple[str, ...]]  # the files of each split, equally long
    names: str  # the file of the classes' names
    count: int  # of the classes
    labels: int  # label bytes of a record …
    label: int  # … and which of them is the class

    channels = 3
    size = SIDE
    splits = {"train": 50000, "test": 10000}  # noqa: RUF012
    flips = True
    licence = "none stated; cite Krizhevsky 2009"

    @property
    def files(self) -> tuple[str, ...]:
        """See FileDataset.files."""
        return (*self.parts["train"], *self.parts["test"], self.names)

    @property
    def classes(self) -> tuple[str, ...]:
        """See Dataset.classes."""
        return self._files[self.names].read_names(self.count)

    def read(self, split: str) -> ArrayImages:
        """See Dataset.read."""
        pixels, labels = zip(*(self.read_part(name, split) for name in self.parts[split]))
        return ArrayImages(torch.from_numpy(np.concatenate(pixels)), np.concatenate(labels))

    def read_part(self, name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Pixels uint8 (n, 3, 32, 32) and classes int64 (n,) of one of a split's files. UserError naming it."""
        file, count = self._files[name], self.splits[split] // len(self.parts[split])
        records = file.map_records(count, self.labels + 3 * SIDE**2)
        pixels = records[:, self.labels :].reshape(count, 3, SIDE, SIDE)
        return pixels, file.to_classes(records[:, self.label], 0, self.count)


class Cifar10(Cifar):
    """10 classes of animals and vehicles."""

    name = "cifar10"
    folders = ("cifar10", "cifar-10-batches-bin")
    parts = {  # noqa: RUF012
        "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        "test": ("test_batch.bin",),
    }
    names, count = "batches.meta.txt", 10
    labels, label = 1, 0
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    source = (
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz (the binary version), "
        "unpacked to DIR/cifar-10-batches-bin, then --data-dir DIR"
    )


class Cifar100(Cifar):
    """100 classes."""

    name = "cifar100"
    folders = ("cifar100", "cifar-100-binary")
    parts = {"train": ("train.bin",), "test": ("test.bin",)}  # noqa: RUF012
    names, count = "fine_label_names.txt", 100
    labels, label = 2, 1
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
    source = (
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz (the binary version), "
        "unpacked to DIR/cifar-100-binary, then --data-dir DIR"
    )


class Cifar100Coarse(Cifar100):
    """CIFAR-100 by its 20 superclasses, the paper's "CIFAR-100" (mmdc.md 1.9)."""

    name = "cifar100-20"
    names, count = "coarse_label_names.txt", 20
    label = 0
