"""Images that a text file lists, one a line: `list:FILE`, or `list:TRAIN,VAL` with a split to evaluate on.

A line is the path of an image, relative to the list's folder or absolute, and perhaps a label, a number or a name. The
label is what follows the last tab of the line, or else its last comma, or else its last space, if what precedes that
ends as an image does (.jpg, …); otherwise the whole line is the path. So `a cat.jpg`, `a cat.jpg 3` (Caffe's lists),
`a cat.jpg,big cat` and `a cat.jpg, 3` are read as they are meant.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.lib.recfunctions import repack_fields

from results.errors import UserError
from zoo.datasets.collection import Collection, Split
from zoo.datasets.dataset import Missing
from zoo.datasets.folder import ENDINGS
from zoo.datasets.images import table
from zoo.datasets.labels import number_classes

SPLITS = ("train", "val")
PATHS = "paths are relative to the list's folder, or absolute; one image a line"
CHUNK = 1 << 16  # lines that are Python strings at a time


class Listed(Collection):
    """The images that one or two lists name, sorted by path."""

    source = "a list of images: PATH, or PATH LABEL, one a line; list:TRAIN,VAL for a split to evaluate on"

    def __init__(self, spelled: str) -> None:
        files = [Path(part).expanduser() for part in spelled.split(",")]
        if len(files) > len(SPLITS) or "" in spelled.split(","):
            raise UserError(f"list:{spelled} is neither one list nor two", fix="list:FILE, or list:TRAIN,VAL")
        self.files = dict(zip(SPLITS, files))
        self.name = f"list:{files[0].name}"
        self.location = Path(os.path.commonpath([os.path.abspath(file.parent) for file in files]))

    @property
    def origin(self) -> list[str]:
        """See Collection.origin."""
        return ["list", *(os.path.abspath(file) for file in self.files.values())]

    def _look(self) -> dict[str, Split]:
        for file in self.files.values():
            if not file.exists():
                raise Missing(f"there is no list {file.name}", str(file), self.source)
        rows = {split: read_list(file, self.location) for split, file in self.files.items()}
        self._check_apart(rows)

        def called(split: str, at: int) -> str:
            return f"line {rows[split]['line'][at]} of {self.files[split].name}"

        labels, classes = number_classes({split: found["label"] for split, found in rows.items()}, called)
        return {
            split: Split(repack_fields(found[["path", "size"]]), labels[split], classes)
            for split, found in rows.items()
        }

    def _check_apart(self, rows: dict[str, np.ndarray]) -> None:
        """UserError if an image is to be both trained and evaluated on."""
        train, *others = rows.values()
        for other in others:
            both = other[np.isin(other["path"], train["path"])]
            if len(both):
                first = both[np.argmin(both["line"])]
                happened = f"line {first['line']} of {self.files['val'].name} names an image of the other list"
                fix = "lists that have no image in common"
                raise UserError(f"{happened}, {os.fsdecode(first['path'])}", str(self.files["val"]), fix)


def read_list(file: Path, root: Path) -> np.ndarray:
    """Records (N,) of path (relative to `root` unless it is absolute), size, label and line, sorted by path.

    UserError naming the line of an image that is not there, or is there twice.
    """
    lines = numbered_lines(file, Listed.source)
    parts = []
    while chunk := list(islice(lines, CHUNK)):
        parts.append(parse(chunk, file, root))
    if not parts:
        raise UserError(f"there are no images in {file.name}", str(file), Listed.source)
    rows = np.concatenate(parts)
    rows = rows[np.argsort(rows["path"], kind="stable")]
    again = np.flatnonzero(rows["path"][1:] == rows["path"][:-1])
    if len(again):
        first, second = rows[again[0]], rows[again[0] + 1]
        happened = f"lines {first['line']} and {second['line']} of {file.name} name the same image"
        raise UserError(f"{happened}, {os.fsdecode(first['path'])}", str(file), "each image once")
    return rows


def numbered_lines(file: Path, fix: str) -> Iterator[tuple[int, str]]:
    """(number from 1 on, text) of each line that is not blank. UserError with `fix` if it cannot be read as text."""
    try:
        # surrogateescape: names of files may be any bytes; -sig: spreadsheets mark the beginning of their files
        with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, 1):
                if "\0" in line:
                    raise UserError(f"{file.name} is no list: it is not a text", str(file), fix)
                if line.strip():
                    yield number, line.rstrip("\n")
    except OSError as error:
        raise UserError(f"cannot read the list {file.name}: {error.strerror}", str(file), fix) from error


def parse(lines: list[tuple[int, str]], file: Path, root: Path) -> np.ndarray:
    """The records that some lines say; see read_list."""
    folder = os.path.relpath(os.path.abspath(file.parent), root)
    found = [split_label(text) for _, text in lines]
    paths = [below(os.path.normpath(os.path.join(folder, path)), root) for path, _ in found]
    numbers = [number for number, _ in lines]
    return table(
        path=[os.fsencode(path) for path in paths],
        size=[measure(root / path, f"line {number} of {file.name}") for path, number in zip(paths, numbers)],
        label=[os.fsencode(label) for _, label in found],
        line=numbers,
    )


def below(path: str, root: Path) -> str:
    """The path, relative to `root` where it lies below it: one image has one name."""
    return os.path.relpath(path, root) if os.path.isabs(path) and Path(path).is_relative_to(root) else path


def split_label(line: str) -> tuple[str, str]:
    """The path and the label (or "") that a line holds."""
    for separator in "\t, ":
        path, _, label = line.rpartition(separator)
        if path.rstrip().lower().endswith(ENDINGS):
            return path.rstrip(), label.strip()
    return line.strip(), ""


def measure(path: Path, line: str) -> int:
    """The size in bytes of an image. UserError naming the line if there is no such file."""
    try:
        state = path.stat()
    except OSError as error:
        raise UserError(f"{line}: cannot read the image {path.name}: {error.strerror}", str(path), PATHS) from error
    if not stat.S_ISREG(state.st_mode):
        raise UserError(f"{line}: {path.name} is not a file", str(path), PATHS)
    return state.st_size
