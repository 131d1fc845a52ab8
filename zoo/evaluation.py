"""One evaluation of a checkpoint: preflight, the frozen backbone, a record for each part."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from results.errors import RunFailed, UserError
from results.files import ROOT
from results.record import SCHEMA, Record, cell_key
from zoo import device as devices
from zoo import processes
from zoo.backbones import Backbone
from zoo.checkpoint import Checkpoint, resolve
from zoo.datasets.dataset import Dataset
from zoo.datasets.images import ArrayImages, Images
from zoo.environment import environment
from zoo.options import TaskOptions, TransferOptions
from zoo.run import Outcome, Task, failure_noted, now, settings_of, shown_path
from zoo.state import State, Unkept
from zoo.tensors import content
from zoo.unfinished import Unfinished
from zoo.views import Centre, CentreCrop, View

PICTURES = "pictures"  # the folder of a run that has them
Step = TypeVar("Step")


@dataclass
class Evaluation:
    """What a task evaluates with: the checkpoint's backbone, frozen and in eval mode, and the data set's images."""

    checkpoint: Checkpoint
    sha256: str  # of the checkpoint
    dataset: Dataset
    backbone: Backbone
    device: torch.device
    precision: str = "fp32"
    workers: int = 2
    limit: int | None = None
    quiet: bool = False
    cache: Path = ROOT / "cache"
    directory: Path | None = None  # of the run's states; None: it keeps none
    save_every: float = 10.0  # minutes
    save_pictures: int = 0  # how many images are drawn with what was found in them

    def open(self, split: str) -> Images:
        """The images of a split (or `merged`), all or as many as --limit says."""
        return self.dataset.open(split, limit=self.limit)

    def labels(self, split: str) -> np.ndarray:
        """Class (N,) of each image that `open` gives. UserError where the images have none."""
        labels = self.open(split).labels
        if labels is None:
            raise UserError(f"the images of {self.dataset.name} have no classes", fix=self.dataset.source)
        return labels

    def view(self, images: Images) -> View:
        """How the checkpoint looks at an image that is not augmented: the centre, at its own size."""
        wanted = self.checkpoint.preprocessing
        if isinstance(images, ArrayImages):  # crop first: the same pixels as resizing first, without rounding
            side = min(images.pixels.shape[2:])
            return CentreCrop(round(side * wanted.size / wanted.resize), wanted.size)
        return Centre(wanted.resize, wanted.size)

    def batches(
        self,
        images: Images,
        order: np.ndarray,
        view: View,
        batch: int,
        what: str,
        seed: int = 0,
        state: State | None = None,
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """(ids, pixels) of the images in `order`, with a progress bar; of many processes, pixels of this one's portion.

        Batches are the steps `what` of the state, if there is one: a run that is continued gets those that are left.
        """
        first, total = state.done(what) if state else 0, -(-len(order) // batch)
        stream = images.batches(order, batch, view, seed, self.device, self.workers, first, processes.portion)
        steps = zip(state.steps(what, total) if state else range(total), stream)
        for number, (_, pixels) in self.progress(steps, what, total, first):
            yield order[number * batch :][:batch], pixels

    def progress(self, steps: Iterable[Step], what: str, total: int, first: int = 0) -> Iterable[Step]:
        """The steps, from `first` on, with a progress bar."""
        hidden = True if self.quiet else None  # None: no bar where stderr is not a terminal
        return tqdm(steps, desc=what, initial=first, total=total, disable=hidden, leave=False)

    def state(self, name: str) -> State:
        """What the work `name` of this run continues from; work that runs beside it in a thread has another."""
        if self.directory is None:
            return Unkept()
        process = f" of process {processes.rank()}" if processes.rank() else ""
        return State(self.directory / f"{name}{process}", self.save_every, self.device)

    def partial(self, path: Path) -> Path:
        """Where this run makes the file `path`: beside it, hidden, found again by the run that continues."""
        run = self.directory.name if self.directory else "unkept"
        return path.with_name(f".{path.stem}.{run}{path.suffix}")

    @torch.inference_mode()
    def maps(self, pixels: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """The layers' float32 maps of pixels 0..255 (B, C, h, w)."""
        x = self.checkpoint.preprocessing.normalise(pixels).contiguous(memory_format=torch.channels_last)
        with devices.autocast(self.device, self.precision):
            found = self.backbone(x, layers)
        return {layer: found[layer].float() for layer in layers}

    def fingerprint(self) -> str:
        """Digest of every weight and statistic of the backbone: what is frozen must not move."""
        return content({"backbone": self.backbone.state_dict()}, {})


@dataclass
class Plan:
    """What a command does for one seed: parts, their keys, the records that there are of them, the run of the rest."""

    keys: dict[Task, str]
    found: dict[Task, Record]
    run: Unfinished

    @property
    def wanted(self) -> dict[str, Task]:
        """The parts that are not recorded, by key."""
        return {key: part for part, key in self.keys.items() if part not in self.found}

    def describe(self, force: bool) -> str:
        """A line for each part: recorded, or what will be done."""
        will = "will continue" if not force and self.run.continues(self.wanted) else "will run"
        verbs = {part: "recorded" if part in self.found else will for part in self.keys}
        return "\n".join(f"{self.keys[part]}  {describe_part(part)}  {verb}" for part, verb in verbs.items())


def evaluate(task: Task, dataset: Dataset, options: TaskOptions, line: str) -> None:
    """Run the task's parts for each seed; record what is new, print all."""
    checkpoint = resolve(options.checkpoint, options.runs_dir)
    dataset.preflight()
    limit = options.limit or checkpoint.limit
    sha256, fingerprint = checkpoint.sha256, dataset.fingerprint()
    plans = []
    for seed in dict.fromkeys(options.seeds):
        parts = replace(task, seed=seed).parts(checkpoint, dataset)
        keys = {p: cell_key(p.name, p.version, settings_of(p), sha256, fingerprint, limit) for p in parts}
        plans.append(processes.by_first(partial(make_plan, keys, options, limit)))
    if options.dry_run:
        print("\n".join(plan.describe(options.force) for plan in plans))
        return
    recorded = sum(len(plan.found) for plan in plans)
    for plan in plans:
        if plan.wanted:
            with failure_noted(*(options.runs_dir / key for key in plan.keys.values())):
                bench = open_bench(checkpoint, sha256, dataset, options, task.precision, plan.run.directory)
                perform(plan, bench, options, line, limit)
        elif processes.rank() == 0:
            plan.run.end()  # what a kill at its very end left
    records = [plan.found[part] for plan in plans for part in plan.keys]
    show(records, options, limit)
    if recorded:
        print(f"{recorded} of {len(records)} recorded before; --force runs them again")


def make_plan(keys: dict[Task, str], options: TaskOptions, limit: int | None) -> Plan:
    """The plan for one seed's parts. What a run that was stopped has still to record is not recorded, but replaced."""
    run = Unfinished(options.runs_dir, list(keys.values()))
    pending = run.pending()
    asked = [] if options.force or limit else [part for part in keys if keys[part] not in pending]
    found = {part: options.records.find(part.name, keys[part]) for part in asked}
    return Plan(keys, {part: record for part, record in found.items() if record is not None}, run)


def perform(plan: Plan, bench: Evaluation, options: TaskOptions, line: str, limit: int | None) -> None:
    """Run what the plan wants, or continue it: its records are found then and, without a limit, written."""
    wanted = plan.wanted
    if plan.run.continues(wanted) and not (options.force or options.quiet):
        print("continuing where this was stopped", file=sys.stderr)
    with plan.run.begun(wanted, afresh=options.force):
        for record in run_parts(list(wanted.values()), bench, line, plan.keys):
            plan.found[wanted[record.key]] = record
            if not limit and processes.rank() == 0:
                options.records.write(record)
                plan.run.recorded(record.key)


def open_bench(
    checkpoint: Checkpoint, sha256: str, dataset: Dataset, options: TaskOptions, precision: str, directory: Path
) -> Evaluation:
    """The evaluation's context, after checking that its records can be written; `directory` is for its states."""
    if not (options.limit or checkpoint.limit):
        options.records.check_writable()
    device = devices.pick(options.device)
    return Evaluation(
        checkpoint,
        sha256,
        dataset,
        checkpoint.build_backbone().to(device).to(memory_format=torch.channels_last),
        device,
        precision,
        workers=options.workers,
        limit=options.limit,
        quiet=options.quiet,
        cache=options.cache or ROOT / "cache",
        directory=directory,
        save_every=options.save_every,
        save_pictures=options.save_pictures if isinstance(options, TransferOptions) else 0,
    )


def run_parts(parts: Sequence[Task], bench: Evaluation, line: str, keys: dict[Task, str]) -> Iterator[Record]:
    """The record of each part, as it comes. RunFailed if the frozen backbone moved."""
    before = bench.fingerprint()
    started, clock = now(), time.perf_counter()
    place = environment(bench.device, bench.precision)
    for outcome in parts[0].run(parts, bench):
        if bench.fingerprint() != before:
            raise RunFailed("the frozen backbone's weights or statistics changed during the evaluation")
        seconds = (time.perf_counter() - clock) / len(parts)
        yield make_record(outcome, bench, line, keys[outcome.part], started, seconds, place)


def make_record(
    outcome: Outcome, bench: Evaluation, line: str, key: str, started: str, seconds: float, place: dict
) -> Record:
    """The record of one part."""
    task, checkpoint, dataset = outcome.part, bench.checkpoint, bench.dataset
    origin = checkpoint.dataset["name"] if checkpoint.dataset else None
    fields = ("name", "method", "backbone", "recipe", "seed", "epoch", "source")
    return Record(
        schema=SCHEMA,
        key=key,
        task=task.name,
        version=task.version,
        protocol=task.protocol_id(dataset),
        settings=settings_of(task),
        checkpoint={
            **{field: getattr(checkpoint, field) for field in fields},
            "sha256": bench.sha256,
            "dataset": origin,
        },
        dataset={
            "name": dataset.name,
            "protocol": task.dataset_protocol(),
            "fingerprint": dataset.fingerprint(),
            "splits": dict(dataset.splits),
        },
        metrics=outcome.metrics,
        details={"frozen": "verified: weights and statistics unchanged", **outcome.details},
        environment=place,
        command=line,
        started=started,
        seconds=round(seconds, 2),
    )


def show(records: Sequence[Record], options: TaskOptions, limit: int | None) -> None:
    """Print the numbers, and where their records lie."""
    first = records[0]
    print(f"{first.task}  {first.protocol}  {first.checkpoint_name}  on {first.dataset['name']}")
    rows = [
        {
            **{name: record.settings[name] for name in ("layer", "assignment", "seed") if name in record.settings},
            **{name: f"{value:.4g}" for name, value in sorted(record.metrics.items())},  # as records in files have them
            "record": "none" if limit else record.key,
        }
        for record in records
    ]
    print(tabulate(rows, headers="keys", disable_numparse=True))
    if limit:
        whose = "a smoke run" if options.limit else "the checkpoint is of a smoke run"
        print(f"{whose} on {limit} images (--limit): nothing is recorded")
    else:
        print(f"records     {shown_path(options.records.path(first).parent)}")
    if isinstance(options, TransferOptions) and options.save_pictures:
        folders = [options.runs_dir / record.key / PICTURES for record in records]
        for folder in filter(Path.is_dir, folders):
            print(f"pictures    {shown_path(folder)}")
        if not all(map(Path.is_dir, folders)):
            print("pictures    of what was recorded before there are none; --force --store FOLDER draws them")


def describe_part(part: Task) -> str:
    """A part's settings on one line."""
    return "  ".join(f"{name} {value}" for name, value in settings_of(part).items() if name != "precision")
