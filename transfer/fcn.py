"""Fully convolutional networks: scores of every class at every pixel, from a checkpoint's backbone.

AlexNet, VGG-16   FCN-32s: fc6 and fc7 become convolutions with the checkpoint's weights, and a new layer of 1x1 scores
                  each cell (Shelhamer, Long, Darrell, PAMI 2017; deepcluster.md 2.4). A network without linear layers
                  is scored at its last map.
ResNets           res4 and res5 keep the resolution of res3 by dilation (stride 8 for ResNet-50: "R50-d8"), and the FCN
                  head of torchvision and mmsegmentation scores them: 3x3 to a quarter of the channels, then 1x1.
other networks    that head on their deepest map, at its own resolution.

Where FCN's Caffe program pads the image by 100 pixels and cuts a border from the scores, fc6 is padded here by half its
window; images are filled up with zeros (the mean colour) to whole cells, and to what a network can take. Upsampling is
bilinear and fixed, as there. The new 3x3 convolution has group norm in place of batch norm, which keeps the
checkpoint's running statistics: a new layer has none. The layer of scores starts at zero.

The grid of cells is taken to lie centred on the image. It does, within half a pixel, in AlexNet, VGG-16, alexnet32,
small_vgg and resnet18. Where padded convolutions have strides, their first window is centred on the first pixel, and
their last not on the last: cells then lie 3.5 pixels (resnet50) or 15.5 (torchvision:resnet18) further to the upper
left than they are taken to. mmsegmentation and torchvision spread their scores in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from results.errors import UserError
from transfer.finetuning import choose, trying_sizes
from zoo import device as devices
from zoo import processes
from zoo.backbones import Backbone, empty
from zoo.backbones.backbone import initialise
from zoo.backbones.plain import Plain
from zoo.backbones.resnet import ResNet
from zoo.seeds import numpy_generator
from zoo.voc.masks import BORDER

SIDES = (512, 1024)  # of images whose numbers of cells tell how far cells are apart: multiples of any stride
DROPPED = 0.1  # by the FCN head, as in torchvision


class PixelNetwork(nn.Module):
    """What scores the classes of every pixel: the trunk is the checkpoint's, the head is new."""

    def ends(self) -> tuple[Backbone, nn.Module]:
        """The trunk and the head."""
        raise NotImplementedError

    def scores(self, seen: Tensor, size: Sequence[int]) -> Tensor:
        """The float32 scores (N, classes, height, width) of the pixels of images of `size`.

        seen: the images as the network takes them (N, C, h, w): normalised, perhaps scaled.
        """
        raise NotImplementedError

    def loss(self, seen: Tensor, masks: Tensor) -> Tensor:
        """The mean cross-entropy over the pixels that count, of images and their masks (N, height, width).

        0 if none counts. Of many processes, the mean of what they return is that over the pixels of all.
        """
        raise NotImplementedError

    def choose(self, trained: str) -> None:
        """Let parameters learn: those above the convolutions (fc6-8), or all but the Sobel filter's."""
        trunk, head = self.ends()
        choose(trunk, trained)
        head.requires_grad_(True)


class Fcn(PixelNetwork):
    """A backbone that takes images of any size, and what scores its cells, which are `stride` pixels apart."""

    def __init__(self, backbone: Backbone, classes: int, seed: int, precision: str = "fp32") -> None:
        super().__init__()
        self.precision = precision
        self.backbone = convolutional(deepcopy(backbone))
        channels, self.stride = outline(backbone)
        plain = isinstance(backbone, Plain)
        scores = nn.Conv2d(channels if plain else channels // 4, classes, 1)
        self.head = nn.Sequential(*([] if plain else widen_view(channels)), scores)
        draw(list(self.head), seed)

    def ends(self) -> tuple[Backbone, nn.Module]:
        """See PixelNetwork.ends."""
        return self.backbone, self.head

    def forward(self, x: Tensor) -> Tensor:
        """The scores (N, classes, k, l) of the cells of normalised images (N, C, h, w)."""
        whole = in_whole_cells(x.shape[-2:], self.stride, self.backbone.sides[0])
        return self.head(describe(self.backbone, fill_up(x, whole)))

    def scores(self, seen: Tensor, size: Sequence[int]) -> Tensor:
        """See PixelNetwork.scores."""
        with devices.autocast(seen.device, self.precision):
            cells = self(seen).float()
        return spread(cells, size, [self.stride * side / less for side, less in zip(size, seen.shape[-2:])])

    def loss(self, seen: Tensor, masks: Tensor) -> Tensor:
        """See PixelNetwork.loss."""
        return pixel_loss(self.scores(seen, masks.shape[-2:]), masks)


def draw(layers: Sequence[nn.Module], seed: int) -> None:
    """Give the layers of a head their initial values; the last, which gives the scores, starts at zero."""
    generator = numpy_generator(seed, "layers of scores")
    for layer in layers:
        initialise(layer, "in", None, generator)
    nn.init.zeros_(layers[-1].get_parameter("weight"))


def pixel_loss(scores: Tensor, masks: Tensor) -> Tensor:
    """The mean cross-entropy over the pixels of the batch that count; 0 if none does.

    scores: (N, C, h, w). masks: (N, h, w), BORDER where a pixel does not count. Of many processes, the mean of what
    they return is that over the pixels of all.
    """
    total = F.cross_entropy(scores, masks.long(), ignore_index=BORDER, reduction="none").sum()
    counted = processes.summed((masks != BORDER).sum())
    return processes.count() * total / counted.clamp(min=1)


def convolutional(backbone: Backbone) -> Backbone:
    """The backbone, changed so that it takes images of any size and has enough cells; it has no embedding any more."""
    if isinstance(backbone, Plain):
        backbone.features = nn.Sequential(*(without_pooling(module) for module in backbone.features))
        widths = [module.out_channels for module in backbone.features if isinstance(module, nn.Conv2d)]
        backbone.classifier = convolve(backbone.classifier, widths[-1])
        backbone.sides = (backbone.sides[0], math.inf)  # type: ignore[misc]  # linear layers wanted one size
    elif isinstance(backbone, ResNet):
        dilate(backbone)
    elif not backbone.layers:
        happened = f"{backbone.name} has no maps to score pixels from, only an embedding"
        raise UserError(happened, fix="a checkpoint of a convolutional network")
    return backbone


def without_pooling(module: nn.Module) -> nn.Module:
    """The module, unless it brings maps of any size to one."""
    return nn.Identity() if isinstance(module, nn.AdaptiveAvgPool2d) else module


def convolve(classifier: nn.Sequential, channels: int) -> nn.Sequential:
    """The linear layers of a classifier as convolutions, for a map of `channels`."""
    layers: list[nn.Module] = []
    for layer in classifier:
        if isinstance(layer, nn.Linear):
            layers.append(to_convolution(layer, channels))
            channels = layer.out_features
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


def to_convolution(layer: nn.Linear, channels: int) -> nn.Conv2d:
    """The layer with its weights as a convolution: its window is the flattened map that the layer saw, padded by half.

    (4096, 256·6·6) -> (4096, 256, 6, 6).
    """
    side = math.isqrt(layer.in_features // channels)
    with torch.device("meta"):  # nothing is drawn
        found = nn.Conv2d(channels, layer.out_features, side, padding=side // 2)
    found.weight = nn.Parameter(layer.weight.detach().unflatten(1, (channels, side, side)))
    found.bias = layer.bias
    return found


def dilate(backbone: ResNet) -> None:
    """Let res4 and res5 keep res3's resolution: a stride of theirs becomes the dilation of all that follows it.

    At every fourth cell the maps are those of the network as it was. So is torchvision's and mmsegmentation's R50-d8.
    """
    dilation = 1
    for block in (*backbone.get_submodule("layer3").children(), *backbone.get_submodule("layer4").children()):
        for name, module in block.named_modules():
            if isinstance(module, nn.Conv2d):
                stride, module.stride = module.stride[0], (1, 1)
                module.dilation, module.padding = (dilation,) * 2, (module.kernel_size[0] // 2 * dilation,) * 2
                dilation *= 1 if name.startswith("downsample") else stride  # which is beside the block's own


def describe(backbone: Backbone, x: Tensor) -> Tensor:
    """What a convolutional backbone finds in each cell of images (N, C, h, w): (N, channels, k, l), after a ReLU."""
    if isinstance(backbone, Plain):
        return torch.relu(backbone.classifier(backbone.features(backbone.prepare(x))))
    deepest = backbone.layers[-1]
    return backbone(x, (deepest,))[deepest]


def outline(backbone: Backbone) -> tuple[int, int]:
    """(channels, stride) of what `describe` gives: tried on the meta device. stride: pixels between cells.

    UserError for a network without maps, and for one that takes images of one size alone.
    """
    with torch.device("meta"), torch.inference_mode():
        trunk = convolutional(empty(**backbone.arguments)).eval()
        with trying_sizes(backbone):
            small, large = (describe(trunk, torch.empty(2, trunk.channels, side, side)).shape for side in SIDES)
            return small[1], (SIDES[1] - SIDES[0]) // (large[-1] - small[-1])


def widen_view(channels: int) -> list[nn.Module]:
    """The FCN head up to its scores: it sees 3x3 cells."""
    inner = channels // 4
    convolution = nn.Conv2d(channels, inner, 3, padding=1, bias=False)
    return [convolution, nn.GroupNorm(math.gcd(32, inner), inner), nn.ReLU(inplace=True), nn.Dropout(DROPPED)]


def fill_up(x: Tensor, size: Sequence[int]) -> Tensor:
    """The images with zeros around them, evenly, up to a size (height, width)."""
    ends = [(lack // 2, lack - lack // 2) for lack in (whole - side for whole, side in zip(size, x.shape[-2:]))]
    return F.pad(x, (*ends[1], *ends[0])) if any(map(any, ends)) else x


def in_whole_cells(size: Sequence[int], stride: int, least: int) -> tuple[int, int]:
    """The sides (height, width) that an image is filled up to: multiples of the stride, of `least` pixels or more."""
    height, width = (stride * math.ceil(max(side, least) / stride) for side in size)
    return height, width


def spread(scores: Tensor, size: Sequence[int], step: Sequence[float]) -> Tensor:
    """The scores of cells (N, C, k, l) at every pixel of images of `size`: bilinear, (N, C, height, width).

    step: pixels between cells, in height and width. The grid of cells is taken to be centred on the image; beyond the
    outermost cells scores stay what they are there. As matrix products, whose gradients are the same bits each time on
    a GPU too.
    """
    rows, columns = (shares(*each, scores) for each in zip(scores.shape[-2:], size, step))
    return rows @ scores @ columns.mT


def shares(cells: int, side: int, step: float, like: Tensor) -> Tensor:
    """How much of each cell a pixel has (side, cells), in the type and on the device of `like`."""
    pixels = torch.arange(side, device=like.device, dtype=torch.float64)
    places = ((pixels - (side - 1) / 2) / step + (cells - 1) / 2).clamp(0, cells - 1)
    distances = (places[:, None] - torch.arange(cells, device=like.device)).abs()
    return (1 - distances).clamp(min=0).to(like.dtype)
