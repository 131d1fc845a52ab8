"""Where a linear probe's features come from: cached once (small images), or computed as augmented images pass."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from probes import features
from probes.protocols import Protocol
from zoo import processes
from zoo.evaluation import Evaluation
from zoo.state import State
from zoo.views import Centre, RandomCrop, ResizedCrop, TenCrop

Rows = np.ndarray | Tensor  # of all images: features on disk, or a Gram matrix on the device
Batch = tuple[Tensor, Tensor, dict[str, Tensor]]  # image ids (B,), labels (B,), features {layer: (B, d)}
Labelled = tuple[Tensor, dict[str, Tensor]]  # labels (B,), features {layer: (B, crops, d)}

GENERIC = 10000  # features of a layer stay below this
PLAIN, TEST = "held-out images", "test images"


class Source(typing.Protocol):
    """Training batches in a given order, and the test images; `dual` layers give rows of a Gram matrix.

    Batches are steps of the state, so that a run which is continued gets those that are left: those of `train` the
    steps `what`, those of `plain` and `test` the steps PLAIN and TEST.
    """

    labels: Tensor  # of the training images (N,)
    classes: int
    dims: dict[str, int]
    dual: dict[str, bool]

    def train(self, order: np.ndarray, batch: int, seed: int, what: str, state: State) -> Iterator[Batch]:
        """Batches of training images in that order."""

    def plain(self, ids: np.ndarray, batch: int, state: State) -> Iterator[Labelled]:
        """Labels (B,) and features {layer: (B, 1, d)} of training images without augmentation."""

    def test(self, batch: int, crops: int, state: State) -> Iterator[Labelled]:
        """Labels (B,) and features {layer: (B, crops, d)} of the test images."""


class Cached:
    """A layer's un-augmented features, standardised by the training set's mean and standard deviation."""

    def __init__(self, bench: Evaluation, layer: str) -> None:
        train, test = bench.dataset.training, bench.dataset.evaluation
        self.layer, self.device, self.classes = layer, bench.device, len(bench.dataset.classes)
        self.labels = torch.from_numpy(bench.labels(train)).to(bench.device)
        self.test_labels = torch.from_numpy(bench.labels(test)).to(bench.device)
        self.rows: Rows = features.load(bench, train, [layer])[layer]
        self.test_rows: Rows = features.load(bench, test, [layer])[layer]
        self.mean, self.scale = moments(self.rows)
        dual = len(self.rows) <= self.rows.shape[1]
        if dual:  # fewer images than features: similarities say all there is (see heads.Heads)
            x = self._standardise(self.rows)
            self.test_rows = self._standardise(self.test_rows) @ x.T
            self.rows = x @ x.T
        self.dims, self.dual = {layer: self.rows.shape[1]}, {layer: dual}

    def _standardise(self, rows: np.ndarray) -> Tensor:
        return (torch.from_numpy(np.array(rows)) - self.mean).mul_(self.scale).to(self.device)

    def train(self, order: np.ndarray, batch: int, seed: int, what: str, state: State) -> Iterator[Batch]:
        for start in starts(len(order), batch, what, state):
            ids = order[start : start + batch]
            at = torch.from_numpy(ids).to(self.device)
            # index_select: several times as fast as rows[at]
            x = self.rows.index_select(0, at) if isinstance(self.rows, Tensor) else self._standardise(self.rows[ids])
            yield at, self.labels[at], {self.layer: x}

    def plain(self, ids: np.ndarray, batch: int, state: State) -> Iterator[Labelled]:
        for _, labels, x in self.train(ids, batch, 0, PLAIN, state):
            yield labels, {self.layer: x[self.layer][:, None]}

    def test(self, batch: int, crops: int, state: State) -> Iterator[Labelled]:
        for start in starts(len(self.test_labels), batch, TEST, state):
            rows = self.test_rows[start : start + batch]
            x = rows if isinstance(rows, Tensor) else self._standardise(rows)
            yield self.test_labels[start : start + batch], {self.layer: x[:, None]}


class Online:
    """Features of augmented crops, computed by one frozen forward pass for all layers as the images pass."""

    dual: dict[str, bool]

    def __init__(self, bench: Evaluation, layers: Sequence[str], protocol: Protocol) -> None:
        self.bench, self.layers, self.protocol = bench, layers, protocol
        self.classes = len(bench.dataset.classes)
        self.images = bench.open(bench.dataset.training)
        self.test_images = bench.open(bench.dataset.evaluation)
        self.labels = torch.from_numpy(bench.labels(bench.dataset.training)).to(bench.device)
        self.test_labels = torch.from_numpy(bench.labels(bench.dataset.evaluation)).to(bench.device)
        wanted = bench.checkpoint.preprocessing
        self.resize, self.size = wanted.resize, wanted.size
        blank = torch.zeros(1, wanted.channels, self.size, self.size, device=bench.device)
        self.dims = {layer: x.shape[1] for layer, x in self._features(blank).items()}
        self.dual = dict.fromkeys(layers, False)

    def _features(self, pixels: Tensor) -> dict[str, Tensor]:
        return {layer: self._pool(layer, maps) for layer, maps in self.bench.maps(pixels, self.layers).items()}

    def _all_features(self, pixels: Tensor, count: int) -> dict[str, Tensor]:
        """Features (count, crops, d) of a batch of `count` images, of whose pixels (b, crops, C, h, w) each process
        has its portion."""
        found = self._features(pixels.flatten(0, 1))
        return {layer: processes.from_portions(x.unflatten(0, pixels.shape[:2]), count) for layer, x in found.items()}

    def _pool(self, layer: str, maps: Tensor) -> Tensor:
        if maps.ndim == 2:  # the embedding, as it is
            return maps
        if self.protocol.pools is None:
            return generic_pool(maps)
        return F.avg_pool2d(maps, *self.protocol.pools[layer]).flatten(1)

    def train(self, order: np.ndarray, batch: int, seed: int, what: str, state: State) -> Iterator[Batch]:
        flips = self.bench.dataset.flips
        resized = self.protocol.resized_crops
        view = ResizedCrop(self.size, flip=flips) if resized else RandomCrop(self.resize, self.size, flips)
        for ids, pixels in self.bench.batches(self.images, order, view, batch, what, seed, state):
            at = torch.from_numpy(ids).to(self.bench.device)
            found = self._all_features(pixels[:, None], len(ids))
            yield at, self.labels[at], {layer: x.flatten(0, 1) for layer, x in found.items()}

    def plain(self, ids: np.ndarray, batch: int, state: State) -> Iterator[Labelled]:
        view = Centre(self.resize, self.size)
        for rows, pixels in self.bench.batches(self.images, ids, view, batch, PLAIN, state=state):
            at = torch.from_numpy(rows).to(self.bench.device)
            yield self.labels[at], self._all_features(pixels[:, None], len(rows))

    def test(self, batch: int, crops: int, state: State) -> Iterator[Labelled]:
        view = TenCrop(self.resize, self.size) if crops == 10 else Centre(self.resize, self.size)
        rows, few = np.arange(len(self.test_images)), max(1, batch // crops)
        for ids, pixels in self.bench.batches(self.test_images, rows, view, few, TEST, state=state):
            at = torch.from_numpy(ids).to(self.bench.device)
            crops_apart = pixels.reshape(-1, crops, *pixels.shape[-3:])
            yield self.test_labels[at], self._all_features(crops_apart, len(ids))


def starts(count: int, batch: int, what: str, state: State) -> Iterator[int]:
    """Where each batch of `count` images begins: the steps `what` of the state."""
    return (number * batch for number in state.steps(what, math.ceil(count / batch)))


def generic_pool(maps: Tensor) -> Tensor:
    """Maps (B, c, h, w) average-pooled, kernel equal to stride, until just below 10 000 features, flattened (B, d)."""
    kernel = 1
    while maps.shape[1] * (maps.shape[2] // kernel) * (maps.shape[3] // kernel) >= GENERIC:
        kernel += 1
    return F.avg_pool2d(maps, kernel).flatten(1)


def moments(rows: np.ndarray, block: int = 4096) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation (d,) of the rows (N, d), float32; a constant feature gets 0, which drops it."""
    total, squares = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
    shift = np.array(rows[0], dtype=np.float64)  # so that a large mean does not drown the variance
    for start in range(0, len(rows), block):
        part = rows[start : start + block] - shift
        total += part.sum(0)
        squares += np.square(part).sum(0)
    mean = total / len(rows)
    variance = squares / len(rows) - np.square(mean)
    scale = np.where(variance > 1e-12, 1 / np.sqrt(np.maximum(variance, 1e-12)), 0.0)
    return torch.from_numpy(mean + shift).float(), torch.from_numpy(scale).float()
