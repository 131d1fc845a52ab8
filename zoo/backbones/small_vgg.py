"""MMDC's small VGG: four convolutions, each halving the image, and no fully connected layer."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from zoo.backbones.plain import Plain, block, convolutions


class SmallVGG(Plain):
    """Shiran & Weinshall, ICPR 2020, as released: 398 570 parameters with one channel and a head of 10."""

    name = "small_vgg"
    layers = convolutions(4)
    embedding_dim = 1024
    flat = 256 * 2 * 2
    sides = (32, 32)
    size, resize = 32, 32
    mean, std = (0.0,), (1.0,)  # the network sees [0, 1] as it is
    channels = 1
    follows_dataset = True
    fan = "in"

    @staticmethod
    def make_features(inputs: int) -> nn.Sequential:
        """Indices 0–15: the convolutions, without bias, at 0, 4, 8 and 12."""
        widths = (inputs, 32, 64, 128, 256)
        stages = []
        for before, after in pairwise(widths):
            stages += [*block(before, after, 3, padding=1, bias=False), nn.MaxPool2d(2)]
        return nn.Sequential(*stages)
