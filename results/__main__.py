"""What is recorded, missing, stale and failed.

Missing are the runs that tables expect; stale those of another version of their task.

    python -m results                              a line for each task, checkpoint (all seeds) and data set
    python -m results --missing --tier digits      only the commands that fill the gaps, one a line, for sh
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import tyro
from tabulate import tabulate

from results import gaps
from results.cells import stem
from results.declarations import TABLES, TIERS, Table
from results.errors import UserError, did_you_mean, ending
from results.gaps import Gap
from results.record import Record
from results.store import DEFAULT_STORE, Store
from results.tables import RUNS, options, shown

VERSIONS = {table.task_of(column): table.version_of(column) for table in TABLES.values() for column in table.columns}


def main(
    store: Path = DEFAULT_STORE,
    runs: Path = RUNS,
    missing: bool = False,
    tier: str = "",
    seeds: tuple[int, ...] = (),
) -> int:
    """What is recorded, missing, stale and failed.

    Args:
        store: the folder of records.
        runs: the folder of runs: checkpoints made here, and what went wrong.
        missing: print only the commands that fill the gaps, one a line.
        tier: only the tables of this tier.
        seeds: of pretraining, with which a cell is complete; those that the tables declare where none is named.
    """
    tables = choose(tier, seeds)
    records = Store(store).records()
    found = [gap for table in tables for gap in gaps.find(table, records)]
    if missing:
        print("".join(f"{line}\n" for line in gaps.commands(found, records, options(store, runs), runs)), end="")
        return 0
    print(summary(store, records, found))
    lines = listing(records, found)
    widths = [None] * 5 + [60]
    print(tabulate(lines.values.tolist(), list(lines.columns), "simple", disable_numparse=True, maxcolwidths=widths))
    print("".join(f"\nfailed: {line}" for line in failures(runs)))
    return 0


def choose(tier: str, seeds: tuple[int, ...] = ()) -> list[Table]:
    """The tables of a tier, or all, planned for `seeds` or for their own; an unknown tier is a UserError."""
    if tier and tier not in TIERS:
        raise UserError(f"no tier '{tier}'{did_you_mean(tier, TIERS)}", fix=f"--tier {' | '.join(TIERS)}")
    chosen = [table for table in TABLES.values() if tier in ("", table.tier)]
    return [replace(table, seeds=seeds or table.seeds) for table in chosen]


def stale(records: Sequence[Record]) -> list[Record]:
    """The records of another version of their task than tables expect; for other tasks, of an old one."""
    newest: dict[str, int] = {}
    for record in records:
        newest[record.task] = max(record.version, newest.get(record.task, 0))
    return [record for record in records if record.version != VERSIONS.get(record.task, newest[record.task])]


def summary(store: Path, records: Sequence[Record], found: list[Gap]) -> str:
    """One line of counts, and one on what to do about the missing ones."""
    missing = {replace(gap, table="") for gap in found}  # tables share runs
    later = sum(not gaps.available(gap.task, gap.training, gap.dataset) for gap in missing)
    old = len(stale(records))
    hint = "python -m results --missing prints the commands that make them\n" if missing else ""
    return (
        f"{shown(store)}: {len(records)} runs recorded, {old} of them stale; "
        f"{len(missing)} missing, {later} of them not in this version's reach\n{hint}"
    )


def listing(records: Sequence[Record], found: list[Gap]) -> pd.DataFrame:
    """A line for each task, checkpoint (all seeds) and data set: recorded, stale, missing by table."""
    recorded = Counter(cell(record) for record in records)
    old = Counter(cell(record) for record in stale(records))
    lacking = Counter((gap.task, stem(gap.checkpoint), gap.dataset, gap.table) for gap in found)
    lines = []
    for task, checkpoint, dataset in sorted({*recorded, *(key[:3] for key in lacking)}):
        place = (task, checkpoint, dataset)
        by_table = [f"{count} of {table}" for (*at, table), count in lacking.items() if tuple(at) == place]
        lines.append([*place, recorded[place] or "", old[place] or "", ", ".join(by_table)])
    return pd.DataFrame(lines, columns=["task", "checkpoint", "data set", "recorded", "stale", "missing"])


def cell(record: Record) -> tuple[str, str, str]:
    """Which line of the listing a record belongs to."""
    return record.task, stem(record.checkpoint_name), record.dataset["name"]


def failures(runs: Path) -> list[str]:
    """What each failed run ended with, by run: the line after the traceback."""
    found = []
    for path in sorted(runs.glob("*/error.txt")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line for line in lines if line.strip() and not line.startswith((" ", "Traceback"))]
        found.append(f"{path.parent.name}: {said[-1] if said else 'no message'}")
    return found


if __name__ == "__main__":
    sys.exit(ending(lambda: tyro.cli(main, prog="python -m results", config=(tyro.conf.FlagCreatePairsOff,))))
