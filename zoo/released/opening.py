"""Opening a released file: it is a pickle, and opening a pickle can run anything.

torch's restricted reader opens it, with numpy's float64 arrays allowed besides tensors and plain values.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct

from results.errors import UserError

# What a pickled float64 array calls: MMDC keeps its targets in one. numpy 2 moved `_reconstruct`.
ARRAYS: list[Any] = [
    (_reconstruct, "numpy.core.multiarray._reconstruct"),
    (_reconstruct, "numpy._core.multiarray._reconstruct"),
    *(np.ndarray, np.dtype, type(np.dtype(np.float64))),
]
REFUSED = re.compile(r"GLOBAL ([\w.]+)|got <class '([\w.]+)'>")  # in what torch's reader says
READABLE = (
    "a released file of DeepCluster, DeeperCluster, DeepCluster-v2, SwAV, VISSL or MMDC, "
    "or a state dict in torchvision's names"
)


def is_ours(path: Path) -> bool:
    """Whether a file says by its name or its first bytes that it is safetensors, as our checkpoints are."""
    with path.open("rb") as file:
        start = file.read(9)
    return path.suffix == ".safetensors" or start[8:] == b"{"


def unpickle(path: Path) -> Any:
    """What torch's restricted reader finds in a file, on the CPU. UserError for anything it refuses."""
    try:
        with torch.serialization.safe_globals(ARRAYS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the age of the format
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read {path.name}: {error.strerror or error}", str(path), READABLE) from error
    except Exception as error:  # a torn or foreign file can fail anywhere in torch's readers
        found = REFUSED.search(str(error))
        if found:
            happened = f"{path.name} is refused: it calls {found[1] or found[2]}, which no model needs"
            raise UserError(happened, str(path), f"{READABLE}, from its authors") from error
        raise UserError(f"{path.name} is damaged, or not written by torch", str(path), READABLE) from error


def file_digest(path: Path) -> str:
    """The sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
