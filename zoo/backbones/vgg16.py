"""DeepCluster's VGG-16: configuration D of Simonyan & Zisserman with batch norm."""

from __future__ import annotations

from math import inf

from torch import nn

from zoo.backbones.plain import Plain, block, convolutions

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # a pooling after each group


class VGG16(Plain):
    """Caron et al., ECCV 2018, as released: groups of maps of 224, 112, 56, 28 and 14 px for an input of 224."""

    name = "vgg16"
    layers = convolutions(13)
    embedding_dim = 4096
    flat = 512 * 7 * 7
    sides = (32, inf)  # below, nothing is left of the last map
    size, resize = 224, 256
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's

    @staticmethod
    def make_features(inputs: int) -> nn.Sequential:
        """Indices 0–43, as torchvision's vgg16_bn has them."""
        modules: list[nn.Module] = []
        for group in WIDTHS:
            for width in group:
                modules += block(inputs, width, 3, padding=1)
                inputs = width
            modules.append(nn.MaxPool2d(2))
        return nn.Sequential(*modules)

    @staticmethod
    def make_classifier() -> nn.Sequential:
        """fc6 at 0 and fc7 at 3, dropout between them alone; the ReLU after fc7 is the caller's."""
        return nn.Sequential(nn.Linear(25088, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(4096, 4096))
