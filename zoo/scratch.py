"""Arrays on the disk, for what a run holds of every image and memory need not."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np


def create_array(path: Path, shape: tuple[int, int]) -> np.memmap:
    """A float32 array that lies in the file `path`, which is made. OSError if the disk has no room for it."""
    with path.open("wb") as file:
        try:
            reserve(file, size_of(shape))
        except OSError:
            path.unlink()
            raise
    return open_array(path, shape)


def open_array(path: Path, shape: tuple[int, int]) -> np.memmap:
    """The float32 array in a file, which what is written to it changes."""
    return np.memmap(path, dtype=np.float32, mode="r+", shape=shape)


def unnamed_array(directory: Path, shape: tuple[int, int]) -> np.memmap:
    """A float32 array in a file of that folder that has no name: it is gone with the array, or with the process."""
    with tempfile.TemporaryFile(dir=directory) as file:
        reserve(file, size_of(shape))
        return np.memmap(file, dtype=np.float32, mode="r+", shape=shape)


def size_of(shape: tuple[int, int]) -> int:
    """The bytes of a float32 array; one at least, as a file without any cannot be mapped."""
    return max(1, 4 * shape[0] * shape[1])


def reserve(file: IO[bytes], size: int) -> None:
    """Give the file that many bytes. OSError if the disk has no room for them."""
    if hasattr(os, "posix_fallocate"):  # else a full disk would show as a crash (SIGBUS) when it is filled
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


def discard(directory: Path, pattern: str, but: Path | None = None) -> None:
    """Remove the files of a folder that fit a pattern, but for one."""
    for path in directory.glob(pattern):
        if path != but:
            path.unlink()


@dataclass
class OnDisk:
    """An array on disk as a part of a state: there is nothing to save but what is still on its way to the disk."""

    array: np.memmap

    def state_dict(self) -> dict:
        """Nothing, once all is on the disk."""
        self.array.flush()
        return {}

    def load_state_dict(self, state: dict) -> None:
        """What the file holds is there already."""
