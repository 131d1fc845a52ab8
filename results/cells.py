"""A table's cell: which records stand in it, whether they may be averaged, and what they come to."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from results.declarations.table import Column, Row, Table
from results.errors import UserError
from results.record import Record

# <stem>-s<seed>, with the run's key where that is ambiguous; random-<backbone>@<seed>; an import: no seed
NAME = re.compile(r"(?P<stem>.+?)(?:-s\d+(?:[-@][0-9a-f]{12})?|@\d+)?")


@dataclass(frozen=True)
class Cell:
    """The records of one cell, and the keys of those that another version of the task, or of the training, made."""

    row: Row
    column: Column
    records: tuple[Record, ...]
    others: tuple[str, ...]

    @property
    def applies(self) -> bool:
        """Whether the row has what the column asks for, a layer or a training; else the cell is blank, and no gap."""
        if self.column.of_training and not self.row.training:
            return False
        layer = self.column.settings.get("layer")
        return not (layer and self.row.layers) or layer in self.row.layers

    @property
    def values(self) -> list[float]:
        """The metric of each record, in the column's unit."""
        return [self.column.scale * record.metrics[self.column.metric] for record in self.records]

    @property
    def n(self) -> int:
        """The number of runs."""
        return len(self.records)

    @property
    def mean(self) -> float | None:
        """The mean over the runs; None for none."""
        return statistics.fmean(self.values) if self.records else None

    @property
    def std(self) -> float | None:
        """The sample standard deviation (n - 1); None for fewer than two runs."""
        return statistics.stdev(self.values) if self.n > 1 else None

    @property
    def standard_error(self) -> float | None:
        """The standard deviation of the mean, std / sqrt(n); None for fewer than two runs."""
        return None if self.std is None else self.std / math.sqrt(self.n)


def rows(table: Table, records: Iterable[Record]) -> list[list[Cell]]:
    """The cells of each row of a table; UserError where a cell's records may not be averaged."""
    records = list(records)
    made = trainings(records)
    return [[fill(table, row, column, records, made) for column in table.columns] for row in table.rows]


def trainings(records: Iterable[Record]) -> set[tuple[str, int, str, str]]:
    """Task, version and recipe of the recorded pretraining runs, and the sha256 of the checkpoints they made."""
    found = [record for record in records if record.checkpoint is None]
    return {(run.task, run.version, run.subject["recipe"], run.subject["sha256"]) for run in found}


def fill(
    table: Table, row: Row, column: Column, records: Iterable[Record], made: set[tuple[str, int, str, str]]
) -> Cell:
    """One cell with the records that belong in it, each key once."""
    mine = {record.key: record for record in records if belongs(record, table, row, column)}
    current = [record for record in mine.values() if is_current(record, table, row, column, made)]
    refuse_mixture(table, row, column, current)
    others = tuple(key for key, record in mine.items() if record not in current)
    return Cell(row, column, tuple(sorted(current, key=seeds)), others)


def belongs(record: Record, table: Table, row: Row, column: Column) -> bool:
    """Whether a record is of the cell, by task (any version), protocol, data set, settings and checkpoint."""
    return (
        record.task == table.task_of(column)
        and same_protocol(record, table, column)
        and (record.dataset["name"], record.dataset["protocol"]) == (column.dataset, column.images)
        and of_row(record, row, column)
        and expected(row, column).items() <= hashable(record.settings).items()
    )


def of_row(record: Record, row: Row, column: Column) -> bool:
    """Whether the checkpoint is one of the row's: by its recipe where the row names one, else by its name."""
    if row.recipe is not None:
        return record.subject["recipe"] == row.recipe
    return stem(record.checkpoint_name) == checkpoint_stem(row, column)


def is_current(record: Record, table: Table, row: Row, column: Column, made: set[tuple[str, int, str, str]]) -> bool:
    """Whether a record is of the table's version of the task, and its checkpoint of the row's training, if declared."""
    if record.version != table.version_of(column):
        return False
    wanted = row.training
    return wanted is None or (wanted.task, wanted.version, wanted.recipe, record.subject["sha256"]) in made


def same_protocol(record: Record, table: Table, column: Column) -> bool:
    """Whether a record is of the column's protocol; of another task version: of one of that name."""
    if record.version == table.version_of(column):
        return record.protocol == column.protocol
    return str(record.protocol).partition("@")[0] == column.protocol.partition("@")[0]


def expected(row: Row, column: Column) -> dict[str, Any]:
    """The settings that a cell's records must have."""
    return hashable({**column.settings, **row.settings})


def hashable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with lists and dictionaries as their JSON, so that they compare as items of a set."""
    return {
        name: json.dumps(value, sort_keys=True) if isinstance(value, (list, tuple, dict)) else value
        for name, value in settings.items()
    }


def checkpoint_stem(row: Row, column: Column) -> str:
    """The name of the cell's checkpoints without the seed."""
    trained_on = [] if row.method == "random" else [row.dataset or column.dataset]
    sobel = ["sobel"] if row.sobel else []
    return "-".join([row.method, row.backbone or column.backbone, *sobel, *trained_on])


def checkpoint_name(row: Row, column: Column, seed: int) -> str:
    """The name of the cell's checkpoint of one seed."""
    return checkpoint_stem(row, column) + ("@" if row.method == "random" else "-s") + str(seed)


def stem(name: str) -> str:
    """A checkpoint's name without its seed."""
    match = NAME.fullmatch(name)
    return match["stem"] if match else name


def seeds(record: Record) -> tuple[int, int]:
    """What a cell's ± runs over: (pretraining seed, probe seed); -1 where there is none."""
    pretraining, probe = record.subject.get("seed"), record.settings.get("seed") if record.checkpoint else None
    return -1 if pretraining is None else pretraining, -1 if probe is None else probe


def refuse_mixture(table: Table, row: Row, column: Column, records: list[Record]) -> None:
    """UserError unless the records have the metric and differ in nothing but their seeds."""
    for record in records:
        if column.metric not in record.metrics:
            known = ", ".join(sorted(record.metrics))
            raise UserError(f"record {path(record)} has no metric {column.metric}, only {known}")
    fields = sorted(disagreements(records))
    twice = [pair for pair, count in Counter(map(seeds, records)).items() if count > 1]
    if not fields and not twice:
        return
    if not fields:
        records = [record for record in records if seeds(record) in twice]
        fields = [f"checkpoint.sha256 at the same seeds (pretraining, probe) {twice[0]}"]
    raise UserError(
        f"table {table.name}, row {row.label}, column {column.header}: records differ in {', '.join(fields)}",
        "\n             ".join(path(record) for record in records),
        "remove the records that do not belong, or name the row's recipe or the column's settings in "
        "results/declarations",
    )


def disagreements(records: list[Record]) -> set[str]:
    """The fields, other than seeds, in which records of one cell differ."""
    described = [described_by(record) for record in records]
    names = {name for description in described for name in description}
    return {name for name in names if len({description.get(name, "") for description in described}) > 1}


def described_by(record: Record) -> dict[str, str]:
    """The fields that must agree within a cell, as JSON."""
    fields: dict[str, Any] = {f"settings.{name}": value for name, value in record.settings.items() if name != "seed"}
    fields["checkpoint.recipe"] = record.subject["recipe"]
    fields["checkpoint.epoch"] = record.subject.get("epoch")
    fields["dataset.fingerprint"] = record.dataset["fingerprint"]
    fields["environment.precision"] = record.environment.get("precision")
    return {name: json.dumps(value, sort_keys=True) for name, value in fields.items()}


def path(record: Record) -> str:
    """Where a record lies in its store, for messages."""
    return f"{record.task}/{record.checkpoint_name}/{record.key}.json"
