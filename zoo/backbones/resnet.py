"""ResNets: MMDC's 18 and 34 for small images, and ImageNet's 50.

He et al., CVPR 2016; parameters are named as torchvision names them.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.backbones.backbone import Chain

WIDTHS = (64, 128, 256, 512)


class Block(nn.Module):
    """The residual block: a branch of convolutions is added to the input, which is projected where shapes differ."""

    expansion: ClassVar[int]  # output channels / width

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.make(inputs, width, stride)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def make(self, inputs: int, width: int, stride: int) -> None:
        """Make the branch's convolutions and batch norms."""
        raise NotImplementedError

    def branch(self, x: Tensor) -> Tensor:
        """What is added to the input."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) -> (N, width · expansion, h / stride, w / stride)."""
        straight = x if self.downsample is None else self.downsample(x)
        return self.relu(self.branch(x) + straight)


class BasicBlock(Block):
    """Two convolutions of 3 × 3."""

    expansion = 1

    def make(self, inputs: int, width: int, stride: int) -> None:
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))


class Bottleneck(Block):
    """Convolutions of 1 × 1, 3 × 3 and 1 × 1; the stride is the second's, as in torchvision."""

    expansion = 4

    def make(self, inputs: int, width: int, stride: int) -> None:
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * 4)

    def branch(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.bn3(self.conv3(self.relu(self.bn2(self.conv2(x)))))


class ResNet(Chain):
    """A stem, four stages of blocks, and the mean over the last map. A subclass is a table."""

    layers = ("conv1", "res2", "res3", "res4", "res5")
    block: ClassVar[type[Block]]
    counts: ClassVar[tuple[int, ...]]  # blocks of each stage

    @staticmethod
    def make_stem(inputs: int) -> tuple[nn.Conv2d, nn.MaxPool2d]:
        """The first convolution and the pooling after it."""
        raise NotImplementedError

    def make(self, inputs: int) -> None:
        self.conv1, self.maxpool = self.make_stem(inputs)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU(inplace=True)
        before = WIDTHS[0]
        for stage, (width, count) in enumerate(zip(WIDTHS, self.counts, strict=True)):
            after = width * self.block.expansion
            first = self.block(before, width, 2 if stage else 1)
            rest = [self.block(after, width, 1) for _ in range(count - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(first, *rest))
            before = after

    def links(self) -> Iterable[tuple[nn.Module, str | None]]:
        stem = [(self.conv1, None), (self.bn1, None), (self.relu, "conv1"), (self.maxpool, None)]
        return [*stem, *((getattr(self, f"layer{stage}"), f"res{stage + 1}") for stage in (1, 2, 3, 4))]

    def descend(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


class SmallResNet(ResNet):
    """Shiran & Weinshall, ICPR 2020, as released: no stride in the stem, maps of 32, 17, 9, 5 and 3 px for 32."""

    block = BasicBlock
    embedding_dim = 512
    sides = (16, inf)
    size, resize = 32, 32
    mean, std = (0.0,), (1.0,)  # the network sees [0, 1] as it is
    follows_dataset = True
    fan = "in"

    @staticmethod
    def make_stem(inputs: int) -> tuple[nn.Conv2d, nn.MaxPool2d]:
        return nn.Conv2d(inputs, 64, 3, padding=1, bias=False), nn.MaxPool2d(2, 2, padding=1)


class ResNet18(SmallResNet):
    """11 176 014 parameters with three channels, a head of 10 and a rotation head."""

    name = "resnet18"
    counts = (2, 2, 2, 2)


class ResNet34(SmallResNet):
    """As ResNet18, deeper."""

    name = "resnet34"
    counts = (3, 4, 6, 3)


class ResNet50(ResNet):
    """torchvision's, without its classifier: maps of 112, 56, 28, 14 and 7 px for an input of 224."""

    name = "resnet50"
    block = Bottleneck
    counts = (3, 4, 6, 3)
    embedding_dim = 2048
    sides = (32, inf)
    size, resize = 224, 256
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's

    @staticmethod
    def make_stem(inputs: int) -> tuple[nn.Conv2d, nn.MaxPool2d]:
        return nn.Conv2d(inputs, 64, 7, 2, padding=3, bias=False), nn.MaxPool2d(3, 2, padding=1)
