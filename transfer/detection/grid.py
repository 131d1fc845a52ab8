"""Where the cells of a backbone's map lie in the image: what pools regions, and what regions are thought up from.

Cell i of a map is centred at first + i * stride, in edges counted from 0 (see transfer/scores.py). Fast R-CNN's program
takes the first cell's centre for 0, and pads its networks so that it nearly is; here a checkpoint's network stays what
it is (the first cell of AlexNet's conv5 is centred at 15.5), and boxes are counted from there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align, roi_pool

from transfer.finetuning import trying_sizes
from zoo.backbones import Backbone, empty

RATIOS = (0.5, 1.0, 2.0)  # height / width of anchors
SIDE = 512  # of an image that a map is measured on, in pixels
SAMPLES = 2  # along each side of a bin of RoIAlign
MAP = "map"


@dataclass(frozen=True)
class Grid:
    """A map's channels, the pixels between its cells, and where the centre of the first is."""

    channels: int
    stride: int
    first: float


def find_map(backbone: Backbone, layer: str, x: Tensor) -> Tensor:
    """A layer's map (N, c, k, l) of normalised images (N, C, h, w) of any size; the Sobel filter, if any, before it.

    The backbone's own `forward` refuses sizes that only its embedding could not take, and tries others anew each time.
    """
    return backbone.compute(x if backbone.sobel is None else backbone.sobel(x), (layer,))[layer]


def shape_of(backbone: Backbone, layer: str, side: int) -> tuple[int, int]:
    """(channels, cells a side) of a layer's map of a square image: tried on the meta device, for the shape alone."""
    with torch.device("meta"), torch.inference_mode():
        found = find_map(backbone, layer, torch.empty(1, backbone.channels, side, side))
    return found.shape[1], found.shape[-1]


def measure(backbone: Backbone, layer: str) -> Grid:
    """The grid of a layer. UserError for a network that takes images of one size alone.

    The smallest image that gives a number of cells leaves nothing over: its cells lie centred on it.
    """
    shape = partial(shape_of, empty(**backbone.arguments).eval(), layer)
    with trying_sizes(backbone):
        channels, cells = shape(SIDE)
        stride = SIDE // (shape(2 * SIDE)[1] - cells)
    sides = range(SIDE - stride, SIDE + 1)
    least = sides[bisect_left(sides, cells, key=lambda side: shape(side)[1])]
    return Grid(channels, stride, (least - stride * (cells - 1)) / 2)


class Pooling(nn.Module):
    """What of a map lies under each region, in bins x bins values; `kind`: "max" the largest of each, or "align"."""

    def __init__(self, grid: Grid, bins: int, kind: str) -> None:
        super().__init__()
        self.grid, self.bins, self.kind = grid, bins, kind

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], sizes: Sequence[tuple[int, int]]) -> Tensor:
        """(R, c, bins, bins) for the boxes of each image, (n, 4) in the pixels that the network sees."""
        inner = [(box - self.grid.first) / self.grid.stride for box in boxes]  # cells, the first being 0
        if self.kind == "max":
            # from the first pixel's centre to the last one's, as Fast R-CNN has it: both cells belong to the region
            half = 0.5 / self.grid.stride
            ends = inner[0].new_tensor([half, half, -half, -half])
            return roi_pool(maps[MAP], [box + ends for box in inner], self.bins)
        return roi_align(maps[MAP], [box + 0.5 for box in inner], self.bins, 1.0, SAMPLES, aligned=True)


class Anchors(AnchorGenerator):
    """Boxes of the given sizes and RATIOS around the centre of each cell."""

    def __init__(self, grid: Grid, sides: Sequence[int]) -> None:
        super().__init__((tuple(sides),), (RATIOS,))
        self.grid = grid

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The anchors (cells * sizes * ratios, 4) of each image."""
        (found,) = feature_maps
        self.set_cell_anchors(found.dtype, found.device)
        step = torch.tensor(self.grid.stride, device=found.device)
        (around,) = self.grid_anchors([found.shape[-2:]], [[step, step]])
        return [around + self.grid.first] * len(image_list.image_sizes)
