"""One pretraining run: its key, its folder, its checkpoint and its record."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tabulate import tabulate

from results.errors import UserError
from results.files import check_writable, remove_torn, write_bytes
from results.record import SCHEMA, Record, cell_key
from zoo import device as devices
from zoo import processes
from zoo.backbones import channels_for
from zoo.checkpoint import REFERENCE, Checkpoint, describe
from zoo.datasets.dataset import Dataset, Missing
from zoo.datasets.images import Images
from zoo.datasets.imbalance import imbalanced
from zoo.environment import environment
from zoo.options import MethodOptions
from zoo.run import Method, Unfit, failure_noted, now, settings_of, shown_path
from zoo.scratch import discard
from zoo.seeds import numpy_generator
from zoo.state import remove, states
from zoo.training import SCRATCH, Training
from zoo.unfinished import alone

METRICS = (
    "acc", "purity", "nmi_arithmetic", "nmi_geometric", "ami", "ari", "nmi_previous", "cluster_entropy", "loss",
)  # fmt: skip


def pretrain(method: Method, dataset: Dataset, options: MethodOptions, line: str) -> None:
    """Train one seed, save its checkpoint in runs/<key>/ and record it; or print the record there is."""
    if options.dry_run:
        foresee(method, dataset, options)
        return
    dataset.preflight()
    method.check(dataset, count_images(method, dataset, options))
    key, path = place(method, dataset, options)
    known = look_up(method, key, path, options)
    record, made = known or (train(method, dataset, options, line, key, path), path)
    if processes.rank():
        return
    if options.out is not None:
        write_bytes(options.out, made.read_bytes())
    show(record, made, options, known is not None)


def foresee(method: Method, dataset: Dataset, options: MethodOptions) -> None:
    """Print what a run would do, or why it cannot, and what it costs.

    Of a published data set that is not here, by the counts that it has. UserError if these are not known either, and
    for what more images or others would not mend.
    """
    cannot: UserError | None = None
    try:
        dataset.preflight()
    except Missing as missing:
        cannot = missing
    count = count_images(method, dataset, options)
    try:
        method.check(dataset, count)
    except (Missing, Unfit) as error:
        cannot = cannot or error
    if cannot:
        print(f"{checkpoint_name(method, dataset)}  cannot: {cannot}")
    else:
        key, path = place(method, dataset, options)
        verb = "continue" if states(path.parent) and not options.force else "train"
        plan = f"will {verb}: {asdict(method)['epochs']} epochs in {shown_path(path.parent)}"
        print(f"{path.stem}  {key}  {'recorded' if look_up(method, key, path, options) else plan}")
    print(f"{count:,} images\n{method.cost(dataset, count)}")


def place(method: Method, dataset: Dataset, options: MethodOptions) -> tuple[str, Path]:
    """The run's key, and where its checkpoint goes."""
    fingerprint = dataset.fingerprint_of(method.opens(dataset))
    key = cell_key(method.name, method.version, settings_of(method), None, fingerprint, options.limit)
    return key, options.runs_dir / key / f"{checkpoint_name(method, dataset)}.safetensors"


def look_up(method: Method, key: str, path: Path, options: MethodOptions) -> tuple[Record, Path] | None:
    """What `recorded` says to the first process; None with --force."""
    return processes.by_first(lambda: None if options.force else recorded(method.name, key, path, options))


def trained_splits(method: Method, dataset: Dataset) -> dict[str, int]:
    """The splits that the method learns from, with their counts."""
    return {split: dataset.splits[split] for split in dataset.members(method.opens(dataset))}


def count_images(method: Method, dataset: Dataset, options: MethodOptions) -> int:
    """How many images the method learns from."""
    if method.imbalance > 1:
        return len(open_images(method, dataset, options))
    count = sum(trained_splits(method, dataset).values())
    return count if options.limit is None else min(options.limit, count)


def open_images(method: Method, dataset: Dataset, options: MethodOptions) -> Images:
    """The images that the method learns from. UserError for an imbalance of classes that there are not."""
    images = dataset.open(method.opens(dataset), limit=options.limit)
    if not method.imbalance > 1:
        return images
    if images.labels is None:
        raise UserError(f"the images of {dataset.name} have no classes to draw unequally", fix="without --imbalance")
    return images.subset(imbalanced(images.labels, method.imbalance, numpy_generator(method.seed, "imbalance")))


def recorded(task: str, key: str, path: Path, options: MethodOptions) -> tuple[Record, Path] | None:
    """The run's record and its checkpoint; None if one is not there, or a run to replace them is unfinished."""
    record = options.records.find(task, key)
    made = next((place for place in (path, REFERENCE / path.name) if holds(place, key)), None)
    if record is None or made is None or states(path.parent):
        return None
    return record, made


def holds(path: Path, key: str) -> bool:
    """Whether the file is the whole checkpoint of the run `key`."""
    try:
        return path.exists() and describe(path).get("key") == key
    except UserError as error:
        print(f"{error.happened}; its run is repeated", file=sys.stderr)
        return False


def train(method: Method, dataset: Dataset, options: MethodOptions, line: str, key: str, path: Path) -> Record:
    """Train, or continue, the run `key`; when this returns its record, that and the checkpoint are written."""
    check_places(path, options)
    with alone(path.parent) if processes.rank() == 0 else nullcontext():
        processes.meet()  # before another run's files are looked at
        return train_alone(method, dataset, options, line, key, path)


def train_alone(method: Method, dataset: Dataset, options: MethodOptions, line: str, key: str, path: Path) -> Record:
    """See train; no other run writes in its folder."""
    directory = path.parent / f"process-{processes.rank()}" if processes.rank() else path.parent
    directory.mkdir(exist_ok=True)
    if options.force:
        remove(directory)
        discard(directory, SCRATCH)
    run = open_run(method, dataset, options, directory)
    try:
        with failure_noted(directory):
            # before the training: the environment is of the code that runs, not of later edits
            started, place = now(), environment(run.device, method.precision)
            groups = method.train(run)
            checkpoint = describe_run(method, dataset, run, key, path.stem, groups, options)
            record = make_record(checkpoint, method, dataset, run, line, started, place)
            if processes.rank() == 0:
                checkpoint.save(path)
                if options.limit is None:
                    options.records.write(record)
    except Exception:  # not a signal, after which it is needed again
        discard(directory, SCRATCH)
        raise
    processes.meet()
    clear(directory)  # last: what failed before it can be tried again
    return record


def clear(directory: Path) -> None:
    """Remove what only an unfinished run needs; of a process beside the first, all that it has written."""
    if processes.rank():
        shutil.rmtree(directory, ignore_errors=True)
        return
    discard(directory, SCRATCH)
    remove_torn(directory)
    remove(directory)


def check_places(path: Path, options: MethodOptions) -> None:
    """UserError unless the checkpoint, the record and --out can be written."""
    check_writable(path.parent)
    if options.limit is None:
        options.records.check_writable()
    if options.out is not None:
        check_writable(options.out.parent)


def open_run(method: Method, dataset: Dataset, options: MethodOptions, directory: Path) -> Training:
    """What the method trains with."""
    return Training(
        settings=method,
        dataset=dataset,
        images=open_images(method, dataset, options),
        preprocessing=method.preprocessing(dataset),
        device=devices.pick(options.device),
        directory=directory,
        workers=options.workers,
        quiet=options.quiet,
        save_every=options.save_every,
    )


def checkpoint_name(method: Method, dataset: Dataset) -> str:
    """<method>-<backbone>[-sobel]-<dataset>-s<seed>."""
    parts = [method.name.rpartition(".")[2], method.backbone, *(["sobel"] if method.sobel else [])]
    return "-".join([*parts, dataset.name, f"s{method.seed}"]).replace(":", "-").replace(os.sep, "-")


def ingredients(method: Method, dataset: Dataset) -> dict[str, Any]:
    """What a recipe is made of: method, backbone, data set, and settings without the seed."""
    channels = channels_for(method.backbone, dataset.channels)
    fingerprint = dataset.fingerprint_of(method.opens(dataset))
    return {
        "method": method.name.rpartition(".")[2],
        "backbone": {"name": method.backbone, "channels": channels, "sobel": method.sobel},
        "dataset": {"name": dataset.name, "protocol": method.images, "fingerprint": fingerprint},
        "settings": {field: value for field, value in settings_of(method).items() if field != "seed"},
    }


def describe_run(
    method: Method, dataset: Dataset, run: Training, key: str, name: str, groups: dict, options: MethodOptions
) -> Checkpoint:
    """The checkpoint of a finished run."""
    return Checkpoint(
        **ingredients(method, dataset),
        name=name,
        preprocessing=run.preprocessing,
        epoch=len(run.history),
        seed=method.seed,
        limit=options.limit,
        key=key,
        source="trained here",
        groups=groups,
    )


def make_record(
    checkpoint: Checkpoint, method: Method, dataset: Dataset, run: Training, line: str, started: str, place: dict
) -> Record:
    """The record of a finished run: the last epoch's numbers, and every epoch's in the details."""
    last = run.history[-1]
    return Record(
        schema=SCHEMA,
        key=checkpoint.key or "",
        task=method.name,
        version=method.version,
        protocol=f"{method.name.rpartition('.')[2]}@{method.version}",
        settings=settings_of(method),
        checkpoint=None,
        dataset={**(checkpoint.dataset or {}), "splits": trained_splits(method, dataset)},
        metrics={name: last[name] for name in METRICS if last.get(name) is not None},
        details={
            "recipe": checkpoint.recipe,
            "checkpoint": {"name": checkpoint.name, "sha256": checkpoint.sha256},
            "images": len(run.images),
            "history": run.history,
            **({"conclusion": run.conclusion} if run.conclusion else {}),
        },
        environment=place,
        command=line,
        started=started,
        seconds=round(sum(sum(entry["seconds"].values()) for entry in (*run.history, {"seconds": run.seconds})), 1),
    )


def show(record: Record, path: Path, options: MethodOptions, done: bool) -> None:
    """Print a run's numbers and where its checkpoint and record lie."""
    said = "recorded before; --force trains it again" if done else f"trained in {record.seconds:.0f} s"
    print(f"{path.stem}  {record.dataset['name']} ({record.dataset['protocol']})  {said}")
    print(tabulate([[f"{value:.4f}" for value in record.metrics.values()]], headers=list(record.metrics)))
    print(f"checkpoint  {shown_path(path)}")
    smoke = f"none: --limit {options.limit} is a smoke run"
    print(f"record      {smoke if options.limit else shown_path(options.records.path(record))}")
