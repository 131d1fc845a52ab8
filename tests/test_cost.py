"""What a run takes, counted by hand."""

import pytest
import torch

from pretrain.deepcluster import DeepCluster
from pretrain.mmdc import MMDC
from pretrain.supervised import Supervised
from zoo.backbones import BACKBONES, find
from zoo.cost import Cost, multiply_adds, size, span
from zoo.datasets import find as find_dataset
from zoo.datasets.digits import Digits

DIGITS = Digits()


def test_multiply_adds_of_the_papers_networks():
    assert multiply_adds("small_vgg", 1, False, 32) == pytest.approx(14.45e6, rel=1e-3)  # mmdc.md 1.8
    convolutions = 96 * 3 * 121 * 55**2 + 256 * 96 * 25 * 27**2 + (384 * 256 + 384 * 384 + 256 * 384) * 9 * 13**2
    assert multiply_adds("alexnet", 3, False, 224) == convolutions + 9216 * 4096 + 4096 * 4096
    assert multiply_adds("alexnet", 3, True, 224) == (
        convolutions - 96 * 121 * 55**2 + 224**2 * (3 + 2 * 9) + 9216 * 4096 + 4096 * 4096
    )


@pytest.mark.parametrize("name", BACKBONES)
def test_nothing_is_computed_or_drawn(name):
    before = torch.get_rng_state()
    assert multiply_adds(name, find(name).channels, False, find(name).size) > 1e6
    assert torch.equal(torch.get_rng_state(), before)


def test_deepcluster_on_imagenet_costs_what_the_protocol_says():
    """The cost model of deepcluster.md: multiply-adds are half of its operations."""
    method, count = DeepCluster(backbone="alexnet", sobel=True, k=10000, epochs=500), 1281167
    cost = method.cost(find_dataset("imagenet"), count)
    assert cost.scratch == pytest.approx(21.0e9 + 1.31e9, rel=1e-3)  # descriptors, whitened points
    assert cost.memory == 80 * count
    assert cost.phases["whitening"] == pytest.approx((43 + 2.7) / 2 * 1e12, rel=1e-2)
    assert cost.phases["clustering"] == pytest.approx(138e12 / 2, rel=1e-2)
    image = method.multiply_adds(find_dataset("imagenet"))
    assert cost.phases["features"] == pytest.approx(count * image * 501 / 500)  # once more, after the last epoch
    assert cost.phases["training"] == 3 * count * (image + 4096 * 10000)
    assert cost.total == 500 * sum(cost.phases.values())


def test_mmdc_costs_its_forward_units():
    """mmdc.md 2.2: 5 units an image and epoch, 17 with rotation."""
    image = multiply_adds("small_vgg", 1, False, 32)
    assert sum(MMDC().cost(DIGITS, 100).phases.values()) == 5 * 100 * image
    assert sum(MMDC(rotation=True).cost(DIGITS, 100).phases.values()) == 17 * 100 * image
    assert MMDC().cost(DIGITS, 100).memory == 100 * 2 * 32**2
    assert Supervised(backbone="small_vgg").cost(DIGITS, 100).total == 30 * 3 * 100 * image
    assert Supervised().cost(DIGITS, 100).memory == 100 * 32**2
    assert Supervised().cost(find_dataset("imagenet"), 100).memory == 0  # read from files as they pass


def test_attention_is_counted():
    weights = pytest.importorskip("torchvision.models").ViT_B_16_Weights.DEFAULT
    assert multiply_adds("torchvision:vit_b_16", 3, False, 224) == pytest.approx(weights.meta["_ops"] * 1e9, rel=1e-3)


def test_a_larger_input_costs_more():
    assert MMDC(backbone="alexnet32", size=64).multiply_adds(DIGITS) > 3 * MMDC(backbone="alexnet32").multiply_adds(
        DIGITS
    )


def test_a_cost_is_shown_in_natural_units():
    said = str(Cost(3, {"features": 1e15, "training": 2e15}, scratch=21_000_000_000, memory=1500))
    assert [line.split() for line in said.splitlines()[2:5]] == [
        ["features", "1.00e+15", "16.7", "min"],
        ["training", "2.00e+15", "33.3", "min"],
        ["3", "epochs", "9.00e+15", "2.5", "h"],
    ]
    assert said.endswith("disk 21.0 GB while it runs, memory 2 kB besides model and batch")
    assert [span(value) for value in (1, 119, 120, 7200, 172800)] == [
        "1.0 s",
        "119.0 s",
        "2.0 min",
        "2.0 h",
        "2.0 days",
    ]
    assert [size(value) for value in (0, 2e6, 3.25e9)] == ["0 kB", "2.0 MB", "3.2 GB"]
