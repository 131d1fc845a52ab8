"""MNIST and Fashion-MNIST: four idx files, plain or gzipped, from wherever they lie.

An idx file is four bytes (0, 0, type 8 = uint8, number of dimensions), the dimensions as big-endian 32-bit
numbers, and the pixels or labels (LeCun, Cortes, Burges).
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from zoo.datasets.files import File, FileDataset, remembered
from zoo.datasets.images import ArrayImages

PREFIXES = {"train": "train", "test": "t10k"}
PARTS = ("images-idx3-ubyte", "labels-idx1-ubyte")
SIZE, CLASSES = 28, 10
# Fingerprints of the published files; the names are the same: one set can lie where the other is looked for.
PUBLISHED = {
    "b2d8f5bf39174ee5ffeefa97e42d673c35432b411bb5d1f74fbbeddae7f1690a": "mnist",
    "14410854cf7a289477dcfc7df3f8ec24741e281cdcc425ede0d9a748ca630214": "fashion-mnist",
}


class IdxDataset(FileDataset):
    """A data set in MNIST's format."""

    channels = 1
    size = SIZE
    splits = {"train": 60000, "test": 10000}  # noqa: RUF012
    files = tuple(f"{prefix}-{part}" for prefix in PREFIXES.values() for part in PARTS)

    def read(self, split: str) -> ArrayImages:
        """See Dataset.read."""
        images, labels = self._arrays[split]
        return ArrayImages(torch.from_numpy(images)[:, None], labels)

    def present(self, place: Path) -> dict[str, Path]:
        """See FileDataset.present; a plain file before a gzipped one."""
        paths = [(name, place / f"{name}{ending}") for name in self.files for ending in (".gz", "")]
        return {name: path for name, path in paths if path.is_file()}

    @cached_property
    def _files(self) -> dict[str, File]:
        """The files by name, from the first folder that has them and not those of another data set."""
        foreign = ""
        for found in self.candidates():
            files = list(found.values())
            published = PUBLISHED.get(remembered(files), self.name)
            if published == self.name:
                return found
            foreign = f" (the files in {files[0].path.parent} are those of {published})"
        raise self.missing(foreign)

    @cached_property
    def _arrays(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Per split: uint8 (N, 28, 28), int64 (N,)."""
        found = {}
        for split, count in self.splits.items():
            images, labels = (self._files[f"{PREFIXES[split]}-{part}"] for part in PARTS)
            found[split] = read_images(images, count), read_labels(labels, count)
        return found


class Mnist(IdxDataset):
    """60 000 + 10 000 handwritten digits, 28 x 28, grey."""

    name = "mnist"
    folders = ("mnist", "MNIST/raw")  # the latter is torchvision's
    classes = tuple("0123456789")
    mean = (0.1307,)
    std = (0.3081,)
    flips = False
    licence = "CC BY-SA 3.0"
    source = "python -m zoo.datasets --download mnist --data-dir DIR, then --data-dir DIR"


class FashionMnist(IdxDataset):
    """60 000 + 10 000 garments, 28 x 28, grey."""

    name = "fashion-mnist"
    folders = ("fashion-mnist", "FashionMNIST/raw")
    packaged = (Path("/usr/share/datasets/fashion-mnist"),)
    classes = (
        *("T-shirt", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    )
    mean = (0.2860,)
    std = (0.3530,)
    flips = True
    licence = "MIT"
    source = (
        "apt install dataset-fashion-mnist, or "
        "python -m zoo.datasets --download fashion-mnist --data-dir DIR, then --data-dir DIR"
    )


def read_images(file: File, count: int) -> np.ndarray:
    """uint8 (count, 28, 28). UserError if it holds anything else."""
    images = read_idx(file, 3)
    if images.shape != (count, SIZE, SIZE):
        found = " x ".join(map(str, images.shape))
        raise file.broken(f"holds {found} pixels, where {count} x {SIZE} x {SIZE} are expected")
    return images


def read_labels(file: File, count: int) -> np.ndarray:
    """int64 (count,), each in 0..9. UserError if it holds anything else."""
    labels = read_idx(file, 1)
    if len(labels) != count:
        raise file.broken(f"holds {len(labels)} labels, where {count} are expected")
    return file.to_classes(labels, 0, CLASSES)


def read_idx(file: File, dimensions: int) -> np.ndarray:
    """The array in an idx file of unsigned bytes. UserError if it is none, short or long."""
    content = file.read_bytes()
    header = 4 * (1 + dimensions)
    if content[:4] != bytes([0, 0, 8, dimensions]):
        start = content[:4].hex()
        raise file.broken(f"is not an idx file of {dimensions} dimensions (it starts with {start})")
    shape = tuple(np.frombuffer(content[4:header].ljust(4 * dimensions, b"\0"), dtype=">u4").tolist())
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise file.broken(f"has {len(content)} bytes, where its header says {expected}")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy()  # writable, for torch
