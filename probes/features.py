"""Frozen features: a layer's maps of every image of a split, pooled, on disk, computed once.

The cache is keyed by contents (weights, images, layer, pooling, view, precision), so it never answers for something
else, and a file is there whole or not at all.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from results.errors import RunFailed
from results.files import as_user_error, digest, sync
from zoo import arrays, processes
from zoo.datasets.dataset import MERGED, spaced
from zoo.datasets.images import Images
from zoo.evaluation import Evaluation
from zoo.scratch import reserve
from zoo.state import remove
from zoo.views import View

SMALL = 4096  # most features of a layer in the `small` protocol, kNN and clustering
BATCH = 256


def pool_to(maps: Tensor, most: int) -> Tensor:
    """Maps (B, c, h, w) average-pooled to the largest square grid with at most `most` features, flattened (B, d).

    The grid is no larger than the map. Descriptors (B, d) pass as they are.
    """
    if maps.ndim == 2:
        return maps
    side = max(1, min(math.isqrt(most // maps.shape[1]), *maps.shape[2:]))
    return F.adaptive_avg_pool2d(maps, side).flatten(1)


def load(
    bench: Evaluation, split: str, layers: Sequence[str], view: View | None = None, most: int | None = None
) -> dict[str, np.ndarray]:
    """Features (N, d) float32 of each layer, un-augmented, pooled to at most `most` (SMALL), as read-only memory maps.

    view: how the images are seen; by default as the checkpoint looks at one that is not augmented.

    What is not cached yet is computed in one pass for all layers, by many processes together if there are such: the
    first writes what all read. RunFailed if a feature is not a finite number.
    """
    wanted = Wanted(split, view, SMALL if most is None else most)
    paths = {layer: bench.cache / "features" / f"{wanted.key(bench, layer)}.npy" for layer in layers}
    missing = processes.by_first(lambda: {layer: path for layer, path in paths.items() if not path.exists()})
    for layer in paths.keys() - missing.keys():
        bench.partial(paths[layer]).unlink(missing_ok=True)  # another run has made what this one was stopped in
    if missing:
        _compute(bench, wanted, missing)
    return {layer: arrays.load(paths[layer], mmap_mode="r") for layer in layers}


@dataclass(frozen=True)
class Wanted:
    """Which features: of which images, how these are seen, and the most that there may be of a layer."""

    split: str
    view: View | None
    most: int

    def key(self, bench: Evaluation, layer: str) -> str:
        """A digest of all that these features of a layer are made of."""
        pixels = (bench.dataset.fingerprint(), self.split, bench.limit, asdict(bench.checkpoint.preprocessing))
        seen = () if self.view is None else (repr(self.view),)  # a frozen dataclass: its name and all that it holds
        return digest([bench.sha256, bench.device.type, bench.precision, *pixels, layer, self.most, *seen])[:24]

    def open(self, bench: Evaluation) -> Images:
        """The images: of a split, of all, or of another set that the data set has (a devkit's train and val)."""
        dataset = bench.dataset
        if self.split in (*dataset.splits, MERGED):
            return bench.open(self.split)
        images = dataset.read(self.split)
        return images if bench.limit is None else images.subset(spaced(len(images), bench.limit))


def _compute(bench: Evaluation, wanted: Wanted, paths: dict[str, Path]) -> None:
    """Make the files of the layers' features, or go on where this run was stopped in it."""
    images, what = wanted.open(bench), f"features of {wanted.split}"
    view = wanted.view or bench.view(images)
    writes = processes.rank() == 0
    tables = {layer: Growing(path, bench.partial(path), len(images)) for layer, path in paths.items() if writes}
    state = bench.state(what)
    if state.done(what) and not processes.told(all(table.find() for table in tables.values())):
        remove(state.directory)  # before a table is made, which it would take for the one that it knows
        state = bench.state(what)
    for layer, table in tables.items():
        state.part(layer, table)
    try:
        rows = np.arange(len(images))
        for ids, pixels in bench.batches(images, rows, view, BATCH, what, state=state):
            for layer, maps in bench.maps(pixels, list(paths)).items():
                pooled = processes.from_portions(_finite(pool_to(maps, wanted.most), layer, bench), len(ids))
                if writes:
                    tables[layer].put(ids, pooled.cpu().numpy())
    except BaseException as error:
        if state.number == 0 or isinstance(error, RunFailed):  # there is nothing to continue from
            for table in tables.values():
                table.discard()
        raise
    for table in tables.values():
        table.end()
    processes.meet()  # before the others look for what the first has written
    remove(state.directory)


def _finite(pooled: Tensor, layer: str, bench: Evaluation) -> Tensor:
    if not torch.isfinite(pooled).all():
        raise RunFailed(f"{bench.checkpoint.name} gives features that are not finite in {layer}")
    return pooled


class Growing:
    """A layer's features on disk while they are computed; a part of the state that says how many rows there are."""

    def __init__(self, path: Path, partial: Path, count: int) -> None:
        """`path`: of the whole file, which is called `partial` before."""
        self.path, self.partial, self.count = path, partial, count
        self.rows: np.memmap | None = None

    def find(self) -> bool:
        """Whether the file that a run was stopped in is there, which is then gone on with."""
        try:
            rows = np.lib.format.open_memmap(self.partial, "r+")
        except (OSError, ValueError):
            return False
        self.rows = rows if len(rows) == self.count else None
        return self.rows is not None

    def put(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """Write the features (B, d) of the images `ids` (B,). UserError if the file cannot be made."""
        if self.rows is None:
            try:
                self.rows = _create(self.partial, (self.count, rows.shape[1]))
            except OSError as error:
                raise as_user_error(error, self.path) from error
        self.rows[ids] = rows

    def end(self) -> None:
        """Let the whole file have its name."""
        self.state_dict()
        sync(self.partial)
        os.replace(self.partial, self.path)

    def discard(self) -> None:
        """Remove what there is."""
        with suppress(OSError):
            self.partial.unlink()

    def state_dict(self) -> dict:
        """Nothing, once all is on the disk."""
        if self.rows is not None:
            self.rows.flush()
        return {}

    def load_state_dict(self, state: dict) -> None:
        """What the file holds is there already."""


def _create(path: Path, shape: tuple[int, int]) -> np.memmap:
    """A new float32 array in a file. OSError where the disk has no room for all of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    with path.open("r+b") as opened:
        reserve(opened, path.stat().st_size)
    return file


def pack(correct: np.ndarray) -> str:
    """Per-image correctness (N,) as text: bits, eight a byte, in base64."""
    return base64.b64encode(np.packbits(correct).tobytes()).decode()


def unpack(text: str, count: int) -> np.ndarray:
    """What `pack` packed, as booleans (count,)."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=count).astype(bool)
