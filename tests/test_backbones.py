"""The backbones against the protocols' pins: shapes, keys, counts, initial values, and what forward computes."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from results.errors import UserError
from zoo.backbones import BACKBONES, build, channels_for, empty, find, standard_preprocessing
from zoo.backbones.sobel import constants, sobel_filter

SMALL = ["alexnet32", "small_vgg"]
# channels and side of each layer's map at the default size
MAPS = {
    "alexnet": [(96, 55), (256, 27), (384, 13), (384, 13), (256, 13)],
    "alexnet32": [(32, 32), (64, 16), (96, 8), (80, 8), (64, 8)],
    "small_vgg": [(32, 32), (64, 16), (128, 8), (256, 4)],
}
EMBEDDINGS = {"alexnet": 4096, "alexnet32": 512, "small_vgg": 1024}
CONVOLUTIONS = {"alexnet": (0, 4, 8, 11, 14), "alexnet32": (0, 4, 8, 11, 14), "small_vgg": (0, 4, 8, 12)}
LINEAR = {"alexnet": (1, 4), "alexnet32": (1, 4), "small_vgg": ()}
BIASED = {"alexnet": True, "alexnet32": True, "small_vgg": False}


@cache
def built(name: str):
    """A backbone with Sobel, in eval mode, whose running statistics are not the identity; made once."""
    model = build(name, sobel=True, seed=3)
    generator = torch.Generator().manual_seed(0)
    for module in model.features:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def images(model: nn.Module, n: int = 2, device: str = "cpu") -> Tensor:
    """n random images at the backbone's default size."""
    if device == "meta":
        return torch.empty(n, model.channels, model.size, model.size, device=device)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, model.channels, model.size, model.size, generator=generator)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


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


def test_every_backbone_is_pinned_here() -> None:
    assert set(BACKBONES) == set(MAPS) == set(CONVOLUTIONS)
    assert all(name == entry.name for name, entry in BACKBONES.items())


@pytest.mark.parametrize("sobel", [False, True])
@pytest.mark.parametrize("name", BACKBONES)
def test_maps_have_the_pinned_shapes(name: str, sobel: bool) -> None:
    model = empty(name, sobel=sobel)
    maps = model(images(model, 2, "meta"), [*model.layers, "embedding"])
    assert [tuple(maps[layer].shape) for layer in model.layers] == [(2, c, side, side) for c, side in MAPS[name]]
    assert maps["embedding"].shape == (2, EMBEDDINGS[name])
    assert model.embedding_dim == EMBEDDINGS[name]
    assert model.layers == tuple(f"conv{i + 1}" for i in range(len(MAPS[name])))


@pytest.mark.parametrize("sobel", [False, True])
@pytest.mark.parametrize("name", BACKBONES)
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


def test_alexnet32_is_small() -> None:
    model = empty("alexnet32")
    assert count(model) <= 1_400_000
    assert multiply_adds(model) <= 20_000_000


@pytest.mark.parametrize("name", BACKBONES)
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


@pytest.mark.parametrize("name", BACKBONES)
def test_a_map_does_not_depend_on_what_else_is_asked_for(name: str) -> None:
    model = built(name)
    x = images(model)
    names = [*model.layers, "embedding"]
    with torch.no_grad():
        together = model(x, names)
        for layer in names:
            alone = model(x, [layer])
            assert list(alone) == [layer]
            assert torch.equal(alone[layer], together[layer])
        assert torch.equal(model.embed(x), together["embedding"])
        assert list(model(x, names[::-1])) == names[::-1]
    assert model(x, []) == {}


@pytest.mark.parametrize("name", BACKBONES)
def test_nothing_deeper_than_the_deepest_layer_is_computed(name: str) -> None:
    model = empty(name)
    ran = []
    for part in (model.features, model.classifier):
        for module in part:
            module.register_forward_hook(lambda module, inputs, output: ran.append(module))
    for layer, index in zip(model.layers, CONVOLUTIONS[name]):
        ran.clear()
        model(images(model, 1, "meta"), [layer, model.layers[0]])
        assert ran == list(model.features[: index + 3])
    ran.clear()
    model(images(model, 1, "meta"), ["embedding"])
    assert ran == [*model.features, *model.classifier]


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


@pytest.mark.parametrize("name", SMALL)
def test_channels_last_gives_the_same_embedding(name: str) -> None:
    model = build(name, seed=3).eval()
    x = images(model)
    with torch.no_grad():
        expected = model.embed(x)
        model = model.to(memory_format=torch.channels_last)
        found = model.embed(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("side", [28, 32, 48, 64])
def test_alexnet32_takes_images_of_28_to_64_px(side: int) -> None:
    model = empty("alexnet32")
    assert model.embed(torch.empty(2, 3, side, side, device="meta")).shape == (2, 512)


@pytest.mark.parametrize("channels", [1, 3])
def test_sobel_is_the_derivative_of_the_channel_mean(channels: int) -> None:
    sobel = build("alexnet32", channels=channels, sobel=True).sobel
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, channels, 5, 6))
    padded = np.pad(x[0].mean(0), 1)
    kernels = np.array([[[1, 0, -1], [2, 0, -2], [1, 0, -1]], [[1, 2, 1], [0, 0, 0], [-1, -2, -1]]])
    by_hand = np.array(
        [[[(padded[i : i + 3, j : j + 3] * k).sum() for j in range(6)] for i in range(5)] for k in kernels]
    )
    found = sobel(torch.from_numpy(x).float())[0].detach().numpy()
    np.testing.assert_allclose(found, by_hand, atol=1e-5)


def test_sobel_is_frozen_and_the_rest_is_not() -> None:
    model = build("alexnet32", sobel=True)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, _ in model.named_parameters() if not name.startswith("sobel")}
    assert sobel_filter(3).state_dict().keys() == constants(3).keys()


@pytest.mark.parametrize("name", BACKBONES)
def test_initial_values_follow_the_protocol(name: str) -> None:
    model = build(name, seed=3) if name in SMALL else built(name)
    for module in (*model.features, *model.classifier):
        if isinstance(module, nn.Conv2d):
            fan = module.in_channels if name == "small_vgg" else module.out_channels
            std = (2 / (fan * module.kernel_size[0] ** 2)) ** 0.5
            check_normal(module, std)
        if isinstance(module, nn.Linear):
            check_normal(module, (2 / module.in_features) ** 0.5 if name == "alexnet32" else 0.01)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
            assert module.num_batches_tracked == 0
        if isinstance(module, nn.BatchNorm2d) and name in SMALL:  # `built` moves the others'
            assert (module.running_mean == 0).all()
            assert (module.running_var == 1).all()


def check_normal(module: nn.Conv2d | nn.Linear, std: float) -> None:
    values = module.weight.detach().double()
    n = values.numel()
    assert values.std().item() == pytest.approx(std, rel=5 / (2 * n) ** 0.5)  # five standard errors
    assert abs(values.mean().item()) < 5 * std / n**0.5
    assert values.abs().max() > 2 * std  # no uniform distribution
    assert module.bias is None or (module.bias == 0).all()


@pytest.mark.parametrize("name", SMALL)
def test_the_seed_alone_decides_the_weights(name: str) -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 (that it stays as it is, is the test)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = build(name, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    torch.manual_seed(2)
    second, other = build(name, seed=5).state_dict(), build(name, seed=6).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["features.0.weight"], other["features.0.weight"])


def test_weights_are_the_same_everywhere() -> None:
    """Pinned values: a record of a random checkpoint is found by them."""
    weight = build("small_vgg", seed=0).features[0].weight.detach()
    expected = np.random.default_rng(0).standard_normal((32, 1, 3, 3)) * (2 / 9) ** 0.5
    assert torch.equal(weight, torch.from_numpy(expected.astype(np.float32)))
    assert weight.flatten()[:3].tolist() == pytest.approx([0.0592698, -0.0622739, 0.3018981], abs=1e-6)


@pytest.mark.parametrize("sobel", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_arguments_build_the_same_backbone(name: str, sobel: bool) -> None:
    model = build(name, channels=1, sobel=sobel, seed=4)
    assert model.arguments == {"name": name, "channels": 1, "sobel": sobel}
    again = build(**model.arguments, seed=4)
    assert again.arguments == model.arguments
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))


def test_channels_are_the_backbones_own_or_the_data_sets() -> None:
    assert [channels_for(name, 1) for name in ("alexnet", "alexnet32", "small_vgg")] == [3, 3, 1]
    assert [channels_for(name, 3) for name in ("alexnet", "alexnet32", "small_vgg")] == [3, 3, 3]


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("name", BACKBONES)
def test_standard_preprocessing_fits_the_backbone(name: str, channels: int | None) -> None:
    standard = standard_preprocessing(name, channels)
    pixels = torch.full((2, 1, standard.size, standard.size), 128, dtype=torch.uint8)
    x = standard.normalise(pixels).to("meta")
    assert empty(name, channels)(x, ["conv1"])["conv1"].shape[0] == 2
    assert len(standard.mean) == len(standard.std) == standard.channels


def test_an_unknown_layer_is_an_error_that_lists_the_layers() -> None:
    with pytest.raises(UserError, match=r"no layer 'conf3' \(did you mean 'conv3'\?\)") as caught:
        empty("alexnet32")(torch.empty(1, 3, 32, 32, device="meta"), ["conv1", "conf3"])
    assert caught.value.fix == "conv1, conv2, conv3, conv4, conv5, embedding"


@pytest.mark.parametrize("function", [build, empty, find, standard_preprocessing, lambda name: channels_for(name, 3)])
def test_an_unknown_backbone_is_an_error_that_names_a_near_one(function) -> None:
    with pytest.raises(UserError, match=r"alexnet23 is not among the backbones \(did you mean 'alexnet32'\?\)"):
        function("alexnet23")


@pytest.mark.parametrize("side", [31, 33, 64])
def test_small_vgg_takes_nothing_but_32_px(side: int) -> None:
    for layer in ("conv1", "embedding"):
        with pytest.raises(UserError, match=f"images of 32 px, got {side} × {side}"):
            empty("small_vgg")(torch.empty(1, 1, side, side, device="meta"), [layer])


@pytest.mark.parametrize(("name", "side"), [("alexnet", 62), ("alexnet32", 7)])
def test_an_image_too_small_is_an_error(name: str, side: int) -> None:
    with pytest.raises(UserError, match="at least"):
        empty(name)(torch.empty(1, 3, side, side, device="meta"), ["conv1"])
    assert empty(name)(torch.empty(1, 3, side + 1, side + 1, device="meta"), ["conv5"])


def test_alexnet_has_maps_of_other_sizes_but_no_embedding() -> None:
    model = empty("alexnet")
    x = torch.empty(1, 3, 128, 160, device="meta")
    assert model(x, ["conv5"])["conv5"].shape[2:] == (7, 9)
    with pytest.raises(UserError, match="no embedding"):
        model.embed(x)


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (3, 32, 32), (2, 3, 3, 32, 32)])
def test_another_number_of_channels_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"takes \(N, 3, h, w\)"):
        empty("alexnet32")(torch.empty(shape, device="meta"), ["conv1"])
