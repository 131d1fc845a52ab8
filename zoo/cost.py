"""What a pretraining run takes, counted before it starts: multiply-adds, disk, memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tabulate import tabulate
from torch import Tensor

from zoo.backbones import EMBEDDING, Backbone, empty

# Multiply-adds of a training step over a forward pass's: the gradients of inputs and weights add one each.
BACKWARD = 3
RATE = 1e12  # multiply-adds a second: the unit that durations are shown in


@dataclass(frozen=True)
class Cost:
    """phases: multiply-adds of each phase of one epoch. scratch, memory: bytes that grow with the number of images."""

    epochs: int
    phases: Mapping[str, float]
    scratch: int = 0  # on disk, while the run lasts
    memory: int = 0

    @property
    def total(self) -> float:
        """Multiply-adds of the whole run."""
        return self.epochs * sum(self.phases.values())

    def __str__(self) -> str:
        rows = [(name, f"{count:.2e}", span(count / RATE)) for name, count in self.phases.items()]
        rows.append((f"{self.epochs} epoch{'s' * (self.epochs != 1)}", f"{self.total:.2e}", span(self.total / RATE)))
        head = ("an epoch's", "multiply-adds", f"at {RATE:.0e} a second")
        table = tabulate(rows, head, disable_numparse=True, colalign=("left", "right", "right"))
        return f"{table}\ndisk {size(self.scratch)} while it runs, memory {size(self.memory)} besides model and batch"


def multiply_adds(backbone: str, channels: int, sobel: bool, side: int) -> int:
    """Multiply-adds of one image (channels, side, side) through a backbone up to its embedding.

    Those of convolutions, matrix products and attention, counted on the meta device: nothing is computed.
    """
    from torch.utils.flop_counter import FlopCounterMode  # here: it imports triton, which takes a third of a second

    model = empty(backbone, channels, sobel).eval()
    with FlopCounterMode(display=False) as counter:
        model(blank(model, side), (EMBEDDING,))
    return counter.get_total_flops() // 2


def blank(model: Backbone, side: int) -> Tensor:
    """An image (1, channels, side, side) without values."""
    parameter = next(model.parameters())
    return parameter.new_empty(1, model.channels, side, side)


def span(seconds: float) -> str:
    """A duration in its natural unit."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def size(count: float) -> str:
    """Bytes in their natural unit."""
    for unit, length in (("GB", 1e9), ("MB", 1e6)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
