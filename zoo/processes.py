"""Processes that compute one run together, as torchrun starts them. Where there is one, nothing here does a thing.

    torchrun --nproc-per-node 2 -m pretrain.deepcluster --dataset mnist

Each process runs the same lines on its own part of the images. What all must know is summed, gathered or told here;
only the first writes checkpoints and records. Tensors on the CPU travel by gloo, those on GPUs by NCCL.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from itertools import pairwise
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, distributed, nn

Value = TypeVar("Value")
Sum = TypeVar("Sum", np.ndarray, Tensor)
PATIENCE = timedelta(days=1)  # that the others wait for what one computes alone; a dead one ends all at once


_alone = False  # whether this process computes something without the others


def count() -> int:
    """How many processes compute together: 1 within `alone`."""
    return distributed.get_world_size() if distributed.is_initialized() and not _alone else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


@contextmanager
def alone() -> Iterator[None]:
    """Let what the block calls be computed by this process on its own: nothing is summed or told."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def on_this_host() -> int:
    """How many of them share this machine's processors."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def launcher() -> list[str]:
    """The words that start a Python program in as many processes, on as many hosts."""
    if count() == 1:
        return ["python"]
    hosts = count() // on_this_host()
    return ["torchrun", *(["--nnodes", str(hosts)] if hosts > 1 else []), "--nproc-per-node", str(on_this_host())]


def place_on_this_host() -> int:
    """This process's number among them, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def started() -> int:
    """How many processes torchrun started, joined or not; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined() -> Iterator[None]:
    """Let the processes that torchrun started, if it did, meet while the block runs. All but the first are silent.

    In such a block another is part of it: processes meet once, or wait for each other forever.
    """
    if started() == 1 or distributed.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere if rank() else sys.stdout):
            yield
    finally:
        distributed.destroy_process_group()


def share(total: int) -> slice:
    """This process's part of `total` things: each thing is one process's, and parts differ by one at most."""
    return _shares(total)[0 if count() == 1 else rank()]


def portion(total: int) -> slice:
    """The same, but never nothing: of fewer things than there are processes, the last is several's."""
    own = share(max(total, count()))
    return own if total >= count() else slice(min(own.start, total - 1), min(own.start, total - 1) + 1)


def from_portions(rows: Tensor, total: int) -> Tensor:
    """All rows (total, …), of which each process has its `portion`."""
    return _gather(rows, [part.stop - part.start for part in _shares(max(total, count()))])[:total]


def _shares(total: int) -> list[slice]:
    ends = [total * number // count() for number in range(count() + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


def summed(values: Sum) -> Sum:
    """The sum over all processes, elementwise; the same bits in each."""
    if count() == 1:
        return values
    total = torch.from_numpy(values.copy()) if isinstance(values, np.ndarray) else values.clone()
    distributed.all_reduce(total)
    return total.numpy() if isinstance(values, np.ndarray) else total


def largest(*values: float) -> list[float]:
    """The largest of the processes' values, for each of them."""
    if count() == 1:
        return list(values)
    found = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return found.tolist()


def gathered(rows: Tensor) -> Tensor:
    """All processes' rows (n, …), in the processes' order; n may differ."""
    return _gather(rows, told_each(len(rows)))


def _gather(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """The rows of all, of which process i has counts[i]."""
    if count() == 1:
        return rows
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:number] for part, number in zip(parts, counts)])


def told_each(value: Value) -> list[Value]:
    """Every process's value, in the processes' order."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    distributed.all_gather_object(found, value)
    return found


def told(value: Value) -> Value:
    """The first process's value."""
    if count() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box)
    return box[0]


def by_first(work: Callable[[], Value]) -> Value:
    """work()'s result, which the first process computes alone and the others are told."""
    with alone():
        found = work() if rank() == 0 else cast(Value, None)
    return told(found)


def each_by_first(work: Callable[[], Iterable[Value]]) -> Iterable[Value]:
    """The same of the results that work() gives one after the other: of many processes, all at once."""
    return work() if count() == 1 else by_first(lambda: list(work()))


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sum the gradients of all processes, in one message."""
    if count() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(part.view_as(gradient))


def average_statistics(module: nn.Module) -> None:
    """Let batch norms have the mean of the processes' running statistics: each has seen its own images only."""
    for buffer in module.buffers():
        if count() > 1 and buffer.is_floating_point():
            buffer.copy_(summed(buffer) / count())


def meet() -> None:
    """Wait until all have come here."""
    if count() > 1:
        distributed.barrier()
