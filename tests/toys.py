"""Small things to evaluate: images in memory and in files, checkpoints, and the bench that a task is given."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from results.files import digest
from zoo.checkpoint import Checkpoint, resolve
from zoo.datasets.dataset import Dataset
from zoo.datasets.images import ArrayImages
from zoo.evaluation import Evaluation


class Toy(Dataset):
    """Grey images of 32 px in memory: a blurred pattern for each class under noise, so that some are mistaken."""

    name = "toy"
    channels = 1
    mean, std = (0.5,), (0.25,)
    size = 32
    flips = False
    licence = "none"
    source = "made for tests"

    def __init__(self, train: int = 60, test: int = 24, classes: int = 3, seed: int = 0, noise: float = 60.0) -> None:
        generator = np.random.default_rng(seed)
        self.counts = {"train": train, "test": test}
        self.names = tuple("abcdefghij"[:classes])
        patterns = generator.normal(size=(classes, 4, 4)).repeat(8, 1).repeat(8, 2) * 30
        self.labels = {split: generator.integers(0, classes, count) for split, count in self.counts.items()}
        self.pixels = {
            split: (128 + patterns[labels] + generator.normal(size=(len(labels), 32, 32)) * noise).clip(0, 255)
            for split, labels in self.labels.items()
        }

    @property
    def splits(self) -> dict[str, int]:
        return self.counts

    @property
    def classes(self) -> tuple[str, ...]:
        return self.names

    def preflight(self) -> None:
        pass

    def fingerprint(self, full: bool = False) -> str:
        held = [[split, self.pixels[split].sum(), self.labels[split].tolist()] for split in self.counts]
        return digest([self.name, self.names, held])

    def read(self, split: str) -> ArrayImages:
        pixels = torch.from_numpy(self.pixels[split].astype(np.uint8))[:, None]
        return ArrayImages(pixels, self.labels[split].astype(np.int64))


def photographs(
    root: Path, train: int = 6, val: int = 3, classes: tuple[str, ...] = ("ant", "bee"), side: int = 120
) -> Path:
    """A folder of JPEGs, `train` and `val` of each class, upright and lying: colours that differ a little by class."""
    generator = np.random.default_rng(0)
    for split, count in {"train": train, "val": val}.items():
        for number, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for image in range(count):
                shape = (side + 10 * image, side, 3) if image % 2 else (side, side + 10 * image, 3)
                coarse = generator.integers(0, 200, (8, 8, 3)) + 50 * (np.arange(3) == number % 3)
                pixels = Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize(shape[1::-1])
                pixels.save(folder / f"{image:03}.jpg")
    return root


@cache
def random_checkpoint(name: str = "random-alexnet32@0") -> Checkpoint:
    """A checkpoint of initial weights, read once: not to be changed."""
    return resolve(name)


def bench(
    cache: Path,
    dataset: Dataset,
    checkpoint: Checkpoint | str = "random-alexnet32@0",
    limit: int | None = None,
    precision: str = "fp32",
    workers: int = 0,
) -> Evaluation:
    """What a task evaluates with, its features cached in `cache`."""
    held = random_checkpoint(checkpoint) if isinstance(checkpoint, str) else checkpoint
    backbone = held.build_backbone().to(memory_format=torch.channels_last)
    device = torch.device("cpu")
    return Evaluation(held, held.sha256, dataset, backbone, device, precision, workers, limit, True, cache)
