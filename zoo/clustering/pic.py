"""Power iteration clustering as DeepCluster uses it: climb a graph of nearest neighbours to its peaks.

    indices, distances = nearest_neighbours(points)   # zoo/clustering/graph.py
    assignment = pic(indices, distances)

Lin & Cohen, "Power Iteration Clustering", ICML 2010; Caron et al., "Deep Clustering for Unsupervised Learning of
Visual Features", ECCV 2018, and its released program, as it is since a fault in the choice of neighbours was mended
(deepcluster.md 1.9). The number of clusters is what the graph has.

Departures from the released program, for the sake of numbers, not of the method: the iteration keeps only what v
has above its constant part, for weights of 1e-17 and less (points at a distance of 1.25 and more) would drown in
that; it ends early at a fixed point, where further steps would repeat the same numbers; a difference that rounding
can make is no ascent.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse

from results.errors import RunFailed, UserError
from zoo.clustering.kmeans import BLOCK

TIE = 1e-13  # of the larger one: differences that rounding makes between two nodes that are alike in the graph


def pic(
    indices: np.ndarray, distances: np.ndarray, sigma: float = 0.2, alpha: float = 0.001, iterations: int = 200
) -> np.ndarray:
    """The cluster of each node, (N,) int64 from 0, numbered in the order in which they first occur.

    indices: (N, n), each node's neighbours, nearest first; distances: (N, n), squared, to them. An edge weighs
    exp(-distance / sigma²). n may be 0: then every node is a cluster. The same on every run: nothing is drawn.
    UserError if sigma is not above 0, or alpha not from 0 to below 1; RunFailed if a distance is NaN.
    """
    if not sigma > 0 or not 0 <= alpha < 1:
        happened = f"power iteration clustering was asked with sigma {sigma} and alpha {alpha}"
        raise UserError(happened, fix="a sigma above 0 and an alpha from 0 to below 1, such as 0.2 and 0.001")
    check_graph(indices, distances)
    weights = weigh(indices, distances, sigma)
    peaks = follow(climb(weights, power_iteration(weights, alpha, iterations)))
    return number(adopt_singletons(peaks, indices))


def check_graph(indices: np.ndarray, distances: np.ndarray) -> None:
    """ValueError unless both are (N, n), N at least 1, and the indices name nodes; RunFailed if a distance is NaN."""
    if indices.ndim != 2 or indices.shape != distances.shape or not len(indices):
        raise ValueError(f"neighbours {indices.shape} and distances {distances.shape} are not (N, n) both")
    if indices.size and not 0 <= indices.min() <= indices.max() < len(indices):
        raise ValueError(f"neighbours from {indices.min()} to {indices.max()} are not among {len(indices)} nodes")
    if np.isnan(distances).any():
        raise RunFailed("the graph to cluster has distances that are NaN")


def weigh(indices: np.ndarray, distances: np.ndarray, sigma: float) -> scipy.sparse.csr_array:
    """The weights W = A + Aᵀ (N, N) float64, A having exp(-distance / sigma²) at each node's neighbours.

    W is symmetric to the bit, so that it may stand for Wᵀ. Weights that underflow to 0 are no edges.
    """
    n, neighbours = indices.shape
    data = np.exp(distances.astype(np.float64).ravel() / -(sigma**2))
    pointers = np.arange(n + 1) * neighbours
    directed = scipy.sparse.csr_array((data, indices.ravel(), pointers), shape=(n, n))
    return directed + directed.T


def power_iteration(weights: scipy.sparse.csr_array, alpha: float, iterations: int) -> np.ndarray:
    """The height of each node, (N,) float64: what v exceeds its constant part by, in units of that part.

    v starts as 1 / N, and a step is v ← alpha Wᵀ v + (1 - alpha) / N, divided by its sum. Written as
    v = (1 + height) / sum(1 + height), the same step is height ← rate W (1 + height): only positive numbers are
    added, so each height is exact to a few of its own last bits, however far it is below 1.
    """
    height = np.zeros(weights.shape[0])
    for _ in range(iterations):
        rate = alpha / (1 - alpha) / (1 + height.mean())
        previous, height = height, rate * (weights @ (1 + height))
        if np.array_equal(height, previous):
            break
    return height


def climb(weights: scipy.sparse.csr_array, height: np.ndarray) -> np.ndarray:
    """The node each node points to, (N,): the j of largest W_ij (height_j - height_i) if that is above 0, else i.

    Of several that are equal, the lowest j. Heights rise strictly from each node to the one it points to, as
    numbers and not only in theory, so no pointers run in a circle.
    """
    pointers = np.arange(len(height))
    for start in range(0, len(height), BLOCK):
        rows = slice(start, start + BLOCK)
        node, neighbour, slope = ascents(weights[rows], height[rows], height)
        first = np.flatnonzero(np.diff(node, prepend=-1))  # of each node's edges, which stand together
        steepest = np.maximum.reduceat(slope, first).repeat(np.diff(first, append=len(node)))
        chosen = np.flatnonzero(slope == steepest)[::-1]  # backwards: the last that is written is the lowest j
        pointers[rows][node[chosen]] = neighbour[chosen]
    return pointers


def ascents(
    weights: scipy.sparse.csr_array, own: np.ndarray, height: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The edges up from the B nodes of heights `own` (B,): from which i, to which j, W_ij (height_j - height_i)."""
    node = np.arange(len(own)).repeat(np.diff(weights.indptr))
    rise = height[weights.indices] - own[node]
    rise[rise <= TIE * height[weights.indices]] = 0
    slope = weights.data * rise
    up = np.flatnonzero(slope)
    return node[up], weights.indices[up], slope[up]


def follow(pointers: np.ndarray) -> np.ndarray:
    """Where each node's pointers end, (N,). Each round doubles the steps: a path of a million takes 20."""
    while not np.array_equal(further := pointers[pointers], pointers):
        pointers = further
    return pointers


def adopt_singletons(peaks: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """`peaks` (N,), but a node alone at its own joins its nearest neighbour that is not alone, if it has one."""
    alone = np.bincount(peaks, minlength=len(peaks))[peaks] == 1
    adopted = peaks.copy()
    for neighbour in indices.T[::-1]:  # the farthest first: a nearer one overrules it
        joins = alone & ~alone[neighbour]
        adopted[joins] = peaks[neighbour[joins]]
    return adopted


def number(peaks: np.ndarray) -> np.ndarray:
    """The clusters (N,) numbered 0, 1, … in the order in which they first occur."""
    nodes = np.arange(len(peaks))
    first = np.full(len(peaks), len(peaks))
    np.minimum.at(first, peaks, nodes)
    first = first[peaks]  # the first node of each node's cluster
    return (np.cumsum(first == nodes) - 1)[first]
