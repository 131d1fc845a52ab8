"""Every backbone × layer × Sobel is probed: whatever there is passes through maps, poolings, probes and back.

The images are as small as the backbone takes them. torchvision's and timm's networks stand here by a few of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from toys import Toy

from probes import features
from probes.clustering import Clustering
from probes.knn import KNN
from probes.linear import Linear
from probes.protocols import PROTOCOLS
from probes.sources import GENERIC, Online, generic_pool
from zoo.backbones import BACKBONES, allocate, empty, standard_preprocessing
from zoo.checkpoint import Checkpoint
from zoo.evaluation import Evaluation
from zoo.run import Task

TOY = Toy(12, 6)
SIDES = {  # pixels; of libraries' networks, more than the least
    **{name: kind.sides[0] for name, kind in BACKBONES.items()},
    "torchvision:densenet121": 64,
    "torchvision:mobilenet_v3_small": 64,
    "torchvision:squeezenet1_1": 64,
    "timm:resnet10t": 64,
    "timm:convnext_atto": 64,
    "timm:vit_tiny_patch16_224": 224,
}
FULLY_CONNECTED = ("alexnet", "vgg16")  # their embedding wants 224 px, and takes seconds to draw


@pytest.fixture(params=[(name, sobel) for name in SIDES for sobel in (False, True)], ids=str)
def held(request: pytest.FixtureRequest, tmp_path: Path) -> Evaluation:
    """An evaluation of a backbone with its initial weights."""
    name, sobel = request.param
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    backbone = allocate(name, sobel=sobel)
    if name in FULLY_CONNECTED:
        backbone.classifier = nn.Sequential()
    backbone.draw(0)
    side = SIDES[name]
    preprocessing = replace(standard_preprocessing(name, backbone.channels), size=side, resize=side)
    checkpoint = Checkpoint(
        name=f"random-{name}@0",
        method="random",
        backbone=backbone.arguments,
        preprocessing=preprocessing,
        dataset=None,
        epoch=0,
        settings={},
        seed=0,
        source="",
        groups={"backbone": backbone.state_dict()},
    )
    frozen = backbone.eval().to(memory_format=torch.channels_last)
    return Evaluation(checkpoint, name, TOY, frozen, torch.device("cpu"), workers=0, quiet=True, cache=tmp_path)


def choices(held: Evaluation) -> Iterator[str]:
    """What `--layer` is to be, so that all layers are probed, and the embedding."""
    yield "all"
    if held.backbone.name not in FULLY_CONNECTED:
        yield "embedding"


def run(task: Task, held: Evaluation) -> dict[str, dict[str, float]]:
    """The metrics of each layer."""
    found = {}
    for choice in choices(held):
        parts = replace(task, layer=choice).parts(held.checkpoint, held.dataset)
        found |= {outcome.part.layer: outcome.metrics for outcome in parts[0].run(parts, held)}
    return found


def test_every_backbone_is_here() -> None:
    assert set(BACKBONES) <= set(SIDES)


def test_every_layer_is_probed(held: Evaluation) -> None:
    before = held.fingerprint()
    expected = [layer for choice in choices(held) for layer in held.checkpoint.layers(choice)]
    assert expected
    for task in (Linear(protocol="small", epochs=1), KNN(k=(1, 3)), Clustering(iterations=2)):
        found = run(task, held)
        assert list(found) == expected
        assert all(np.isfinite(list(metrics.values())).all() for metrics in found.values())
    for layer, rows in features.load(held, "train", expected).items():
        assert 1 < rows.shape[1] <= max(features.SMALL, held.backbone.embedding_dim)
        assert rows.std(0).max() > 1e-6, f"{layer} does not tell images apart"
    dims = Online(held, expected, PROTOCOLS["generic"]).dims
    assert list(dims) == expected
    assert all(1 < dim < GENERIC for dim in dims.values())
    assert held.fingerprint() == before


@pytest.mark.parametrize("name", [name for name in SIDES if not name.startswith("timm:")])
def test_generic_features_are_of_maps_at_full_size(name: str, tmp_path: Path) -> None:
    """Shapes alone, at the size that photographs have: as many features as fit below 10 000."""
    usual = standard_preprocessing(name)
    meta = torch.device("meta")
    backbone = empty(name).eval()
    checkpoint = Checkpoint(
        name="", method="", backbone=backbone.arguments, preprocessing=usual, dataset=None,
        epoch=0, settings={}, seed=0, source="", groups={},
    )  # fmt: skip
    shapes = Evaluation(checkpoint, "", TOY, backbone, meta, cache=tmp_path)
    layers = [*backbone.layers, "embedding"]
    dims = Online(shapes, layers, PROTOCOLS["generic"]).dims
    assert dims.pop("embedding") == backbone.embedding_dim
    assert all(512 <= dim < GENERIC for dim in dims.values())


def test_generic_features_of_vgg16_are_as_many_as_published() -> None:
    """deepcluster.md 2.1: kernels of 18, 14, 9, 6 and 3 by layer; the rule takes 13 for 14, to the same sizes."""
    published = [9216] * 2 + [8192] * 2 + [9216] * 3 + [8192] * 3 + [8192] * 3
    x = torch.empty(1, 3, 224, 224, device="meta")
    model = empty("vgg16")
    found = {layer: generic_pool(maps).shape[1] for layer, maps in model(x, model.layers).items()}
    assert list(found.values()) == published
