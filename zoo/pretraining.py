"""One pretraining run: its key, its folder, its checkpoint and its record."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from tabulate import tabulate

from results.files import write_bytes
from results.record import SCHEMA, Record, cell_key
from zoo import device as devices
from zoo.backbones import channels_for
from zoo.checkpoint import REFERENCE, Checkpoint, describe, recipe
from zoo.datasets.dataset import Dataset
from zoo.environment import environment
from zoo.run import Method, MethodOptions, failure_noted, now, shown_path
from zoo.training import SCRATCH, STATE, Training

METRICS = (
    "acc", "purity", "nmi_arithmetic", "nmi_geometric", "ami", "ari", "nmi_previous", "cluster_entropy", "loss",
)  # fmt: skip


def pretrain(method: Method, dataset: Dataset, options: MethodOptions, line: str) -> None:
    """Train one seed, save its checkpoint in runs/<key>/ and record it; or print the record there is."""
    dataset.preflight()
    method.check(dataset)
    key = cell_key(method.name, method.version, asdict(method), None, dataset.fingerprint(), options.limit)
    path = options.runs_dir / key / f"{checkpoint_name(method, dataset)}.safetensors"
    record = options.records.find(method.name, key)
    made = next((p for p in (path, REFERENCE / path.name) if p.exists() and describe(p).get("key") == key), None)
    done = record is not None and made is not None and not options.force
    if options.dry_run:
        plan = "recorded" if done else f"will train {method.epochs} epochs in {shown_path(path.parent)}"
        print(f"{path.stem}  {key}  {plan}")
        return
    if not done:
        made = path
        record = train(method, dataset, options, line, key, path)
        if options.limit is None:
            options.records.write(record)
    if options.out is not None:
        write_bytes(options.out, made.read_bytes())
    show(record, made, options, done)


def train(method: Method, dataset: Dataset, options: MethodOptions, line: str, key: str, path: Path) -> Record:
    """Train, or continue, the run `key`; its checkpoint is at `path` when this returns its record."""
    if options.limit is None:
        options.records.check_writable()
    path.parent.mkdir(parents=True, exist_ok=True)
    if options.force:
        (path.parent / STATE).unlink(missing_ok=True)
    with failure_noted(path.parent):
        run = Training(
            settings=method,
            dataset=dataset,
            images=dataset.open(method.opens(dataset), limit=options.limit),
            preprocessing=method.preprocessing(dataset),
            device=devices.pick(options.device),
            directory=path.parent,
            workers=options.workers,
            quiet=options.quiet,
        )
        started, place = now(), environment(run.device, method.precision)  # of the code that runs, not of later edits
        groups = method.train(run)
        checkpoint = describe_run(method, dataset, run, key, path.stem, groups, options)
        checkpoint.save(path)
        record = make_record(checkpoint, method, dataset, run, line, started, place)
    for name in (STATE, *SCRATCH):
        (path.parent / name).unlink(missing_ok=True)
    return record


def checkpoint_name(method: Method, dataset: Dataset) -> str:
    """<method>-<backbone>[-sobel]-<dataset>-s<seed>."""
    parts = [method.name.rpartition(".")[2], method.backbone, *(["sobel"] if method.sobel else [])]
    return "-".join([*parts, dataset.name.replace(":", "-").replace(os.sep, "-"), f"s{method.seed}"])


def describe_run(
    method: Method, dataset: Dataset, run: Training, key: str, name: str, groups: dict, options: MethodOptions
) -> Checkpoint:
    """The checkpoint of a finished run."""
    settings = {field: value for field, value in asdict(method).items() if field != "seed"}
    channels = channels_for(method.backbone, dataset.channels)
    backbone = {"name": method.backbone, "channels": channels, "sobel": method.sobel}
    source = {"name": dataset.name, "protocol": method.images, "fingerprint": dataset.fingerprint()}
    short = method.name.rpartition(".")[2]
    return Checkpoint(
        name=name,
        method=short,
        backbone=backbone,
        preprocessing=run.preprocessing,
        dataset=source,
        epoch=len(run.history),
        settings=settings,
        seed=method.seed,
        recipe=recipe(short, backbone, source, settings),
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
    splits = {split: n for split, n in dataset.splits.items() if method.opens(dataset) in (split, "merged")}
    return Record(
        schema=SCHEMA,
        key=checkpoint.key,
        task=method.name,
        version=method.version,
        protocol=f"{method.name.rpartition('.')[2]}@{method.version}",
        settings=asdict(method),
        checkpoint=None,
        dataset={**checkpoint.dataset, "splits": splits},
        metrics={name: last[name] for name in METRICS if last.get(name) is not None},
        details={
            "recipe": checkpoint.recipe,
            "checkpoint": {"name": checkpoint.name, "sha256": checkpoint.sha256},
            "history": run.history,
        },
        environment=place,
        command=line,
        started=started,
        seconds=round(sum(sum(entry["seconds"].values()) for entry in run.history), 1),
    )


def show(record: Record, path: Path, options: MethodOptions, done: bool) -> None:
    """Print a run's numbers and where its checkpoint and record lie."""
    said = "recorded before; --force trains it again" if done else f"trained in {record.seconds:.0f} s"
    print(f"{path.stem}  {record.dataset['name']} ({record.dataset['protocol']})  {said}")
    print(tabulate([[f"{value:.4f}" for value in record.metrics.values()]], headers=list(record.metrics)))
    print(f"checkpoint  {shown_path(path)}")
    smoke = f"none: --limit {options.limit} is a smoke run"
    print(f"record      {smoke if options.limit else shown_path(options.records.path(record))}")
