"""A table as a pandas frame: one line a cell, the paper's rows first, then ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from results import published
from results.cells import Cell, rows
from results.declarations.table import Column, Row, Table
from results.record import Record

GAP = "–"
NUMBERS = ["value", "std", "standard_error", "n"]  # as text: a published number stays as it is printed
FIELDS = ["position", "row", "source", "panel", "column", "text", *NUMBERS, "keys"]


def build(table: Table, records: Sequence[Record]) -> pd.DataFrame:
    """The long frame of a table: `text` is what is printed, `position` the row's number."""
    groups = [*paper_rows(table), *our_rows(table, rows(table, records))]
    lines = [{"position": position, **line} for position, group in enumerate(groups) for line in group]
    return pd.DataFrame(lines, columns=FIELDS).fillna("")


def paper_rows(table: Table) -> Iterator[list[dict[str, Any]]]:
    """For each row of the paper a line for each of its numbers; none where it has none."""
    block = table.published
    if block is None:
        return
    for name, cells in published.rows(block, table.columns).items():
        yield [
            line(name, "paper", column, cell[block.value] + published.marks(cell), value=cell[block.value])
            for column, cell in zip(table.columns, cells, strict=True)
            if cell is not None
        ]


def our_rows(table: Table, filled: list[list[Cell]]) -> Iterator[list[dict[str, Any]]]:
    """For each of our rows a line for each cell that applies; after it, if asked for, the standard errors."""
    for row, cells in zip(table.rows, filled, strict=True):
        cells = [cell for cell in cells if cell.applies]
        yield our_row(row, cells)
        if row.standard_error and any(cell.n > 1 for cell in cells):
            yield [error_line(f"{row.label}, standard error", cell) for cell in cells]


def our_row(row: Row, cells: list[Cell]) -> list[dict[str, Any]]:
    """One of our rows; a cell says its n itself where the row's cells do not have the same."""
    one_n = len({cell.n for cell in cells if cell.n}) <= 1
    return [
        line(
            row.label,
            "ours",
            cell.column,
            mean_and_std(cell) + ("" if one_n or not cell.n else f" (n={cell.n})"),
            value=exact(cell.mean),
            std=exact(cell.std),
            standard_error=exact(cell.standard_error),
            n=str(cell.n or ""),
            keys=" ".join(record.key for record in cell.records),
        )
        for cell in cells
    ]


def error_line(label: str, cell: Cell) -> dict[str, Any]:
    """The standard error of a cell; blank for fewer than two runs."""
    text = "" if cell.standard_error is None else fixed(cell, cell.standard_error)
    return line(label, "ours", cell.column, text, n=str(cell.n or ""))


def line(row: str, source: str, column: Column, text: str, **rest: Any) -> dict[str, Any]:
    """One line of the frame; what is not given stays empty."""
    place = {"row": row, "source": source, "panel": column.panel, "column": column.header}
    return {**place, "text": text, **rest}


def mean_and_std(cell: Cell) -> str:
    """What a cell prints: "85.2 ± 0.4", "85.2" for one run, the gap for none."""
    spread = "" if cell.std is None else f" ± {fixed(cell, cell.std)}"
    return fixed(cell, cell.mean) + spread


def fixed(cell: Cell, number: float | None) -> str:
    """A number with the column's decimals."""
    return GAP if number is None else f"{number:.{cell.column.decimals}f}"


def exact(number: float | None) -> str:
    """A number for the csv, the same on every machine."""
    return "" if number is None else f"{number:.10g}"
