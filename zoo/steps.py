"""Steps of gradient descent: how images are shared out among them, and one of them."""

from __future__ import annotations

import math
from math import inf

import torch
from torch import Tensor, nn

from zoo import processes


def descend(loss: Tensor, *optimizers: torch.optim.Optimizer, zeros: bool = False, clip: float = inf) -> None:
    """A step of gradient descent on the loss; of many processes, on the sum of theirs.

    zeros: gradients become zeros, not None, before: what the loss does not reach moves and decays all the same.
    clip: the largest norm of all gradients together; longer ones are scaled to it.
    """
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=not zeros)
    loss.backward()
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    parameters = [parameter for group in groups for parameter in group["params"]]
    processes.sum_gradients(parameters)
    if clip < inf:
        nn.utils.clip_grad_norm_(parameters, clip)
    for optimizer in optimizers:
        optimizer.step()


def batch_sizes(count: int, batch: int, parts: int) -> list[int]:
    """How many of `count` images each batch has: the last what is left, or more where each part is to get one."""
    full, left = divmod(count, batch)
    if 0 < left < parts and full:
        return [*[batch] * (full - 1), batch + left]
    return [batch] * full + [left] * (left > 0)


def own_sizes(count: int, batch: int) -> list[int]:
    """How many of this process's own `count` images each batch has: all processes take the same number of steps."""
    if processes.count() == 1:
        return batch_sizes(count, batch, 1)
    steps = math.ceil(processes.largest(count)[0] / batch)
    return [count * (step + 1) // steps - count * step // steps for step in range(steps)]


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that learn: all but the fixed Sobel filters."""
    return [p for p in module.parameters() if p.requires_grad]
