"""Which cluster is which class: counts of pairs, and the one-to-one matching that agrees most."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment


def contingency(a: np.ndarray, b: np.ndarray, rows: int | None = None, columns: int | None = None) -> np.ndarray:
    """How often label i of `a` meets label j of `b`, (rows, columns) int64.

    `a` and `b` are (N,) whole numbers from 0; by default rows = max(a) + 1 and columns = max(b) + 1.
    ValueError if they differ in length, are empty, or hold a label below 0 or beyond the table.
    """
    a, b = _labels(a), _labels(b)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} labels cannot be paired with {len(b)}")
    rows = int(a.max()) + 1 if rows is None else rows
    columns = int(b.max()) + 1 if columns is None else columns
    if a.max() >= rows or b.max() >= columns:
        raise ValueError(f"labels up to ({a.max()}, {b.max()}) do not fit a table of ({rows}, {columns})")
    return np.bincount(a * columns + b, minlength=rows * columns).reshape(rows, columns)


def match(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows and the columns, (min(table.shape),) each, of the one-to-one pairs whose counts sum highest.

    Where there are more rows than columns, or the reverse, the surplus stays unmatched (Kuhn 1955).
    """
    return linear_sum_assignment(table, maximize=True)


def relabel(new: np.ndarray, previous: np.ndarray, k: int) -> np.ndarray:
    """The permutation (k,) for which permutation[new] agrees most with `previous` (MMDC's refinement)."""
    rows, columns = match(contingency(new, previous, k, k))
    permutation = np.empty(k, dtype=np.int64)
    permutation[rows] = columns
    return permutation


def _labels(values: np.ndarray) -> np.ndarray:
    labels = np.asarray(values)
    if labels.ndim != 1 or labels.size == 0 or labels.dtype.kind not in "iu":
        raise ValueError(f"expected a row of whole numbers, got {labels.dtype} of shape {labels.shape}")
    if labels.min() < 0:
        raise ValueError(f"labels count from 0, and there is {labels.min()}")
    return labels.astype(np.int64, copy=False)
