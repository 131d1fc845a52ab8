"""timm's networks as backbones: layers as timm gives them, the same numbers as timm's own, nothing downloaded."""

from __future__ import annotations

import socket

import pytest
import torch
from networks import check_seed_decides, check_tables_come_back, hear, noise
from torch import nn

from results.errors import UserError
from zoo.backbones import build, channels_for, empty, find, standard_preprocessing
from zoo.checkpoint import Checkpoint, resolve

# channels and side of the layers' maps at the default size; the embedding's dimension; size and resize
NETWORKS = {
    "resnet10t": ([(64, 88), (64, 44), (128, 22), (256, 11), (512, 6)], 512, 176, 201),
    "convnext_atto": ([(40, 56), (80, 28), (160, 14), (320, 7)], 320, 224, 256),
    "vit_tiny_patch16_224": ([(192, 14)] * 12, 192, 224, 248),
    "mobilenetv3_small_050": ([(16, 112), (8, 56), (16, 28), (24, 14), (288, 7)], 1024, 224, 256),
}


@pytest.fixture(autouse=True)
def timm(monkeypatch: pytest.MonkeyPatch):
    """timm itself, with no way to the network."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("a connection is opened")

    module = pytest.importorskip("timm")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return module


@pytest.mark.parametrize("sobel", [False, True])
@pytest.mark.parametrize("model", NETWORKS)
def test_layers_are_timms_intermediate_maps(model: str, sobel: bool) -> None:
    stages, dim, size, resize = NETWORKS[model]
    backbone = empty(f"timm:{model}", sobel=sobel).eval()
    assert (backbone.size, backbone.resize) == (size, resize)
    assert backbone.layers == tuple(f"stage{i + 1}" for i in range(len(stages)))
    maps = backbone(torch.empty(2, 3, size, size, device="meta"), [*backbone.layers, "embedding"])
    assert [tuple(maps[layer].shape) for layer in backbone.layers] == [(2, c, side, side) for c, side in stages]
    assert maps["embedding"].shape == (2, dim)
    assert backbone.embedding_dim == dim


@pytest.mark.parametrize("model", NETWORKS)
def test_maps_and_embedding_are_those_of_timms_own_network(model: str, timm) -> None:
    ours = build(f"timm:{model}", seed=0).eval()
    theirs = timm.create_model(model, pretrained=False).eval()
    state = {key.removeprefix("net."): tensor for key, tensor in ours.state_dict().items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert {key.rpartition(".")[0] for key in missing} == {theirs.default_cfg["classifier"]}
    x = noise(ours.size)
    with torch.no_grad():
        found = ours(x, [*ours.layers, "embedding"])
        maps = theirs.forward_intermediates(x, intermediates_only=True)
        embedding = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
        torch.testing.assert_close(found["embedding"], embedding)
        for layer, expected in zip(ours.layers, maps, strict=True):
            assert torch.equal(found[layer], expected)
            assert torch.equal(ours(x, [layer])[layer], expected)
        assert torch.equal(ours.embed(x), found["embedding"])
        assert list(ours(x, ["embedding", "stage2", "stage1"])) == ["embedding", "stage2", "stage1"]
    assert all(torch.isfinite(map).all() and map.std() > 1e-4 for map in found.values())


def test_nothing_deeper_than_the_deepest_layer_is_computed() -> None:
    backbone = empty("timm:convnext_atto").eval()
    ran = hear(backbone)
    backbone(torch.empty(1, 3, 64, 64, device="meta"), ["stage2", "stage1"])
    assert ran[-1] == "stages.1"
    assert not any(path.startswith("stages.2") for path in ran)


@pytest.mark.parametrize("model", NETWORKS)
def test_the_seed_alone_decides_every_value(model: str) -> None:
    check_seed_decides(f"timm:{model}")


def test_tables_that_no_state_dict_holds_are_there() -> None:
    """Swin's shifts and positions are buffers that timm does not save."""
    name = "timm:swin_tiny_patch4_window7_224"
    model = empty(name)
    lost = {key for key, _ in model.named_buffers()} - set(model.state_dict())
    assert any(key.endswith("relative_position_index") for key in lost)
    check_tables_come_back(name)


@pytest.mark.parametrize(("channels", "sobel", "inputs"), [(1, False, 1), (4, False, 4), (3, True, 2), (1, True, 2)])
def test_the_first_convolution_takes_the_images_channels_or_sobels(channels: int, sobel: bool, inputs: int) -> None:
    backbone = empty("timm:resnet10t", channels=channels, sobel=sobel).eval()
    first = next(module for module in backbone.net.modules() if isinstance(module, nn.Conv2d))
    assert first.weight.shape[1] == inputs
    assert backbone.embed(torch.empty(2, channels, 64, 64, device="meta")).shape == (2, 512)


def test_a_name_may_have_the_tag_of_its_weights() -> None:
    plain, tagged = find("timm:vit_base_patch16_224"), find("timm:vit_base_patch16_224.augreg_in21k")
    assert plain.embedding_dim == tagged.embedding_dim == 768
    assert tagged.name == "timm:vit_base_patch16_224.augreg_in21k"
    standard = standard_preprocessing("timm:vit_base_patch16_clip_224.openai")
    assert standard.mean[0] == pytest.approx(0.4815, abs=1e-3)
    assert channels_for("timm:resnet10t", 1) == 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:resnet10", r"timm has no network resnet10 \(did you mean 'timm:resnet10t'\?\)"),
        ("timm:resnet10t.none", r"timm has no network resnet10t.none \(did you mean 'timm:resnet10t'\?\)"),
        ("timm:hf-hub:timm/resnet10t.c3_in1k", "timm has no network hf-hub"),
        ("timm:", "'timm:' does not say which network of timm"),
    ],
)
def test_an_unknown_name_is_an_error(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        find(name)
    assert caught.value.fix == "timm:NAME; the names: python -c 'import timm; print(*timm.list_models())'"
    with pytest.raises(UserError, match=said):
        resolve(f"random-{name}@0")


def test_a_size_that_the_network_does_not_take_is_an_error() -> None:
    with pytest.raises(UserError, match="vit_tiny_patch16_224 takes no images of 64 × 64 px") as caught:
        empty("timm:vit_tiny_patch16_224").embed(torch.empty(1, 3, 64, 64, device="meta"))
    assert caught.value.fix == "a size of 224"


def test_a_network_that_no_shapes_can_be_told_of_is_an_error(timm, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args, **kwargs):
        raise ValueError("no such width")

    monkeypatch.setattr(timm, "create_model", broken)
    with pytest.raises(UserError, match="timm:resnet14t cannot be taken as a backbone: no such width"):
        find("timm:resnet14t")


def test_a_checkpoint_comes_back_to_the_bit(tmp_path) -> None:
    one = resolve("random-timm:resnet10t.c3_in1k-sobel@3")
    one.save(tmp_path / f"{one.name}.safetensors")
    again = Checkpoint.load(tmp_path / "random-timm:resnet10t.c3_in1k-sobel@3.safetensors")
    assert again.sha256 == one.sha256
    assert again.backbone == {"name": "timm:resnet10t.c3_in1k", "channels": 3, "sobel": True}
    with torch.no_grad():
        assert torch.equal(again.build_backbone().embed(noise(64)), one.build_backbone().embed(noise(64)))
