"""What torch.load(weights_only=True) has to know to read the checkpoints that mmengine writes.

Besides tensors they hold the history of each logged value: a `HistoryBuffer` of numpy arrays and scalars, which refers
to its own four methods by Python's getattr. To allow all of getattr would be to allow much, so it is read as one that
gets just these.
"""

from __future__ import annotations

from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any

import numpy as np
from numpy._core import multiarray

STATISTICS = ("min", "max", "current", "mean")
SCALARS = ("bool", "int32", "int64", "float32", "float64")


def trusted(buffer: type) -> list[Any]:
    """What to give `torch.serialization.add_safe_globals`, where `buffer` is mmengine's HistoryBuffer."""

    def statistic(owner: type, name: str) -> Callable[..., float]:
        if owner is not buffer or name not in STATISTICS:
            raise UnpicklingError(f"the file refers to {name!r} of {owner!r}, which no checkpoint of mmengine does")
        return getattr(owner, name)

    scalars = [type(np.dtype(name)) for name in SCALARS]
    rebuilding = [multiarray._reconstruct, multiarray.scalar]
    return [buffer, np.ndarray, np.dtype, *scalars, *rebuilding, (statistic, "builtins.getattr")]
