"""Ablations: start the runs of grids that each vary one setting of a method, and the probes of their checkpoints.

    python -m pretrain.ablate                     the grids, and what is recorded of them
    python -m pretrain.ablate k --jobs 2          what the grid k lacks, two runs at a time
    python -m pretrain.ablate all --dry-run       the commands, one a line

Grids and their tables are declared in results/declarations/ablations.py. What is recorded is not run again, and runs
that were stopped continue.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import RLock
from typing import Any

import tyro
from tabulate import tabulate

from results import gaps
from results.declarations.ablations import GRIDS, Grid
from results.errors import RunFailed, UserError, did_you_mean, ending
from results.files import ROOT
from results.gaps import Gap
from results.record import Record
from results.store import DEFAULT_STORE, Store
from results.tables import RUNS, options

ALL = "all"


def main(
    names: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    dataset: str = "digits",
    seeds: tuple[int, ...] = (0, 1, 2),
    jobs: int = 1,
    threads: int = 0,
    store: Path = DEFAULT_STORE,
    runs: Path = RUNS,
    data_dir: Path | None = None,
    dry_run: bool = False,
) -> int:
    """Run what the grids lack: each training, then the probes of its checkpoint.

    Args:
        names: grids, or `all`; they are listed where none is named.
        dataset: the data set whose grids are meant.
        seeds: of pretraining.
        jobs: how many checkpoints are made and probed side by side.
        threads: of each; 0: the processors divided by the jobs.
        store: the folder of records.
        runs: the folder of runs: checkpoints, logs, states.
        data_dir: where the data sets lie.
        dry_run: print the commands, and stop.
    """
    grids = choose(names, dataset)
    check(seeds, jobs, threads)
    records = Store(store).records()
    if not names:
        print(listing(grids, seeds, records))
        return 0
    words = [*options(store, runs), "--threads", str(threads or share(jobs))]
    words += ["--data-dir", str(data_dir.resolve())] if data_dir else []
    chains = plan(grids, seeds, records, runs, words)
    if dry_run:
        print("".join(f"{line}\n" for chain in chains for line in chain), end="")
        return 0
    code = Crew(sum(map(len, chains))).run(chains, jobs)
    if code == 0:
        print(f"all is recorded; python -m results.tables {' '.join(grid.table.name for grid in grids)}")
    return code


def choose(names: Sequence[str], dataset: str) -> list[Grid]:
    """The grids of these names, or all; a data set that has none, or an unknown name, is a UserError."""
    known = {grid.name: grid for grid in GRIDS if grid.usual.dataset == dataset}
    if not known:
        sets = " | ".join(dict.fromkeys(grid.usual.dataset for grid in GRIDS))
        raise UserError(
            f"no grid is declared for the data set {dataset}", "results/declarations/ablations.py", f"--dataset {sets}"
        )
    for name in names:
        if name not in (*known, ALL):
            raise UserError(f"no grid '{name}'{did_you_mean(name, known)}", fix=f"{' | '.join(known)} | {ALL}")
    return list(known.values()) if not names or ALL in names else [known[name] for name in dict.fromkeys(names)]


def check(seeds: Sequence[int], jobs: int, threads: int) -> None:
    """UserError for numbers that cannot be."""
    if not seeds or min(seeds) < 0:
        raise UserError("--seeds takes numbers from 0 on, at least one", fix="--seeds 0 1 2")
    if jobs < 1:
        raise UserError(f"--jobs {jobs} runs nothing", fix="--jobs 1")
    if threads < 0:
        raise UserError(f"--threads {threads} cannot be", fix="0 or more")


def share(jobs: int) -> int:
    """The processors that each of the jobs may use."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, there // jobs)


def listing(grids: Iterable[Grid], seeds: tuple[int, ...], records: Sequence[Record]) -> str:
    """A line for each grid: what it varies, and how many of its trainings and probes are recorded."""
    lines = []
    for grid in grids:
        table = replace(grid.table, seeds=seeds)
        planned, missing = gaps.find(table, []), set(gaps.find(table, records))
        trainings = [gap for gap in planned if gap.of_training]
        probes = [gap for gap in planned if not gap.of_training]
        counts = [f"{sum(gap not in missing for gap in part)} of {len(part)}" for part in (trainings, probes)]
        lines.append([grid.name, grid.varies, ", ".join(grid.cells), *counts])
    headers = ["grid", "varies", "values", "trained", "probed"]
    return tabulate(lines, headers, maxcolwidths=[None, 32, 40, None, None], disable_numparse=True)


def plan(
    grids: Iterable[Grid], seeds: tuple[int, ...], records: Sequence[Record], runs: Path, words: Sequence[str]
) -> list[list[str]]:
    """For each checkpoint the commands that its grids lack, in their order: the training, then the probes."""
    found: dict[Any, dict[Gap, None]] = {}
    for grid in grids:
        for gap in gaps.find(replace(grid.table, seeds=seeds), records):
            found.setdefault((gap.training, gap.seed), {})[replace(gap, table="")] = None
    return [gaps.commands(group, records, words, runs) for group in found.values()]


@dataclass
class Crew:
    """Runs commands as processes of their own, and says on stderr how each ended."""

    total: int
    ended: int = 0
    failed: list[str] = field(default_factory=list)  # the command and what it said
    running: set[subprocess.Popen] = field(default_factory=set)
    asked: int | None = None  # the signal that ends it
    # one at a time says how it ended; a signal comes before or after a process is known (and another, meanwhile)
    lock: RLock = field(default_factory=RLock)

    def run(self, chains: Iterable[Sequence[str]], jobs: int) -> int:
        """Run the chains, `jobs` at a time: 0, or 130 and 143 after signals. RunFailed naming what failed."""
        before = {number: signal.signal(number, self.pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with ThreadPoolExecutor(jobs) as pool:
                list(pool.map(self.follow, chains))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.asked is not None:
            print("stopped; the same command continues", file=sys.stderr)
            return 128 + self.asked
        if self.failed:
            skipped = self.total - self.ended
            said = f", {skipped} that need them were not run" if skipped else ""
            raise RunFailed("\n".join([f"{len(self.failed)} of {self.total} commands failed{said}:", *self.failed]))
        return 0

    def pass_on(self, number: int, frame: Any) -> None:
        """Give a signal to the processes that run, and start no more."""
        with self.lock:
            self.asked, told = number, list(self.running)
        for process in told:
            process.send_signal(number)

    def follow(self, chain: Sequence[str]) -> None:
        """Run commands one after the other, as long as they succeed."""
        for line in chain:
            if self.asked is not None or not self.succeeds(line):
                return

    def succeeds(self, line: str) -> bool:
        """Run one command in the clone; whether it ended well."""
        clock = time.perf_counter()
        _, *words = shlex.split(line)
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,  # so that Ctrl-C comes to it once, from here
        )
        with self.lock:
            self.running.add(process)
            missed = self.asked
        if missed is not None:  # it came before the process was known
            process.send_signal(missed)
        said, _ = process.communicate()
        self.running.discard(process)
        if self.asked is None:
            self.report(line, process.returncode, said, time.perf_counter() - clock)
        return process.returncode == 0

    def report(self, line: str, code: int, said: str, seconds: float) -> None:
        """Count a command that ended, and say so."""
        how = f"failed with exit code {code} after" if code else "ran"
        with self.lock:
            self.ended += 1
            print(f"[{self.ended}/{self.total}] {how} {seconds:.0f} s: {line}", file=sys.stderr, flush=True)
        if code:
            self.failed.append("\n".join([f"  {line}", *(f"    {text}" for text in last_words(said))]))


def last_words(said: str) -> list[str]:
    """What a command that failed said last: its error, or else its last line."""
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    return lines[errors[-1] if errors else -1 :] or ["it said nothing"]


if __name__ == "__main__":
    sys.exit(ending(lambda: tyro.cli(main, prog="python -m pretrain.ablate", config=(tyro.conf.FlagCreatePairsOff,))))
