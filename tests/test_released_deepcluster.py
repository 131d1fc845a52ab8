"""DeepCluster's and DeeperCluster's .pth.tar files, and VISSL's copy."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from networks import lively
from releases import K, Python2Pickler, alexnet_state, deepcluster, same_maps, spell, uncounted, write
from torch import Tensor, nn

from results.errors import UserError
from zoo import released
from zoo.backbones import Backbone, empty
from zoo.backbones.vgg16 import VGG16
from zoo.preprocessing import Preprocessing

SPELLINGS = ("features.module.", "module.", "none", "DeeperCluster")


@pytest.mark.parametrize("how", SPELLINGS)
def test_deepcluster_is_read_in_every_spelling(how: str, tmp_path: Path) -> None:
    one = released.read(deepcluster(tmp_path, how))
    expected = alexnet_state()
    assert (one.method, one.epoch, one.seed, one.dataset) == ("deepcluster", 200, None, None)
    assert one.backbone == {"name": "alexnet", "channels": 3, "sobel": True}
    assert one.preprocessing == Preprocessing(224, 256, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert one.settings["k"] == K
    assert set(one.groups) == {"backbone", "head"}
    assert set(one.groups["head"]) == {"top_layer.weight", "top_layer.bias"}
    flat = one.groups["backbone"] | one.groups["head"]
    for key, tensor in expected.items():
        assert torch.equal(flat[key], tensor)
    counters = set(flat) - set(expected)
    assert counters == {f"features.{i}.num_batches_tracked" for i in (1, 5, 9, 12, 15)}
    assert all(flat[key].dtype == torch.int64 and flat[key] == 0 for key in counters)
    assert "num_batches_tracked set to 0" in one.source
    assert ("border" in one.source) == (how == "DeeperCluster")


def test_deepcluster_as_python_2_pickled_it(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth.tar"
    held = {"epoch": 200, "arch": "alexnet", "state_dict": spell(alexnet_state(sobel=False), "features.module.")}
    old = SimpleNamespace(
        __name__="pickle of Python 2",
        Pickler=Python2Pickler,
        dump=lambda value, file, protocol: Python2Pickler(file, protocol).dump(value),
    )
    write(path, held, zipped=False, pickle_module=old)
    assert b"U\x04arch" in path.read_bytes()
    one = released.read(path)
    assert one.backbone == {"name": "alexnet", "channels": 3, "sobel": False}
    assert torch.equal(one.groups["backbone"]["features.0.weight"], held["state_dict"]["features.module.0.weight"])


def test_missing_unexpected_and_odd_tensors_are_listed(tmp_path: Path) -> None:
    state = alexnet_state()
    del state["features.8.weight"], state["top_layer.bias"]
    state["features.20.weight"] = torch.ones(1)
    state["classifier.4.bias"] = torch.ones(3)
    with pytest.raises(UserError) as caught:
        released.read(deepcluster(tmp_path, state_dict=state))
    said = str(caught.value)
    assert "missing features.8.weight, top_layer.bias;" in said
    assert "unexpected features.20.weight;" in said
    assert "classifier.4.bias is (3,), not (4096,)" in said


@pytest.mark.parametrize("key", ["sobel.0.weight", "sobel.0.bias", "sobel.1.weight", "sobel.1.bias"])
def test_another_sobel_filter_is_an_error(key: str, tmp_path: Path) -> None:
    state = alexnet_state()
    state[key] = state[key] + 0.01
    with pytest.raises(UserError, match=f"{key} is not ours"):
        released.read(deepcluster(tmp_path, state_dict=state))


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> None:
    """VGG-16 with a narrow layer where fc6 is: fc6 and fc7 alone take half a gigabyte."""
    narrow = nn.Linear(VGG16.flat, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 4096)
    monkeypatch.setattr(VGG16, "make_classifier", staticmethod(lambda: nn.Sequential(*copy.deepcopy(narrow))))


def released_state(network: Backbone) -> dict[str, Tensor]:
    top = {"top_layer.weight": torch.randn(K, 4096), "top_layer.bias": torch.randn(K)}
    return uncounted(network.state_dict()) | top


@pytest.mark.parametrize(("arch", "how"), [("alexnet", SPELLINGS[0]), *(("vgg16", how) for how in SPELLINGS)])
def test_deepcluster_makes_a_round_trip(arch: str, how: str, thin: None, tmp_path: Path) -> None:
    network = lively(arch, sobel=True)
    state = spell(released_state(network), how)
    one = released.read(write(tmp_path / "checkpoint.pth.tar", {"epoch": 9, "arch": arch, "state_dict": state}))
    assert one.backbone == {"name": arch, "channels": 3, "sobel": True}
    assert one.method == ("deepercluster" if how == "DeeperCluster" else "deepcluster")
    assert (one.settings["k"], one.epoch, one.preprocessing.size) == (K, 9, 224)
    same_maps(one, network, tmp_path, 64)


def test_vgg16_has_the_released_shapes() -> None:
    """deepcluster.md 1.3; nothing is read, for the size."""
    shapes = {key: tuple(tensor.shape) for key, tensor in empty("vgg16", sobel=True).state_dict().items()}
    assert (shapes["features.0.weight"], shapes["features.40.weight"]) == ((64, 2, 3, 3), (512, 512, 3, 3))
    assert (shapes["classifier.0.weight"], shapes["classifier.3.weight"]) == ((4096, 25088), (4096, 4096))


def test_deepercluster_is_told_by_its_spelling_and_its_border_noted(thin: None, tmp_path: Path) -> None:
    state = spell(released_state(lively("vgg16", sobel=True)), "DeeperCluster")
    imported = released.bring(write(tmp_path / "x.pth", {"epoch": 100, "state_dict": state, "optimizer": {}}))
    one = imported.checkpoint
    assert one.name.startswith("deepercluster-vgg16-sobel-")
    assert "border" in one.source
    lines = {line.before: line.after for line in imported.lines}
    assert lines["module.body.features.0.weight"] == "backbone/features.0.weight"
    assert lines["module.body.sobel.0.weight"] == "backbone/sobel.0.weight"
    assert lines["module.pred_layer.weight"] == "head/top_layer.weight"
    assert lines["optimizer"] == "left out: no part of the network"
    assert set(state) <= set(lines)


def test_a_vgg16_without_sobel_sees_three_channels(thin: None, tmp_path: Path) -> None:
    network = lively("vgg16")
    state = spell(released_state(network), "features.module.")
    one = released.read(write(tmp_path / "x.pth.tar", {"arch": "vgg16", "state_dict": state}))
    assert one.backbone == {"name": "vgg16", "channels": 3, "sobel": False}
    same_maps(one, network, tmp_path, 32)


def test_other_architectures_are_named(tmp_path: Path) -> None:
    held = {"epoch": 1, "arch": "resnet50", "state_dict": {"top_layer.bias": torch.ones(3)}}
    with pytest.raises(UserError, match="is a resnet50, which DeepCluster has not"):
        released.read(write(tmp_path / "x.pth.tar", held))
    held["arch"] = "vgg16"
    with pytest.raises(UserError, match=r"does not fit vgg16: missing features\.0\.weight"):
        released.read(write(tmp_path / "x.pth.tar", held))


BLOCKS = {0: 0, 4: 2, 8: 4, 11: 5, 14: 6}  # convolutions' indices in `features` and in VISSL's _feature_blocks


def vissl_trunk(network: Backbone) -> dict[str, Tensor]:
    """As VISSL's converter writes DeepCluster's AlexNet: convolutions and batch norms alone."""
    state = network.state_dict()
    parts = ("weight", "bias", "running_mean", "running_var")
    return OrderedDict(
        (f"_feature_blocks.{block}.{offset}.{part}", state[f"features.{index + offset}.{part}"])
        for index, block in BLOCKS.items()
        for offset in (0, 1)
        for part in parts
        if f"features.{index + offset}.{part}" in state
    )


def test_vissls_copy_is_read(tmp_path: Path) -> None:
    network = lively("alexnet", sobel=True)
    trunk = vissl_trunk(network)
    assert len(trunk) == 30
    imported = released.bring(write(tmp_path / "deepcluster_alexnet_checkpoint.torch", {"model_state_dict": trunk}))
    one = imported.checkpoint
    assert (one.method, one.backbone) == ("deepcluster", {"name": "alexnet", "channels": 3, "sobel": True})
    assert "head" not in one.groups
    assert "only the conv layers can be used" in one.source
    lines = [str(line) for line in imported.lines]
    assert "_feature_blocks.5.1.running_var → backbone/features.12.running_var  384" in lines
    assert "(not in the file) → backbone/classifier.1.weight, filled in: NaN  4096 × 9216" in lines
    assert "(not in the file) → backbone/sobel.0.weight, filled in: VISSL's constant  1 × 3 × 1 × 1" in lines
    same_maps(one, network, tmp_path, 64)
    with torch.no_grad():  # what is not there is not made up
        assert one.build_backbone().embed(torch.zeros(1, 3, 224, 224)).isnan().all()


def test_a_training_of_vissl_is_read(tmp_path: Path) -> None:
    network = lively("alexnet", sobel=True)
    sobel = {key: tensor for key, tensor in network.state_dict().items() if key.startswith("sobel")}
    model = {"trunk": vissl_trunk(network) | sobel, "heads": {"0.clf.0.weight": torch.ones(2, 3)}}
    held = {"classy_state_dict": {"base_model": {"model": model}}, "iteration": 3}
    imported = released.bring(write(tmp_path / "x.torch", held))
    lines = [str(line) for line in imported.lines]
    assert "heads.0.clf.0.weight → left out: the head of VISSL's task  2 × 3" in lines
    assert "sobel.1.weight → backbone/sobel.1.weight  2 × 1 × 3 × 3" in lines
    weight = imported.checkpoint.groups["backbone"]["features.14.weight"]
    assert torch.equal(weight, network.state_dict()["features.14.weight"])


def test_vissls_other_networks_do_not_fit(tmp_path: Path) -> None:
    trunk = vissl_trunk(lively("alexnet", sobel=True))
    trunk["_feature_blocks.2.0.weight"] = torch.ones(256, 48, 5, 5)  # groups, as in the AlexNet of others
    with pytest.raises(UserError, match=r"features\.4\.weight is \(256, 48, 5, 5\), not \(256, 96, 5, 5\)"):
        released.read(write(tmp_path / "x.torch", {"model_state_dict": trunk}))
