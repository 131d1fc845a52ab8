"""Checkpoints written for other libraries: torchvision and timm load them strictly and compute the same."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from releases import lively
from torch import Tensor, nn
from torchvision.models import get_model

from results.errors import UserError
from zoo.backbones import Backbone, standard_preprocessing
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


def resnet50_of_detectron2() -> dict[str, tuple[int, ...]]:
    """Names and shapes by hand: detectron2's modeling/backbone/resnet.py and its MODEL_ZOO's R-50 files."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.norm.{part}"] = shape[:1]

    add("stem.conv1", 64, 3, 7, 7)
    before = 64
    for stage, (count, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
        for block in range(count):
            name = f"res{stage + 2}.{block}"
            if block == 0:
                add(f"{name}.shortcut", 4 * width, before, 1, 1)
            add(f"{name}.conv1", width, before, 1, 1)
            add(f"{name}.conv2", width, width, 3, 3)
            add(f"{name}.conv3", 4 * width, width, 1, 1)
            before = 4 * width
    return shapes


def test_detectron2s_layout(tmp_path: Path) -> None:
    held = written(make(resnet50(), top(2048)), "detectron2", tmp_path)
    assert held.keys() == {"model", "__author__", "matching_heuristics"}
    assert held["matching_heuristics"] is True
    assert {name: tuple(tensor.shape) for name, tensor in held["model"].items()} == resnet50_of_detectron2()
    ours = resnet50().state_dict()
    for theirs, name in {
        "stem.conv1.norm.running_mean": "bn1.running_mean",
        "res2.0.shortcut.weight": "layer1.0.downsample.0.weight",
        "res2.0.shortcut.norm.bias": "layer1.0.downsample.1.bias",
        "res4.5.conv3.norm.weight": "layer3.5.bn3.weight",
        "res5.2.conv2.weight": "layer4.2.conv2.weight",
    }.items():
        assert torch.equal(held["model"][theirs], ours[name])


def test_mmsegmentations_layout(tmp_path: Path) -> None:
    held = written(make(resnet50(), top(2048)), "mmseg", tmp_path)
    assert held.keys() == {"state_dict", "meta"}
    net = get_model("resnet50")
    net.fc = nn.Identity()
    assert all(name.startswith("backbone.") for name in held["state_dict"])
    net.load_state_dict({name.removeprefix("backbone."): t for name, t in held["state_dict"].items()}, strict=True)


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
    assert convert(make(lively("resnet50", channels=1)), "timm").value["conv1.weight"].shape[1] == 1


def test_a_name_that_detectron2_would_unpickle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"out\.pkl would be no pickle") as caught:
        export(make(resnet50()), "detectron2", tmp_path / "out.pkl")
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
