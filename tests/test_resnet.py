"""The ResNets against MMDC's pins (mmdc.md 1.8) and against torchvision's own network of the same weights."""

from __future__ import annotations

import pytest
import torch
from networks import count, lively
from torch import nn

from zoo.backbones import build, empty, find

STATISTICS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
COUNTS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
CONVS = {"resnet18": 2, "resnet34": 2, "resnet50": 3}  # in a block
HEADS = {"top_layer": 10, "rotnet_head": 4}


def with_heads(model: nn.Module) -> nn.Module:
    """The backbone with MMDC's two heads, on the meta device."""
    for name, outputs in HEADS.items():
        setattr(model, name, nn.Linear(model.embedding_dim, outputs, device="meta"))
    return model


@pytest.mark.parametrize("name", COUNTS)
def test_state_dict_has_the_released_keys(name: str) -> None:
    keys = {"conv1.weight", *(f"bn1.{kind}" for kind in STATISTICS)}
    for stage, blocks in enumerate(COUNTS[name], 1):
        for block in range(blocks):
            place = f"layer{stage}.{block}"
            keys |= {f"{place}.conv{i + 1}.weight" for i in range(CONVS[name])}
            keys |= {f"{place}.bn{i + 1}.{kind}" for i in range(CONVS[name]) for kind in STATISTICS}
    for stage in (1, 2, 3, 4) if name == "resnet50" else (2, 3, 4):
        place = f"layer{stage}.0.downsample"
        keys |= {f"{place}.0.weight", *(f"{place}.1.{kind}" for kind in STATISTICS)}
    assert set(empty(name).state_dict()) == keys
    sobel = {f"sobel.{index}.{kind}" for index in (0, 1) for kind in ("weight", "bias")}
    assert set(empty(name, sobel=True).state_dict()) == keys | sobel


def test_resnet18_with_its_heads_has_the_released_size() -> None:
    model = with_heads(empty("resnet18", channels=3))
    assert count(model) == 11_176_014
    state = model.state_dict()
    assert len(state) == 124
    assert state["conv1.weight"].shape == (64, 3, 3, 3)
    assert state["layer4.0.downsample.0.weight"].shape == (512, 256, 1, 1)


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
@pytest.mark.parametrize(
    ("side", "sides"),
    [
        (16, (16, 9, 9, 5, 3, 2)),
        (32, (32, 17, 17, 9, 5, 3)),
        (64, (64, 33, 33, 17, 9, 5)),
        (50, (50, 26, 26, 13, 7, 4)),
    ],
)
def test_small_resnets_take_any_size_from_16_px(name: str, side: int, sides: tuple[int, ...]) -> None:
    model = empty(name, channels=1)
    pooled = []
    model.maxpool.register_forward_hook(lambda module, inputs, output: pooled.append(output.shape[-1]))
    maps = model(torch.empty(2, 1, side, side, device="meta"), [*model.layers, "embedding"])
    found = [maps[layer].shape[-1] for layer in model.layers]
    assert (found[0], *pooled, *found[1:]) == sides
    assert maps["embedding"].shape == (2, 512)


@pytest.mark.parametrize(("name", "channels", "sobel", "inputs"), [("resnet18", 1, False, 1), ("resnet34", 3, True, 2)])
def test_the_stem_takes_the_images_channels_or_sobels(name: str, channels: int, sobel: bool, inputs: int) -> None:
    assert empty(name, channels=channels, sobel=sobel).conv1.weight.shape == (64, inputs, 3, 3)
    assert find(name).follows_dataset


def test_the_pooling_pads_with_no_value() -> None:
    """Kernel 2, padding 1: the corner of the map is one pixel's own value, after a ReLU its maximum with nothing."""
    model = build("resnet18", seed=1).eval()
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first = model(x, ["conv1"])["conv1"]
        pooled = model.maxpool(first)
    assert torch.equal(pooled[:, :, 0, 0], first[:, :, 0, 0])
    assert torch.equal(pooled[:, :, 1, 1], first[:, :, 1:3, 1:3].amax((2, 3)))


@pytest.mark.parametrize("name", ["resnet50", "resnet18", "resnet34"])
def test_a_resnet_is_torchvisions_with_the_same_weights(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    ours = lively(name)
    with torch.device("meta"):
        theirs = models.get_model(name, weights=None).eval()
    if name != "resnet50":  # the stem is MMDC's own
        theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.MaxPool2d(2, 2, padding=1)
    theirs.fc = nn.Identity()
    theirs.load_state_dict(ours.state_dict(), assign=True)
    x = torch.randn(2, 3, 96, 80, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = ours(x, ["conv1", "res2", "res3", "res4", "res5", "embedding"])
        stem = theirs.relu(theirs.bn1(theirs.conv1(x)))
        torch.testing.assert_close(found["conv1"], stem)
        y = theirs.maxpool(stem)
        for stage in (1, 2, 3, 4):
            y = getattr(theirs, f"layer{stage}")(y)
            torch.testing.assert_close(found[f"res{stage + 1}"], y)
        torch.testing.assert_close(found["embedding"], theirs(x))
    assert found["embedding"].std() > 1e-3


@pytest.mark.parametrize("name", COUNTS)
def test_channels_last_and_gradients_pass(name: str) -> None:
    model = build(name, seed=3).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model.embed(x.contiguous(memory_format=torch.channels_last)).square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert model.conv1.weight.grad.abs().sum() > 0
