"""The detector of transfer/detection/model.py as detectron2's own model, for `--engine detectron2`.

Anchors, matching, sampling, losses, suppression and detections are detectron2's, with the numbers of our detector: its
model zoo's Faster R-CNN of Pascal VOC, into whose configuration they are written. Ours are the layers, which are the
checkpoint's: a trunk up to the map, and what sees its regions.

detectron2's pooling takes it that cell i of a map is centred at (i + .5) strides (RoIAlign) or i strides (maximum). A
checkpoint's cells may lie elsewhere (see transfer/detection/grid.py), so boxes are moved by the difference where they
are pooled; anchors have an option for it. What stays different from our detector: anchors' sides are not rounded to
whole pixels; the loss of the proposal network is divided by 256 an image where fewer anchors are drawn, too; and other
random numbers are drawn.

To import this is to import detectron2: UserError without it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from results.errors import UserError
from transfer.detection import model as ours
from transfer.detection.grid import MAP, RATIOS, SAMPLES, Grid, find_map, measure
from transfer.detection.model import Found, Targets, draw_new, layer_of, new_layers, pooling_of, refuse
from transfer.engines.loading import load_detectron2
from transfer.finetuning import choose
from zoo import device as devices
from zoo.backbones import Backbone, allocate, empty
from zoo.backbones.plain import Plain
from zoo.backbones.resnet import ResNet
from zoo.tensors import mismatches

engine: Any = load_detectron2()
warnings.filterwarnings("ignore", "torch.meshgrid", UserWarning)  # called by it as it once was: the result is the same
Boxes, Instances = engine.structures.Boxes, engine.structures.Instances

BASE = "PascalVOC-Detection/faster_rcnn_R_50_C4.yaml"
POOLERS = {"max": "ROIPool", "align": "ROIAlignV2"}


def above(backbone: Backbone) -> str:
    """The name of that part of the network which sees the regions; "" if it has none."""
    if isinstance(backbone, ResNet):
        return "layer4"
    return "classifier" if isinstance(backbone, Plain) and len(backbone.classifier) else ""


@engine.modeling.BACKBONE_REGISTRY.register()
class Trunk(engine.modeling.Backbone):
    """The network up to the map that has the regions, its Sobel filter before it. It takes normalised images."""

    def __init__(self, config: Any, input_shape: Any = None) -> None:
        super().__init__()
        self.net, self.precision = allocate(**config.MODEL.ZOO), config.PRECISION
        if part := above(self.net):
            setattr(self.net, part, nn.Sequential())
        self.layer, self.grid = layer_of(self.net), Grid(**config.GRID)
        self.least = math.ceil(2 * self.grid.first)  # pixels: the side of an image that gives one cell

    def output_shape(self) -> dict[str, Any]:
        """The map's channels and stride, as detectron2 asks for them."""
        return {MAP: engine.layers.ShapeSpec(channels=self.grid.channels, stride=self.grid.stride)}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The float32 map of images (N, C, h, w)."""
        right, below = (max(0, self.least - side) for side in (x.shape[-1], x.shape[-2]))
        x = F.pad(x, (0, right, 0, below)).contiguous(memory_format=torch.channels_last)
        with devices.autocast(x.device, self.precision):
            return {MAP: find_map(self.net, self.layer, x).float()}


@engine.modeling.ROI_BOX_HEAD_REGISTRY.register()
class Describer(nn.Module):
    """What sees the pooled regions: fc6 and fc7, or res5 and its mean, or the two new layers of a network without."""

    def __init__(self, config: Any, input_shape: Any) -> None:
        super().__init__()
        backbone = empty(**config.MODEL.ZOO)
        self.part, self.precision = above(backbone), config.PRECISION
        if self.part:
            self.add_module(self.part, getattr(backbone, self.part).to_empty(device="cpu"))
        self.new = new_layers(backbone, input_shape.channels)
        self.output_shape = engine.layers.ShapeSpec(channels=ours.WIDTH if len(self.new) else backbone.embedding_dim)

    def forward(self, regions: Tensor) -> Tensor:
        """The float32 descriptors (R, width) of pooled regions (R, c, bins, bins)."""
        with devices.autocast(regions.device, self.precision):
            if self.part == "layer4":
                return self.get_submodule(self.part)(regions).mean((2, 3)).float()
            layers = self.get_submodule(self.part) if self.part else self.new
            return torch.relu(layers(regions.flatten(1))).float()


class Detectron2Detector(nn.Module):
    """detectron2's model with a checkpoint's layers; to be used, and made with the same arguments, as Detector."""

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
        config = configure(backbone, classes, anchors, candidates, rois, precision)
        self.model = engine.modeling.build_model(config)
        load(self.model, backbone.state_dict())
        heads, proposer = self.model.roi_heads, self.model.proposal_generator
        draw_new(heads.box_head.new, heads.box_predictor, proposer and proposer.rpn_head, seed)
        trunk = self.model.backbone
        self.least = trunk.least
        moved = movement(trunk.grid, pooling_of(backbone, trunk.grid).kind)
        heads.box_pooler.register_forward_pre_hook(
            lambda pooler, given: (given[0], [move(one, moved) for one in given[1]])
        )
        for layer in self.judges():
            layer.register_forward_hook(check_numbers)

    @staticmethod
    def check(backbone: Backbone) -> None:
        """UserError for a network that no detector can be made of, or whose cells detectron2 cannot place."""
        grid = measure(backbone, layer_of(backbone))
        if grid.stride & (grid.stride - 1) or not 0 <= grid.first < grid.stride:
            happened = f"detectron2 has no place for a map of stride {grid.stride} that begins at {grid.first:g} px"
            raise UserError(happened, fix="--engine torchvision, or another backbone")

    @property
    def backbone(self) -> Backbone:
        """The checkpoint's network, without its part that sees the regions."""
        return self.model.backbone.net

    def judges(self) -> list[nn.Module]:
        """The layers that score and move boxes."""
        predictor, proposer = self.model.roi_heads.box_predictor, self.model.proposal_generator
        found = [predictor.cls_score, predictor.bbox_pred]
        if proposer is not None:
            found += [proposer.rpn_head.objectness_logits, proposer.rpn_head.anchor_deltas]
        return found

    def choose(self, trained: str) -> None:
        """Let parameters learn: see Detector.choose."""
        self.requires_grad_(True)
        choose(self.backbone, trained)
        if isinstance(self.backbone, ResNet):
            self.model.roi_heads.box_head.layer4.requires_grad_(trained == "all")

    def forward(self, images: ImageList, given: list[Tensor], targets: Targets | None = None) -> Tensor | Found:
        """In training the loss, which needs targets; else what is found in each image. See Detector.forward."""
        entries = [
            {"image": image[:, :height, :width]} for image, (height, width) in zip(images.tensors, images.image_sizes)
        ]
        for entry, size, boxes in zip(entries, images.image_sizes, given):
            certain = boxes.new_zeros(len(boxes))  # its joining of proposals and objects asks for scores
            entry["proposals"] = Instances(size, proposal_boxes=Boxes(boxes), objectness_logits=certain)
        if targets is None:
            found = [one["instances"] for one in self.model(entries)]
            return [
                {"boxes": one.pred_boxes.tensor, "scores": one.scores, "labels": one.pred_classes + 1} for one in found
            ]
        for entry, size, target in zip(entries, images.image_sizes, targets):
            entry["instances"] = Instances(size, gt_boxes=Boxes(target["boxes"]), gt_classes=target["labels"] - 1)
        with engine.utils.events.EventStorage():  # its losses note statistics there
            try:
                return sum(self.model(entries).values())
            except FloatingPointError:
                refuse()


def configure(
    backbone: Backbone, classes: int, anchors: Sequence[int], candidates: int, rois: int, precision: str
) -> Any:
    """detectron2's configuration of a detector: see Detector."""
    grid = measure(backbone, layer_of(backbone))
    pooling = pooling_of(backbone, grid)
    mean, std = [0.0] * backbone.channels, [1.0] * backbone.channels  # images come normalised
    # with given regions py-faster-rcnn leaves those that hardly touch an object out
    limits, labels = ([ours.FOREGROUND], [0, 1]) if anchors else ([0.1, ours.FOREGROUND], [-1, 0, 1])
    config = engine.model_zoo.get_config(BASE)
    node = type(config)
    config.PRECISION, config.GRID = precision, node(asdict(grid))
    config.MODEL.ZOO = node(backbone.arguments)
    config.TEST.DETECTIONS_PER_IMAGE = ours.MOST
    model = {
        "DEVICE": "cpu",
        "PIXEL_MEAN": mean,
        "PIXEL_STD": std,
        "BACKBONE": {"NAME": Trunk.__name__},
        "PROPOSAL_GENERATOR": {"NAME": "RPN" if anchors else "PrecomputedProposals"},
        "ANCHOR_GENERATOR": {
            "SIZES": [list(anchors)],
            "ASPECT_RATIOS": [list(RATIOS)],
            "OFFSET": grid.first / grid.stride,
        },
        "RPN": proposing(candidates),
        "ROI_HEADS": {
            "NAME": "StandardROIHeads",
            "NUM_CLASSES": classes,
            "IN_FEATURES": [MAP],
            "IOU_THRESHOLDS": limits,
            "IOU_LABELS": labels,
            "BATCH_SIZE_PER_IMAGE": rois,
            "POSITIVE_FRACTION": ours.SHARE,
            "SCORE_THRESH_TEST": ours.SCORE,
            "NMS_THRESH_TEST": ours.NMS,
        },
        "ROI_BOX_HEAD": {
            "NAME": Describer.__name__,
            "POOLER_TYPE": POOLERS[pooling.kind],
            "POOLER_RESOLUTION": pooling.bins,
            "POOLER_SAMPLING_RATIO": SAMPLES,
            "BBOX_REG_WEIGHTS": tuple(1 / std for std in ours.TARGET_STD),
            "SMOOTH_L1_BETA": 1.0,
        },
    }
    config.MODEL.merge_from_other_cfg(node(model))
    return config


def proposing(candidates: int) -> dict[str, Any]:
    """The configuration of the region proposal network: see proposal_network."""
    return {
        "IN_FEATURES": [MAP],
        "IOU_THRESHOLDS": [ours.GROUND, ours.OBJECT],
        "BATCH_SIZE_PER_IMAGE": ours.ANCHORS,
        "POSITIVE_FRACTION": ours.HALF,
        "SMOOTH_L1_BETA": 1 / 9,  # torchvision's, and py-faster-rcnn's
        "PRE_NMS_TOPK_TRAIN": candidates,
        "PRE_NMS_TOPK_TEST": candidates // 2,
        "POST_NMS_TOPK_TRAIN": ours.KEPT["training"],
        "POST_NMS_TOPK_TEST": ours.KEPT["testing"],
        "NMS_THRESH": ours.PROPOSED,
    }


def load(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give detectron2's model the checkpoint's tensors. UserError unless all of them, and no others, have a place."""
    trunk, head = (model.get_submodule(name).state_dict() for name in ("backbone.net", "roi_heads.box_head"))
    places = trunk | {name: tensor for name, tensor in head.items() if not name.startswith("new.")}
    faults = mismatches({name: tensor.shape for name, tensor in places.items()}, tensors)
    if faults:
        raise UserError(
            f"the checkpoint does not fit detectron2's model: {'; '.join(faults)}", fix="--engine torchvision"
        )
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(tensors[name])


def movement(grid: Grid, kind: str) -> Tensor:
    """What is added to boxes (n, 4) so that detectron2's pooling finds them where Pooling does."""
    if kind == "max":  # from the first pixel's centre to the last one's
        return torch.tensor([0.5, 0.5, -0.5, -0.5]) - grid.first
    return torch.full((4,), grid.stride / 2 - grid.first)


def move(boxes: Any, by: Tensor) -> Any:
    """detectron2's boxes elsewhere."""
    return Boxes(boxes.tensor + by.to(boxes.tensor.device))


def check_numbers(layer: nn.Module, inputs: Any, output: Tensor) -> None:
    """RunFailed if what a layer gives is no number."""
    if not torch.isfinite(output).all():
        refuse()
