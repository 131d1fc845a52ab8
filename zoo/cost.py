"""What a pretraining run takes, counted before it starts: multiply-adds, disk, memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from tabulate import tabulate
from torch import Tensor, nn

from zoo.backbones import EMBEDDING, Backbone, empty

BACKWARD = (
    3  # a training step's multiply-adds over a forward pass's: one more for the input's gradient, one for the weights'
)
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
        rows.append((f"{self.epochs} epochs", f"{self.total:.2e}", span(self.total / RATE)))
        head = ("an epoch's", "multiply-adds", f"at {RATE:.0e} a second")
        table = tabulate(rows, head, disable_numparse=True, colalign=("left", "right", "right"))
        return f"{table}\ndisk {size(self.scratch)} while it runs, memory {size(self.memory)} besides model and batch"


def multiply_adds(backbone: str, channels: int, sobel: bool, side: int) -> int:
    """Multiply-adds of one image (channels, side, side) through a backbone up to its embedding.

    Those of convolutions and linear layers, counted on the meta device: nothing is computed.
    """
    model = empty(backbone, channels, sobel).eval()
    counts: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = cast(Tensor, module.weight)  # a dot product with one of its rows for each value of the output
        counts.append(output[0].numel() * weight[0].numel())

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    model(blank(model, side), (EMBEDDING,))
    return sum(counts)


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
