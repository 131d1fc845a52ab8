"""The texts of a table: Markdown to read, csv (one line a cell) to compute with, LaTeX to include."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pandas as pd
import tabulate

from results.declarations.table import Table

tabulate.MIN_PADDING = 0  # headers need no wider columns than the numbers under them
LATEX = {"±": r"$\pm$", "–": "--", "†": r"$^\dagger$"}


def csv(frame: pd.DataFrame) -> str:
    """The long frame, one line a cell, with the keys of its records."""
    return frame.drop(columns="position").to_csv(index=False, lineterminator="\n")


def tex(table: Table, frame: pd.DataFrame) -> str:
    """A booktabs tabular for each panel, title and citation as comments."""
    parts = [f"% {table.title}. {table.caption}".rstrip()]
    parts += [f"% paper: {table.published.citation}"] if table.published else []
    for panel, wide in panels(table, frame):
        parts += [f"% {panel}"] if panel else []
        parts.append(tabular(wide, "latex_booktabs"))
    text = "\n".join(parts) + "\n"
    return re.sub("|".join(LATEX), lambda found: LATEX[found[0]], text)


def markdown(table: Table, frame: pd.DataFrame, notes: Iterable[str], commands: list[str], traces: list[str]) -> str:
    """Title, caption, a table for each panel, notes, commands that fill gaps, the records behind the rows."""
    parts = [f"# {table.title}", table.caption]
    for panel, wide in panels(table, frame):
        parts += [f"**{panel}**"] if panel else []
        parts.append(tabular(wide, "pipe"))
    parts += notes
    if commands:
        parts += ["Runs still missing, and the commands that make them:", fenced(commands)]
    if traces:
        parts.append(folded("The records behind our rows", traces))
    return "\n\n".join(part for part in parts if part) + "\n"


def panels(table: Table, frame: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    """The name and the wide frame of each panel."""
    for panel in dict.fromkeys(column.panel for column in table.columns):
        headers = [column.header for column in table.columns if column.panel == panel]
        yield panel, widen(frame[frame.panel == panel], headers, with_source=table.published is not None)


def widen(frame: pd.DataFrame, headers: list[str], with_source: bool) -> pd.DataFrame:
    """One line a row: its name, a text for each column (blank where it has none), source, and n of ours."""
    wide = frame.pivot(index="position", columns="column", values="text").reindex(columns=headers).fillna("")
    of_row = frame.groupby("position")
    wide.insert(0, "", of_row["row"].first())
    if with_source:
        wide["source"] = of_row["source"].first()
    wide["n"] = of_row["n"].agg(shared_n)
    return wide if any(wide["n"]) else wide.drop(columns="n")


def shared_n(counts: Iterable[object]) -> str:
    """The number of runs that the row's recorded cells share; "" for none, or where each says its own."""
    distinct = {str(count) for count in counts if count}
    return distinct.pop() if len(distinct) == 1 else ""


def tabular(wide: pd.DataFrame, style: str) -> str:
    """A wide frame as text: names left, the rest right."""
    align = ["left", *["right"] * (wide.shape[1] - 1)]
    rows = wide.values.tolist()
    return tabulate.tabulate(rows, list(wide.columns), style, disable_numparse=True, colalign=align)


def fenced(commands: list[str]) -> str:
    """Commands as a block of shell."""
    return "\n".join(["```sh", *commands, "```"])


def folded(summary: str, lines: list[str]) -> str:
    """A list that is folded away until asked for."""
    return "\n".join([f"<details><summary>{summary}</summary>", "", *(f"- {line}" for line in lines), "", "</details>"])
