"""The runs that tables still miss, and one runnable command for each: pretraining first, then the probes."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from results.cells import Cell, checkpoint_name, rows
from results.declarations import BACKBONES, DATASETS
from results.declarations.table import Table
from results.files import ROOT
from results.record import Record

UNAVAILABLE = "# not in this version: "  # a comment to the shell: the module, data set or backbone is not there yet


@dataclass(frozen=True)
class Training:
    """What a checkpoint is trained by, whatever its seed."""

    method: str
    backbone: str
    sobel: bool
    dataset: str


@dataclass(frozen=True)
class Gap:
    """A run that a table expects and the store does not have."""

    table: str
    task: str
    dataset: str
    settings: tuple[tuple[str, Any], ...]  # those the table expects
    checkpoint: str
    training: Training
    seed: int


def find(table: Table, records: Sequence[Record]) -> list[Gap]:
    """The runs a table misses, each once, in its order of rows, columns and seeds."""
    filled = rows(table, records)
    return list(dict.fromkeys(gap for row in filled for cell in row if cell.applies for gap in gaps_of(cell, table)))


def gaps_of(cell: Cell, table: Table) -> Iterator[Gap]:
    """The seeds that a cell misses; none where an import, which has no seed, fills it."""
    row, column = cell.row, cell.column
    recorded = {record.checkpoint.get("seed") for record in cell.records if record.checkpoint}
    training = Training(row.method, row.backbone or column.backbone, row.sobel, row.dataset or column.dataset)
    for seed in table.seeds:
        if seed not in recorded and None not in recorded:
            yield Gap(
                table=table.name,
                task=column.task or table.task,
                dataset=column.dataset,
                settings=tuple(sorted({**column.settings, **row.settings}.items())),
                checkpoint=checkpoint_name(row, column, seed),
                training=training,
                seed=seed,
            )


def commands(
    gaps: Iterable[Gap], records: Sequence[Record], more: Sequence[str] = (), runs: Path | None = None
) -> list[str]:
    """One line a command that fills gaps, each once, in an order in which they can be run.

    more: words at the end of each.
    runs: the folder where checkpoints lie; None where it is not to be looked at.
    """
    gaps = list(gaps)
    lines = [*pretraining(gaps, records, runs), *probing(gaps)]
    return list(dict.fromkeys(" ".join([line, *map(shlex.quote, more)]) for line in lines))


def pretraining(gaps: list[Gap], records: Sequence[Record], runs: Path | None) -> Iterator[str]:
    """A command for each training whose checkpoints were never recorded, or are recorded and not here."""
    made = {record.checkpoint_name for record in records if record.checkpoint is None}
    trained = [gap for gap in gaps if gap.training.method != "random"]
    for training in dict.fromkeys(gap.training for gap in trained):
        names = {gap.seed: gap.checkpoint for gap in trained if gap.training == training}
        yield from train(training, [seed for seed, name in names.items() if name not in made])
        lost = [seed for seed, name in names.items() if name in made and runs and not lies(name, runs)]
        yield from train(training, lost, "--force")  # a recorded run is not repeated unasked


def lies(checkpoint: str, runs: Path) -> bool:
    """Whether a checkpoint of that name is here."""
    file = f"{checkpoint}.safetensors"
    return (ROOT / "zoo" / "reference" / file).exists() or any(runs.glob(f"*/{file}"))


def train(training: Training, seeds: list[int], *more: str) -> Iterator[str]:
    """The command that makes the checkpoints of these seeds; none for no seeds."""
    if seeds:
        task = f"pretrain.{training.method}"
        sobel = ["--sobel"] if training.sobel else []
        words = ["--dataset", training.dataset, "--backbone", training.backbone, *sobel]
        yield command(task, [*words, "--seeds", *map(str, sorted(seeds)), *more], available(task, training))


def probing(gaps: list[Gap]) -> Iterator[str]:
    """A command for each checkpoint, task, data set and settings, its layers in one pass."""
    layers: dict[Gap, dict[str, None]] = {}
    for gap in gaps:
        others = tuple((name, value) for name, value in gap.settings if name != "layer")
        layer = dict(gap.settings).get("layer", "")
        layers.setdefault(replace(gap, table="", settings=others), {})[layer] = None
    for gap, missing in layers.items():
        layer = "all" if len(missing) > 1 else next(iter(missing))
        words = [
            *(["--layer", layer] if layer else []),
            "--checkpoint",
            gap.checkpoint,
            "--dataset",
            gap.dataset,
        ]
        flags = [word for name, value in gap.settings for word in flag(name, value)]
        yield command(gap.task, [*words, *flags], available(gap.task, gap.training, gap.dataset))


def flag(name: str, value: Any) -> list[str]:
    """A setting as the command line has it."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value)]


def available(task: str, training: Training, dataset: str = "") -> bool:
    """Whether this version has the task, and the backbone and data sets it needs."""
    module = (ROOT / task.replace(".", "/")).with_suffix(".py")
    sets = {dataset or DATASETS[0], *([] if training.method == "random" else [training.dataset])}
    return module.exists() and training.backbone in BACKBONES and sets <= set(DATASETS)


def command(task: str, words: Iterable[str], runs_here: bool) -> str:
    """The line to type; a comment where it cannot run yet."""
    return ("" if runs_here else UNAVAILABLE) + shlex.join(["python", "-m", task, *words])
