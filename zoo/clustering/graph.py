"""The graph of nearest neighbours, by faiss's exact search: what power iteration clustering works on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from results.errors import RunFailed, UserError
from zoo.clustering.kmeans import flat_index, matrix
from zoo.clustering.whitening import Rows

BLOCK = 4096  # rows searched at once: as many as faiss takes


def nearest_neighbours(
    points: Rows, neighbours: int = 5, device: str | torch.device = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """The n nearest other points of each of N, (N, n) int64, nearest first, and squared distances, (N, n) float32.

    points: (N, d). n is `neighbours`, or N - 1 if that is less. No point is its own neighbour: it is left out by
    its id, for equal points may come before it. The search runs on the GPU if `device` is one and faiss can use it.
    UserError if there is not 1 neighbour and 1 point, or without faiss; RunFailed if the points are not finite, or
    so large that distances overflow.
    """
    points = matrix(points)
    if neighbours < 1 or not len(points):
        happened = f"{neighbours} nearest neighbours were asked for each of {len(points)} points"
        raise UserError(happened, fix="at least 1 neighbour, of at least 1 point")
    shape = len(points), min(neighbours, len(points) - 1)
    indices, distances = np.empty(shape, np.int64), np.empty(shape, np.float32)
    search = searcher(points, shape[1] + 1, device)
    for start in range(0, len(points), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(points)))
        found = search(points[rows])
        if found.min() < 0:
            raise RunFailed("the points are too large for a graph: their squared distances overflow float32")
        indices[rows], distances[rows] = measure(points, rows, drop_own(found, rows))
    return indices, distances


def searcher(points: np.ndarray, count: int, device: str | torch.device) -> Callable[[np.ndarray], np.ndarray]:
    """A function: the ids (B, count) of the points nearest to rows (B, d); below 0 where distances overflow.

    A GPU gets a copy of the points; on the CPU they are searched where they lie, with the same result as an index's.
    """
    index = flat_index(points.shape[1], device)
    import faiss  # here: flat_index says what to do where it is not installed

    if isinstance(index, faiss.IndexFlat):
        return lambda rows: faiss.knn(rows, points, count)[1]
    index.add(points)
    return lambda rows: index.search(rows, count)[1]


def drop_own(found: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`found` (B, n + 1) without each row's own id; without the last where equal points kept that out. (B, n)."""
    own = found == rows[:, None]
    own[:, -1] |= ~own.any(1)
    return found[~own].reshape(len(found), found.shape[1] - 1)


def measure(points: np.ndarray, rows: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The neighbours `found` (B, n) of `rows` (B,), nearest first, then by id, and their squared distances.

    From the differences: the search's a² - 2ab + b² errs by 1e-7 of a², also for points that are equal.
    """
    apart = points[found] - points[rows][:, None]
    distances = np.einsum("bnd,bnd->bn", apart, apart)
    order = np.lexsort((found, distances))
    return np.take_along_axis(found, order, 1), np.take_along_axis(distances, order, 1)
