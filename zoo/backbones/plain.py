"""Convolutions in a row, each with batch norm and ReLU, then perhaps linear layers: AlexNet, VGG."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from results.errors import UserError
from zoo.backbones.backbone import Chain


class Plain(Chain):
    """Layer convN is the map after the N-th ReLU of `features`, before any pooling. A subclass is a table."""

    flat: ClassVar[int]  # values of the last map, flattened: what `classifier` expects

    def make(self, inputs: int) -> None:
        self.features = self.make_features(inputs)
        self.classifier = self.make_classifier()

    @staticmethod
    def make_features(inputs: int) -> nn.Sequential:
        """The convolutional part, for an input of `inputs` channels."""
        raise NotImplementedError

    @staticmethod
    def make_classifier() -> nn.Sequential:
        """The fully connected part up to the descriptor; empty where the flattened map is the descriptor."""
        return nn.Sequential()

    def links(self) -> Iterable[tuple[nn.Module, str | None]]:
        names = iter(self.layers)
        return [(module, next(names) if isinstance(module, nn.ReLU) else None) for module in self.features]

    def descend(self, x: Tensor) -> Tensor:
        """The descriptor (N, embedding_dim) of the last map. UserError where the map has another size."""
        x = torch.flatten(x, 1)  # not view: the map may be channels_last
        if x.shape[1] != self.flat:
            raise UserError(
                f"{self.name} has no embedding here: its last map has {x.shape[1]} values, not {self.flat}",
                fix=f"a size of {self.size}, or a conv layer",
            )
        return self.classifier(x)


def convolutions(count: int) -> tuple[str, ...]:
    """The names conv1 … of `count` layers."""
    return tuple(f"conv{number + 1}" for number in range(count))


def block(
    inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0, bias: bool = True
) -> list[nn.Module]:
    """A convolution with its batch norm and ReLU: three entries of `features`."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=bias)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
