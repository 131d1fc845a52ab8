"""MMDC's model.pt, of its small VGG and its ResNets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from releases import FORMATS, K, mmdc, mmdc_network, same_maps

from results.errors import UserError
from zoo import released
from zoo.backbones import build
from zoo.checkpoint import Checkpoint, resolve
from zoo.renaming import Line


@FORMATS
def test_both_of_torchs_formats_are_read_alike(zipped: bool, tmp_path: Path) -> None:
    network = mmdc_network()
    one = released.read(mmdc(tmp_path, network, zipped))
    assert all(torch.equal(one.groups["backbone"][key], network.state_dict()[key]) for key in one.groups["backbone"])
    assert one.sha256 == resolve(str(tmp_path / "model.pt")).sha256


def test_an_imported_checkpoint_is_saved_and_works(tmp_path: Path) -> None:
    one = released.read(mmdc(tmp_path, mmdc_network()))
    one.save(tmp_path / "ours.safetensors")
    again = Checkpoint.load(tmp_path / "ours.safetensors")
    assert (again.sha256, again.recipe, again.source) == (one.sha256, one.recipe, one.source)
    assert one.source.startswith("imported from model.pt (sha256 ")
    assert str(tmp_path) not in one.source
    x = torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        features = mmdc_network().eval().features
        features.load_state_dict({key.removeprefix("features."): t for key, t in one.groups["backbone"].items()})
        assert torch.equal(again.build_backbone().embed(x), features(x).flatten(1))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("channels", [1, 3])
def test_mmdc_is_read(channels: int, prefix: str, tmp_path: Path) -> None:
    network = mmdc_network(channels, ("top_layer", "rotnet_head"))
    path = mmdc(tmp_path, network, prefix=prefix)
    one = released.read(path)
    assert (one.method, one.epoch, one.seed, one.dataset) == ("mmdc", 50, None, None)  # 49 is the last, from 0
    assert one.backbone == {"name": "small_vgg", "channels": channels, "sobel": False}
    assert one.settings["k"] == K
    assert set(one.groups["head"]) == {f"{h}.{k}" for h in ("top_layer", "rotnet_head") for k in ("weight", "bias")}
    flat = one.groups["backbone"] | one.groups["head"]
    assert set(flat) == set(network.state_dict())
    assert all(torch.equal(flat[key], tensor) for key, tensor in network.state_dict().items())
    assert torch.equal(one.groups["clustering"]["means"], torch.eye(K))
    assert one.groups["clustering"]["sizes"].sum() == 50


def test_mmdc_sees_the_crop_that_it_was_evaluated_on(tmp_path: Path) -> None:
    grey = released.read(mmdc(tmp_path, mmdc_network(1))).preprocessing
    assert (grey.size, grey.channels, grey.mean, grey.std) == (32, 1, (0.0,), (1.0,))
    assert round(28 * grey.size / grey.resize) == 24
    colour = released.read(mmdc(tmp_path, mmdc_network(3))).preprocessing
    assert (colour.size, colour.channels) == (32, 3)
    assert round(32 * colour.size / colour.resize) == 20


@pytest.mark.parametrize("targets", [np.full((4, K), K**-0.5), None, np.zeros((3, K)), np.ones(4)])
def test_targets_that_are_not_one_hot_leave_no_means(targets: object, tmp_path: Path) -> None:
    one = released.read(mmdc(tmp_path, mmdc_network(), targets=targets))
    assert "clustering" not in one.groups
    assert "means" in one.source


def test_arrays_under_numpy_1s_name_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy 1 pickled `numpy.core.multiarray._reconstruct`: the legacy format lets us rewrite the name."""
    path = mmdc(tmp_path, mmdc_network(), zipped=False)
    data = path.read_bytes()
    assert b"cnumpy._core.multiarray\n_reconstruct" in data
    path.write_bytes(data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert "means" in released.read(path).groups["clustering"]


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    network = mmdc_network()
    network.features[1].running_var[3] = float("nan")
    with pytest.raises(UserError, match=r"no usable small_vgg: not finite: features\.1\.running_var\n"):
        released.read(mmdc(tmp_path, network))
    for parameter in network.parameters():
        parameter.data.fill_(float("inf"))
    with pytest.raises(UserError, match=r"not finite: features\.0\.weight, \S+, \S+ and 12 more\n") as caught:
        released.read(mmdc(tmp_path, network))
    assert caught.value.fix.startswith("a released file of")


@pytest.mark.parametrize(("name", "keys"), [("resnet18", 124), ("resnet34", 220)])
def test_the_resnets_with_rotation_head_make_a_round_trip(name: str, keys: int, tmp_path: Path) -> None:
    network = mmdc_network(3, ("top_layer", "rotnet_head"), name)
    assert len(network.state_dict()) == keys  # mmdc.md 1.8, for resnet18
    path = mmdc(tmp_path, network, prefix="module.")
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    imported = released.bring(path)
    one = imported.checkpoint
    assert (one.method, one.backbone) == ("mmdc", {"name": name, "channels": 3, "sobel": False})
    assert (one.settings["k"], one.epoch) == (K, 50)
    flat = one.groups["backbone"] | one.groups["head"]
    assert set(flat) == set(state)
    assert all(torch.equal(flat[key], tensor) for key, tensor in state.items())
    assert "STL-10" in one.source
    original = build(name, channels=3)
    original.load_state_dict(one.groups["backbone"])
    same_maps(one, original.eval(), tmp_path, 32)


def test_the_map_names_every_entry_of_the_file(tmp_path: Path) -> None:
    path = mmdc(tmp_path, mmdc_network(), prefix="module.")
    lines = {line.before: str(line) for line in released.bring(path).lines}
    assert lines["module.features.0.weight"] == "module.features.0.weight → backbone/features.0.weight  32 × 1 × 3 × 3"
    assert lines["module.top_layer.bias"].endswith(f"→ head/top_layer.bias  {K}")
    assert lines["targets"] == "targets → clustering/means, clustering/sizes"
    assert lines["optimizer_state_dict"] == "optimizer_state_dict → left out: no part of the network"
    assert "epoch" not in lines
    path = mmdc(tmp_path, mmdc_network(), targets=None)
    assert Line("targets", "left out: no part of the network") in released.bring(path).lines


def test_a_resnet_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    network = mmdc_network(3, name="resnet18")
    state = network.state_dict() | {"layer1.0.extra": torch.ones(1)}
    del state["layer4.1.bn2.bias"]
    with pytest.raises(UserError, match=r"does not fit resnet18: missing layer4\.1\.bn2\.bias; unexpected layer1"):
        released.read(mmdc(tmp_path, network, model_state_dict=state))
