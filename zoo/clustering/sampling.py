"""The order in which pseudo-labelled images are visited."""

from __future__ import annotations

import numpy as np


def uniform(assignment: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """`length` image ids in which every non-empty cluster occurs about equally often, shuffled.

    Each cluster gives int(length / clusters) + 1 ids: drawn without replacement if it has more, else with.
    This guards against the trivial parametrisation, where most images share a cluster (Caron et al., 2018,
    section 3.3). The released program drew in proportion to the clusters' sizes instead; see the README.
    """
    order = np.argsort(assignment, kind="stable")
    starts = np.flatnonzero(np.diff(assignment[order], prepend=-1))
    members = np.split(order, starts[1:])
    share = length // len(members) + 1
    drawn = [rng.choice(ids, share, replace=len(ids) <= share) for ids in members]
    return rng.permutation(np.concatenate(drawn))[:length]
