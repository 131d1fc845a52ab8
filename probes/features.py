"""Frozen features: a layer's maps of every image of a split, pooled, on disk, computed once.

The cache is keyed by contents (weights, images, layer, pooling, view, precision), so it never answers for something
else, and a file is there whole or not at all.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from results.errors import RunFailed
from results.files import digest, replacing
from zoo.evaluation import Evaluation

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


def load(bench: Evaluation, split: str, layers: Sequence[str]) -> dict[str, np.ndarray]:
    """Features (N, d) float32 of each layer, un-augmented, pooled to at most 4096, as read-only memory maps.

    What is not cached yet is computed in one pass for all layers. RunFailed if a feature is not a finite number.
    """
    paths = {layer: bench.cache / "features" / f"{_key(bench, split, layer)}.npy" for layer in layers}
    missing = [layer for layer in layers if not paths[layer].exists()]
    if missing:
        _compute(bench, split, missing, paths)
    return {layer: np.load(paths[layer], mmap_mode="r") for layer in layers}


def _key(bench: Evaluation, split: str, layer: str) -> str:
    pixels = (bench.dataset.fingerprint(), split, bench.limit, asdict(bench.checkpoint.preprocessing))
    return digest([bench.sha256, bench.device.type, bench.precision, *pixels, layer, SMALL])[:24]


def _compute(bench: Evaluation, split: str, layers: Sequence[str], paths: dict[str, Path]) -> None:
    images = bench.open(split)
    rows = np.arange(len(images))
    with ExitStack() as stack:
        parts = {layer: stack.enter_context(replacing(paths[layer])) for layer in layers}
        files: dict[str, np.memmap] = {}
        for ids, pixels in bench.batches(images, rows, bench.view(images), BATCH, f"features of {split}"):
            for layer, maps in bench.maps(pixels, layers).items():
                pooled = pool_to(maps, SMALL)
                if not torch.isfinite(pooled).all():
                    raise RunFailed(f"{bench.checkpoint.name} gives features that are not finite in {layer}")
                if layer not in files:
                    files[layer] = _create(parts[layer], (len(rows), pooled.shape[1]))
                files[layer][ids] = pooled.cpu().numpy()
        for file in files.values():
            file.flush()


def _create(path: Path, shape: tuple[int, int]) -> np.memmap:
    """A new float32 array in a file. OSError where the disk has no room for all of it."""
    file = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    if hasattr(os, "posix_fallocate"):  # now: a memory map that finds the disk full later kills the process
        with path.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, path.stat().st_size)
    return file


def pack(correct: np.ndarray) -> str:
    """Per-image correctness (N,) as text: bits, eight a byte, in base64."""
    return base64.b64encode(np.packbits(correct).tobytes()).decode()


def unpack(text: str, count: int) -> np.ndarray:
    """What `pack` packed, as booleans (count,)."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=count).astype(bool)
