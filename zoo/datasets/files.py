"""Data sets that are a few files in one folder: where it is looked for, how they are read, whether they are whole."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from results.errors import UserError
from results.files import ROOT, digest, write_text
from zoo.datasets.dataset import Dataset, Missing

CHUNK = 1 << 20  # bytes hashed at a time


@dataclass(frozen=True)
class File:
    """A file of a data set, and how to get it. UserErrors about what it holds tell both."""

    path: Path
    source: str  # see Dataset

    def map_records(self, count: int, size: int) -> np.ndarray:
        """uint8 (count, size): the file's records, read from the disk where they are looked at.

        UserError if it has another number of bytes.
        """
        try:
            found = self.path.stat().st_size
            if found != count * size:
                raise self.broken(f"has {found} bytes, where {count * size} are expected")
            return np.memmap(
                self.path, np.uint8, mode="c", shape=(count, size)
            )  # c: torch wants to be allowed to write
        except OSError as error:
            raise self.broken(f"cannot be read: {error}") from error

    def to_classes(self, labels: np.ndarray, first: int, count: int) -> np.ndarray:
        """The labels that the file holds, int64 from 0 on. UserError for one outside first … first + count - 1."""
        wrong = np.flatnonzero((labels < first) | (labels >= first + count))
        if len(wrong):
            found = f"{labels[wrong[0]]} (of image {wrong[0]})"
            raise self.broken(f"has the label {found}, where {first} to {first + count - 1} are expected")
        return labels.astype(np.int64) - first

    def read_names(self, count: int) -> tuple[str, ...]:
        """The names in the file, one a line. UserError if it has not `count` different ones."""
        names = tuple(self.read_lines())
        if not len(names) == len(set(names)) == count:
            raise self.broken(f"has {len(set(names))} names in {len(names)} lines, where {count} are expected")
        return names

    def read_lines(self) -> list[str]:
        """The lines of a text that are not blank. UserError if it cannot be read."""
        return [line for line in self.read_bytes().decode(errors="replace").splitlines() if line.strip()]

    def read_bytes(self) -> bytes:
        """What the file holds, decompressed if its name ends in .gz. UserError if it cannot be read."""
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """What the file holds, bit by bit; see read_bytes."""
        try:
            with gzip.open(self.path) if self.path.suffix == ".gz" else self.path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    yield chunk
        except (OSError, EOFError, zlib.error) as error:
            raise self.broken(f"cannot be read: {error}") from error

    def broken(self, what: str) -> UserError:
        """The error of a file that is not what it should be."""
        return UserError(f"{self.path.name} {what}", str(self.path), f"delete it and get it again: {self.source}")


class FileDataset(Dataset):
    """A data set in a few files, all of them in one of the usual places."""

    folders: tuple[str, ...]  # what the folder of its files may be called
    packaged: tuple[Path, ...] = ()  # where a distribution's package puts it

    def __init__(self, data_dir: Path | None) -> None:
        self.places = [*list_places(data_dir, *self.folders), *self.packaged]

    @property
    @abstractmethod
    def files(self) -> tuple[str, ...]:
        """The names of the files."""

    def preflight(self) -> None:
        """See Dataset.preflight; looks at every file."""
        _ = self.classes
        for split in self.splits:
            self.read(split)

    def fingerprint(self, full: bool = False) -> str:
        """See Dataset.fingerprint: the files, decompressed; remembered by path, size and time."""
        return remembered(list(self._files.values()), full)

    def present(self, place: Path) -> dict[str, Path]:
        """Those of the files that a folder has, by name."""
        return {name: place / name for name in self.files if (place / name).is_file()}

    def candidates(self) -> Iterator[dict[str, File]]:
        """The files by name, from each folder in turn that has them. UserError if there is none but one has some."""
        incomplete = []
        for place in self.places:
            found = self.present(place)
            lacking = ", ".join(name for name in self.files if name not in found)
            if found and not lacking:
                yield {name: File(path, self.source) for name, path in found.items()}
            elif found:
                incomplete.append(UserError(f"{self.name} is incomplete: {lacking} not found", str(place), self.source))
        if incomplete:
            raise incomplete[0]

    def missing(self, why: str = "") -> Missing:
        """The error that none of the folders has the files."""
        return Missing(f"{self.name} is not here{why}", ", ".join(map(str, self.places)), self.source)

    @cached_property
    def _files(self) -> dict[str, File]:
        """The files by name, from the first folder that has them."""
        for found in self.candidates():
            return found
        raise self.missing()


def list_places(data_dir: Path | None, *folders: str) -> list[Path]:
    """Where a data set is looked for, in order: folders of these names in `data_dir`, `data_dir` itself, the same of
    $ZOO_DATA, and the folders in the clone's data/."""
    roots = [Path(root) for root in (data_dir, os.environ.get("ZOO_DATA")) if root]
    found = [place for root in roots for place in (*(root / folder for folder in folders), root)]
    return found + [ROOT / "data" / folder for folder in folders]


def remembered(files: list[File], full: bool = False) -> str:
    """The sha256 of the decompressed files; read again if a path, size or time changed, or `full`."""
    states = [(file.path, file.path.stat()) for file in files]
    key = digest([[str(path.resolve()), state.st_size, state.st_mtime_ns] for path, state in states])
    memo = ROOT / "cache" / "fingerprints" / key[:32]
    if not full:
        with suppress(OSError, UnicodeDecodeError):
            known = memo.read_text()
            if len(known) == 64:
                return known
    content = hashlib.sha256()
    for file in files:
        for chunk in file.chunks():
            content.update(chunk)
    with suppress(OSError, UserError):  # a cache that cannot be written is done without
        write_text(memo, content.hexdigest())
    return content.hexdigest()
