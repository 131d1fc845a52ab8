"""The order in which pseudo-labelled images are visited."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Sampler = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def uniform(assignment: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """`length` image ids in which every non-empty cluster occurs about equally often, shuffled.

    Each cluster gives int(length / clusters) + 1 ids: drawn without replacement if it has more, else with.
    This guards against the trivial parametrisation, where most images share a cluster (Caron et al., 2018,
    section 3.3). The released program drew in proportion to the clusters' sizes instead: see `legacy`.
    """
    order = np.argsort(assignment, kind="stable")
    starts = np.flatnonzero(np.diff(assignment[order], prepend=-1))
    members = np.split(order, starts[1:])
    share = length // len(members) + 1
    drawn = [rng.choice(ids, share, replace=len(ids) <= share) for ids in members]
    return rng.permutation(np.concatenate(drawn))[:length]


def legacy(assignment: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """`length` image ids as the released program draws them: in proportion to the clusters' sizes, some repeated.

    It draws ids as `uniform` does, but takes them for positions in the list of images sorted by cluster, so that
    the cluster drawn from has nothing to do with the one meant (deepcluster.md 1.8).
    """
    return np.argsort(assignment, kind="stable")[uniform(assignment, length, rng)]


def none(assignment: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """`length` image ids whatever their clusters: every image once, shuffled, or the first of them."""
    return rng.permutation(len(assignment))[:length]


SAMPLERS: dict[str, Sampler] = {"uniform": uniform, "legacy": legacy, "none": none}
