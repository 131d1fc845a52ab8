"""What the declaration of a table is made of: columns and rows that expect something of a record."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Column:
    """What a column's records have in common, and the rows of the published csv that belong in it."""

    header: str
    metric: str
    dataset: str
    protocol: str  # the record's, with its version: "small@1"
    images: str = "split"  # the record's dataset protocol: "split" or "merged"
    settings: dict[str, Any] = field(default_factory=dict)  # settings a record must have
    panel: str = ""  # columns of one panel stand together under its name
    task: str = ""  # where it differs from the table's
    backbone: str = ""  # where it differs from the row's
    published: dict[str, str] = field(default_factory=dict)  # csv column: value
    decimals: int = 1
    scale: float = 1.0  # the record's metric is multiplied by this: papers print ACC as a fraction


@dataclass(frozen=True)
class Row:
    """A checkpoint, by what its name is made of: <method>-<backbone>[-sobel]-<dataset>-s<seed>."""

    label: str
    method: str
    backbone: str = ""
    dataset: str = ""  # of the pretraining; "": the column's
    sobel: bool = False
    layers: tuple[str, ...] = ()  # what the backbone has: columns of another layer do not apply; (): all do
    settings: dict[str, Any] = field(default_factory=dict)  # settings a record must have, besides the column's
    recipe: str | None = None  # None: whichever single recipe the records have
    standard_error: bool = False  # a further row with the standard errors of the means


@dataclass(frozen=True)
class Published:
    """A paper's table: its csv, and the data sets and the protocol that its numbers were measured on."""

    file: str
    citation: str
    protocol: str
    by: str  # the csv column that tells the data sets apart …
    covers: dict[str, str]  # … and our name for each: a number stands in no column of another data set
    value: str = "value"
    label: tuple[str, ...] = ("method",)  # csv columns
    words: dict[str, str] = field(default_factory=dict)  # what a value in them is called, "" to leave it out
    images: str = "split"


@dataclass(frozen=True)
class Table:
    """One table: `task` and `version` say which evaluation its records come from."""

    name: str
    title: str
    tier: str  # "paper", or the data set it is all about
    task: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    version: int = 1
    seeds: tuple[int, ...] = (0, 1, 2)  # pretraining seeds that make a cell complete
    published: Published | None = None
    caption: str = ""
    footnotes: tuple[str, ...] = ()
