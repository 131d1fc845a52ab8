"""Every backbone: the shapes of its maps, its initial values, what forward computes and what it refuses."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from networks import SMALL, built, images
from torch import Tensor, nn

from results.errors import UserError
from zoo.backbones import BACKBONES, build, channels_for, empty, find, standard_preprocessing
from zoo.backbones.sobel import constants, sobel_filter
from zoo.checkpoint import resolve

# channels and side of each layer's map at the default size
MAPS = {
    "alexnet": [(96, 55), (256, 27), (384, 13), (384, 13), (256, 13)],
    "alexnet32": [(32, 32), (64, 16), (96, 8), (80, 8), (64, 8)],
    "vgg16": [(64, 224)] * 2 + [(128, 112)] * 2 + [(256, 56)] * 3 + [(512, 28)] * 3 + [(512, 14)] * 3,
    "small_vgg": [(32, 32), (64, 16), (128, 8), (256, 4)],
    "resnet18": [(64, 32), (64, 17), (128, 9), (256, 5), (512, 3)],
    "resnet34": [(64, 32), (64, 17), (128, 9), (256, 5), (512, 3)],
    "resnet50": [(64, 112), (256, 56), (512, 28), (1024, 14), (2048, 7)],
}
EMBEDDINGS = {
    **{"alexnet": 4096, "alexnet32": 512, "vgg16": 4096, "small_vgg": 1024},
    **{"resnet18": 512, "resnet34": 512, "resnet50": 2048},
}
LEAST = {  # pixels a side
    **{"alexnet": 63, "alexnet32": 8, "vgg16": 32, "small_vgg": 32},
    **{"resnet18": 16, "resnet34": 16, "resnet50": 32},
}
# sha256 of checkpoints of initial weights, which the committed records name
PINNED = {
    "random-alexnet32@0": "79bcd86f9c903fcee87c98d3405197b0c3fe565ae7f333120c54a59b0acdcc50",
    "random-alexnet32-sobel@0": "4d603ef6921a2b0af062ea9aecbfba5e9e69d464a3ef656aea435343e6955742",
    "random-small_vgg@0": "e33fc58c7f1b21478c8e51568b122df102296e94bf23e46a92ea7c7a03a31064",
}


def names_at(model: nn.Module, x: Tensor) -> list[str]:
    """The layers that images of this size have: a fully connected part wants one size."""
    fixed = model.name in ("alexnet", "vgg16") and x.shape[-1] != model.size
    return [*model.layers, *([] if fixed else ["embedding"])]


def test_every_backbone_is_pinned_here() -> None:
    assert set(BACKBONES) == set(MAPS) == set(EMBEDDINGS) == set(LEAST)
    assert all(name == entry.name for name, entry in BACKBONES.items())


@pytest.mark.parametrize("sobel", [False, True])
@pytest.mark.parametrize("name", BACKBONES)
def test_maps_have_the_pinned_shapes(name: str, sobel: bool) -> None:
    model = empty(name, sobel=sobel)
    maps = model(images(model, 2, "meta"), [*model.layers, "embedding"])
    assert [tuple(maps[layer].shape) for layer in model.layers] == [(2, c, side, side) for c, side in MAPS[name]]
    assert maps["embedding"].shape == (2, EMBEDDINGS[name])
    assert model.embedding_dim == EMBEDDINGS[name]
    named = "res" if name.startswith("resnet") else "conv"
    assert model.layers == ("conv1", *(f"{named}{i + 1}" for i in range(1, len(MAPS[name]))))


@pytest.mark.parametrize("name", BACKBONES)
def test_a_map_does_not_depend_on_what_else_is_asked_for(name: str) -> None:
    model = built(name)
    x = images(model)
    names = names_at(model, x)
    with torch.no_grad():
        together = model(x, names)
        for layer in names:
            alone = model(x, [layer])
            assert list(alone) == [layer]
            assert torch.equal(alone[layer], together[layer])
        if "embedding" in names:
            assert torch.equal(model.embed(x), together["embedding"])
        assert list(model(x, names[::-1])) == names[::-1]
    assert model(x, []) == {}


@pytest.mark.parametrize("name", BACKBONES)
def test_nothing_deeper_than_the_deepest_layer_is_computed(name: str) -> None:
    model = empty(name)
    links = [module for module, _ in model.links()]
    ran = []
    for module in links:
        module.register_forward_hook(lambda module, inputs, output: ran.append(module))
    ends = {layer: index for index, (_, layer) in enumerate(model.links()) if layer}
    assert list(ends) == list(model.layers)
    for layer, index in ends.items():
        ran.clear()
        model(images(model, 1, "meta"), [layer, model.layers[0]])
        assert ran == links[: index + 1]
    ran.clear()
    model(images(model, 1, "meta"), ["embedding"])
    assert ran == links


@pytest.mark.parametrize("name", SMALL)
def test_channels_last_gives_the_same_embedding(name: str) -> None:
    model = build(name, seed=3).eval()
    x = images(model)
    with torch.no_grad():
        expected = model.embed(x)
        model = model.to(memory_format=torch.channels_last)
        found = model.embed(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


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
    for path, module in model.named_modules():
        if path.startswith("sobel"):
            continue
        if isinstance(module, nn.Conv2d):
            fan = module.in_channels if name in ("small_vgg", "resnet18", "resnet34") else module.out_channels
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


@pytest.mark.parametrize("name", PINNED)
def test_checkpoints_of_initial_weights_are_those_of_the_records(name: str) -> None:
    assert resolve(name).sha256 == PINNED[name]


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
    follows = {"small_vgg", "resnet18", "resnet34"}
    assert {name for name in BACKBONES if channels_for(name, 1) == 1} == follows
    assert all(channels_for(name, 3) == 3 for name in BACKBONES)


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


@pytest.mark.parametrize("name", BACKBONES)
def test_an_image_too_small_is_an_error(name: str) -> None:
    model, side = empty(name), LEAST[name]
    with pytest.raises(UserError, match=f"takes images of (at least )?{side} px") as caught:
        model(torch.empty(1, model.channels, side, side - 1, device="meta"), ["conv1"])
    assert caught.value.fix == f"a size of {model.size}"
    x = torch.empty(2, model.channels, side, side, device="meta")
    assert min(model(x, model.layers[-1:])[model.layers[-1]].shape[2:]) >= 1


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (3, 32, 32), (2, 3, 3, 32, 32)])
def test_another_number_of_channels_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"takes \(N, 3, h, w\)"):
        empty("alexnet32")(torch.empty(shape, device="meta"), ["conv1"])


def test_without_timm_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="timm is not installed") as caught:
        find("timm:resnet14t")
    assert caught.value.fix == "pip install 'clusterzoo[timm]'"


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("resnet101", "torchvision:resnet101 or timm:resnet101"),
        ("mobilenet_v3_small", "torchvision:mobilenet_v3_small"),
        ("vit_tiny_patch16_224", "timm:vit_tiny_patch16_224"),
        ("vit_base_patch16_224.augreg_in21k", "timm:vit_base_patch16_224.augreg_in21k"),
    ],
)
def test_a_librarys_name_alone_is_met_with_what_to_type(name: str, fix: str) -> None:
    pytest.importorskip("timm")
    for look in (find, lambda name: resolve(f"random-{name}@0")):
        with pytest.raises(UserError, match=f"{name} is not among our own backbones; others have it") as caught:
            look(name)
        assert caught.value.fix == fix


def test_without_timm_its_names_are_not_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="vit_tiny_patch16_224 is not among the backbones") as caught:
        find("vit_tiny_patch16_224")
    assert caught.value.fix.endswith("resnet50, torchvision:NAME, timm:NAME")
