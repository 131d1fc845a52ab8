"""MNIST and Fashion-MNIST: four idx files, plain or gzipped, from wherever they lie.

An idx file is four bytes (0, 0, type 8 = uint8, number of dimensions), the dimensions as big-endian 32-bit
numbers, and the pixels or labels (LeCun, Cortes, Burges).
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from results.errors import UserError
from results.files import ROOT, digest, write_text
from zoo.datasets.dataset import Dataset, Missing
from zoo.datasets.images import ArrayImages

PREFIXES = {"train": "train", "test": "t10k"}
PARTS = ("images-idx3", "labels-idx1")
SIZE, CLASSES = 28, 10
# Fingerprints of the published files; the names are the same: one set can lie where the other is looked for.
PUBLISHED = {
    "b2d8f5bf39174ee5ffeefa97e42d673c35432b411bb5d1f74fbbeddae7f1690a": "mnist",
    "14410854cf7a289477dcfc7df3f8ec24741e281cdcc425ede0d9a748ca630214": "fashion-mnist",
}


class IdxDataset(Dataset):
    """A data set in MNIST's format, looked for below `data_dir` and in the usual places."""

    folder: str  # torchvision's name for it
    packaged: tuple[Path, ...] = ()  # where a distribution's package puts it
    channels = 1
    size = SIZE
    splits = {"train": 60000, "test": 10000}  # noqa: RUF012

    def __init__(self, data_dir: Path | None) -> None:
        self.data_dir = data_dir

    def preflight(self) -> None:
        """See Dataset.preflight; reads everything."""
        for split in self.splits:
            self.read(split)

    def read(self, split: str) -> ArrayImages:
        """See Dataset.read."""
        images, labels = self._arrays[split]
        return ArrayImages(torch.from_numpy(images)[:, None], labels)

    def fingerprint(self, full: bool = False) -> str:
        """See Dataset.fingerprint: the four files, decompressed; remembered by path, size and time."""
        return remembered(list(self._files.values()), full)

    def places(self) -> list[Path]:
        """The folders looked in, in order."""
        roots = [Path(root) for root in (self.data_dir, os.environ.get("ZOO_DATA")) if root]
        found = [place for root in roots for place in (root / self.name, root)]
        found += [ROOT / "data" / self.name, *self.packaged]
        return found + [root / self.folder / "raw" for root in [*roots, ROOT / "data"]]

    @cached_property
    def _files(self) -> dict[str, Path]:
        """The four files by their stems, from the first folder that has them."""
        stems = [f"{prefix}-{part}" for prefix in PREFIXES.values() for part in PARTS]
        foreign = ""
        for place in self.places():
            found = dict(present(place, stems))
            lacking = ", ".join(f"{stem}-ubyte.gz" for stem in stems if stem not in found)
            if found and lacking:
                raise UserError(f"{self.name} is incomplete: {lacking} not found", str(place), self.source)
            if found:
                published = PUBLISHED.get(remembered(list(found.values())), self.name)
                if published == self.name:
                    return found
                foreign = f" (the files in {place} are those of {published})"
        looked = ", ".join(map(str, self.places()))
        raise Missing(f"{self.name} is not here{foreign}", looked, self.source)

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
    folder = "MNIST"
    classes = tuple("0123456789")
    mean = (0.1307,)
    std = (0.3081,)
    flips = False
    licence = "CC BY-SA 3.0"
    source = "python -m zoo.datasets --download mnist --data-dir DIR, then --data-dir DIR"


class FashionMnist(IdxDataset):
    """60 000 + 10 000 garments, 28 x 28, grey."""

    name = "fashion-mnist"
    folder = "FashionMNIST"
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


def present(place: Path, stems: list[str]) -> Iterator[tuple[str, Path]]:
    """(stem, path) of each idx file in a folder; a plain one before a gzipped one."""
    for stem in stems:
        for ending in ("-ubyte", "-ubyte.gz"):
            path = place / f"{stem}{ending}"
            if path.is_file():
                yield stem, path
                break


def read_images(path: Path, count: int) -> np.ndarray:
    """uint8 (count, 28, 28). UserError naming the file if it holds anything else."""
    images = read_idx(path, 3)
    if images.shape != (count, SIZE, SIZE):
        found = " x ".join(map(str, images.shape))
        raise broken(path, f"holds {found} pixels, where {count} x {SIZE} x {SIZE} are expected")
    return images


def read_labels(path: Path, count: int) -> np.ndarray:
    """int64 (count,), each in 0..9. UserError naming the file if it holds anything else."""
    labels = read_idx(path, 1)
    if len(labels) != count:
        raise broken(path, f"holds {len(labels)} labels, where {count} are expected")
    if labels.max() >= CLASSES:
        found = f"{labels.max()} (of image {labels.argmax()})"
        raise broken(path, f"has the label {found}, where 0 to {CLASSES - 1} are expected")
    return labels.astype(np.int64)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The array in an idx file of unsigned bytes. UserError naming the file if it is none, short or long."""
    content = read_bytes(path)
    header = 4 * (1 + dimensions)
    if content[:4] != bytes([0, 0, 8, dimensions]):
        start = content[:4].hex()
        raise broken(path, f"is not an idx file of {dimensions} dimensions (it starts with {start})")
    shape = tuple(np.frombuffer(content[4:header].ljust(4 * dimensions, b"\0"), dtype=">u4").tolist())
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise broken(path, f"has {len(content)} bytes, where its header says {expected}")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy()  # writable, for torch


def read_bytes(path: Path) -> bytes:
    """What the file holds, decompressed if its name ends in .gz."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise broken(path, f"cannot be read: {error}") from error


def broken(path: Path, what: str) -> UserError:
    """The error of a file that is not what it should be."""
    return UserError(f"{path.name} {what}", str(path), "delete it and get it again")


def remembered(paths: list[Path], full: bool = False) -> str:
    """The sha256 of the decompressed files; read again if a path, size or time changed, or `full`."""
    states = [(path, path.stat()) for path in paths]
    key = digest([[str(path.resolve()), state.st_size, state.st_mtime_ns] for path, state in states])
    memo = ROOT / "cache" / "fingerprints" / key[:32]
    if not full:
        with suppress(OSError, UnicodeDecodeError):
            known = memo.read_text()
            if len(known) == 64:
                return known
    content = hashlib.sha256()
    for path in paths:
        content.update(read_bytes(path))
    with suppress(OSError, UserError):  # a cache that cannot be written is done without
        write_text(memo, content.hexdigest())
    return content.hexdigest()
