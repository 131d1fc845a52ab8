"""Memory that a process borrows: given back to the system as soon as it is freed.

with borrowed_memory():
    points = whiten(descriptors)   # gigabytes that nothing else needs afterwards
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from zoo.device import GIBIBYTE, M_MMAP_THRESHOLD

LARGE = 1 << 20  # bytes


@contextmanager
def borrowed_memory() -> Iterator[None]:
    """Let buffers of a megabyte and more, if what the process holds has no room for them, lie in pages of their own.

    zoo.device.prepare lets a process keep what it frees, for networks ask for the same buffers again and again. What
    comes once an epoch would leave a hole, in which others settle, so that it is too short for the next epoch's.
    Where there is room nothing changes, so this costs no time. Other allocators than glibc's are left as they are.
    """
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if libc is None or not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, LARGE)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_THRESHOLD, GIBIBYTE)
