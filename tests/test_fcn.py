"""Fully convolutional networks: the checkpoint's tensors in them, what they compute, where cells lie; the loss."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import noise, unsettle
from torch import nn

from results.errors import UserError
from transfer.fcn import Fcn, convolutional, describe, fill_up, in_whole_cells, outline, pixel_loss, shares, spread
from transfer.finetuning import train
from zoo import processes
from zoo.backbones import BACKBONES, allocate, build, empty
from zoo.backbones.plain import Plain
from zoo.backbones.sobel import constants
from zoo.voc.masks import BORDER

STRIDES = {"alexnet": 32, "alexnet32": 8, "vgg16": 32, "small_vgg": 16, "resnet18": 4, "resnet34": 4, "resnet50": 8}
LINEAR = ("alexnet", "alexnet32", "vgg16")


@torch.no_grad()
def lively(name, sobel=False):
    """A backbone in eval mode whose batch norms are not the identity; torch draws, faster than `build` does."""
    backbone = allocate(name, sobel=sobel).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in backbone.parameters():
        inputs = parameter[0].numel() if parameter.ndim > 1 else 100
        parameter.normal_(0, (2 / inputs) ** 0.5, generator=generator)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    if sobel:
        backbone.sobel.load_state_dict(constants(backbone.channels))
    return unsettle(backbone, "running_mean", "running_var", "weight", "bias")


def fcn(backbone, classes=3, seed=0):
    return Fcn(backbone, classes, seed).eval()


def close(found, wanted):
    """Whether they agree to 1e-5 of the largest value."""
    return (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("name", BACKBONES)
def test_every_tensor_of_the_checkpoint_is_in_the_network(name):
    backbone = lively(name, sobel=True)
    held = fcn(backbone).backbone.state_dict()
    assert held.keys() == backbone.state_dict().keys()
    for key, value in backbone.state_dict().items():
        assert torch.equal(held[key].reshape(value.shape), value), key


@pytest.mark.parametrize(("name", "stride"), STRIDES.items())
def test_how_far_cells_are_apart(name, stride):
    width = {"small_vgg": 256, "alexnet32": 512, "resnet18": 512, "resnet34": 512, "resnet50": 2048}.get(name, 4096)
    assert outline(empty(name)) == (width, stride)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "sobel"), [("alexnet32", False), ("alexnet32", True), ("alexnet", True), ("vgg16", False)]
)
def test_fc7_in_the_middle_of_an_image_of_the_own_size_is_that_of_the_backbone(name, sobel):
    backbone = lively(name, sobel=sobel)
    x = noise(backbone.size, n=1)
    cells = describe(fcn(backbone).backbone, x)
    middle = {"alexnet": 3, "alexnet32": 2, "vgg16": 3}[name]  # of so many cells on each side
    assert cells.shape[-1] == {"alexnet": 7, "alexnet32": 5, "vgg16": 7}[name]
    assert close(cells[:, :, middle, middle], torch.relu(backbone.embed(x)))


@torch.no_grad()
def test_every_window_of_a_larger_image_is_seen_as_the_linear_layers_see_it():
    backbone = lively("alexnet32")
    network = fcn(backbone).backbone
    x = noise(64, n=2)
    cells, last = describe(network, x), network.features(network.prepare(x))
    assert last.shape[-2:] == (8, 8)
    for row in range(5):  # of windows that no padding touches
        for column in range(5):
            seen = last[:, :, row : row + 4, column : column + 4].flatten(1)
            wanted = torch.relu(backbone.classifier(seen))
            assert close(cells[:, :, row + 2, column + 2], wanted)


@torch.no_grad()
@pytest.mark.parametrize("sobel", [False, True])
@pytest.mark.parametrize("name", ["alexnet32", "small_vgg"])
def test_the_convolutions_give_what_those_of_the_backbone_give(name, sobel):
    backbone = lively(name, sobel=sobel)
    x, deepest = noise(32, backbone.channels), backbone.layers[-1]
    network = fcn(backbone).backbone
    assert close(network(x, (deepest,))[deepest], backbone(x, (deepest,))[deepest])


@torch.no_grad()
@pytest.mark.parametrize("side", [64, 75])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_dilated_resnet_is_the_network_as_it_was_at_every_fourth_cell(name, side):
    backbone = lively(name, sobel=True)
    x = noise(side)
    cells = describe(fcn(backbone).backbone, x)
    wanted = backbone(x, ("res5",))["res5"]
    assert cells.shape[-1] == backbone(x, ("res3",))["res3"].shape[-1]
    assert close(cells[..., ::4, ::4], wanted)


@torch.no_grad()
def test_the_dilated_resnet50_is_torchvisions():
    from torchvision.models import resnet50

    backbone = lively("resnet50")
    theirs = resnet50(replace_stride_with_dilation=[False, True, True]).eval()
    theirs.load_state_dict(backbone.state_dict() | {key: theirs.state_dict()[key] for key in ("fc.weight", "fc.bias")})
    x = noise(72)
    wanted = nn.Sequential(*list(theirs.children())[:-2])(x)
    assert close(describe(fcn(backbone).backbone, x), wanted)


@torch.no_grad()
def test_networks_of_libraries_are_scored_at_their_deepest_map():
    backbone = build("torchvision:mobilenet_v3_small").eval()
    network = fcn(backbone)
    x = noise(96)
    assert network.stride == 32
    assert network(x).shape == (2, 3, 3, 3)
    deepest = backbone.layers[-1]
    assert torch.equal(describe(network.backbone, x), backbone(x, (deepest,))[deepest])


def test_a_network_without_maps_is_refused():
    with pytest.raises(UserError, match="has no maps to score pixels from"):
        Fcn(build("torchvision:vit_b_32"), 3, 0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["alexnet32", "small_vgg", "resnet18"])
def test_the_scores_start_at_zero_and_the_seed_decides_the_rest(name):
    backbone = lively(name)
    before = torch.get_rng_state()
    network, again, other = (fcn(backbone, seed=seed) for seed in (0, 0, 1))
    torch.set_rng_state(before)
    assert network.head[-1].out_channels == 3
    assert not network(noise(32, backbone.channels)).any()
    tensors = [one.state_dict() for one in (network, again, other)]
    assert all(torch.equal(value, tensors[1][key]) for key, value in tensors[0].items())
    changed = {key for key, value in tensors[0].items() if not torch.equal(value, tensors[2][key])}
    assert changed == (set() if isinstance(backbone, Plain) else {"head.0.weight"})


def test_dropout_is_as_in_the_backbone():
    kinds = {name: [type(layer).__name__ for layer in convolutional(empty(name)).classifier] for name in LINEAR}
    assert kinds["alexnet"] == ["Dropout", "Conv2d", "ReLU", "Dropout", "Conv2d"] == kinds["alexnet32"]
    assert kinds["vgg16"] == ["Conv2d", "ReLU", "Dropout", "Conv2d"]


@pytest.mark.parametrize("trained", ["fc6-8", "all"])
@pytest.mark.parametrize("name", ["alexnet32", "resnet18", "small_vgg"])
def test_what_learns(name, trained):
    network = Fcn(build(name, sobel=True), 3, 0)
    network.choose(trained)
    learns = {key for key, value in network.named_parameters() if value.requires_grad}
    above = ("head.", "backbone.classifier.")
    wanted = {key for key, _ in network.named_parameters() if trained == "all" or key.startswith(above)}
    assert learns == {key for key in wanted if "sobel" not in key} != set()


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(1, 1), (20, 70), (62, 31)])
@pytest.mark.parametrize(("name", "least"), [("alexnet", 64), ("resnet50", 32), ("small_vgg", 32)])
def test_an_image_too_small_for_the_network_is_filled_up(name, least, height, width):
    network = fcn(lively(name))
    network.head[-1].weight.normal_()
    small = noise(96, network.backbone.channels, n=1)[:, :, :height, :width]
    whole = [max(least, network.stride * -(-side // network.stride)) for side in (height, width)]
    assert torch.equal(network(small), network(fill_up(small, whole)))
    assert network.scores(small, (2 * height, 2 * width)).shape == (1, 3, 2 * height, 2 * width)


def test_images_are_filled_up_to_whole_cells_evenly():
    x = torch.ones(1, 2, 30, 64)
    filled = fill_up(x, in_whole_cells((30, 64), 32, 1))
    assert filled.shape == (1, 2, 32, 64)
    assert torch.equal(filled[:, :, 1:31], x)
    assert not filled[:, :, [0, 31]].any()
    assert fill_up(filled, (32, 64)) is filled


@torch.no_grad()
@pytest.mark.parametrize("name", ["alexnet", "alexnet32", "small_vgg", "vgg16"])
def test_cells_lie_centred_on_the_image(name):
    """A mirrored image has mirrored cells where convolutions are symmetric: so it is with equal weights."""
    network = convolutional(allocate(name).eval())
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        if isinstance(module, nn.Conv2d):
            module.weight.fill_(1 / module.weight[0].numel())
            module.bias = None
    side = 2 * network.size if name == "alexnet32" else 256
    x = noise(side - side % 32 - (1 if name == "alexnet" else 0), network.channels, n=1).abs()
    found = describe(network, x)
    assert close(describe(network, x.flip(-1)).flip(-1), found)
    assert close(describe(network, x.flip(-2)).flip(-2), found)


@pytest.mark.parametrize(("cells", "step", "side"), [(5, 8, 40), (1, 16, 16), (7, 32, 224), (3, 4, 12)])
def test_upsampling_is_interpolation_where_cells_fill_the_image(cells, step, side):
    scores = torch.randn(2, 3, cells, cells, generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(scores, scale_factor=step, mode="bilinear", align_corners=False)
    torch.testing.assert_close(spread(scores, (side, side), (step, step)), wanted, rtol=1e-5, atol=1e-5)


def test_upsampling_by_hand():
    """Two cells, four pixels apart, over 5 and 9 pixels: the first is pixel 0 of 5, and pixel 2 of 9."""
    like = torch.zeros(1)
    assert shares(2, 5, 4, like)[:, 1].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert shares(2, 9, 4, like)[:, 1].tolist() == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert (shares(4, 33, 7.3, like).sum(1) == 1).all()


def test_upsampling_of_height_and_width():
    scores = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    found = spread(scores, (3, 5), (2, 4))
    assert found[0, 0].tolist() == [[0, 0.25, 0.5, 0.75, 1], [1, 1.25, 1.5, 1.75, 2], [2, 2.25, 2.5, 2.75, 3]]


def test_batch_norm_keeps_its_statistics_while_dropout_is_on():
    network = Fcn(build("alexnet32"), 3, 0)
    train(network)
    modes = {type(module): module.training for module in network.modules()}
    assert modes[torch.nn.Dropout]
    assert not modes[torch.nn.BatchNorm2d]


def test_the_loss_by_hand():
    scores = torch.tensor([[[[1.0, 0.5], [2.0, 0.0]], [[0.0, -1.0], [1.0, 3.0]]]])  # two classes, 2 x 2 pixels
    masks = torch.tensor([[[0, 1], [BORDER, 1]]], dtype=torch.uint8)
    each = [np.log(1 + np.exp(other - own)) for own, other in ((1, 0), (-1, 0.5), (3, 0))]
    assert pixel_loss(scores, masks).item() == pytest.approx(sum(each) / 3)


def test_the_loss_of_a_batch_in_which_no_pixel_counts_is_zero():
    scores = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = pixel_loss(scores, torch.full((2, 4, 4), BORDER, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0
    assert not scores.grad.any()


def test_the_loss_of_processes_is_that_of_all_their_pixels():
    draws = torch.Generator().manual_seed(0)
    scores, masks = torch.randn(4, 3, 5, 5, generator=draws), torch.randint(0, 3, (4, 5, 5), generator=draws)
    masks[0, :4] = BORDER  # the first process has fewer pixels that count
    counted = (masks != BORDER).sum()
    whole = pixel_loss(scores, masks)
    with patch.object(processes, "count", lambda: 2), patch.object(processes, "summed", lambda values: counted):
        halves = [pixel_loss(scores[part], masks[part]) for part in (slice(0, 2), slice(2, 4))]
    assert (sum(halves) / 2).item() == pytest.approx(whole.item(), rel=1e-6)
