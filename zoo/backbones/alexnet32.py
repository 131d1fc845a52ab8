"""AlexNet in small, for images of 28 to 64 px: five convolutions and two linear layers, narrow."""

from __future__ import annotations

from math import inf

from torch import nn

from zoo.backbones.plain import Plain, block, convolutions


class AlexNet32(Plain):
    """Our own: maps of 32, 16, 8, 8 and 8 px for an input of 32; 18.9 M multiply-adds an RGB image."""

    name = "alexnet32"
    layers = convolutions(5)
    embedding_dim = 512
    flat = 64 * 4 * 4
    sides = (8, inf)  # below, nothing is left of the last map
    size, resize = 32, 32
    mean, std = (0.5,), (0.25,)
    linear_std = (
        None  # AlexNet's .01 suits 4 096 inputs; with 512 the signal would fade to nothing from fc6 to the head
    )

    @staticmethod
    def make_features(inputs: int) -> nn.Sequential:
        """Indices as AlexNet's. The last pooling is the identity at 32 px, and lets other sizes in."""
        return nn.Sequential(
            *block(inputs, 32, 5, padding=2),
            nn.MaxPool2d(2),
            *block(32, 64, 3, padding=1),
            nn.MaxPool2d(2),
            *block(64, 96, 3, padding=1),
            *block(96, 80, 3, padding=1),
            *block(80, 64, 3, padding=1),
            nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d(4),
        )

    @staticmethod
    def make_classifier() -> nn.Sequential:
        """fc6 at 1 and fc7 at 4; the ReLU after fc7 is the caller's."""
        return nn.Sequential(
            nn.Dropout(0.5), nn.Linear(1024, 512), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(512, 512)
        )
