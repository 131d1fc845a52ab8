"""timm's networks as backbones: layers as timm gives them, the same numbers as timm's own, nothing downloaded."""

from __future__ import annotations

import socket

import pytest
import torch
from torch import Tensor, nn

from results.errors import UserError
from zoo.backbones import allocate, build, channels_for, empty, find, standard_preprocessing
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


def images(side: int, channels: int = 3, n: int = 2) -> Tensor:
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(1))


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
    x = images(ours.size)
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
    ran = []
    for path, module in backbone.net.named_modules():
        module.register_forward_hook(lambda module, inputs, output, path=path: ran.append(path))
    backbone(torch.empty(1, 3, 64, 64, device="meta"), ["stage2", "stage1"])
    assert ran[-1] == "stages.1"
    assert not any(path.startswith("stages.2") for path in ran)


@pytest.mark.parametrize("model", NETWORKS)
def test_the_seed_alone_decides_every_value(model: str) -> None:
    before = torch.get_rng_state()
    first, other = build(f"timm:{model}", sobel=True, seed=5), build(f"timm:{model}", sobel=True, seed=6)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = build(f"timm:{model}", sobel=True, seed=5)
    tables = [dict([*one.named_parameters(), *one.named_buffers()]) for one in (first, second, other)]
    for key, tensor in tables[0].items():
        assert torch.isfinite(tensor).all(), key
        assert torch.equal(tensor, tables[1][key]), key
        constant = (tensor == tensor.flatten()[0]).all() or "sobel" in key
        assert torch.equal(tensor, tables[2][key]) == bool(constant), key


def test_tables_that_no_state_dict_holds_are_there() -> None:
    """Swin's shifts and positions are buffers that timm does not save."""
    first = build("timm:swin_tiny_patch4_window7_224", seed=0).eval()
    lost = {key for key, _ in first.named_buffers()} - set(first.state_dict())
    assert any(key.endswith("relative_position_index") for key in lost)
    again = allocate(**first.arguments).eval()
    again.load_state_dict(first.state_dict())
    buffers = dict(again.named_buffers())
    assert all(torch.equal(buffer, buffers[key]) for key, buffer in first.named_buffers())


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
        ("timm:", "timm has no network"),
    ],
)
def test_an_unknown_name_is_an_error(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        find(name)
    assert "list_models" in caught.value.fix
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
        assert torch.equal(again.build_backbone().embed(images(64)), one.build_backbone().embed(images(64)))
