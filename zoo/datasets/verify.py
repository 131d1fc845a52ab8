"""Every image of a data set decoded, those that cannot be listed, and such lists left out of a run.

A list has an image a line, by its name in the data set (path, or shard:key), and behind a tab the reason.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from results.errors import UserError
from results.files import check_writable, write_bytes
from zoo.datasets import SPELLED
from zoo.datasets.collection import Collection
from zoo.datasets.dataset import Dataset
from zoo.datasets.decoding import decode, reason
from zoo.datasets.images import FileImages, ahead
from zoo.datasets.listed import numbered_lines


def verify(dataset: Dataset, out: Path | None = None) -> int:
    """Decode every image and say how many are corrupt; 1 if some are, which are then listed in `out`, else 0."""
    collection = check_collection(dataset, "each can be verified")
    splits = collection.splits
    path = out or Path(f"{collection.name.replace(':', '-')}-corrupt.txt")
    check_free(path)
    corrupt = []
    for split, count in splits.items():
        found = find_corrupt(collection.read(split), split)
        print(f"{collection.name}  {split}  {count} images, {len(found)} corrupt")
        corrupt += found
    if corrupt:
        write_bytes(path, b"".join(name + b"\t" + why.encode(errors="replace") + b"\n" for name, why in corrupt))
        print(f"listed in {path}; runs leave them out with --exclude {path}")
    return 1 if corrupt else 0


def check_free(path: Path) -> None:
    """UserError unless a file can be written there: known before hours of decoding."""
    if path.exists() and not path.is_file():
        place = path if path.is_dir() else Path()
        raise UserError(f"cannot write the list: {path} is not a file", fix=f"--out {place / 'corrupt.txt'}")
    check_writable(path.parent)


def find_corrupt(images: FileImages, split: str) -> list[tuple[bytes, str]]:
    """(name, reason) of each image that cannot be decoded."""

    def check(number: int) -> str:
        try:
            decode(images.place(number))
        except Exception as error:  # damaged bytes make decoders fail in any way
            return reason(error)
        return ""

    checked = ahead(check, range(len(images)), workers=os.cpu_count() or 1, most=256)
    progress = tqdm(checked, desc=split, total=len(images), disable=None, leave=False)
    wrong = [(number, why) for number, why in enumerate(progress) if why]
    names = images.subset(np.array([number for number, _ in wrong], dtype=np.int64)).names.tolist()
    return [(name, why) for name, (_, why) in zip(names, wrong)]


def exclude(dataset: Dataset, path: Path) -> None:
    """Leave the images out that a list names. UserError if it cannot be read, or the images are not files."""
    collection = check_collection(dataset, "some can be left out")
    fix = f"python -m zoo.datasets --verify NAME --out {path} writes such a list (NAME as after --dataset)"
    parts = (line.rpartition("\t") for _, line in numbered_lines(path, fix))
    collection.excluded = frozenset(os.fsencode(name if tab else rest.strip()) for name, tab, rest in parts)


def check_collection(dataset: Dataset, wish: str) -> Collection:
    """The data set. UserError if its images are not files or parts of files, where alone `wish` holds."""
    if not isinstance(dataset, Collection):
        happened = f"the images of {dataset.name} are not files of their own, where {wish}"
        raise UserError(happened, fix=f"a data set of image files, such as {SPELLED}")
    return dataset
