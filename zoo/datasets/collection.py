"""What folders, lists and shards of images have in common: they are looked through once, and images can be left out."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from results.errors import UserError
from results.files import digest
from zoo.datasets.dataset import Dataset
from zoo.datasets.decoding import read_rgb
from zoo.datasets.images import FileImages, as_records, join_labels


@dataclass(frozen=True)
class Split:
    """The images of one split: paths (see FileImages) in an order that contents alone decide, and each one's class."""

    paths: list[str] | np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...] = ()


class Collection(Dataset):
    """Images in files; the first split is the training split, and its classes are those of the data set."""

    channels = 3
    mean = (0.485, 0.456, 0.406)  # ImageNet's, as networks for photographs expect
    std = (0.229, 0.224, 0.225)
    flips = True
    licence = "its owner's"
    location: Path  # the folder that paths are relative to
    excluded: frozenset[bytes] = frozenset()  # names of images that are left out

    @property
    @abstractmethod
    def origin(self) -> list[str]:
        """Where it lies on this machine; of collections that lie elsewhere, another one."""

    @abstractmethod
    def _look(self) -> dict[str, Split]:
        """All that is there, by split. UserError if it is not as it should be; may be an OSError."""

    @property
    def published(self) -> dict[str, int]:
        """Images in each split where that is known, and checked; else nothing."""
        return {}

    @property
    def splits(self) -> dict[str, int]:
        """See Dataset.splits: as published, whether they are here or not, unless some are left out."""
        if self.published and not self.excluded:
            return self.published
        return {name: len(split.paths) for name, split in self._scan.items()}

    @property
    def classes(self) -> tuple[str, ...]:
        """See Dataset.classes."""
        return next(iter(self._scan.values())).classes

    @cached_property
    def size(self) -> int | None:
        """Shorter side of the first image."""
        return min(read_rgb(self.read(self.training).place(0)).size)

    def preflight(self) -> None:
        """See Dataset.preflight; opens the first image of each class."""
        for split in self.splits:
            images = self.read(split)
            labels = np.zeros(len(images)) if images.labels is None else images.labels
            for first in np.unique(labels, return_index=True)[1]:
                read_rgb(images.place(first))

    def fingerprint(self, full: bool = False) -> str:
        """See Dataset.fingerprint: names and sizes, sorted; with `full` each image's bytes too."""
        return self._hash(full=True) if full else self._fingerprint

    def read(self, split: str) -> FileImages:
        """See Dataset.read."""
        return self._images(self._scan[split])

    @cached_property
    def _scan(self) -> dict[str, Split]:
        try:
            found = self._look()
        except OSError as error:
            raise UserError(f"cannot read a folder: {error.strerror}", str(error.filename)) from error
        found = {name: replace(split, paths=as_records(split.paths)) for name, split in found.items()}
        return self._leave_out(found) if self.excluded else found

    def _images(self, split: Split) -> FileImages:
        return FileImages(self.location, split.paths, split.labels)

    def _leave_out(self, found: dict[str, Split]) -> dict[str, Split]:
        """The splits without the images that are excluded. UserError if one of these is not there, or none is left."""
        unwanted, unknown, left = np.array(sorted(self.excluded)), set(self.excluded), {}
        for name, split in found.items():
            images = self._images(split)
            out = np.isin(images.names, unwanted)
            unknown.difference_update(images.names[out].tolist())
            if out.all():
                raise UserError(f"no image of {name} is left in {self.name}", fix="--exclude with a shorter list")
            rest = images.subset(np.flatnonzero(~out))
            left[name] = replace(split, paths=rest.paths, labels=rest.labels)
        if unknown:
            more = f" (nor are {len(unknown) - 1} more)" if len(unknown) > 1 else ""
            happened = f"the image {os.fsdecode(min(unknown))} to be left out is not in {self.name}{more}"
            fix = "names as python -m zoo.datasets --verify writes them, one a line"
            raise UserError(happened, str(self.location), fix)
        return left

    @cached_property
    def _fingerprint(self) -> str:
        return self._hash(full=False)

    def _hash(self, full: bool) -> str:
        """The sha256 of each image's name and content, sorted by name, and of what names do not tell."""
        images = FileImages.joined([self._images(split) for split in self._scan.values()])
        names = images.names
        order = np.argsort(names, kind="stable")
        content = hashlib.sha256()
        for number, name in zip(order, portable(names[order])):
            content.update(name + b"\0" + images.place(number).content(full) + b"\n")
        content.update(self._unnamed(order))
        return content.hexdigest()

    def _unnamed(self, order: np.ndarray) -> bytes:
        """What the names of images, in this order, do not tell: their splits and classes."""
        parts = [self._images(split) for split in self._scan.values()]
        columns = [np.repeat(np.arange(len(parts)), [len(part) for part in parts]), join_labels(parts)]
        held = b"".join(column[order].astype("<i8").tobytes() for column in columns if column is not None)
        return digest([list(self.splits), self.classes]).encode() + held


def portable(names: np.ndarray) -> Iterator[bytes]:
    """The sorted names without the folder that all absolute ones share: the same wherever that lies."""
    absolute = names[np.char.startswith(names, b"/")]
    folders = [os.path.dirname(name) for name in (*absolute[:1], *absolute[-1:])]
    shared = os.path.commonpath(folders).rstrip(b"/") if folders else b""
    return (name.removeprefix(shared) for name in names)
