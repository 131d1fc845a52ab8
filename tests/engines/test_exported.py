"""Exported checkpoints in the libraries themselves: they load them, and compute the same maps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import lively, noise
from torch import Tensor

from transfer.engines import load_detectron2, load_mmseg
from zoo.checkpoint import resolve
from zoo.export import export

LAYERS = ("res2", "res3", "res4", "res5")


@pytest.fixture
def written(tmp_path: Path):
    """Exports a ResNet-50 for a library; the file."""

    def write(library: str) -> Path:
        checkpoint = replace(resolve("random-resnet50@0"), groups={"backbone": lively("resnet50").state_dict()})
        export(checkpoint, library, tmp_path / "exported.pth")
        return tmp_path / "exported.pth"

    return write


def check(maps: dict[str, Tensor]) -> None:
    with torch.no_grad():
        ours = lively("resnet50")(noise(96), LAYERS)
    for layer in LAYERS:
        torch.testing.assert_close(maps[layer], ours[layer], rtol=1e-4, atol=1e-5)


def test_detectron2_computes_the_same(written) -> None:
    load_detectron2()
    from detectron2 import model_zoo
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    config = model_zoo.get_config("PascalVOC-Detection/faster_rcnn_R_50_FPN.yaml")
    config.MODEL.DEVICE = "cpu"
    config.MODEL.RESNETS.STRIDE_IN_1X1 = False
    model = build_model(config).eval()
    DetectionCheckpointer(model).load(str(written("detectron2")))
    with torch.no_grad():
        check(model.backbone.bottom_up(noise(96)))


def test_mmsegmentation_computes_the_same(written) -> None:
    load_mmseg()
    from mmseg.registry import MODELS

    weights = dict(type="Pretrained", checkpoint=str(written("mmseg")), prefix="backbone.")
    net = MODELS.build(dict(type="ResNet", depth=50, style="pytorch", init_cfg=weights))
    net.init_weights()
    net.eval()  # gives nothing back
    with torch.no_grad():
        check(dict(zip(LAYERS, net(noise(96)), strict=True)))
