"""Linear classifiers of one layer, trained side by side: one for each learning rate of the grid.

All see the same features in one matrix product, so a grid costs little more than one classifier.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
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
        self.values = start.repeat(len(rates), 1, 1).to(device)  # (R, C, D + 1): a classifier's weights and its bias
        self.speeds = torch.zeros_like(self.values)
        self.targets = torch.eye(classes, device=device)

    def state_dict(self) -> dict[str, Tensor]:
        """What training has changed."""
        return {"values": self.values, "speeds": self.speeds}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` gave."""
        for name, tensor in self.state_dict().items():
            if tensor.shape != state[name].shape:
                raise ValueError(f"{name} of shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}")
            tensor.copy_(state[name])

    def logits(self, x: Tensor) -> Tensor:
        """(R, C, B) of features (B, D): images last, where softmax and sums over classes are fastest."""
        rows = self.values.flatten(0, 1)
        return torch.addmm(rows[:, -1:], rows[:, :-1], x.T).unflatten(0, self.values.shape[:2])

    def step(self, x: Tensor, labels: Tensor, ids: Tensor, step: int, steps: int) -> None:
        """One step of each classifier on its mean cross-entropy. `ids`: which images the rows of x are."""
        error = torch.softmax(self.logits(x), 1)
        error -= self.targets.index_select(1, labels)
        error /= len(x)  # (R, C, B): the gradient of the logits
        self.speeds.mul_(MOMENTUM).add_(self.values, alpha=self.decay)
        if self.dual:
            self.speeds.index_add_(2, ids, error)
        else:
            self.speeds.flatten(0, 1)[:, :-1].addmm_(error.flatten(0, 1), x)
        self.speeds[:, :, -1] += error.sum(2)
        rates = [-self.schedule(rate, self.decay, step, steps) for rate in self.rates]
        self.values.addcmul_(self.speeds, torch.tensor(rates, device=x.device)[:, None, None])
