"""The options of every command: what is run on what, and what does not change a number."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from results.errors import UserError
from results.files import ROOT
from results.store import DEFAULT_STORE, Store
from zoo.checkpoint import DEFAULT
from zoo.datasets.shards import split_patterns

PLACES = ("--data-dir", "--store", "--runs", "--cache", "--out")  # their values are paths of this machine
Flag = tyro.conf.FlagCreatePairsOff[bool]  # given or not; no --no-force


@dataclass(frozen=True)
class Options:
    """What is run on what, and what does not change a number."""

    dataset: str = "digits"  # a name that `python -m zoo.datasets` lists, folder:PATH, list:FILE or shards:PATTERN
    seeds: tuple[int, ...] = (0,)  # one run each
    data_dir: Path | None = None  # where the data sets lie; else $ZOO_DATA, then data/ in the clone
    exclude: Path | None = None  # a list of image files to leave out, as `python -m zoo.datasets --verify` writes it
    store: Path | None = None  # where records are kept; else results/records in the clone
    runs: Path | None = None  # where checkpoints, logs and states are kept; else runs/ in the clone
    device: str = "auto"  # auto, cpu, cuda, cuda:1 …
    threads: int = 0  # 0: all processors
    workers: int = 2  # threads that decode image files
    save_every: float = 10.0  # minutes between the states that an interrupted run continues from
    limit: int | None = None  # a smoke run on this many images: prints its numbers and records none
    force: Flag = False  # run again what is recorded
    dry_run: Flag = False  # say what would run, and why, and stop
    quiet: Flag = False  # no progress on stderr

    @property
    def records(self) -> Store:
        return Store(self.store or DEFAULT_STORE)

    @property
    def runs_dir(self) -> Path:
        return self.runs or ROOT / "runs"

    def check(self) -> None:
        """UserError for an option that cannot be."""
        least = {"threads": 0, "workers": 0, "limit": 1, "save_every": 0}
        check_least({name: getattr(self, name) for name in least}, least)
        if not self.seeds or min(self.seeds) < 0:
            raise UserError("--seeds takes numbers from 0 on, at least one", fix="--seeds 0 1 2")


@dataclass(frozen=True)
class MethodOptions(Options):
    out: Path | None = None  # also write the checkpoint to this file

    def check(self) -> None:
        """See Options.check."""
        super().check()
        if self.out is not None and len(self.seeds) > 1:
            raise UserError(f"--out is one file, and {len(self.seeds)} seeds make more", fix="one seed at a time")


@dataclass(frozen=True)
class TaskOptions(Options):
    checkpoint: str = DEFAULT  # a name that `python -m pretrain` lists, a file, random-BACKBONE@SEED, or `reference`
    cache: Path | None = None  # where features, and proposals, are kept to be read again; else cache/ in the clone


@dataclass(frozen=True)
class TransferOptions(TaskOptions):
    save_pictures: int = 0  # draw what was found in this many images, in runs/<key>/pictures (recorded: with --force)

    def check(self) -> None:
        """See Options.check."""
        super().check()
        check_least({"save_pictures": self.save_pictures}, {"save_pictures": 0})


def public(words: Sequence[str]) -> list[str]:
    """The words of a command line as a record keeps them: without the paths of the machine it ran on."""
    kept, skip = [], False
    for word in words:
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if skip or flag.replace("_", "-") in PLACES:  # tyro takes --data_dir too
            skip = not skip and not equals  # the flag's value is the next word
            continue
        kept.append(flag + equals + without_folders(value))
    return kept


def without_folders(value: str) -> str:
    """A flag's value without the folders of a path, or of the two that list: and shards: may have."""
    kind, colon, place = value.partition(":")
    if os.sep in kind:  # a path that has a colon in it
        kind, colon, place = "", "", value
    elif not colon:
        return value
    paths = split_patterns(place) if kind in ("list", "shards") else [place]
    return kind + colon + ",".join(os.path.basename(path.rstrip(os.sep)) for path in paths)


def check_least(values: Mapping[str, Any], least: Mapping[str, float]) -> None:
    """UserError for a value below the least that its flag may have, NaN or infinite; None passes."""
    for name, low in least.items():
        value = values.get(name)
        if value is not None and not low <= value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} {value} cannot be", fix=f"{low} or more")


def check_area(area: tuple[float, float]) -> None:
    """UserError unless the least and the most area of a crop are shares of the image's, in that order."""
    low, high = area
    if not 0 < low <= high <= 1:
        raise UserError(f"--area {low:g} {high:g} cannot be", fix="two shares of the image, up to 1: --area 0.4 1")
