"""The pretraining runs of a table, epoch by epoch: their means as csv, as Markdown, and drawn."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import pandas as pd

from results import layout
from results.cells import Cell
from results.declarations.table import Figure, Row, Table
from results.drawing import Line, Panel, svg
from results.frame import exact
from results.record import Record

FIELDS = ["row", "metric", "epoch", "mean", "std", "n"]


def build(table: Table, filled: list[list[Cell]]) -> pd.DataFrame:
    """One line for each row, metric and epoch of the table's figure: mean and sample standard deviation over n runs."""
    assert table.figure is not None
    lines = [
        line for cells in filled for metric in table.figure.curves for line in curve(cells[0].row, runs(cells), metric)
    ]
    return pd.DataFrame(lines, columns=FIELDS)


def runs(cells: Sequence[Cell]) -> tuple[Record, ...]:
    """The pretraining runs of a row."""
    return next((cell.records for cell in cells if cell.column.of_training), ())


def curve(row: Row, records: Sequence[Record], metric: str) -> Iterator[list]:
    """A row's line of the frame for each epoch that has the metric."""
    values: dict[int, list[float]] = {}
    for record in records:
        for entry in record.details["history"]:
            if entry.get(metric) is not None:
                values.setdefault(entry["epoch"], []).append(entry[metric])
    for epoch, found in values.items():
        std = statistics.stdev(found) if len(found) > 1 else None
        yield [row.label, metric, epoch, statistics.fmean(found), std, len(found)]


def printed(frame: pd.DataFrame, figure: Figure) -> pd.DataFrame:
    """The epochs that are printed: every so many, and the last."""
    return frame[(frame.epoch % figure.every == 0) | (frame.epoch == frame.epoch.max())]


def csv(table: Table, frame: pd.DataFrame) -> str:
    """The epochs that are printed, one line each."""
    assert table.figure is not None
    found = printed(frame, table.figure)
    texts = {name: [exact(None if pd.isna(value) else value) for value in found[name]] for name in ("mean", "std")}
    return found.assign(**texts).to_csv(index=False, lineterminator="\n")


def markdown(table: Table, frame: pd.DataFrame, picture: str) -> Iterator[str]:
    """The picture, and a table of each metric with a column for each epoch; nothing before there is a run."""
    assert table.figure is not None
    if frame.empty:
        return
    yield f"![{table.title}]({picture})"
    for metric, title in table.figure.curves.items():
        found = printed(frame[frame.metric == metric], table.figure)
        texts = found.assign(text=[f"{mean:.3f}" for mean in found["mean"]])
        wide = texts.pivot(index="row", columns="epoch", values="text").reindex(found.row.unique()).fillna("")
        wide.insert(0, "epoch", wide.index)
        yield f"**{title}, by epoch**"
        yield layout.tabular(wide, "pipe")


def draw(table: Table, frame: pd.DataFrame, filled: list[list[Cell]]) -> str:
    """The figure: a panel for each metric over the epochs, and for each group of columns on the table's axis."""
    assert table.figure is not None
    labels = [cells[0].row.label for cells in filled if cells[0].row.training]
    panels = [
        Panel(title, "epoch", tuple(over_epochs(frame[frame.metric == metric], labels)))
        for metric, title in table.figure.curves.items()
    ]
    at = tuple(cells[0].row.at for cells in filled if cells[0].row.at is not None)
    panels += [
        Panel(title, table.figure.axis, tuple(along(filled, header) for header in headers), at)
        for title, headers in table.figure.panels.items()
    ]
    return svg(panels)


def over_epochs(frame: pd.DataFrame, labels: Sequence[str]) -> Iterator[Line]:
    """A line for each row, recorded or not, so that a row has the same colour in every panel."""
    for label in labels:
        found = frame[frame.row == label]
        yield Line(label, tuple((epoch, mean, 0.0) for epoch, mean in zip(found.epoch, found["mean"], strict=True)))


def along(filled: list[list[Cell]], header: str) -> Line:
    """A column's means with their standard deviations, at the places of their rows."""
    points = [
        (cell.row.at, cell.mean, cell.std or 0.0)
        for row in filled
        for cell in row
        if cell.column.header == header and cell.row.at is not None and cell.mean is not None
    ]
    return Line(header.removesuffix(", %"), tuple(points))
