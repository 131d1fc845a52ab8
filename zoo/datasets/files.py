"""Data sets that are a few files in one folder: where it is looked for, how they are read, whether they are whole."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np

from results.errors import UserError
from results.files import ROOT, digest, write_text
from zoo.datasets.dataset import Dataset, Missing

CHUNK = 1 << 20  # bytes hashed at a time


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

    def candidates(self) -> Iterator[dict[str, Path]]:
        """The files by name, from each folder in turn that has them. UserError if there is none but one has some."""
        incomplete = []
        for place in self.places:
            found = self.present(place)
            lacking = ", ".join(name for name in self.files if name not in found)
            if found and not lacking:
                yield found
            elif found:
                incomplete.append(UserError(f"{self.name} is incomplete: {lacking} not found", str(place), self.source))
        if incomplete:
            raise incomplete[0]

    def missing(self, why: str = "") -> Missing:
        """The error that none of the folders has the files."""
        return Missing(f"{self.name} is not here{why}", ", ".join(map(str, self.places)), self.source)

    @cached_property
    def _files(self) -> dict[str, Path]:
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


def map_records(path: Path, count: int, size: int) -> np.ndarray:
    """uint8 (count, size): the file's records, read from the disk where they are looked at.

    UserError naming the file if it has another number of bytes.
    """
    try:
        found = path.stat().st_size
        if found != count * size:
            raise broken(path, f"has {found} bytes, where {count * size} are expected")
        return np.memmap(path, np.uint8, mode="c", shape=(count, size))  # c: torch wants to be allowed to write
    except OSError as error:
        raise broken(path, f"cannot be read: {error}") from error


def to_classes(path: Path, labels: np.ndarray, first: int, count: int) -> np.ndarray:
    """The labels that a file holds, int64 from 0 on. UserError naming it for one outside first … first + count - 1."""
    wrong = np.flatnonzero((labels < first) | (labels >= first + count))
    if len(wrong):
        found = f"{labels[wrong[0]]} (of image {wrong[0]})"
        raise broken(path, f"has the label {found}, where {first} to {first + count - 1} are expected")
    return labels.astype(np.int64) - first


def read_names(path: Path, count: int) -> tuple[str, ...]:
    """The names in a file, one a line. UserError naming it if it has not `count` different ones."""
    names = tuple(read_lines(path))
    if not len(names) == len(set(names)) == count:
        raise broken(path, f"has {len(set(names))} names in {len(names)} lines, where {count} are expected")
    return names


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank. UserError naming it if it cannot be read."""
    return [line for line in read_bytes(path).decode(errors="replace").splitlines() if line.strip()]


def read_bytes(path: Path) -> bytes:
    """What the file holds, decompressed if its name ends in .gz. UserError naming it if it cannot be read."""
    return b"".join(chunks(path))


def chunks(path: Path) -> Iterator[bytes]:
    """What the file holds, bit by bit; see read_bytes."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
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
        for chunk in chunks(path):
            content.update(chunk)
    with suppress(OSError, UserError):  # a cache that cannot be written is done without
        write_text(memo, content.hexdigest())
    return content.hexdigest()
