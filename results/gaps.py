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

NAMED = ("backbone", "sobel")  # settings that a checkpoint's name says
UNAVAILABLE = "# not in this version: "  # a comment to the shell: the module, data set or backbone is not there yet


@dataclass(frozen=True)
class Training:
    """What a checkpoint is trained by, whatever its seed."""

    method: str
    backbone: str
    sobel: bool
    dataset: str
    changed: tuple[tuple[str, Any], ...] = ()  # settings that differ from the preset

    @property
    def task(self) -> str:
        """The task that trains it."""
        return f"pretrain.{self.method}"


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
    key: str = ""  # of the run that makes the checkpoint, where the table declares all of its settings

    @property
    def of_training(self) -> bool:
        """Whether it is the training itself that is missing, not a probe of its checkpoint."""
        return self.task == self.training.task

    @property
    def reference(self) -> str:
        """What --checkpoint takes: the name, made unambiguous where the key is known."""
        return f"{self.checkpoint}@{self.key}" if self.key else self.checkpoint


def find(table: Table, records: Sequence[Record]) -> list[Gap]:
    """The runs a table misses, each once, in its order of rows, columns and seeds."""
    filled = rows(table, records)
    return list(dict.fromkeys(gap for row in filled for cell in row if cell.applies for gap in gaps_of(cell, table)))


def gaps_of(cell: Cell, table: Table) -> Iterator[Gap]:
    """The seeds that a cell misses; none where an import, which has no seed, fills it."""
    row, column = cell.row, cell.column
    recorded = {record.subject.get("seed") for record in cell.records}
    changed = tuple(sorted(row.training.changed.items())) if row.training else ()
    training = Training(row.method, row.backbone or column.backbone, row.sobel, row.dataset or column.dataset, changed)
    for seed in table.seeds:
        if seed not in recorded and None not in recorded:
            yield Gap(
                table=table.name,
                task=table.task_of(column),
                dataset=column.dataset,
                settings=tuple(sorted({**column.settings, **row.settings}.items())),
                checkpoint=checkpoint_name(row, column, seed),
                training=training,
                seed=seed,
                key=row.training.key(seed) if row.training else "",
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
    made = {name for record in records if record.checkpoint is None for name in (record.key, record.checkpoint_name)}
    trained = [gap for gap in gaps if gap.training.method != "random"]
    for training in dict.fromkeys(gap.training for gap in trained):
        wanted = {gap.seed: gap for gap in trained if gap.training == training}
        yield from train(training, [seed for seed, gap in wanted.items() if not is_made(gap, made, runs)])


def is_made(gap: Gap, made: set[str], runs: Path | None) -> bool:
    """Whether the run of a gap's checkpoint is recorded, by its key or else its name, and the checkpoint is here."""
    return (gap.key or gap.checkpoint) in made and (runs is None or lies(gap, runs))


def lies(gap: Gap, runs: Path) -> bool:
    """Whether a gap's checkpoint is here; with a key, only where its run left it: a reference may be of another."""
    file = f"{gap.checkpoint}.safetensors"
    if gap.key:
        return (runs / gap.key / file).exists()
    return (ROOT / "zoo" / "reference" / file).exists() or any(runs.glob(f"*/{file}"))


def train(training: Training, seeds: list[int]) -> Iterator[str]:
    """The command that makes the checkpoints of these seeds; none for no seeds."""
    if seeds:
        sobel = ["--sobel"] if training.sobel else []
        words = ["--dataset", training.dataset, "--backbone", training.backbone, *sobel]
        words += [word for name, value in training.changed if name not in NAMED for word in flag(name, value)]
        words += ["--seeds", *map(str, sorted(seeds))]
        yield command(training.task, words, available(training.task, training))


def probing(gaps: list[Gap]) -> Iterator[str]:
    """A command for each checkpoint, task, data set and settings, its layers in one pass."""
    layers: dict[Gap, dict[str, None]] = {}
    for gap in (gap for gap in gaps if not gap.of_training):
        others = tuple((name, value) for name, value in gap.settings if name != "layer")
        layer = dict(gap.settings).get("layer", "")
        layers.setdefault(replace(gap, table="", settings=others), {})[layer] = None
    for gap, missing in layers.items():
        layer = "all" if len(missing) > 1 else next(iter(missing))
        words = [
            *(["--layer", layer] if layer else []),
            "--checkpoint",
            gap.reference,
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
