"""Small pretraining runs in a temporary folder, for the tests of pretraining."""

import json
import signal
from unittest.mock import patch

import numpy as np
import torch

from results.store import Store
from zoo.checkpoint import Checkpoint
from zoo.datasets.digits import Digits
from zoo.datasets.images import ArrayImages
from zoo.run import command, guarded
from zoo.training import Training

SHORT = ("--epochs", "3", "--batch", "32")  # takes under a second on Tiny


class Tiny(Digits):
    """The first few of scikit-learn's digits."""

    splits = {"train": 64, "test": 16}  # noqa: RUF012

    def read(self, split):
        return super().read(split).subset(np.arange(self.splits[split]))

    def fingerprint(self, full=False):
        return f"tiny {self.splits}"


class Unlabelled(Tiny):
    """The same, without classes."""

    classes = ()

    def read(self, split):
        images = super().read(split)
        images.labels = None
        return images


class Pictures(Tiny):
    """Random images in the size and the channels of another data set."""

    def __init__(self, size=32, channels=3):
        self.size, self.channels = size, channels
        self.mean = self.std = (0.5,) * channels

    def read(self, split):
        draws, count = np.random.default_rng(0), self.splits[split]
        pixels = draws.integers(0, 256, (count, self.channels, self.size, self.size), dtype=np.uint8)
        return ArrayImages(torch.from_numpy(pixels), np.arange(count) % 10)

    def fingerprint(self, full=False):
        return f"pictures {self.size} {self.channels}"


TINY = Tiny()


def start(kind, folder, *words, dataset=None):
    """The exit code of a method's command in this process, its records and runs in `folder`."""
    places = ["--store", str(folder / "records"), "--runs", str(folder / "runs"), "--threads", "1", "--quiet"]
    before = signal.getsignal(signal.SIGTERM)
    try:
        with patch("zoo.run.find", lambda name, data_dir: dataset or TINY):
            return guarded(lambda: command(kind, [*places, *words]))
    finally:
        signal.signal(signal.SIGTERM, before)


def training(method, folder, dataset=TINY):
    """What `method` trains with, in `folder`."""
    return Training(
        settings=method,
        dataset=dataset,
        images=dataset.open(method.opens(dataset)),
        preprocessing=method.preprocessing(dataset),
        device=torch.device("cpu"),
        directory=folder,
        quiet=True,
    )


def batches(run, view, order, batch, phase, *seed):
    """(ids, network input) that the steps of a phase get, without being its steps."""
    for ids, pixels in run.images.batches(order, batch, view, run.seed(phase, *seed)):
        yield ids, run.preprocessing.normalise(pixels).contiguous(memory_format=torch.channels_last)


def checkpoint(folder):
    """The one checkpoint there is in `folder`."""
    (path,) = folder.glob("runs/*/*.safetensors")
    return Checkpoint.load(path)


def record(folder):
    """The one record there is in `folder`."""
    (found,) = Store(folder / "records").records()
    return found


def log(folder):
    """The epochs of the one run in `folder`, as its log has them."""
    (path,) = folder.glob("runs/*/log.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def untimed(history):
    """A history without the seconds, which no two runs share."""
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in history]


def files(folder):
    """Every file in `folder`, relative to it, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
