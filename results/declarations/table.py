"""What the declaration of a table is made of: columns and rows that expect something of a record."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from results.files import digest
from results.record import cell_key


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
    version: int = 0  # of the task; 0: the table's
    backbone: str = ""  # where it differs from the row's
    published: dict[str, str] = field(default_factory=dict)  # csv column: value
    decimals: int = 1
    scale: float = 1.0  # the record's metric is multiplied by this: papers print ACC as a fraction

    @property
    def of_training(self) -> bool:
        """Whether it holds what a pretraining run records itself."""
        return self.task.startswith("pretrain.")


@dataclass(frozen=True)
class Pretraining:
    """A training whatever its seed, whole enough for the recipe of its checkpoints and the keys of its runs."""

    task: str
    version: int
    dataset: str
    fingerprint: str  # of the data set
    channels: int  # of the images, as the backbone takes them
    # As records hold them, without the seed: what a method got later is there only where it is not the default.
    settings: dict[str, Any]
    changed: dict[str, Any] = field(default_factory=dict)  # those of them that differ from the data set's preset

    @property
    def method(self) -> str:
        """The task without its folder."""
        return self.task.rpartition(".")[2]

    @property
    def recipe(self) -> str:
        """The recipe of its checkpoints, as zoo.checkpoint has it."""
        backbone = {"name": self.settings["backbone"], "channels": self.channels, "sobel": self.settings["sobel"]}
        dataset = {"name": self.dataset, "protocol": self.settings["images"], "fingerprint": self.fingerprint}
        return digest({"method": self.method, "backbone": backbone, "dataset": dataset, "settings": self.settings})[:12]

    def key(self, seed: int) -> str:
        """The key of its run of that seed."""
        return cell_key(self.task, self.version, {**self.settings, "seed": seed}, None, self.fingerprint)

    def but(self, changed: dict[str, Any]) -> Pretraining:
        """The same with other values of some settings, none of them the preset's own."""
        return replace(self, settings={**self.settings, **changed}, changed={**self.changed, **changed})


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
    training: Pretraining | None = None  # then only checkpoints that a recorded run of it, of its version, made
    at: float | None = None  # where the row stands on the axis of the table's figure
    standard_error: bool = False  # a further row with the standard errors of the means


def trained(label: str, training: Pretraining, **more: Any) -> Row:
    """The row of a training's checkpoints."""
    settings = training.settings
    named = {"method": training.method, "backbone": settings["backbone"], "dataset": training.dataset}
    return Row(label, **named, sobel=settings["sobel"], recipe=training.recipe, training=training, **more)


@dataclass(frozen=True)
class Figure:
    """What is drawn and printed of a table's pretraining runs over their epochs, and of its columns on an axis."""

    curves: dict[str, str]  # metric of each epoch: its title
    every: int  # epochs from one that is printed to the next
    axis: str = ""  # what the rows' `at` is
    panels: dict[str, tuple[str, ...]] = field(default_factory=dict)  # title: headers of the columns drawn on the axis


@dataclass(frozen=True)
class Published:
    """A paper's table: its csv, and the data sets and the protocols that its numbers were measured on."""

    file: str
    citation: str
    protocols: tuple[str, ...]
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
    figure: Figure | None = None

    def task_of(self, column: Column) -> str:
        """The task whose records a column holds."""
        return column.task or self.task

    def version_of(self, column: Column) -> int:
        """The version of that task that is tabulated."""
        return column.version or self.version
