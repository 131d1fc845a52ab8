"""Checkpoints written for other libraries: torchvision and timm load them strictly and compute the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from math import sqrt
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import lively
from torch import Tensor, nn
from torchvision.models import get_model

from results.errors import UserError
from zoo.backbones import Backbone, allocate, standard_preprocessing
from zoo.checkpoint import Checkpoint, main
from zoo.export import LIBRARIES, convert, export

K = 6


def make(network: Backbone, head: dict[str, Tensor] | None = None) -> Checkpoint:
    return Checkpoint(
        name="mine",
        method="supervised",
        backbone=network.arguments,
        preprocessing=standard_preprocessing(network.name, network.channels),
        dataset=None,
        epoch=1,
        settings={},
        seed=0,
        source="test",
        groups={"backbone": network.state_dict(), "head": head or {}},
    )


def top(dim: int) -> dict[str, Tensor]:
    return {"top_layer.weight": torch.randn(K, dim), "top_layer.bias": torch.randn(K)}


@cache
def resnet50() -> Backbone:
    return lively("resnet50")


def written(checkpoint: Checkpoint, library: str, place: Path) -> dict:
    export(checkpoint, library, place / "out.pth")
    return torch.load(place / "out.pth", weights_only=True)


def timm_model(name: str, **options: object) -> nn.Module:
    return pytest.importorskip("timm").create_model(name, **options)


def caught(net: nn.Module, layers: dict[str, str], x: Tensor) -> dict[str, Tensor]:
    """The maps that modules of a network give, under the layers' names."""
    maps: dict[str, Tensor] = {}
    for layer, path in layers.items():
        net.get_submodule(path).register_forward_hook(
            lambda module, inputs, output, layer=layer: maps.update({layer: output.clone()})
        )
    with torch.no_grad():
        net(x)
    return maps


def check_maps(network: Backbone, net: nn.Module, layers: dict[str, str], side: int) -> None:
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = network(x, tuple(layers))
    theirs = caught(net.eval(), layers, x)
    assert all(torch.allclose(ours[layer], theirs[layer], rtol=1e-4, atol=1e-5) for layer in layers)


STAGES = {"res2": "layer1", "res3": "layer2", "res4": "layer3", "res5": "layer4"}


@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize("headed", [False, True])
def test_resnet50_loads_strictly(library: str, headed: bool, tmp_path: Path) -> None:
    state = written(make(resnet50(), top(2048) if headed else None), library, tmp_path)
    net = (get_model if library == "torchvision" else timm_model)("resnet50", num_classes=K)
    if not headed:
        net.fc = nn.Identity()
    net.load_state_dict(state, strict=True)
    check_maps(resnet50(), net, STAGES, 64)


# What detectron2 0.6 (a Faster R-CNN with FPN, DetectionCheckpointer) and mmsegmentation 1.2.2 (mmengine 0.10.7,
# init_cfg) held and gave after they had read the files of `fixed()`, with the settings that the export prints: number
# and digest of names and shapes; of each map of `picture()` the mean and the last two values, the same in both.
HELD = {"detectron2": (265, "f2f8785c8c5d0d89"), "mmseg": (318, "c1f7fd3808aa49e7")}
GIVEN = {
    "res2": (14.061213, 39.528835, 21.612568),
    "res3": (81.90802, 220.8792, 311.00888),
    "res4": (1850.561, 4698.5688, 2485.1968),
    "res5": (5619.1831, 0.0, 2299.3147),
}


@cache
def fixed() -> Backbone:
    """A ResNet-50 whose values follow from the tensors' names, whatever draws initial weights."""
    network = allocate("resnet50")
    network.load_state_dict({name: draw(name, *t.shape) for name, t in network.state_dict().items()})
    return network.eval()


def draw(name: str, *shape: int) -> Tensor:
    """A tensor's values, by the one generator of numpy's that never changes."""
    drawn = torch.from_numpy(np.random.RandomState(crc32(name.encode())).random_sample(shape)).float()
    if len(shape) == 4:
        return (drawn - 0.5) * sqrt(24 / (shape[1] * shape[2] * shape[3]))
    return drawn + 0.5 if name.endswith(("weight", "running_var")) else (drawn - 0.5) / 5 if shape else torch.tensor(0)


def picture() -> Tensor:
    """(1, 3, 64, 64), pixels of noise in RGB."""
    pixels = np.random.RandomState(0).random_sample((64, 64, 3)) * 256
    return torch.from_numpy(pixels.astype(np.uint8)).permute(2, 0, 1)[None]


def tell(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, str]:
    lines = sorted(f"{name} {shape}" for name, shape in shapes.items())
    return len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def check_given(maps: Mapping[str, Tensor]) -> None:
    for layer, expected in GIVEN.items():
        flat = maps[layer].flatten()
        assert torch.stack([flat.mean(), flat[-2], flat[-1]]).tolist() == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def run_as_detectron2(state: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """The maps of a ResNet by detectron2's names: FrozenBatchNorm2d, and STRIDE_IN_1X1 False."""

    def convolve(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        scale = state[f"{name}.norm.weight"] * (state[f"{name}.norm.running_var"] + 1e-5).rsqrt()
        shift = state[f"{name}.norm.bias"] - state[f"{name}.norm.running_mean"] * scale
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        return x * scale[:, None, None] + shift[:, None, None]

    maps = {}
    x = F.max_pool2d(convolve(x, "stem.conv1", 2).relu(), 3, 2, 1)
    for stage, count in {"res2": 3, "res3": 4, "res4": 6, "res5": 3}.items():
        for name in (f"{stage}.{block}" for block in range(count)):
            stride = 2 if name in ("res3.0", "res4.0", "res5.0") else 1
            straight = convolve(x, f"{name}.shortcut", stride) if f"{name}.shortcut.weight" in state else x
            x = convolve(convolve(x, f"{name}.conv1").relu(), f"{name}.conv2", stride).relu()
            x = (convolve(x, f"{name}.conv3") + straight).relu()
        maps[stage] = x
    return maps


def test_our_resnet50_gives_what_the_libraries_gave() -> None:
    with torch.no_grad():
        check_given(fixed()(make(fixed()).preprocessing.normalise(picture()), tuple(GIVEN)))


def test_detectron2s_layout(tmp_path: Path) -> None:
    held = written(make(fixed(), top(2048)), "detectron2", tmp_path)
    assert held.keys() == {"model", "__author__", "matching_heuristics"}
    assert held["matching_heuristics"] is True
    assert tell({name: tuple(tensor.shape) for name, tensor in held["model"].items()}) == HELD["detectron2"]
    mean, std = (torch.tensor(values)[:, None, None] for values in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
    check_given(run_as_detectron2(held["model"], (picture() - mean) / std))


def test_mmsegmentations_layout(tmp_path: Path) -> None:
    held = written(make(fixed(), top(2048)), "mmseg", tmp_path)
    assert held.keys() == {"state_dict", "meta"}
    assert all(name.startswith("backbone.") for name in held["state_dict"])
    state = {name.removeprefix("backbone."): tensor for name, tensor in held["state_dict"].items()}
    assert tell({name: tuple(tensor.shape) for name, tensor in state.items()}) == HELD["mmseg"]
    net = get_model("resnet50")  # mmsegmentation's ResNet of style pytorch is this one
    net.fc = nn.Identity()
    net.load_state_dict(state, strict=True)
    check_given(caught(net.eval(), STAGES, make(fixed()).preprocessing.normalise(picture())))


def test_detectron2s_settings_are_printed() -> None:
    images, settings, warning = convert(make(fixed()), "detectron2").notes
    assert images.startswith("images of 224 px, in RGB, (pixel / 255 - mean) / std; mean (0.485, 0.456, 0.406)")
    assert settings == (
        "in detectron2: MODEL.WEIGHTS FILE MODEL.RESNETS.DEPTH 50 MODEL.RESNETS.STRIDE_IN_1X1 False INPUT.FORMAT RGB "
        "MODEL.PIXEL_MEAN '[123.675, 116.28, 103.53]' MODEL.PIXEL_STD '[58.395, 57.12, 57.375]'"
    )
    assert "BGR" in warning


def test_mmsegmentations_settings_are_printed() -> None:
    _, settings, warning = convert(make(fixed()), "mmseg").notes
    assert settings == (
        "in mmsegmentation: backbone=dict(type='ResNet', depth=50, style='pytorch', init_cfg=dict(type='Pretrained', "
        "checkpoint=FILE, prefix='backbone.')), and in data_preprocessor mean=[123.675, 116.28, 103.53], "
        "std=[58.395, 57.12, 57.375], bgr_to_rgb=True"
    )
    assert warning.startswith("without the prefix mmengine loads nothing")


def test_one_mean_for_all_channels_is_printed_for_each() -> None:
    checkpoint = make(fixed())
    checkpoint.preprocessing = replace(checkpoint.preprocessing, mean=(0.0,), std=(1.0,))
    settings = convert(checkpoint, "detectron2").notes[1]
    assert settings.endswith("MODEL.PIXEL_MEAN '[0.0, 0.0, 0.0]' MODEL.PIXEL_STD '[255.0, 255.0, 255.0]'")


LAST_OF_VGG = {"conv1": "features.2", "conv4": "features.12", "conv13": "features.42"}  # ReLUs


@cache
def vgg16() -> Checkpoint:
    return make(lively("vgg16"), top(4096))


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_vgg16_loads_strictly(library: str, tmp_path: Path) -> None:
    one = vgg16()
    exported = convert(one, library)
    assert any("fully connected" in note for note in exported.notes)
    with torch.device("meta"):
        net = (
            get_model("vgg16_bn", num_classes=K) if library == "torchvision" else timm_model("vgg16_bn", num_classes=K)
        )
    net.load_state_dict(exported.value, strict=True, assign=True)
    check_maps(one.build_backbone(), net, LAST_OF_VGG, 32)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        head = one.groups["head"]
        ours = one.build_backbone().embed(x).relu() @ head["top_layer.weight"].T + head["top_layer.bias"]
        assert torch.allclose(ours, net.eval()(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("model", ["resnet18", "densenet121", "squeezenet1_1", "vit_b_16"])
def test_torchvisions_own_networks_go_back(model: str, tmp_path: Path) -> None:
    network = lively(f"torchvision:{model}")
    state = written(make(network), "torchvision", tmp_path)
    net = get_model(model)
    result = net.load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    assert {key.rpartition(".")[2] for key in result.missing_keys} == {"weight", "bias"}  # the classifier's
    assert len(result.missing_keys) == 2


def test_a_head_goes_back_to_torchvision(tmp_path: Path) -> None:
    state = written(make(lively("torchvision:resnet18"), top(512)), "torchvision", tmp_path)
    net = get_model("resnet18", num_classes=K)
    net.load_state_dict(state, strict=True)
    assert torch.equal(net.fc.weight, state["fc.weight"])


def test_networks_that_need_values_while_they_are_built_go_back() -> None:
    exported = convert(make(lively("torchvision:regnet_y_400mf"), top(440)), "torchvision")
    assert tuple(exported.value["fc.weight"].shape) == (K, 440)


@pytest.mark.parametrize("model", ["resnet10t", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("headed", [False, True])
def test_timms_own_networks_go_back(model: str, headed: bool, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    network = lively(f"timm:{model}")
    state = written(make(network, top(network.embedding_dim) if headed else None), "timm", tmp_path)
    net = timm_model(model, num_classes=K if headed else 0)
    net.load_state_dict(state, strict=True)
    assert all(torch.equal(tensor, state[key]) for key, tensor in net.state_dict().items())


def test_a_head_on_something_else_is_left_out() -> None:
    exported = convert(make(resnet50(), {"prototypes.weight": torch.ones(5, 8)}), "torchvision")
    assert "head/prototypes.weight → left out: the library's network has no place for it  5 × 8" in map(
        str, exported.lines
    )
    assert not any("fc" in name for name in exported.value)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", ["alexnet32", "small_vgg", "resnet18"])
def test_what_no_library_has_is_an_error(library: str, name: str) -> None:
    with pytest.raises(UserError, match=f"{library} has no network with the tensors of {name}") as caught:
        convert(make(lively(name)), library)
    assert "zoo.checkpoint.resolve('mine')" in caught.value.fix


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_sobel_filter_is_an_error(library: str) -> None:
    with pytest.raises(UserError, match=f"{library} has no resnet50 behind a Sobel filter"):
        convert(make(lively("resnet50", sobel=True)), library)


def test_other_libraries_are_offered() -> None:
    with pytest.raises(UserError, match="mmseg has no network with the tensors of torchvision:resnet18") as caught:
        convert(make(lively("torchvision:resnet18")), "mmseg")
    assert caught.value.fix.startswith("--to torchvision")


def test_other_channels_are_an_error() -> None:
    with pytest.raises(UserError, match="torchvision has no resnet50 of 1 channels"):
        convert(make(lively("resnet50", channels=1)), "torchvision")
    pytest.importorskip("timm")
    exported = convert(make(lively("resnet50", channels=1)), "timm")
    assert exported.value["conv1.weight"].shape[1] == 1
    assert "in grey" in exported.notes[0]


@pytest.mark.parametrize(("ending", "kind"), [(".pkl", "a plain pickle"), (".pyth", "a file of pycls")])
def test_a_name_that_detectron2_would_read_otherwise_is_an_error(ending: str, kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"detectron2 would read out\{ending} as {kind}") as caught:
        export(make(resnet50()), "detectron2", tmp_path / f"out{ending}")
    assert caught.value.fix == "--out out.pth"
    assert not any(tmp_path.iterdir())


def test_equal_checkpoints_give_equal_files(tmp_path: Path) -> None:
    for name in ("a.pth", "b.pth"):
        export(make(resnet50()), "torchvision", tmp_path / name)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_writing_draws_no_random_number() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    checkpoint = make(lively("torchvision:regnet_y_400mf"))
    torch.manual_seed(5)
    convert(checkpoint, "torchvision")
    assert torch.rand(1) == expected


def test_the_command_prints_the_map_and_notes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make(resnet50(), top(2048)).save(tmp_path / "mine.safetensors")
    out = tmp_path / "r50.pth"
    assert main(["export", str(tmp_path / "mine.safetensors"), "--to", "detectron2", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line.split(maxsplit=2)[2] for line in said.splitlines() if " → " in line}
    assert len(rows) == 318 + 2
    assert rows["backbone/layer1.0.bn2.weight"] == "res2.0.conv2.norm.weight  64"
    assert rows["backbone/bn1.num_batches_tracked"].startswith("left out: detectron2's frozen batch norm")
    assert rows["head/top_layer.bias"].startswith("left out")
    assert "STRIDE_IN_1X1 False" in said
    assert out.is_file()


def test_the_commands_errors_go_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["export", "random-alexnet32-sobel@0", "--to", "timm", "--out", str(tmp_path / "x.pth")]
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("error: timm has no alexnet32 behind a Sobel filter")
    assert not any(tmp_path.iterdir())
