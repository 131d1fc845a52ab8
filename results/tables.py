"""Rebuild every table from the records: results/rendered/<table>.md, .csv and .tex.

The csv has one line a cell; the others are for reading, or for including in a paper. A table of ablations has a figure
too, <table>.svg, and <table>_epochs.csv.

    python -m results.tables                   all of them
    python -m results.tables --check           write nothing; exit 1 and a short diff if a file differs
    python -m results.tables digits_linear --print
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from results import curves, gaps, layout
from results.cells import Cell, rows
from results.declarations import TABLES, Table
from results.errors import UserError, did_you_mean, ending
from results.files import ROOT, write_text
from results.frame import build
from results.record import Record
from results.store import DEFAULT_STORE, Store

RENDERED = ROOT / "results" / "rendered"
RUNS = ROOT / "runs"
ENDINGS = (".md", ".csv", ".tex", ".svg")


def render(table: Table, records: Sequence[Record], more: Sequence[str] = ()) -> dict[str, str]:
    """The texts of a table by file name. more: words at the end of its commands."""
    frame, filled = build(table, records), rows(table, records)
    commands = gaps.commands(gaps.find(table, records), records, more)
    files, parts = figure(table, filled) if table.figure else ({}, [])
    text = layout.markdown(table, frame, [*notes(table, filled), *parts], commands, traces(filled))
    texts = {".md": text, ".csv": layout.csv(frame), ".tex": layout.tex(table, frame), **files}
    return {table.name + ending: text for ending, text in texts.items()}


def figure(table: Table, filled: list[list[Cell]]) -> tuple[dict[str, str], list[str]]:
    """The files of a table's figure, by the end of their names, and the parts of its Markdown."""
    frame = curves.build(table, filled)
    files = {".svg": curves.draw(table, frame, filled), "_epochs.csv": curves.csv(table, frame)}
    return files, list(curves.markdown(table, frame, f"{table.name}.svg"))


def notes(table: Table, filled: list[list[Cell]]) -> list[str]:
    """The paragraphs under a table: citation, what ± means, footnotes, records of another version."""
    cells = [cell for row in filled for cell in row]
    found = [f"Rows marked paper: {table.published.citation}."] if table.published else []
    if any(cell.n > 1 for cell in cells):
        found.append("Mean ± sample standard deviation over n runs (pretraining seed × probe seed).")
    found += table.footnotes
    others = {key for cell in cells for key in cell.others}
    if others:
        found.append(f"Records of another version of the task, or of the training, not tabulated: {len(others)}.")
    return found


def traces(filled: list[list[Cell]]) -> list[str]:
    """For each of our rows the checkpoints and the keys of the records behind it."""
    lines = []
    for row in filled:
        keys: dict[str, list[str]] = {}
        for record in (record for cell in row for record in cell.records):
            of_one = keys.setdefault(f"`{record.task}/{record.checkpoint_name}/`", [])
            of_one += [f"`{record.key}`"] if f"`{record.key}`" not in of_one else []
        lines += [f"{row[0].row.label}: {folder} {' '.join(found)}" for folder, found in keys.items()]
    return lines


def main(
    names: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    store: Path = DEFAULT_STORE,
    out: Path = RENDERED,
    check: bool = False,
    show: Annotated[bool, tyro.conf.arg(name="print")] = False,
    seeds: tuple[int, ...] = (),
) -> int:
    """Rebuild the tables from the records, as Markdown, csv and LaTeX.

    Args:
        names: tables; all of them where none is named.
        store: the folder of records.
        out: the folder the tables are written to.
        check: write nothing; exit 1 if a table that lies there differs from what the records give.
        show: print the tables.
        seeds: of pretraining, with which a cell is complete; those that the tables declare where none is named.
    """
    chosen = choose(names, seeds)
    records = Store(store).records()
    texts = {file: text for table in chosen for file, text in render(table, records, options(store)).items()}
    if show:
        print("\n".join(text for file, text in texts.items() if file.endswith(".md")))
    if check:
        return compare(texts, out, whole=not names)
    for file, text in texts.items():
        write_text(out / file, text)
    print("\n".join(str(shown(out / f"{table.name}.md")) for table in chosen))
    return 0


def choose(names: Iterable[str], seeds: tuple[int, ...] = ()) -> list[Table]:
    """The tables of these names, or all, planned for `seeds` or for their own; an unknown name is a UserError."""
    for name in names:
        if name not in TABLES:
            raise UserError(f"no table '{name}'{did_you_mean(name, TABLES)}", fix=", ".join(TABLES))
    chosen = [TABLES[name] for name in names] or list(TABLES.values())
    return [replace(table, seeds=seeds or table.seeds) for table in chosen]


def options(store: Path, runs: Path = RUNS) -> list[str]:
    """The words by which commands name a store and a folder of runs: none for the default ones."""
    folders = (("--store", store, DEFAULT_STORE), ("--runs", runs, RUNS))
    return [word for flag, path, usual in folders if path.resolve() != usual for word in (flag, str(shown(path)))]


def shown(path: Path) -> Path:
    """A path relative to the clone where it is inside."""
    path = path.resolve()
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def compare(texts: dict[str, str], out: Path, whole: bool) -> int:
    """0 if the files are what they should be, else 1 and what differs on stdout."""
    differing = [file for file, text in texts.items() if not (out / file).is_file() or read(out / file) != text]
    extra = sorted(path.name for path in out.glob("*") if path.suffix in ENDINGS and path.name not in texts)
    for file in differing:
        print("\n".join(short_diff(shown(out / file), texts[file])))
    for file in extra if whole else []:
        print(f"{shown(out / file)}: no table makes it; remove it")
    failed = bool(differing or (whole and extra))
    if failed:
        print("the tables differ from the records; try: python -m results.tables", file=sys.stderr)
    return int(failed)


def read(path: Path) -> str:
    """A file's text with its newlines as they are."""
    return path.read_bytes().decode(errors="replace")


def short_diff(path: Path, text: str, lines: int = 12) -> list[str]:
    """The first lines of what would change in a file."""
    full = ROOT / path
    if not full.is_file():
        return [f"{path}: missing"]
    changes = difflib.unified_diff(
        read(full).splitlines(), text.splitlines(), f"{path} (there)", f"{path} (rebuilt)", "", "", 0, ""
    )
    shortened = [change[:160] for change in changes]
    return shortened[:lines] + ([f"… {len(shortened) - lines} lines more"] if len(shortened) > lines else [])


if __name__ == "__main__":
    sys.exit(ending(lambda: tyro.cli(main, prog="python -m results.tables", config=(tyro.conf.FlagCreatePairsOff,))))
