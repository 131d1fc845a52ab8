"""The frame of every command: settings from the command line, preflight, keys, records, errors.

A module of `pretrain/` defines a `Method`, one of `probes/` or `transfer/` a `Task`: a frozen dataclass of settings,
whose fields are the command's flags. What does not change a number is in zoo.options.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import tyro
from torch import Tensor

from results.errors import UserError, ending
from results.files import FIXES, ROOT, write_text
from zoo import device as devices
from zoo import processes
from zoo.backbones import channels_for, standard_preprocessing
from zoo.checkpoint import Checkpoint, Preprocessing
from zoo.cost import Cost, multiply_adds
from zoo.datasets import find
from zoo.datasets.changes import say_changes
from zoo.datasets.collection import Collection
from zoo.datasets.dataset import UNLABELLED, Dataset
from zoo.datasets.verify import exclude
from zoo.options import MethodOptions, Options, TaskOptions, check_least, public
from zoo.signals import CONTINUES, signals

ERROR = "error.txt"
LATER = {"later": True}  # metadata of a setting that its class did not have at first; see settings_of
Settings = TypeVar("Settings", bound="Method | Task")


class Preset:
    """What methods and tasks have in common: settings that go with a data set."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {}  # per data set, the settings that differ from the defaults

    @classmethod
    def preset(cls, dataset: str, words: Sequence[str] = ()) -> dict[str, Any]:
        """The settings of a data set that differ from the defaults; `words` is the rest of the command line."""
        name, colon, _ = dataset.partition(":")
        return cls.presets.get(name, cls.presets.get("folder", {}) if colon else {})  # lists, shards are as folders


class Unfit(UserError):
    """Settings that could be, but not for this many images."""


@dataclass(frozen=True)
class Method(Preset):
    """A way of pretraining."""

    name: ClassVar[str]
    version: ClassVar[int]
    home: ClassVar[str] = Options.dataset
    least: ClassVar[dict[str, float]] = {
        "epochs": 1,
        "batch": 1,
        "lr": 0,
        "momentum": 0,
        "weight_decay": 0,
        "imbalance": 1,
    }

    # one of our own (alexnet, vgg16, small_vgg, resnet18 …), torchvision:NAME or timm:NAME
    backbone: str = "alexnet32"
    sobel: bool = False  # look at image gradients instead of colours
    images: Literal["split", "merged", "unlabelled"] = "split"  # the training split, all labelled, or the unlabelled
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: the backbone under autocast
    # Of a subset drawn for study, the size of the largest class over that of the smallest; 1: all images.
    imbalance: float = field(default=1.0, metadata=LATER)
    # torchrun's, which changes the numbers: batch norm is of each
    processes: Annotated[int, tyro.conf.Suppress] = field(default=1, metadata=LATER)
    seed: Annotated[int, tyro.conf.Suppress] = 0

    def train(self, run: Any) -> dict[str, dict[str, Tensor]]:
        """The trained tensors in groups: backbone, head, clustering. `run` is a zoo.training.Training."""
        raise NotImplementedError

    def check(self, dataset: Dataset, count: int) -> None:
        """UserError for settings that cannot work on `count` images of this data set, before any work.

        Unfit where they could on more images.
        """
        channels_for(self.backbone, dataset.channels)
        check_least(asdict(self), self.least)
        batch = asdict(self).get("batch", self.processes)
        if batch % self.processes or count < self.processes:
            happened = f"batches of {batch} of {count} images cannot be shared evenly by {self.processes} processes"
            raise Unfit(happened, fix=f"--batch {max(1, batch // self.processes) * self.processes}")

    def cost(self, dataset: Dataset, count: int) -> Cost:
        """What training on `count` images of this data set takes."""
        raise NotImplementedError

    def image_bytes(self, dataset: Dataset, count: int) -> int:
        """What `count` images take in memory while they are trained on: nothing where they are files."""
        return 0 if isinstance(dataset, Collection) else count * dataset.channels * (dataset.size or 0) ** 2

    def multiply_adds(self, dataset: Dataset) -> int:
        """Of the backbone, for one image of this data set."""
        wanted = self.preprocessing(dataset)
        return multiply_adds(self.backbone, wanted.channels, self.sobel, wanted.size)

    def opens(self, dataset: Dataset) -> str:
        """The split that is trained on, or `merged`. UserError for unlabelled images where there are none."""
        if self.images == UNLABELLED and UNLABELLED not in dataset.splits:
            raise UserError(f"the data set {dataset.name} has no unlabelled images", fix="--images split")
        return dataset.training if self.images == "split" else self.images

    def preprocessing(self, dataset: Dataset) -> Preprocessing:
        """How the checkpoint wants its images: the backbone's standard size, the data set's mean and std."""
        standard = standard_preprocessing(self.backbone, channels_for(self.backbone, dataset.channels))
        return replace(standard, mean=dataset.mean, std=dataset.std)


@dataclass(frozen=True)
class Outcome:
    """What a task found for one of its parts."""

    part: Task
    metrics: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task(Preset):
    """A test of a checkpoint's frozen or fine-tuned features; each part of it gives one record."""

    name: ClassVar[str]
    version: ClassVar[int]
    home: ClassVar[str] = Options.dataset  # the data set of the bare command
    options: ClassVar[type[TaskOptions]] = TaskOptions

    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: the backbone under autocast
    seed: Annotated[int, tyro.conf.Suppress] = 0

    def parts(self, checkpoint: Checkpoint, dataset: Dataset) -> Sequence[Self]:
        """The tasks, one a record, with every setting resolved. UserError for what the checkpoint cannot do."""
        return [self]

    def protocol_id(self, dataset: Dataset) -> str:
        """Name and version of the protocol, as records and tables spell it, and what differs from its defaults."""
        raise NotImplementedError

    def dataset_protocol(self) -> str:
        """`split` or `merged`."""
        return "split"

    def run(self, parts: Sequence[Self], bench: Any) -> Iterable[Outcome]:
        """Evaluate the parts in one pass. `bench` is a zoo.evaluation.Evaluation."""
        raise NotImplementedError


def settings_of(run: Method | Task) -> dict[str, Any]:
    """The settings as keys, recipes and records hold them.

    One that its class got later is there only where it is not the default: what ran before it came keeps its key.
    """
    values = asdict(run)
    return {
        entry.name: values[entry.name]
        for entry in fields(run)
        if not (entry.metadata.get("later") and values[entry.name] == entry.default)
    }


def main(kind: type[Method] | type[Task], arguments: Sequence[str] | None = None) -> None:
    """Run the command of a method or task and leave with its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(guarded(lambda: command(kind, words)))


def guarded(work: Callable[[], Any], left: str = CONTINUES) -> int:
    """The exit code of `work`: 0; 1 a run failed; 2 the person can fix it; 130 and 143 after signals.

    left: what is said of work that a signal ended.
    """
    try:
        with signals.handled(left):
            return ending(work)
    except OSError as error:
        if error.errno not in FIXES:
            raise
        where = error.filename or "the disk"
        print(f"error: {where}: {error.strerror}\n  try: {FIXES[error.errno]} (--runs, --store)", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {left}", file=sys.stderr)
        return 130


def command(kind: type[Method] | type[Task], words: Sequence[str]) -> None:
    """Parse the words of a command line and do what they say."""
    settings, options = parse(kind, words)
    options.check()
    devices.prepare(options.threads or None)
    with processes.joined():
        perform(settings, options if processes.rank() == 0 else replace(options, quiet=True), words)


def perform(settings: Method | Task, options: Any, words: Sequence[str]) -> None:
    """Do what the settings and options say, `words` being the command line."""
    dataset = find(options.dataset, options.data_dir)
    if options.exclude is not None:
        exclude(dataset, options.exclude)
    if processes.rank() == 0:
        say_changes(dataset, remember=not options.dry_run)
    line = shlex.join([*processes.launcher(), "-m", settings.name, *public(words)])
    # Imported here: both import the classes above.
    if isinstance(settings, Method):
        from zoo.pretraining import pretrain

        for seed in options.seeds:
            pretrain(replace(settings, seed=seed, processes=processes.count()), dataset, options, line)
    else:
        from zoo.evaluation import evaluate

        evaluate(settings, dataset, options, line)


def parse(kind: type[Settings], words: Sequence[str]) -> tuple[Settings, Any]:
    """The settings and options of a command line; what it leaves out is the data set's preset."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--dataset", default=kind.home)
    known, _ = early.parse_known_args(words)
    options = MethodOptions if issubclass(kind, Method) else kind.options

    def collect(settings: Any, options: Any) -> tuple[Any, Any]:
        return settings, options

    collect.__annotations__ = {"settings": kind, "options": options}
    collect.__defaults__ = (kind(**kind.preset(known.dataset, words)), options(dataset=known.dataset))
    return tyro.cli(
        collect,
        prog=f"python -m {kind.name}",
        description=sys.modules[kind.__module__].__doc__,
        args=list(words),
        config=(tyro.conf.OmitArgPrefixes,),
    )


def registry(*packages: str) -> dict[str, type[Method] | type[Task]]:
    """Every method and task by name: what the modules of the packages define."""
    found = {}
    for package in packages:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            if module.name.endswith("__main__"):
                continue
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and value.__dict__.get("name") == module.name:
                    found[module.name] = value
    return found


@contextmanager
def failure_noted(directory: Path, *others: Path) -> Iterator[None]:
    """Leave the traceback of a run that fails in its folder's error.txt; a new try removes it, and the others'."""
    for place in (directory, *others):
        (place / ERROR).unlink(missing_ok=True)
    try:
        yield
        for place in (directory, *others):
            with suppress(OSError):
                place.rmdir()  # where the error was all there was
    except Exception:
        with suppress(UserError, OSError):  # the disk may be what failed
            write_text(directory / ERROR, traceback.format_exc())
        raise


def shown_path(path: Path) -> str:
    """The path as a person would type it from here."""
    return os.path.relpath(path) if path.is_relative_to(ROOT) else str(path)


def now() -> str:
    """The time as records write it: UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
