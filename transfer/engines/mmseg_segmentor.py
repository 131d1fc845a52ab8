"""The network of transfer/fcn.py as mmsegmentation's own model, for `--engine mmseg`.

The trunk is a backbone of mmsegmentation's registry; `EncoderDecoder` with `FCNHead` compute the loss and the scores.
Layers, initial values and what the loss is the mean of are those of our network. What stays different:

* cells are spread evenly over the image by its `resize` (bilinear, align_corners=False), in evaluation twice: over the
  image as the network sees it, and from there over its own pixels. Where a network has a cell more than fit into the
  image (`alexnet32` 9 for 64 pixels, where 8 fit), the outermost lie half a cell from where they are.
* images are filled up to whole cells at the right and below, by its `SegDataPreProcessor`. It normalises nothing: the
  checkpoint's preprocessing has done that.
* where there is a convolution before the scores, dropout takes whole channels; and the head is float32 always.
* on a GPU the gradient of `resize` is not the same bits each time, so a run that is continued there does not end with
  the same bits; on a CPU it does.

To import this is to import mmsegmentation: UserError without it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from copy import deepcopy
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from results.errors import UserError
from transfer.engines.loading import load_mmseg
from transfer.fcn import DROPPED, PixelNetwork, convolutional, describe, draw, in_whole_cells, outline
from zoo import device as devices
from zoo import processes
from zoo.backbones import Backbone, allocate
from zoo.backbones.plain import Plain
from zoo.tensors import mismatches
from zoo.voc.masks import BORDER

engine: Any = load_mmseg()
mmengine: Any = import_module("mmengine")
MODELS, SegDataSample = engine.registry.MODELS, engine.structures.SegDataSample


@MODELS.register_module(name="ZooTrunk")
class Trunk(nn.Module):
    """A backbone of the zoo as mmsegmentation has them: of normalised images it gives a tuple of maps, here of one."""

    def __init__(self, name: str, channels: int, sobel: bool, precision: str = "fp32") -> None:
        super().__init__()
        self.net = convolutional(allocate(name, channels, sobel))
        self.precision = precision

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """What there is in each cell, float32 (N, channels, k, l)."""
        with devices.autocast(x.device, self.precision):
            return (describe(self.net, x).float(),)


class MmsegFcn(PixelNetwork):
    """mmsegmentation's model with the checkpoint's trunk. UserError unless that holds the checkpoint's every tensor."""

    def __init__(self, backbone: Backbone, classes: int, seed: int, precision: str = "fp32") -> None:
        super().__init__()
        channels, self.stride = outline(backbone)
        self.model = build(backbone, channels, classes, precision)
        load(self.model.backbone.net, backbone)
        head = self.model.decode_head
        draw([*(module.conv for module in head.convs.children()), head.conv_seg], seed)

    def ends(self) -> tuple[Backbone, nn.Module]:
        """See PixelNetwork.ends."""
        return self.model.backbone.net, self.model.decode_head

    def scores(self, seen: Tensor, size: Sequence[int]) -> Tensor:
        """See PixelNetwork.scores."""
        found = self.model.predict(*self.lay(seen, size))
        return torch.stack([one.seg_logits.data for one in found])

    def loss(self, seen: Tensor, masks: Tensor) -> Tensor:
        """See PixelNetwork.loss."""
        laid, samples = self.lay(seen, masks.shape[-2:])
        for sample, mask in zip(samples, extend(masks, seen.shape, laid.shape)):
            sample.gt_sem_seg = mmengine.structures.PixelData(data=mask[None].long())
        mean, _ = self.model.parse_losses(self.model.loss(laid, samples))
        own = (masks != BORDER).sum()
        return mean * (processes.count() * own / processes.summed(own).clamp(min=1))

    def lay(self, seen: Tensor, size: Sequence[int]) -> tuple[Tensor, list[Any]]:
        """The images filled up to whole cells, and what mmsegmentation wants to know of each; `size` is their own."""
        sizes = {"ori_shape": tuple(size), "img_shape": tuple(seen.shape[-2:])}
        samples = [SegDataSample(metainfo=sizes) for _ in seen]
        filling = self.model.data_preprocessor.to(seen.device)  # else it takes images back to the CPU
        filling.test_cfg = {"size": in_whole_cells(seen.shape[-2:], self.stride, self.ends()[0].sides[0])}
        laid = filling({"inputs": list(seen), "data_samples": samples})
        return laid["inputs"].contiguous(memory_format=torch.channels_last), laid["data_samples"]


def build(backbone: Backbone, channels: int, classes: int, precision: str) -> Any:
    """mmsegmentation's model, whose trunk has no values yet. channels: of its maps."""
    filling = {"type": "mmseg.SegDataPreProcessor"}
    trunk = {"type": "ZooTrunk", **backbone.arguments, "precision": precision}
    head = describe_head(channels, classes, isinstance(backbone, Plain))
    parts = {"data_preprocessor": filling, "backbone": trunk, "decode_head": head}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that mmsegmentation itself calls deprecated, and calls
        return MODELS.build(mmengine.ConfigDict(type="EncoderDecoder", test_cfg={"mode": "whole"}, **parts))


def describe_head(channels: int, classes: int, plain: bool) -> dict[str, Any]:
    """The configuration of the head. plain: a layer of scores alone."""
    inner = channels if plain else channels // 4
    norm = None if plain else {"type": "GN", "num_groups": math.gcd(32, inner)}
    return {
        "type": "FCNHead",
        "in_channels": channels,
        "channels": inner,
        "num_convs": 0 if plain else 1,
        "kernel_size": 1 if plain else 3,
        "concat_input": False,
        "dropout_ratio": 0 if plain else DROPPED,
        "norm_cfg": norm,
        "num_classes": classes,
        "out_channels": classes,
        "ignore_index": BORDER,
        "align_corners": False,
        "loss_decode": {"type": "CrossEntropyLoss", "avg_non_ignore": True},
    }


def load(trunk: Backbone, backbone: Backbone) -> None:
    """Give the trunk the backbone's tensors. UserError unless all fit, by name and shape."""
    tensors = convolutional(deepcopy(backbone)).state_dict()
    faults = mismatches({name: value.shape for name, value in trunk.state_dict().items()}, tensors)
    if faults:
        happened = f"{backbone.name} does not fit its trunk in mmsegmentation's model: {'; '.join(faults)}"
        raise UserError(happened, fix="--engine torchvision")
    trunk.load_state_dict(tensors)


def extend(masks: Tensor, seen: Sequence[int], laid: Sequence[int]) -> Tensor:
    """The masks (N, H, W) for images that were filled up from the shape `seen` to `laid`: nothing counts there."""
    bottom, right = (
        round(side * full / part) - side for side, part, full in zip(masks.shape[-2:], seen[-2:], laid[-2:])
    )
    return F.pad(masks, (0, right, 0, bottom), value=BORDER)
