"""Fine-tuning on a devkit of Pascal VOC: the settings, the steps and the checks that its tasks share.

A task builds a model around the checkpoint's backbone, marks what learns in it, and gives the loss of a batch.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from results.errors import RunFailed, UserError
from zoo import processes
from zoo.backbones import Backbone
from zoo.backbones.plain import Plain
from zoo.checkpoint import Checkpoint
from zoo.datasets.dataset import Dataset, spaced
from zoo.datasets.images import FileImages, ahead
from zoo.evaluation import Evaluation
from zoo.options import check_least
from zoo.run import LATER, Task
from zoo.seeds import derive, generator, numpy_generator
from zoo.state import State
from zoo.steps import descend
from zoo.tensors import content
from zoo.views import View
from zoo.voc import Devkit, as_devkit
from zoo.voc.devkit import MAIN

SHOWN = 100  # losses that a record keeps
AHEAD = 64  # images that are read ahead of where the check of files is


@dataclass(frozen=True)
class Transfer(Task):
    """What all fine-tuning tasks have as settings; a subclass has the solver's values for each data set."""

    home: ClassVar[str] = "minivoc"
    protocol: ClassVar[str]
    of: ClassVar[str] = MAIN  # whose sets of images are used: Main's or Segmentation's
    least: ClassVar[dict[str, float]] = {
        "iterations": 1,
        "batch": 1,
        "lr": 0,
        "momentum": 0,
        "weight_decay": 0,
        "warm_up": 0,
    }

    trained: Literal["fc6-8", "all"] = "all"  # the layers above the convolutions, or all but the Sobel filter
    # learned from, evaluated on; settings are to be chosen on train-val
    images: Literal["trainval-test", "train-val"] = "trainval-test"
    iterations: int = 1000  # steps, each on one batch
    batch: int = 16  # images of a step
    lr: float = 1e-3  # the largest learning rate
    warm_up: int = 100  # first iterations, in which the learning rate grows to its largest
    momentum: float = 0.9  # of the gradients
    weight_decay: float = 1e-6  # of the weights that learn
    # torchrun's, which changes the numbers: each draws for its images what is dropped, and regions
    processes: Annotated[int, tyro.conf.Suppress] = field(default=1, metadata=LATER)

    def parts(self, checkpoint: Checkpoint, dataset: Dataset) -> Sequence[Self]:
        """See Task.parts."""
        devkit = as_devkit(dataset, f"{self.name} fine-tunes on")
        check_least(asdict(self), self.least)
        if self.batch % processes.count():
            happened = f"batches of {self.batch} cannot be shared evenly by {processes.count()} processes"
            raise UserError(happened, fix=f"--batch {max(1, self.batch // processes.count()) * processes.count()}")
        devkit.check_sets(self.images, self.of)
        for split in self.splits:
            devkit.ids(split, self.of)
            if self.of == MAIN:
                devkit.presence(split)  # its lists are whole, and some image shows each class
        return [replace(self, processes=processes.count())]

    @classmethod
    def preset(cls, dataset: str, words: Sequence[str] = ()) -> dict[str, Any]:
        """See Preset.preset: some of the settings go with the layers that are trained."""
        early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        early.add_argument("--trained", default=cls.trained)
        known, _ = early.parse_known_args(words)
        return cls.usual(dataset, known.trained)

    @classmethod
    def usual(cls, dataset: str, trained: str) -> dict[str, Any]:
        """The settings of a data set that differ from the defaults, where the layers `trained` are."""
        return cls.presets.get(dataset, {})

    @property
    def splits(self) -> tuple[str, str]:
        """The sets of images that are learned from and evaluated on."""
        training, evaluation = self.images.split("-")
        return training, evaluation

    def protocol_id(self, dataset: Dataset) -> str:
        """See Task.protocol_id: what differs from the data set's preset is in it, but for the columns of tables."""
        usual = {entry.name: entry.default for entry in fields(self) if entry.default is not MISSING}
        usual |= self.usual(dataset.name, self.trained) | {name: getattr(self, name) for name in self.columns}
        changed = [f"{name} {value}" for name, value in asdict(self).items() if value != usual[name]]
        return ", ".join([f"{self.protocol}@{self.version}", *changed])

    @property
    def columns(self) -> tuple[str, ...]:
        """Settings that tables tell their columns apart by."""
        return ("trained", "precision", "processes", "seed")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.lr * min(1.0, (step + 1) / max(1, self.warm_up)) * self.share(step)

    def share(self, step: int) -> float:
        """How much of the largest learning rate the schedule leaves at a step."""
        raise NotImplementedError


@dataclass
class Finetuning:
    """A model that is fine-tuned, in an evaluation; what does not learn in it is verified not to have moved."""

    task: Transfer
    bench: Evaluation
    model: nn.Module
    state: State
    clip: float = math.inf

    def __post_init__(self) -> None:
        self.devkit: Devkit = self.bench.dataset  # type: ignore[assignment]
        self.before = content({"fixed": self.fixed()}, {})
        self.losses: list[float] = self.state.part("losses", [])
        groups = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        lr, momentum, decay = self.task.lr, self.task.momentum, self.task.weight_decay
        self.optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=decay)
        torch.manual_seed(derive(self.task.seed, "fine-tuning", processes.rank()))  # dropout's
        self.state.part("model", self.model)
        self.state.part("optimizer", self.optimizer)

    def fixed(self) -> dict[str, Tensor]:
        """The tensors of the model that do not learn: frozen weights, and the statistics of batch norm."""
        learned = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in self.model.state_dict().items() if name not in learned}

    def rows(self, split: str) -> np.ndarray:
        """The images of a set, by their place in it: all, or as many as --limit says."""
        count = len(self.devkit.ids(split, self.task.of))
        return np.arange(count) if self.bench.limit is None else spaced(count, self.bench.limit)

    def order(self, count: int) -> np.ndarray:
        """The images of all iterations, one batch after the other: seeded permutations of `count`, joined."""
        wanted = self.task.iterations * self.task.batch
        passes = range(math.ceil(wanted / count))
        drawn = [numpy_generator(self.task.seed, "order", number).permutation(count) for number in passes]
        return np.concatenate(drawn)[:wanted]

    def check_files(self, *sets: tuple[FileImages, np.ndarray, View]) -> None:
        """Look at all images once, so that a file which is broken is named now, and not when its turn comes.

        sets: images, which of them will be asked for, and a view. Of many processes, each looks at its own share. A run
        that continues in its training, or after it, has done so.
        """
        if self.state.done("training"):
            return
        wanted = [(images, number, view) for images, numbers, view in sets for number in numbers.tolist()]
        own = wanted[processes.share(len(wanted))]

        def check(at: int) -> None:
            images, number, view = own[at]
            images.see(number, view, generator(0, at))

        looked = ahead(check, range(len(own)), self.bench.workers, AHEAD)
        for _ in self.bench.progress(looked, "files checked", len(own)):
            pass
        processes.meet()

    def descend(self, batches: Iterable[Any], loss_of: Callable[[Any], Tensor]) -> None:
        """A step for each batch. RunFailed for a loss that is no number, and for weights that are none at the end."""
        train(self.model)
        for step, batch in enumerate(batches, self.state.done("training")):
            self.optimizer.param_groups[0]["lr"] = self.task.rate(step)
            loss = loss_of(batch)
            descend(loss / processes.count(), self.optimizer, clip=self.clip)
            value = float(processes.summed(loss.detach() / processes.count()))
            if not math.isfinite(value):
                raise RunFailed(f"the loss became {value} in iteration {step}. Try a smaller --lr")
            self.losses.append(value)
        if not all(torch.isfinite(parameter).all() for parameter in self.model.parameters()):
            raise RunFailed("the last iteration left weights that are no numbers. Try a smaller --lr")

    def conclude(self) -> dict[str, Any]:
        """For the record: the course of the loss, and what was verified to be frozen. RunFailed if it moved."""
        fixed = self.fixed()
        if content({"fixed": fixed}, {}) != self.before:
            raise RunFailed("what is frozen changed during the fine-tuning")
        return {
            "loss": [
                round(float(np.mean(part)), 5) for part in np.array_split(self.losses, min(SHOWN, len(self.losses)))
            ],
            "frozen": f"verified: {len(fixed)} of {len(self.model.state_dict())} tensors unchanged",
        }


@contextmanager
def trying_sizes(backbone: Backbone) -> Iterator[None]:
    """UserError where a network fails in the block, in which it is tried on the meta device on images of some size."""
    try:
        yield
    except (UserError, RuntimeError, AssertionError, ValueError, ZeroDivisionError) as error:
        happened = f"{backbone.name} does not take images of any size"
        raise UserError(happened, fix="a checkpoint of a convolutional network") from error


def choose(trunk: Backbone, trained: str) -> None:
    """Let parameters of a checkpoint's network learn: those of its linear layers (fc6-8), or all but Sobel's filter."""
    trunk.requires_grad_(trained == "all")
    if isinstance(trunk, Plain):
        trunk.classifier.requires_grad_(True)
    if trunk.sobel is not None:
        trunk.sobel.requires_grad_(False)


def train(model: nn.Module) -> None:
    """Put a model in training mode, but for its batch norms, which keep their running statistics."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def check_any(shown: Sized) -> None:
    """UserError if the classes of which an image that is evaluated shows an object that counts are none."""
    if not len(shown):
        raise UserError("no image shows an object that counts", fix="more images (a larger --limit, or none)")
