"""AlexNet, VGG-16 and the small networks against the protocols' pins: keys, counts, and what each layer is."""

from __future__ import annotations

import pytest
import torch
from networks import built, count, images
from torch import Tensor, nn

from results.errors import UserError
from zoo.backbones import empty, find

PLAIN = ["alexnet", "alexnet32", "vgg16", "small_vgg"]
CONVOLUTIONS = {
    "alexnet": (0, 4, 8, 11, 14),
    "alexnet32": (0, 4, 8, 11, 14),
    "vgg16": (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40),
    "small_vgg": (0, 4, 8, 12),
}
LINEAR = {"alexnet": (1, 4), "alexnet32": (1, 4), "vgg16": (0, 3), "small_vgg": ()}
BIASED = {"alexnet": True, "alexnet32": True, "vgg16": True, "small_vgg": False}


def multiply_adds(model: nn.Module) -> int:
    """Of one image through the whole backbone, counted from what each layer is given."""
    total = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += output[0].numel() * module.weight[0].numel()  # a dot product of that length for each output

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(add)
    model(images(model, 1, "meta"), ["embedding"])
    return total


@pytest.mark.parametrize("sobel", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_state_dict_has_the_released_keys(name: str, sobel: bool) -> None:
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = set()
    for index in CONVOLUTIONS[name]:
        keys |= {f"features.{index}.{kind}" for kind in (("weight", "bias") if BIASED[name] else ("weight",))}
        keys |= {f"features.{index + 1}.{kind}" for kind in statistics}
    keys |= {f"classifier.{index}.{kind}" for index in LINEAR[name] for kind in ("weight", "bias")}
    keys |= {f"sobel.{index}.{kind}" for index in (0, 1) for kind in ("weight", "bias")} if sobel else set()
    state = empty(name, sobel=sobel).state_dict()
    assert set(state) == keys
    assert state["features.0.weight"].shape[1] == (2 if sobel else find(name).channels)


def test_alexnet_has_the_released_numbers_of_parameters() -> None:
    model = empty("alexnet", sobel=True)
    assert count(model.features) == 3_738_336
    assert count(model.classifier) == 54_534_144
    assert [type(module) for module in model.classifier] == [nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]


def test_small_vgg_with_a_head_of_ten_has_the_released_size() -> None:
    model = empty("small_vgg", channels=1)
    assert count(model) + count(nn.Linear(model.embedding_dim, 10)) == 398_570
    assert multiply_adds(model) == pytest.approx(14.45e6, rel=1e-3)


def test_vgg16_is_configuration_d() -> None:
    model = empty("vgg16", sobel=True)
    assert count(model.features) == 14_723_136 - 64 * 9  # torchvision's vgg16_bn, with 2 channels in place of 3
    assert count(model.classifier) == 119_545_856
    assert [type(module) for module in model.classifier] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        theirs = torchvision.models.vgg16_bn().state_dict()
    ours = empty("vgg16").state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: theirs[key].shape for key in ours}
    assert {key for key in theirs if key.startswith("features")} == {key for key in ours if key.startswith("features")}


def test_the_embedding_of_vgg16_is_fc7_before_its_relu() -> None:
    model = built("vgg16")
    last = torch.rand(2, 512, 7, 7, generator=torch.Generator().manual_seed(0))
    fc6, fc7 = model.classifier[0], model.classifier[3]
    with torch.no_grad():
        by_hand = fc7(torch.relu(fc6(last.flatten(1))))
        assert torch.equal(model.descend(last), by_hand)
    assert (by_hand < 0).any()


def test_alexnet32_is_small() -> None:
    model = empty("alexnet32")
    assert count(model) <= 1_400_000
    assert multiply_adds(model) <= 20_000_000


@pytest.mark.parametrize("name", PLAIN)
def test_a_map_is_taken_after_its_relu_and_before_any_pooling(name: str) -> None:
    model = built(name)
    x = images(model)
    with torch.no_grad():
        maps = model(x, model.layers)
        for layer, index in zip(model.layers, CONVOLUTIONS[name]):
            by_hand = torch.relu(model.features[: index + 2](model.sobel(x)))  # up to the batch norm
            assert torch.equal(maps[layer], by_hand)
            assert (maps[layer] >= 0).all()
            assert (maps[layer] > 0).any()


@pytest.mark.parametrize("name", PLAIN)
def test_a_layer_ends_after_its_relu(name: str) -> None:
    model = empty(name)
    links = [layer for _, layer in model.links()]
    assert [links.index(layer) for layer in model.layers] == [index + 2 for index in CONVOLUTIONS[name]]


def test_the_embedding_is_fc7_before_its_relu() -> None:
    model = built("alexnet32")
    x = images(model)
    fc6, fc7 = model.classifier[1], model.classifier[4]
    with torch.no_grad():
        by_hand = fc7(
            torch.relu(fc6(model.features(model.sobel(x)).flatten(1)))
        )  # dropout is the identity in eval mode
        assert torch.equal(model.embed(x), by_hand)
    assert (by_hand < 0).any()


def test_the_embedding_of_small_vgg_is_its_last_map_pooled() -> None:
    model = built("small_vgg")
    x = images(model)
    with torch.no_grad():
        last = model(x, ["conv4"])["conv4"]
        assert torch.equal(model.embed(x), torch.max_pool2d(last, 2).flatten(1))
    assert (model.embed(x) >= 0).all()


@pytest.mark.parametrize("side", [28, 32, 48, 64])
def test_alexnet32_takes_images_of_28_to_64_px(side: int) -> None:
    model = empty("alexnet32")
    assert model.embed(torch.empty(2, 3, side, side, device="meta")).shape == (2, 512)


@pytest.mark.parametrize("side", [31, 33, 64])
def test_small_vgg_takes_nothing_but_32_px(side: int) -> None:
    for layer in ("conv1", "embedding"):
        with pytest.raises(UserError, match=f"images of 32 px, got {side} × {side}"):
            empty("small_vgg")(torch.empty(1, 1, side, side, device="meta"), [layer])


@pytest.mark.parametrize(("name", "shape"), [("alexnet", (7, 9)), ("vgg16", (8, 10))])
def test_a_fully_connected_part_has_maps_of_other_sizes_but_no_embedding(name: str, shape: tuple[int, int]) -> None:
    model = empty(name)
    x = torch.empty(1, 3, 128, 160, device="meta")
    assert model(x, model.layers[-1:])[model.layers[-1]].shape[2:] == shape
    with pytest.raises(UserError, match="no embedding"):
        model.embed(x)
