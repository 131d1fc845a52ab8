"""Numbers as their papers print them, one csv a table (see README.md for the citations)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from results.declarations.table import Column, Published

FOLDER = Path(__file__).parent
MARKS = {"star": "*", "dagger": "†"}  # the papers' own marks


@cache
def read(file: str) -> tuple[dict[str, str], ...]:
    """The rows of a csv, every number a string exactly as printed (63.0 keeps its zero)."""
    with open(FOLDER / file, newline="", encoding="utf-8") as lines:
        return tuple(csv.DictReader(lines))


def rows(block: Published, columns: Sequence[Column]) -> dict[str, list[dict[str, str] | None]]:
    """For each method, in the table's order, the csv's row for each column; None where it has none."""
    table: dict[str, list[dict[str, str] | None]] = {}
    for line in read(block.file):
        cells = table.setdefault(label(block, line), [None] * len(columns))
        for position, column in enumerate(columns):
            if stands(block, column) and column.published.items() <= line.items():
                cells[position] = line
    return {name: cells for name, cells in table.items() if any(cells)}


def stands(block: Published, column: Column) -> bool:
    """Whether the block's numbers may stand in a column: it has its data set, and one of its protocols."""
    same_set = block.covers.get(column.published.get(block.by, "")) == column.dataset
    return same_set and column.protocol in block.protocols and column.images == block.images


def label(block: Published, line: dict[str, str]) -> str:
    """What a row is called: the method, its number in the paper's bibliography, what else tells it apart."""
    words = [block.words.get(line[name], line[name]) for name in block.label]
    reference = f" [{line['ref']}]" if line.get("ref") else ""
    return ", ".join([words[0] + reference, *filter(None, words[1:])])


def marks(line: dict[str, str]) -> str:
    """The paper's marks on a number: "*†"."""
    return "".join(MARKS[note] for note in line.get("note", "").split(";") if note)
