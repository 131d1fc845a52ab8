"""SwAV's, DeepCluster-v2's and VISSL's ResNet-50, and state dicts in the names of torchvision and timm."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from networks import lively
from releases import same_maps, uncounted, write
from torch import Tensor, nn
from torchvision.models import get_model

from results.errors import UserError
from zoo import released
from zoo.backbones import Backbone
from zoo.released import plain


@cache
def resnet50() -> Backbone:
    return lively("resnet50")


def projection() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2048, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))


def prototypes(several: bool) -> dict[str, Tensor]:
    if several:
        return {f"prototypes.prototypes{i}.weight": torch.randn(5, 8) for i in range(3)}
    return {"prototypes.weight": torch.randn(5, 8)}


def swav_state(several: bool = False) -> dict[str, Tensor]:
    """In the spelling of the released files."""
    state = resnet50().state_dict() | projection().state_dict(prefix="projection_head.") | prototypes(several)
    return {f"module.{key}": tensor for key, tensor in state.items()}


@pytest.mark.parametrize("several", [False, True], ids=["swav", "deepclusterv2"])
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "state_dict"])
def test_swav_makes_a_round_trip(several: bool, nested: bool, tmp_path: Path) -> None:
    state = swav_state(several)
    held = {"epoch": 800, "state_dict": state, "optimizer": {}} if nested else state
    imported = released.bring(write(tmp_path / "swav.pth.tar", held))
    one = imported.checkpoint
    assert (one.method, one.epoch) == ("deepclusterv2" if several else "swav", 800 if nested else 0)
    assert one.backbone == {"name": "resnet50", "channels": 3, "sobel": False}
    assert one.settings["k"] == ([5, 5, 5] if several else 5)
    lines = {line.before: line.after for line in imported.lines}
    assert lines["module.projection_head.1.running_var"] == "head/projection_head.1.running_var"
    assert lines["module.layer1.0.downsample.0.weight"] == "backbone/layer1.0.downsample.0.weight"
    assert set(lines) == {*state, *(["optimizer"] if nested else [])}
    for key, tensor in state.items():
        key = key.removeprefix("module.")
        assert torch.equal((one.groups["backbone"] | one.groups["head"])[key], tensor)
    if nested:
        same_maps(one, resnet50(), tmp_path, 32)


def test_a_projection_of_one_layer_is_read(tmp_path: Path) -> None:
    state = resnet50().state_dict() | nn.Linear(2048, 8).state_dict(prefix="projection_head.") | prototypes(False)
    one = released.read(write(tmp_path / "x.pth", state))
    assert set(one.groups["head"]) == {"projection_head.weight", "projection_head.bias", "prototypes.weight"}


def test_faults_of_swavs_heads_are_listed(tmp_path: Path) -> None:
    state = swav_state()
    del state["module.projection_head.3.bias"]
    state["module.projection_head.1.weight"] = torch.ones(3)
    state["module.prototypes.weight"] = torch.ones(5, 9)
    state["module.queue"] = torch.ones(2)
    with pytest.raises(UserError) as caught:
        released.read(write(tmp_path / "x.pth", state))
    said = str(caught.value)
    assert "missing projection_head.3.bias;" in said
    assert "unexpected queue;" in said
    assert "projection_head.1.weight is (3,), not (16,)" in said
    assert "prototypes.weight is (5, 9), not (5, 8)" in said


def test_a_wider_network_does_not_fit(tmp_path: Path) -> None:
    state = swav_state() | {"module.conv1.weight": torch.ones(128, 3, 7, 7)}
    with pytest.raises(UserError, match=r"does not fit resnet50: conv1\.weight is \(128, 3, 7, 7\)"):
        released.read(write(tmp_path / "x.pth", state))


# In the order of VISSL's file of a supervised ResNet-50, as its issue 550 lists them.
FIRST_OF_VISSL = [
    "_feature_blocks.conv1.weight",
    *(f"_feature_blocks.bn1.{part}" for part in ("weight", "bias", "running_mean", "running_var")),
    "_feature_blocks.bn1.num_batches_tracked",
    "_feature_blocks.layer1.0.conv1.weight",
]
# A classifier's and SwAV's; a model has one.
HEADS_OF_VISSL = {
    "classifier": {"0.clf.0.weight": torch.ones(6, 2048), "0.clf.0.bias": torch.ones(6)},
    "swav": {
        **nn.Sequential(nn.Linear(2048, 16), nn.BatchNorm1d(16)).state_dict(prefix="0.projection_head."),
        "0.prototypes0.weight": torch.ones(5, 16),
    },
}


def vissl_trunk() -> dict[str, Tensor]:
    """The trunk of VISSL's ResNet: torchvision's names, each behind the list of blocks."""
    names = [name for name in get_model("resnet50").state_dict() if not name.startswith("fc.")]
    return {f"_feature_blocks.{name}": resnet50().state_dict()[name] for name in names}


def vissl_training(trunk: dict[str, Tensor], heads: dict[str, Tensor]) -> dict:
    """What VISSL's trainer saves, as its issue 566 lists it."""
    return {
        "phase_idx": 104,
        "iteration": 525,
        "loss": 0.5,
        "iteration_num": 524,
        "train_phase_idx": 104,
        "classy_state_dict": {
            "train": True,
            "base_model": {"model": {"trunk": trunk, "heads": heads}},
            "meters": [{"name": "accuracy_list_meter", "total_sample_count": torch.ones(2)}],
            "optimizer": {"optim": {"state": {}, "param_groups": []}},
            "phase_idx": 104,
            "train_phase_idx": 104,
            "num_updates": 525,
            "losses": [0.5],
            "hooks": {},
            "loss": {"name": "cross_entropy_multiple_output_single_target"},
            "train_dataset_iterator": None,
            "amp": None,
        },
        "type": "consolidated",
    }


@pytest.mark.parametrize("head", HEADS_OF_VISSL)
def test_a_training_of_vissls_resnet50_makes_a_round_trip(head: str, tmp_path: Path) -> None:
    trunk, heads = vissl_trunk(), HEADS_OF_VISSL[head]
    assert [*trunk][:7] == FIRST_OF_VISSL
    assert len(trunk) == 318
    imported = released.bring(write(tmp_path / "model_final_checkpoint_phase104.torch", vissl_training(trunk, heads)))
    one = imported.checkpoint
    assert one.backbone == {"name": "resnet50", "channels": 3, "sobel": False}
    assert (one.method, one.epoch, set(one.groups)) == ("imported", 0, {"backbone"})
    assert one.preprocessing.mean == (0.485, 0.456, 0.406)
    same_maps(one, resnet50(), tmp_path, 32)
    backbone = one.groups["backbone"]
    assert all(torch.equal(backbone[name.removeprefix("_feature_blocks.")], t) for name, t in trunk.items())
    lines = {line.before: line.after for line in imported.lines}
    assert lines["_feature_blocks.layer4.2.bn3.running_var"] == "backbone/layer4.2.bn3.running_var"
    assert {lines[f"heads.{name}"] for name in heads} == {"left out: the head of VISSL's task"}
    rest = {"phase_idx", "iteration", "loss", "iteration_num", "train_phase_idx", "type"}
    assert lines.keys() == {*trunk, *(f"heads.{name}" for name in heads), *rest}


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


# The trunk alone, as converted from older programs; a linear evaluation's frozen one (issue 577); whole models' state
# dicts, in the names that VISSL's logs print.
LAYOUTS_OF_VISSL = {
    "converted": lambda trunk, heads: {"model_state_dict": uncounted(trunk)},
    "frozen": lambda trunk, heads: vissl_training(prefixed("base_model.", trunk), heads),
    "whole": lambda trunk, heads: prefixed("trunk.", trunk) | prefixed("heads.", heads),
    "whole and frozen": lambda trunk, heads: prefixed("trunk.base_model.", trunk) | prefixed("heads.", heads),
}


@pytest.mark.parametrize("layout", LAYOUTS_OF_VISSL)
def test_vissls_other_layouts_are_read(layout: str, tmp_path: Path) -> None:
    held = LAYOUTS_OF_VISSL[layout](vissl_trunk(), HEADS_OF_VISSL["classifier"])
    one = released.read(write(tmp_path / "x.torch", held))
    assert set(one.groups) == {"backbone"}
    backbone = resnet50().state_dict()
    assert all(torch.equal(tensor, backbone[name]) for name, tensor in one.groups["backbone"].items())
    assert ("num_batches_tracked set to 0, which the file lacks" in one.source) == (layout == "converted")


def test_faults_of_vissls_trunk_are_listed(tmp_path: Path) -> None:
    trunk = vissl_trunk()
    del trunk["_feature_blocks.layer3.5.bn3.bias"]
    trunk["_feature_blocks.layer5.0.conv1.weight"] = torch.ones(2)
    trunk["_feature_blocks.conv1.weight"] = torch.ones(128, 3, 7, 7)  # twice as wide
    with pytest.raises(UserError, match="does not fit resnet50") as caught:
        released.read(write(tmp_path / "x.torch", vissl_training(trunk, {})))
    said = str(caught.value)
    assert "missing layer3.5.bn3.bias;" in said
    assert "unexpected layer5.0.conv1.weight;" in said
    assert "conv1.weight is (128, 3, 7, 7), not (64, 3, 7, 7)" in said


def test_a_trunk_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    trunk = vissl_trunk()
    state = trunk | {f"base_model.{name}": tensor for name, tensor in trunk.items()}
    with pytest.raises(UserError, match=r"malformed: conv1\.weight is there twice"):
        released.read(write(tmp_path / "x.torch", vissl_training(state, {})))


def old_densenet(key: str) -> str:
    """DenseNets' names in torchvision's published files: norm.1 for norm1."""
    for part in ("norm1", "norm2", "conv1", "conv2"):
        key = key.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.") if "denselayer" in key else key
    return key


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("resnet50", "resnet50"),
        ("resnet18", "torchvision:resnet18"),
        ("densenet121", "torchvision:densenet121"),
    ],
)
def test_torchvisions_networks_are_found_by_their_tensors(model: str, found: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = get_model(model, weights=None, num_classes=6).eval()
    state = {old_densenet(key): tensor for key, tensor in uncounted(net.state_dict()).items()}
    one = released.read(write(tmp_path / "x.pth", {"epoch": 2, "arch": model, "state_dict": state}))
    assert (one.method, one.epoch, one.settings["k"]) == ("imported", 2, 6)
    assert one.backbone == {"name": found, "channels": 3, "sobel": False}
    assert one.preprocessing.mean == (0.485, 0.456, 0.406)
    check_outputs(one, net, 64)


def check_outputs(one: object, net: nn.Module, side: int) -> None:
    """The head on the embedding is the whole network."""
    x = torch.randn(2, 3, side, side)
    head = one.groups["head"]
    with torch.no_grad():
        y = one.build_backbone().embed(x) @ head["top_layer.weight"].T + head["top_layer.bias"]
        assert torch.allclose(y, net(x), atol=1e-4)


def test_a_network_that_was_not_tried_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = get_model("mobilenet_v2", weights=None, num_classes=6).eval()
    path = write(tmp_path / "x.pth", {f"module.{key}": tensor for key, tensor in net.state_dict().items()})
    with pytest.raises(UserError, match="does not fit any backbone that was tried: resnet50, vgg16,") as caught:
        released.read(path)
    assert caught.value.fix.startswith(f"python -m zoo.checkpoint import {path} --backbone NAME (one of alexnet, ")
    assert caught.value.fix.endswith("torchvision:NAME, timm:NAME)")
    imported = released.bring(path, "torchvision:mobilenet_v2")
    assert "module.classifier.1.weight → head/top_layer.weight  6 × 1280" in map(str, imported.lines)
    check_outputs(imported.checkpoint, net, 64)
    with pytest.raises(UserError, match=r"does not fit torchvision:resnet18: missing net\.conv1\.weight") as wrong:
        released.read(path, "torchvision:resnet18")
    assert wrong.value.fix == caught.value.fix


def test_a_wrong_backbone_is_met_with_a_few_names_and_the_one_that_fits(tmp_path: Path) -> None:
    path = write(tmp_path / "my net.pth", get_model("resnet18", weights=None).state_dict())
    with pytest.raises(UserError) as caught:
        released.read(path, "vgg16")
    assert caught.value.happened == (
        "my net.pth does not fit vgg16: missing features.0.weight, features.0.bias, features.1.weight and 79 more; "
        "unexpected conv1.weight, bn1.weight, bn1.bias and 119 more"
    )
    assert caught.value.looked == str(path)
    assert caught.value.fix == f"python -m zoo.checkpoint import '{path}' --backbone torchvision:resnet18"
    with pytest.raises(UserError, match="resnet101 is not among our own backbones"):
        released.read(path, "resnet101")


def test_a_classifier_that_is_no_linear_layer_is_left_out(tmp_path: Path) -> None:
    net = get_model("squeezenet1_1", weights=None)
    imported = released.bring(write(tmp_path / "x.pth", net.state_dict()), "torchvision:squeezenet1_1")
    why = "left out: a classifier that is no linear layer"
    assert f"classifier.1.weight → {why}  1000 × 512 × 1 × 1" in map(str, imported.lines)
    assert "head" not in imported.checkpoint.groups
    assert imported.checkpoint.settings.keys() == {"released"}


def test_classifiers_that_helped_training_are_left_out(tmp_path: Path) -> None:
    net = get_model("googlenet", weights=None, init_weights=False, num_classes=6)
    imported = released.bring(write(tmp_path / "x.pth", net.state_dict()), "torchvision:googlenet")
    assert "left out: a classifier that helped training" in {line.after for line in imported.lines}
    assert len(imported.lines) == len(net.state_dict())
    assert imported.checkpoint.settings["k"] == 6


def test_timms_networks_are_read(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model("resnet10t", num_classes=6).eval()
    one = released.read(write(tmp_path / "x.pth", net.state_dict()), "timm:resnet10t")
    assert one.backbone["name"] == "timm:resnet10t"
    check_outputs(one, net, 64)


def test_a_file_without_classifier_has_no_head(tmp_path: Path) -> None:
    one = released.read(write(tmp_path / "x.pth", resnet50().state_dict()))
    assert "head" not in one.groups
    assert one.name.startswith("imported-resnet50-")


def test_what_fits_several_backbones_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "TRIED", ("resnet50", "torchvision:resnet50"))
    with pytest.raises(UserError, match="fits several backbones: resnet50, torchvision:resnet50") as caught:
        released.read(write(tmp_path / "x.pth", resnet50().state_dict()))
    assert "--backbone" in caught.value.fix


@pytest.mark.parametrize("stray", ["fc.scale", "extra.weight", "layer1.0.conv9.weight"])
def test_a_tensor_too_many_is_an_error(stray: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.pth", resnet50().state_dict() | {stray: torch.ones(3)})
    with pytest.raises(UserError, match="does not fit any backbone"):
        released.read(path)
    with pytest.raises(UserError, match=f"does not fit resnet50: unexpected {stray}"):
        released.read(path, "resnet50")


def test_a_head_on_something_else_is_an_error(tmp_path: Path) -> None:
    state = resnet50().state_dict() | nn.Linear(512, 6).state_dict(prefix="fc.")
    with pytest.raises(UserError, match=r"top_layer\.weight is \(6, 512\), not \(6, 2048\)"):
        released.read(write(tmp_path / "x.pth", state))


def test_an_unknown_backbone_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pth", {"fc.weight": torch.ones(2, 3)})
    with pytest.raises(UserError, match="resnet51 is not among the backbones"):
        released.read(path, "resnet51")
