"""Fast and Faster R-CNN on a checkpoint's backbone: regions of its map, classified and moved by the layers above it.

AlexNet, VGG-16   regions of the last convolution's map, pooled by the maximum to the size of the network's own last
                  pooling, which this takes the place of; fc6 and fc7 of the checkpoint see them (Girshick 2015).
ResNets           regions of res4, by RoIAlign of the size that res5 was trained on; res5 and its mean see them ("C4").
other networks    regions of the deepest map, by RoIAlign of 7 x 7; two new linear layers see them.

The layers that score and move regions are new, and so is the region proposal network, which learns together with the
rest (as torchvision's, the gradients do not go through its boxes). Parts are torchvision's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import box_iou

from results.errors import RunFailed, UserError
from transfer.detection.grid import MAP, RATIOS, Anchors, Grid, Pooling, find_map, measure, shape_of
from transfer.finetuning import choose
from zoo import device as devices
from zoo.backbones import Backbone, empty
from zoo.backbones.backbone import fill_normal, initialise
from zoo.backbones.plain import Plain
from zoo.backbones.resnet import ResNet
from zoo.seeds import numpy_generator

BINS, WIDTH = 7, 1024  # of the new linear layers
FOREGROUND = 0.5  # IoU with an object from which a region is one
SHARE = 0.25  # of the regions learned from that may be objects
TARGET_STD = (0.1, 0.1, 0.2, 0.2)  # what moves and sizes of boxes are divided by
SCORE, NMS, MOST = 0.05, 0.3, 100  # detections: the least score, the IoU of two of a class, how many of an image
# The region proposal network's, as in py-faster-rcnn: the IoU of objects and of background, how many anchors of an
# image are learned from, the share of objects, the IoU of boxes of which one is suppressed, and the most that are left
OBJECT, GROUND, ANCHORS, HALF, PROPOSED = 0.7, 0.3, 256, 0.5, 0.7
KEPT = {"training": 2_000, "testing": 300}

Sizes = list[tuple[int, int]]  # height, width of images, in the pixels that the network sees
Targets = list[dict[str, Tensor]]
Found = list[dict[str, Tensor]]


class Detector(nn.Module):
    """A backbone, what finds regions, and what judges them.

    anchors: sides of the boxes that a region proposal network starts from; none: regions are given.
    candidates: how many of its boxes are compared (in evaluation half as many).
    rois: regions of an image that are learned from.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        seed: int,
        anchors: Sequence[int],
        candidates: int,
        rois: int,
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        self.backbone, self.precision = deepcopy(backbone), precision
        self.layer = layer_of(backbone)
        grid = measure(backbone, self.layer)
        self.least = math.ceil(2 * grid.first)  # pixels: the side of an image that gives one cell
        self.new = new_layers(backbone, grid.channels)
        self.rpn = proposal_network(grid, anchors, candidates) if anchors else None
        least = 0.0 if anchors else 0.1  # py-faster-rcnn's, in the two cases
        width = WIDTH if len(self.new) else backbone.embedding_dim
        self.heads = Heads(
            pooling_of(backbone, grid), self.describe, FastRCNNPredictor(width, classes + 1), rois, least
        )
        draw_new(self.new, self.heads.box_predictor, self.rpn and self.rpn.head, seed)

    @staticmethod
    def check(backbone: Backbone) -> None:
        """UserError for a network that no detector can be made of."""
        measure(backbone, layer_of(backbone))

    def choose(self, trained: str) -> None:
        """Let parameters learn: all but the convolutions of the backbone (fc6-8), or all but the Sobel filter's."""
        self.requires_grad_(True)
        choose(self.backbone, trained)

    def forward(self, images: ImageList, given: list[Tensor], targets: Targets | None = None) -> Tensor | Found:
        """With targets (boxes and labels of each image) the loss; without, what is found in each image.

        given: the boxes (n, 4) to be judged in each image, of no use with a region proposal network.
        """
        with devices.autocast(images.tensors.device, self.precision):
            found = find_map(self.backbone, self.layer, images.tensors)
        maps, losses = {MAP: found.float()}, {}
        if self.rpn is not None:
            given, losses = self.rpn(images, maps, targets)
        if targets is None:
            if self.rpn is not None and not all(map(len, given)):  # of numbers, some box is always the best
                refuse()
            return self.heads.find(maps, given, images.image_sizes)
        return self.heads.compare(maps, given, images.image_sizes, targets) + sum(losses.values())

    def describe(self, regions: Tensor) -> Tensor:
        """The float32 descriptors (R, width) of pooled regions (R, c, bins, bins)."""
        backbone = self.backbone
        with devices.autocast(regions.device, self.precision):
            if isinstance(backbone, ResNet):
                return backbone.descend(backbone.get_submodule("layer4")(regions)).float()
            above = self.new if len(self.new) else backbone.get_submodule("classifier")
            return torch.relu(above(regions.flatten(1))).float()


def draw_new(new: nn.Sequential, predictor: nn.Module, proposing: nn.Module | None, seed: int) -> None:
    """Give the new layers their initial values: those of py-faster-rcnn, and He's for what it does not have.

    new: see new_layers. predictor: with `cls_score` and `bbox_pred`. proposing: the layers of the proposal network.
    """
    generator = numpy_generator(seed, "detector")
    for layer in new:
        initialise(layer, "in", None, generator)
    drawn = {predictor.get_submodule("cls_score"): 0.01, predictor.get_submodule("bbox_pred"): 0.001}
    if proposing is not None:
        drawn |= {layer: 0.01 for layer in proposing.modules() if isinstance(layer, nn.Conv2d)}
    with torch.no_grad():
        for layer, std in drawn.items():
            fill_normal(layer.get_parameter("weight"), std, generator)
            layer.get_parameter("bias").zero_()


class Heads(RoIHeads):
    """What judges regions: which of them are learned from, with what loss, and which are detections.

    least: the IoU from which a region is background.
    """

    def __init__(self, pooling: Pooling, describe: Callable, predictor: nn.Module, rois: int, least: float) -> None:
        weights = tuple(1 / std for std in TARGET_STD)
        super().__init__(pooling, describe, predictor, FOREGROUND, FOREGROUND, rois, SHARE, weights, SCORE, NMS, MOST)
        self.least = least

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The object of each region, and its class: 0 background, -1 neither."""
        matched, labels = super().assign_targets_to_proposals(proposals, gt_boxes, gt_labels)
        for regions, boxes, own in zip(proposals, gt_boxes, labels):
            own[box_iou(boxes, regions).amax(0) < self.least] = -1
        return matched, labels

    def judge(self, maps: dict[str, Tensor], boxes: list[Tensor], sizes: Sizes) -> tuple[Tensor, Tensor]:
        """(scores (R, classes + 1), moves (R, 4 * (classes + 1))) of the regions of all images."""
        return self.box_predictor(self.box_head(self.box_roi_pool(maps, boxes, sizes)))

    def compare(self, maps: dict[str, Tensor], boxes: list[Tensor], sizes: Sizes, targets: Targets) -> Tensor:
        """The loss of regions that are drawn from the boxes and the objects."""
        regions, _, labels, wanted = self.select_training_samples(boxes, targets)
        return region_loss(*self.judge(maps, regions, sizes), torch.cat(labels), torch.cat(wanted))

    def find(self, maps: dict[str, Tensor], boxes: list[Tensor], sizes: Sizes) -> Found:
        """The detections of each image: boxes (n, 4), scores (n,) and labels (n,) from 1 on, the best first.

        RunFailed if the network gives no numbers: none of them would be a detection.
        """
        judged = self.judge(maps, boxes, sizes)
        if not all(torch.isfinite(values).all() for values in judged):
            refuse()
        found = self.postprocess_detections(*judged, boxes, sizes)
        return [dict(zip(("boxes", "scores", "labels"), one)) for one in zip(*found)]


def region_loss(scores: Tensor, moves: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
    """The mean cross-entropy of the regions' classes, and the smooth L1 distance of objects' moves (Girshick 2015).

    scores: (R, C). moves: (R, 4 C), a box a class. labels: (R,), 0 background. wanted: (R, 4).
    Smooth L1 turns at a distance of 1; its sum over the objects is divided by R.
    """
    objects = torch.where(labels > 0)[0]
    own = moves.unflatten(1, (-1, 4))[objects, labels[objects]]
    return F.cross_entropy(scores, labels) + F.smooth_l1_loss(own, wanted[objects], reduction="sum") / len(labels)


def refuse() -> NoReturn:
    """RunFailed: the network gives no numbers."""
    raise RunFailed("what the network finds is no number any more. Try a smaller --lr")


def layer_of(backbone: Backbone) -> str:
    """The layer whose map has the regions. UserError for a network that has no maps."""
    if not backbone.layers:
        happened = f"{backbone.name} has no maps to find objects in, only an embedding"
        raise UserError(happened, fix="a checkpoint of a convolutional network")
    return backbone.layers[-2 if isinstance(backbone, ResNet) else -1]


def pooling_of(backbone: Backbone, grid: Grid) -> Pooling:
    """How regions are pooled: see above."""
    if isinstance(backbone, ResNet):
        _, bins = shape_of(empty(**backbone.arguments).eval(), layer_of(backbone), backbone.size)
        return Pooling(grid, bins, "align")
    if isinstance(backbone, Plain) and len(backbone.classifier):
        return Pooling(grid, math.isqrt(backbone.flat // grid.channels), "max")
    return Pooling(grid, BINS, "align")


def new_layers(backbone: Backbone, channels: int) -> nn.Sequential:
    """The two layers above the regions of a network that has none; else nothing."""
    if isinstance(backbone, ResNet) or (isinstance(backbone, Plain) and len(backbone.classifier)):
        return nn.Sequential()
    return nn.Sequential(nn.Linear(channels * BINS**2, WIDTH), nn.ReLU(inplace=True), nn.Linear(WIDTH, WIDTH))


def proposal_network(grid: Grid, anchors: Sequence[int], candidates: int) -> RegionProposalNetwork:
    """A region proposal network for boxes of about these sizes."""
    ranked = {"training": candidates, "testing": candidates // 2}
    head = RPNHead(grid.channels, len(anchors) * len(RATIOS))
    return RegionProposalNetwork(Anchors(grid, anchors), head, OBJECT, GROUND, ANCHORS, HALF, ranked, KEPT, PROPOSED)
