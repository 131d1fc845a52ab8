"""What every data set is: splits with counts, classes, a fingerprint, a licence, a way to get it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from results.errors import UserError, did_you_mean
from zoo.datasets.images import Images

MERGED = "merged"  # the protocol of several splits as one, in order (mmdc.md 1.9)
UNLABELLED = "unlabelled"  # the split of images without classes, where a data set has one


class Missing(UserError):
    """The data set is not there at all (rather than there and wrong)."""


class Dataset(ABC):
    """A data set. Nothing is read before it is asked for; UserError then, if it is not as it should be."""

    name: str  # as in records: no absolute path
    channels: int
    mean: tuple[float, ...]  # of the training images in 0..1, per channel
    std: tuple[float, ...]
    flips: bool  # whether a mirrored image is still one of its class
    licence: str
    source: str  # how to get it

    @property
    @abstractmethod
    def splits(self) -> dict[str, int]:
        """Images per split: the training split, then the evaluation split and UNLABELLED, if there are such."""

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels; () without labels."""

    @property
    @abstractmethod
    def size(self) -> int | None:
        """Shorter side of the images in pixels; None if they differ and none was looked at."""

    @abstractmethod
    def preflight(self) -> None:
        """Check that the data is there, whole and labelled; UserError: where we looked and what to type."""

    @abstractmethod
    def fingerprint(self, full: bool = False) -> str:
        """A sha256 of what the data set holds, the same on every machine; `full` reads every byte."""

    @abstractmethod
    def read(self, split: str) -> Images:
        """All images of one split."""

    def fingerprint_of(self, split: str) -> str:
        """The fingerprint for a run on this split: it covers what the split holds."""
        return self.fingerprint()

    @property
    def merged(self) -> tuple[str, ...]:
        """The splits that the protocol `merged` joins: all but UNLABELLED."""
        return tuple(split for split in self.splits if split != UNLABELLED)

    @property
    def labelled(self) -> bool:
        """Whether every image has a class, but for those of UNLABELLED."""
        return bool(self.classes)

    def check_labelled(self, evaluation: bool = False) -> None:
        """UserError if the images have no classes or, with `evaluation`, no split to evaluate on."""
        if not self.labelled:
            raise UserError(f"the images of {self.name} have no classes to score against", fix=self.source)
        if evaluation:
            _ = self.evaluation

    @property
    def training(self) -> str:
        """The split to learn from."""
        return next(iter(self.splits))

    @property
    def evaluation(self) -> str:
        """The split to evaluate on; UserError if the data set has none."""
        names = list(self.splits)
        if len(names) < 2:
            raise UserError(f"the data set {self.name} has no images to evaluate on", fix=self.source)
        return names[1]

    def members(self, split: str) -> tuple[str, ...]:
        """The splits that `split` is made of: itself, or all those that `merged` joins. UserError for none of them."""
        known = [*self.splits, MERGED]
        if split not in known:
            raise UserError(
                f"the data set {self.name} has no split '{split}'{did_you_mean(split, known)}",
                fix="one of " + ", ".join(known),
            )
        return self.merged if split == MERGED else (split,)

    def open(self, split: str, limit: int | None = None) -> Images:
        """The images of a split, or of `merged` in order; with `limit` that many, evenly spaced."""
        parts = [self.read(name) for name in self.members(split)]
        images = parts[0] if len(parts) == 1 else parts[0].joined(parts)
        return images if limit is None else images.subset(spaced(len(images), limit))


def spaced(total: int, limit: int) -> np.ndarray:
    """`limit` of the ids 0..total-1, evenly spaced from 0 (all of them if there are no more)."""
    if limit < 1:
        raise UserError(f"a limit of {limit} images leaves none", fix="--limit 100")
    count = min(limit, total)
    return np.arange(count, dtype=np.int64) * total // max(count, 1)
