"""Where a run computes: device, threads, precision, memory allocator."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch

from results.errors import RunFailed, UserError
from zoo.processes import on_this_host, place_on_this_host

PRECISIONS = ("fp32", "bf16")
_stopping = threading.Event()
Item = TypeVar("Item")
Result = TypeVar("Result")
DEVICES = "--device cpu, --device cuda or --device cuda:1"
# glibc gives large buffers back to the system at every free, and fresh pages halve a convolution's speed.
# mallopt's names for the two thresholds (malloc.h), and one that no buffer of ours reaches.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, GIBIBYTE = -1, -3, 1 << 30


def prepare(threads: int | None) -> None:
    """Set the process's thread count and allocator once, before any work. Torch's count also rules faiss."""
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(M_MMAP_THRESHOLD, GIBIBYTE)
            libc.mallopt(M_TRIM_THRESHOLD, GIBIBYTE)
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // on_this_host()))
    torch.backends.cudnn.benchmark = False  # its choice of algorithm would differ from run to run


def pick(name: str) -> torch.device:
    """The device called `name` (`auto`: the GPU where there is one). UserError if it is not there."""
    if name == "auto":
        name = f"cuda:{place_on_this_host()}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"'{name}' is not a device", fix=DEVICES) from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"nothing here runs on the device '{name}'", fix=DEVICES)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device is visible to torch", fix="--device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"torch sees {torch.cuda.device_count()} CUDA devices, and no {name}", fix="--device cuda")
    return device


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context in which a backbone runs: bf16 autocast, or nothing for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item], device: torch.device) -> Iterator[Result]:
    """work(item) for each item, in their order; on the CPU as many at once as there are threads, each on one.

    For work of steps too small to share: items use more processors, and a result does not depend on their number.
    """
    if device.type != "cpu":
        yield from map(work, items)
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of every thread of the process
    _stopping.clear()
    pool = ThreadPoolExecutor(threads)
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # first: none may begin between the other two
        _stopping.set()
        pool.shutdown()
        torch.set_num_threads(threads)


def check_stopped() -> None:
    """End the work of an item whose side_by_side is over, by an error or a signal; long work asks now and then."""
    if _stopping.is_set() and threading.current_thread() is not threading.main_thread():
        raise RunFailed("stopped, because what it ran beside has ended")
