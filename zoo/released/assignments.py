"""DeepCluster's released `{arch}_cluster_assignment.pickle`: a list of (path, cluster), pickled by Python 2.

A list of pairs of text and numbers needs nothing but pickle's own types: whatever else a file asks for is refused.
"""

from __future__ import annotations

import csv
import io
import pickle
from collections import Counter
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from results.errors import UserError
from results.files import write_text

EXPECTED = "a released {arch}_cluster_assignment.pickle of DeepCluster"
Assignments = list[tuple[str, int]]


class Refused(pickle.UnpicklingError):
    """The pickle asks for something to be imported."""


class Reader(pickle.Unpickler):
    """Makes numbers, texts, tuples and lists, and imports nothing."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise Refused(f"{module}.{name}")


def read(path: str | PathLike) -> Assignments:
    """(path, cluster) of each image. UserError for a file that is missing, hostile, damaged or something else."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            held = Reader(file, encoding="latin1").load()
    except Refused as error:
        happened = f"{path.name} is refused: it calls {error}, which no list needs"
        raise UserError(happened, str(path), f"{EXPECTED}, from its authors") from error
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path.name}", str(path.parent), EXPECTED) from error
    except Exception as error:  # a torn or foreign file can fail anywhere in the reader
        raise UserError(f"{path.name} is damaged, or no pickle", str(path), EXPECTED) from error
    if not isinstance(held, list) or not held:
        raise UserError(f"{path.name} holds no list of assignments", str(path), EXPECTED)
    return [check(path, number, entry) for number, entry in enumerate(held)]


def check(path: Path, number: int, entry: Any) -> tuple[str, int]:
    """The entry of a list. UserError unless it is a text and a number that counts from 0."""
    pair = isinstance(entry, tuple | list) and len(entry) == 2 and isinstance(entry[0], str) and type(entry[1]) is int
    if not pair or entry[1] < 0:
        raise UserError(f"entry {number} of {path.name} is no (path, cluster)", str(path), EXPECTED)
    return entry[0], entry[1]


def write(assignments: Assignments, path: Path) -> None:
    """Write a csv with the columns path and cluster, atomically."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "cluster"))
    rows.writerows(assignments)
    write_text(path, text.getvalue())


def describe(assignments: Assignments) -> dict[str, str]:
    """Numbers of images and clusters, and how large the clusters are."""
    sizes = np.array(list(Counter(cluster for _, cluster in assignments).values()))
    highest = max(cluster for _, cluster in assignments)
    quartiles = " / ".join(f"{value:g}" for value in np.quantile(sizes, (0, 0.25, 0.5, 0.75, 1)))
    return {
        "images": f"{len(assignments):,}",
        "clusters": f"{len(sizes):,} that are not empty, numbered up to {highest:,}",
        "sizes": f"{quartiles} (least / quartile / median / quartile / greatest)",
    }
