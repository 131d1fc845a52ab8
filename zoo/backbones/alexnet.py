"""DeepCluster's AlexNet: the 2012 layout in one column, batch norm in place of response normalisation."""

from __future__ import annotations

from math import inf

from torch import nn

from zoo.backbones.plain import Plain, block, convolutions


class AlexNet(Plain):
    """Caron et al., ECCV 2018, as released: maps of 55, 27, 13, 13 and 13 px for an input of 224."""

    name = "alexnet"
    layers = convolutions(5)
    embedding_dim = 4096
    flat = 256 * 6 * 6
    sides = (63, inf)  # below, nothing is left of the last map
    size, resize = 224, 256
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's

    @staticmethod
    def make_features(inputs: int) -> nn.Sequential:
        """Indices 0–17: conv1 at 0, conv2 at 4, conv3 at 8, conv4 at 11, conv5 at 14."""
        return nn.Sequential(
            *block(inputs, 96, 11, stride=4, padding=2),
            nn.MaxPool2d(3, 2),
            *block(96, 256, 5, padding=2),
            nn.MaxPool2d(3, 2),
            *block(256, 384, 3, padding=1),
            *block(384, 384, 3, padding=1),
            *block(384, 256, 3, padding=1),
            nn.MaxPool2d(3, 2),
        )

    @staticmethod
    def make_classifier() -> nn.Sequential:
        """fc6 at 1 and fc7 at 4; the ReLU after fc7 is the caller's."""
        return nn.Sequential(
            nn.Dropout(0.5),
            nn.Linear(9216, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(4096, 4096),
        )
