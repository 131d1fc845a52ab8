"""Lloyd's k-means as DeepCluster uses it: faiss finds the nearest centroid, float64 sums, no empty cluster.

Departures from faiss.Clustering: the start rows differ in value; the split rule draws from the caller's seed
(faiss: always 1234); the final assignment is repaired too (the released DeepCluster could leave clusters
empty); the loop ends at a fixed point, where further iterations would repeat the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch  # before faiss, so that one thread setting rules both

from results.errors import RunFailed, UserError
from zoo import processes
from zoo.clustering.whitening import Rows

PERTURBATION = 1 / 1024  # faiss's: exact in float32
SPLIT_ROUNDS = 10  # of the final assignment, before points are moved by hand
BLOCK, PANEL = 16384, 64  # rows and columns turned to float64 at once: 8 MB


@dataclass(frozen=True)
class KMeans:
    """A clustering: every one of the k clusters has at least one row."""

    centroids: np.ndarray  # (k, d) float32
    assignment: np.ndarray  # (N,) int64: the nearest centroid
    objective: list[float]  # sum of squared distances, one an iteration, before that iteration's update
    empty_repaired: int  # clusters found empty and given rows, in the iterations and at the end


def kmeans(
    x: Rows,
    k: int,
    iterations: int = 20,
    seed: int = 0,
    start: Rows | None = None,
    device: str | torch.device = "cpu",
) -> KMeans:
    """The clustering of x (N, d) into k clusters after `iterations` of Lloyd, then one more assignment.

    `start` (k, d) gives the first centroids; by default they are k random rows of different value. The search
    runs on the GPU if `device` is one and faiss can use it. The same seed gives the same bits on one machine.
    Of many processes, each gives its share of the rows (see zoo.processes) and gets their assignment.
    RunFailed if x is not finite; UserError if k is not in 1…N, if fewer than k rows differ, or without faiss.
    Source: Caron et al. 2018, section 3.2; the split of empty clusters is faiss's.
    """
    x = matrix(x)
    generator = np.random.default_rng(seed)
    rows = distinct_rows(x, k, generator)
    centroids = take(x, rows) if start is None else matrix(start).copy()
    if centroids.shape != (k, x.shape[1]):
        raise ValueError(f"a start of shape {centroids.shape} is not k = {k} rows of {x.shape[1]}")
    index = flat_index(x.shape[1], device)
    objective: list[float] = []
    repaired, settled = 0, None
    for _ in range(iterations):
        distances, assignment = search(index, x, centroids)
        objective.append(float(processes.summed(np.array(distances.sum(dtype=np.float64)))))
        moved = settled is None or not np.array_equal(assignment, settled)
        if not any(processes.largest(moved)):
            break
        centroids, sizes = means(x, assignment, k)
        splits = split_empty(centroids, sizes, generator)
        repaired, settled = repaired + splits, None if splits else assignment
    assignment, repairs = assign_all(index, x, centroids, generator)
    return KMeans(centroids, assignment, objective, repaired + repairs)


def nearest(x: Rows, centroids: Rows, device: str | torch.device = "cpu") -> np.ndarray:
    """The nearest centroid of each row of x, (N,) int64, by squared distance in float32."""
    x = matrix(x)
    return search(flat_index(x.shape[1], device), x, matrix(centroids))[1]


def distinct_rows(x: np.ndarray, k: int, generator: np.random.Generator) -> np.ndarray:
    """The indices of k random rows of x (N, d) of different value, (k,). UserError if there are not k."""
    count = int(processes.summed(np.array(len(x))))
    if not 1 <= k <= count:
        raise UserError(f"{k} clusters were asked of {count} rows", fix=f"a k from 1 to {count}")
    order = generator.permutation(count)
    looked = k
    while True:  # nearly always the first k do; the whole of x is compared only where rows repeat
        rows = take(x, order[:looked]) + np.float32(0)  # -0 + 0 = 0: equal values have equal bytes
        _, first = np.unique(rows.view(np.dtype((np.void, rows[0].nbytes))).ravel(), return_index=True)
        if len(first) >= k:
            return order[np.sort(first)[:k]]
        if looked >= count:
            raise UserError(
                f"{k} clusters were asked of {count} rows, of which only {len(first)} differ",
                fix=f"a k of at most {len(first)}; if the images differ, the network has collapsed",
            )
        looked *= 2


def take(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The rows of these numbers, (len(rows), d), whichever process has them: each has a share of x, in their order."""
    if processes.count() == 1:
        return x[rows]
    start = sum(processes.told_each(len(x))[: processes.rank()])
    own = np.flatnonzero((rows >= start) & (rows < start + len(x)))
    found = np.zeros((len(rows), x.shape[1]), dtype=np.float32)
    found[own] = x[rows[own] - start]
    return processes.summed(found)


def means(x: np.ndarray, assignment: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The clusters' means (k, d) float32, summed in float64, and sizes (k,) float64; 0 for an empty one.

    The sum is a product with the one-hot (k, N) matrix, sparse: thirty times faster than np.add.at.
    """
    sums = np.zeros((k, x.shape[1]))
    for i in range(0, len(x), BLOCK):
        rows = assignment[i : i + BLOCK]
        pointers = np.arange(len(rows) + 1)
        one_hot = scipy.sparse.csc_array((np.ones(len(rows)), rows, pointers), shape=(k, len(rows)))
        for j in range(0, x.shape[1], PANEL):
            sums[:, j : j + PANEL] += one_hot @ x[i : i + BLOCK, j : j + PANEL]
    sums, sizes = processes.summed(sums), count_sizes(assignment, k)
    return (sums / np.maximum(sizes, 1)[:, None]).astype(np.float32), sizes


def count_sizes(assignment: np.ndarray, k: int) -> np.ndarray:
    """How many rows each cluster has, (k,) float64."""
    return processes.summed(np.bincount(assignment, minlength=k).astype(np.float64))


def split_empty(centroids: np.ndarray, sizes: np.ndarray, generator: np.random.Generator) -> int:
    """How many clusters were empty; each is given half of a random larger one, in place (faiss's rule).

    The donor's centroid is copied and the pair pulled apart: even dimensions of the copy by 1 + 1/1024 and of
    the donor by 1 - 1/1024, odd ones the other way. The donor's size is booked as split evenly.
    """
    pull = np.where(np.arange(centroids.shape[1]) % 2 == 0, PERTURBATION, -PERTURBATION).astype(np.float32)
    empty = np.flatnonzero(sizes == 0)
    for cluster in empty:
        donor = draw_donor(sizes, generator)
        centroids[cluster] = centroids[donor] * (1 + pull)
        centroids[donor] *= 1 - pull
        sizes[donor] /= 2
        sizes[cluster] = sizes[donor]
    return len(empty)


def draw_donor(sizes: np.ndarray, generator: np.random.Generator) -> int:
    """A cluster drawn by walking round all of them, each taken with probability (size - 1) / (N - k).

    At least one cluster is empty, so the chances sum to 1 or more: few walks go round without a donor.
    """
    chance = np.maximum(sizes - 1, 0) / max(sizes.sum() - len(sizes), 1)
    while True:
        taken = np.flatnonzero(generator.random(len(sizes)) < chance)
        if taken.size:
            return int(taken[0])


def assign_all(
    index: Any, x: np.ndarray, centroids: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, int]:
    """The nearest centroid of each row, none left without a row, (N,) int64, and how many were repaired.

    Empty clusters are split as in the iterations, centroids in place, and the rows searched again. That can
    fail for ever (a donor of equal rows goes to its copy as a whole), so after SPLIT_ROUNDS rows are moved.
    """
    repaired = 0
    for _ in range(SPLIT_ROUNDS):
        assignment = search(index, x, centroids)[1]
        sizes = count_sizes(assignment, len(centroids))
        if sizes.all():
            return assignment, repaired
        repaired += split_empty(centroids, sizes, generator)
    assignment = search(index, x, centroids)[1]
    return assignment, repaired + move_farthest(x, centroids, assignment)


def move_farthest(x: np.ndarray, centroids: np.ndarray, assignment: np.ndarray) -> int:
    """How many clusters were empty; each gets the largest one's farthest row and its duplicates, in place.

    Always ends if k rows of x differ: while a cluster is empty, another holds two that do. Clusters of equal
    rows are passed over, so there are at most 2k steps. Nothing is searched again, lest a cluster fall empty.
    """
    sizes = count_sizes(assignment, len(centroids))
    empty = list(np.flatnonzero(sizes == 0))
    repaired = len(empty)
    while empty:
        donor = sizes.argmax()
        members = np.flatnonzero(assignment == donor)
        row = farthest(x[members], centroids[donor])
        moved = members[(x[members] == row).all(1)]
        count = float(processes.summed(np.array(float(len(moved)))))
        if count == sizes[donor]:
            sizes[donor] = 0  # never asked again
            continue
        cluster = empty.pop(0)
        assignment[moved], centroids[cluster] = cluster, row
        sizes[donor] -= count  # the new cluster's size stays 0: its rows are equal, it gives none
    return repaired


def farthest(x: np.ndarray, centroid: np.ndarray) -> np.ndarray:
    """The row (d,) of all processes' rows x (n, d) that is farthest from the centroid, the first of equals."""
    apart = np.square(x - centroid).sum(1)
    own = (float(apart.max()), x[apart.argmax()]) if len(x) else (-1.0, centroid)
    return max(processes.told_each(own), key=lambda found: found[0])[1]


def flat_index(width: int, device: str | torch.device = "cpu") -> Any:
    """faiss's exact index for rows of `width` numbers, on the GPU if `device` is one and faiss can.

    UserError if faiss is not installed.
    """
    try:
        import faiss  # not at the top: whoever clusters nothing needs no faiss
    except ImportError as error:
        fix = "pip install -e '.[cpu]'  (or '.[gpu]' with an NVIDIA GPU)"
        raise UserError("faiss is not installed", fix=fix) from error
    device = torch.device(device)
    if device.type == "cuda" and getattr(faiss, "get_num_gpus", int)() > 0:
        flat, resources = faiss.IndexFlatL2(width), faiss.StandardGpuResources()
        return faiss.index_cpu_to_gpu(resources, device.index or 0, flat)
    return faiss.IndexFlatL2(width)


def search(index: Any, x: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The squared distance to the nearest centroid, (N,) float32, and which it is, (N,) int64.

    RunFailed if the distances overflow float32: faiss then finds none.
    """
    index.reset()
    index.add(centroids)
    distances, assignment = index.search(x, 1)
    if assignment.min() < 0:
        raise RunFailed("the features to cluster are too large: their squared distances overflow float32")
    return distances[:, 0], assignment[:, 0]


def matrix(x: Rows) -> np.ndarray:
    """x as a float32 matrix in memory, copied only if need be. RunFailed if it holds NaN or infinity."""
    array = x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x
    rows = np.ascontiguousarray(array, dtype=np.float32)
    if rows.ndim != 2:
        raise ValueError(f"expected rows (N, d), got shape {rows.shape}")
    if not np.isfinite(rows.sum(dtype=np.float64)):  # cheaper than N × d flags; float32 cannot overflow it
        raise RunFailed("the features to cluster are not finite: they hold NaN or infinity")
    return rows
