"""Imbalanced subsets of a labelled set, to study what clustering does where classes are not equally large."""

from __future__ import annotations

import numpy as np

from results.errors import UserError


def imbalanced(labels: np.ndarray, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Ids (sorted) of a subset whose class sizes fall exponentially, the largest `ratio` times the smallest.

    The class of rank r of C keeps a · ratio^(-r / (C - 1)) images, a being the size of the smallest class (the
    profile of Cui et al., "Class-Balanced Loss", CVPR 2019, section 5.1). Which class has which rank, and which
    images stay, is drawn: so no class is always the rare one. UserError for a ratio that leaves a class empty.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    if sizes.min() < ratio:
        happened = f"the smallest class has {sizes.min()} images: none of it would stay at an imbalance of {ratio:g}"
        raise UserError(happened, fix=f"--imbalance {sizes.min()} at most")
    rank = rng.permutation(len(classes))
    kept = sizes.min() * ratio ** (-rank / max(1, len(classes) - 1))
    chosen = [
        rng.choice(np.flatnonzero(labels == label), round(count), replace=False) for label, count in zip(classes, kept)
    ]
    return np.sort(np.concatenate(chosen))
