"""Arrays that are read from files, by any number of threads."""

from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

# numpy has a file's header parsed as Python, in which threads of CPython 3.11 disturb each other (SystemError: AST
# constructor recursion depth mismatch, github.com/python/cpython/issues/106905).
_reading = Lock()


def load(path: Path, **more: Any) -> np.ndarray:
    """np.load's array, read by one thread at a time; its errors."""
    with _reading:
        found = np.load(path, **more)
    assert isinstance(found, np.ndarray)
    return found
