"""Linear classifiers of one layer, trained side by side: one for each learning rate of the grid.

All see the same features in one matrix product, so a grid costs little more than one classifier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MOMENTUM = 0.9
Schedule = Callable[[float, float, int, int], float]  # (start, weight decay, step, steps) -> learning rate


def cosine(start: float, decay: float, step: int, steps: int) -> float:
    """From `start` to 0 along half a cosine."""
    return start * (1 + math.cos(math.pi * step / steps)) / 2


def inverse_sqrt(start: float, decay: float, step: int, steps: int) -> float:
    """lr / sqrt(1 + lr · weight decay · step): the schedule of DeepCluster's linear probe (deepcluster.md 2.1)."""
    return start / math.sqrt(1 + start * decay * step)


class Heads:
    """R classifiers (C, D) with SGD, momentum .9 and weight decay, each with its own learning rate.

    `dual`: the features are rows of the Gram matrix X Xᵀ (N images, D = N), and a classifier is kept as coefficients
    on the images, W = Aᵀ X. Started from zero, SGD's iterates are the same, at the cost of N features instead of D.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        rates: Sequence[float],
        decay: float,
        schedule: Schedule,
        generator: torch.Generator | None,
        device: torch.device,
        dual: bool = False,
    ) -> None:
        """`generator` draws torch's default initial weights, the same for every rate; None: zeros."""
        self.rates, self.decay, self.schedule, self.dual = tuple(rates), decay, schedule, dual
        bound = 1 / math.sqrt(dim)
        start = torch.zeros(classes, dim + 1)
        if generator is not None:
            start.uniform_(-bound, bound, generator=generator)
        self.classes = classes
        self.weight = start[:, :dim].repeat(len(rates), 1).to(device)  # (R C, D)
        self.bias = start[:, dim].repeat(len(rates)).to(device)  # (R C,)
        self.speeds = [torch.zeros_like(self.weight), torch.zeros_like(self.bias)]

    def logits(self, x: Tensor) -> Tensor:
        """(B, R, C) of features (B, D)."""
        return torch.addmm(self.bias, x, self.weight.T).unflatten(1, (-1, self.classes))

    def column(self, step: int, steps: int, device: torch.device) -> Tensor:
        """The learning rate (R C,) of each row of the weights."""
        rates = [self.schedule(rate, self.decay, step, steps) for rate in self.rates]
        return torch.tensor(rates, device=device).repeat_interleave(self.classes)

    def step(self, x: Tensor, labels: Tensor, ids: Tensor, step: int, steps: int) -> None:
        """One step of each classifier on its mean cross-entropy. `ids`: which images the rows of x are."""
        error = torch.softmax(self.logits(x), 2)
        error.sub_(F.one_hot(labels, self.classes)[:, None])
        error = error.flatten(1) / len(x)  # (B, R C): the gradient of the logits
        gradient = torch.zeros_like(self.weight).index_copy_(1, ids, error.T) if self.dual else error.T @ x
        column = self.column(step, steps, x.device)
        pairs = ((self.weight, gradient, column[:, None]), (self.bias, error.sum(0), column))
        for (value, slope, rate), speed in zip(pairs, self.speeds):
            speed.mul_(MOMENTUM).add_(slope).add_(value, alpha=self.decay)
            value.sub_(rate * speed)
