"""One evaluation of a checkpoint: preflight, the frozen backbone, a record for each part."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from results.errors import RunFailed, UserError
from results.files import ROOT
from results.record import SCHEMA, Record, cell_key
from zoo import device as devices
from zoo.backbones import Backbone
from zoo.checkpoint import Checkpoint, resolve
from zoo.datasets.dataset import Dataset
from zoo.datasets.images import ArrayImages, Images
from zoo.environment import environment
from zoo.options import TaskOptions
from zoo.run import Outcome, Task, failure_noted, now, settings_of, shown_path
from zoo.views import Centre, CentreCrop, View


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
        self, images: Images, order: np.ndarray, view: View, batch: int, what: str, seed: int = 0
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """(ids, pixels) of the images in `order`, with a progress bar."""
        stream = images.batches(order, batch, view, seed, device=self.device, workers=self.workers)
        total = -(-len(order) // batch)
        return iter(tqdm(stream, desc=what, total=total, disable=True if self.quiet else None, leave=False))

    @torch.inference_mode()
    def maps(self, pixels: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """The layers' float32 maps of pixels 0..255 (B, C, h, w)."""
        x = self.checkpoint.preprocessing.normalise(pixels).contiguous(memory_format=torch.channels_last)
        with devices.autocast(self.device, self.precision):
            found = self.backbone(x, layers)
        return {layer: found[layer].float() for layer in layers}

    def fingerprint(self) -> str:
        """Digest of every weight and statistic of the backbone: what is frozen must not move."""
        digest = hashlib.sha256()
        for name, tensor in self.backbone.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy().ravel())
        return digest.hexdigest()


def evaluate(task: Task, dataset: Dataset, options: TaskOptions, line: str) -> None:
    """Run the task's parts for each seed; record what is new, print all."""
    checkpoint = resolve(options.checkpoint, options.runs_dir)
    dataset.preflight()
    seeds = tuple(dict.fromkeys(options.seeds))
    parts = [part for seed in seeds for part in replace(task, seed=seed).parts(checkpoint, dataset)]
    limit = options.limit or checkpoint.limit
    sha256, fingerprint = checkpoint.sha256, dataset.fingerprint()
    keys = {p: cell_key(p.name, p.version, settings_of(p), sha256, fingerprint, limit) for p in parts}
    known = {} if options.force or limit else {p: options.records.find(p.name, keys[p]) for p in parts}
    missing = [part for part in parts if known.get(part) is None]
    if options.dry_run:
        for part in parts:
            print(f"{keys[part]}  {describe_part(part)}  {'will run' if part in missing else 'recorded'}")
        return
    found = {part: record for part, record in known.items() if record is not None}
    for seed in seeds:
        wanted = [part for part in missing if part.seed == seed]
        if wanted:
            with failure_noted(*(options.runs_dir / keys[part] for part in parts if part.seed == seed)):
                bench = open_bench(checkpoint, sha256, dataset, options, task.precision)
                for record in run_parts(wanted, bench, line, keys):
                    found[next(part for part in wanted if keys[part] == record.key)] = record
                    if not limit:
                        options.records.write(record)
    show([found[part] for part in parts], options, limit)
    if len(missing) < len(parts):
        print(f"{len(parts) - len(missing)} of {len(parts)} recorded before; --force runs them again")


def open_bench(
    checkpoint: Checkpoint, sha256: str, dataset: Dataset, options: TaskOptions, precision: str
) -> Evaluation:
    """The evaluation's context, after checking that its records can be written."""
    if not (options.limit or checkpoint.limit):
        options.records.check_writable()
    device = devices.pick(options.device)
    backbone = checkpoint.build_backbone().to(device).to(memory_format=torch.channels_last)
    cache = options.cache or ROOT / "cache"
    return Evaluation(
        checkpoint, sha256, dataset, backbone, device, precision, options.workers, options.limit, options.quiet, cache
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
        details={**outcome.details, "frozen": "verified: weights and statistics unchanged"},
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
            **{name: f"{value:.4g}" for name, value in record.metrics.items()},
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


def describe_part(part: Task) -> str:
    """A part's settings on one line."""
    return "  ".join(f"{name} {value}" for name, value in asdict(part).items() if name != "precision")
