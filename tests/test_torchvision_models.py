"""torchvision's classifiers as backbones: where their layers are, what they start from, what they refuse."""

from __future__ import annotations

import pytest
import torch
from networks import check_seed_decides, check_tables_come_back, hear, noise
from torch import Tensor, nn

from results.errors import UserError
from zoo.backbones import build, channels_for, empty, find, standard_preprocessing
from zoo.backbones.torchvision_models import Place, block_ends, locate, outline

models = pytest.importorskip("torchvision.models")

# module, channels and side of each layer's map at the default size; the embedding's dimension
STAGES = {
    "densenet121": (
        [
            ("features.relu0", 64, 112),
            ("features.denseblock1", 256, 56),
            ("features.denseblock2", 512, 28),
            ("features.denseblock3", 1024, 14),
            ("features", 1024, 7),
        ],
        1024,
    ),
    "resnet50": (
        [("relu", 64, 112), ("layer1", 256, 56), ("layer2", 512, 28), ("layer3", 1024, 14), ("layer4", 2048, 7)],
        2048,
    ),
    "mobilenet_v3_small": (
        [
            ("features.0", 16, 112),
            ("features.1", 16, 56),
            ("features.3", 24, 28),
            ("features.8", 48, 14),
            ("features", 576, 7),
        ],
        1024,
    ),
    "squeezenet1_1": (
        [("features.1", 64, 111), ("features.4", 128, 55), ("features.7", 256, 27), ("classifier.2", 512, 13)],
        512,
    ),
    "convnext_tiny": (
        [("features.1", 96, 56), ("features.3", 192, 28), ("features.5", 384, 14), ("features", 768, 7)],
        768,
    ),
    "swin_t": (
        [("features.1", 96, 56), ("features.3", 192, 28), ("features.5", 384, 14), ("permute", 768, 7)],
        768,
    ),
    "regnet_x_400mf": (
        [
            ("stem", 32, 112),
            ("trunk_output.block1", 32, 56),
            ("trunk_output.block2", 64, 28),
            ("trunk_output.block3", 160, 14),
            ("trunk_output", 400, 7),
        ],
        400,
    ),
    "vit_b_16": ([], 768),
}
SMALL = ["densenet121", "mobilenet_v3_small", "squeezenet1_1"]  # these are run


@pytest.mark.parametrize("sobel", [False, True])
@pytest.mark.parametrize("model", STAGES)
def test_layers_are_the_last_maps_of_each_resolution(model: str, sobel: bool) -> None:
    stages, dim = STAGES[model]
    backbone = empty(f"torchvision:{model}", sobel=sobel).eval()
    assert backbone.layers == tuple(f"stage{i + 1}" for i in range(len(stages)))
    assert [backbone.places[layer].path for layer in backbone.layers] == [path for path, _, _ in stages]
    x = torch.empty(2, 3, backbone.size, backbone.size, device="meta")
    maps = backbone(x, [*backbone.layers, "embedding"])
    assert [tuple(maps[layer].shape) for layer in backbone.layers] == [(2, c, side, side) for _, c, side in stages]
    assert maps["embedding"].shape == (2, dim)
    assert backbone.embedding_dim == dim


@pytest.mark.parametrize("model", SMALL)
def test_maps_and_embedding_are_those_of_torchvisions_own_network(model: str) -> None:
    ours = build(f"torchvision:{model}", seed=0).eval()
    theirs = models.get_model(model, weights=None).eval()
    state = {key.removeprefix("net."): tensor for key, tensor in ours.state_dict().items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    head = {key.rpartition(".")[0] for key in missing}
    assert len(head) == 1  # the classifier's last layer
    seen = {}
    theirs.get_submodule(*head).register_forward_hook(lambda module, inputs, output: seen.update(head=inputs[0]))
    path = ours.places["stage2"].path
    theirs.get_submodule(path).register_forward_hook(lambda module, inputs, output: seen.update(map=output.clone()))
    with torch.no_grad():
        theirs(noise(64))
        found = ours(noise(64), ["stage2", "embedding"])
    assert torch.equal(found["stage2"], seen["map"])
    before = seen["head"]
    before = before.relu().mean((2, 3)) if before.ndim == 4 else before  # SqueezeNet ends in a convolution
    torch.testing.assert_close(found["embedding"], before)


@pytest.mark.parametrize("model", SMALL)
def test_a_map_does_not_depend_on_what_else_is_asked_for(model: str) -> None:
    """DenseNet's last map is changed in place by the ReLU after it."""
    backbone = build(f"torchvision:{model}", seed=0).eval()
    names = [*backbone.layers, "embedding"]
    with torch.no_grad():
        together = backbone(noise(64), names)
        for layer in names:
            assert torch.equal(backbone(noise(64), [layer])[layer], together[layer])
    assert all(torch.isfinite(x).all() and x.std() > 1e-4 for x in together.values())
    assert list(backbone(noise(64), names[::-1])) == names[::-1]
    assert backbone(noise(64), []) == {}


def test_nothing_deeper_than_the_deepest_layer_is_computed() -> None:
    backbone = empty("torchvision:densenet121").eval()
    ran = hear(backbone)
    backbone(torch.empty(1, 3, 64, 64, device="meta"), ["stage2", "stage1"])
    assert ran[-1] == "features.denseblock1"
    assert not any(path.startswith("features.transition1") for path in ran)
    hooks = sum(len(module._forward_hooks) for module in backbone.net.modules())
    assert hooks == len(list(backbone.net.modules()))  # ours are gone


def test_maps_in_the_order_of_transformers_are_turned() -> None:
    backbone = empty("torchvision:swin_t").eval()
    assert backbone.places["stage1"].channels_last
    assert not backbone.places["stage4"].channels_last
    maps = backbone(torch.empty(1, 3, 224, 256, device="meta"), ["stage1", "stage4"])
    assert [tuple(x.shape) for x in maps.values()] == [(1, 96, 56, 64), (1, 768, 7, 8)]


def test_the_rule_on_a_network_made_up() -> None:
    """A block that strides inside counts with its output; one that passes through three resolutions is opened."""

    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            stride = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, padding=1))
            self.body = nn.Sequential(stride, nn.ReLU(), nn.MaxPool2d(2), nn.ReLU(), nn.MaxPool2d(2))
            self.shared = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(self.body(self.shared(x))).mean((2, 3))

    places, dim = outline(Made(), torch.zeros(2, 3, 32, 32))
    assert places == [Place("body.1", 16, False), Place("body.3", 8, False), Place("body", 4, False)]
    assert dim == 4


def test_one_map_alone_is_no_layer() -> None:
    places, dim = outline(nn.Sequential(nn.Conv2d(3, 5, 4, 4), nn.AdaptiveAvgPool2d(1)), torch.zeros(2, 3, 32, 32))
    assert (places, dim) == ([], 5)


@pytest.mark.parametrize(
    ("shape", "place"),
    [
        ((2, 8, 7, 7), Place("x", 7, False)),
        ((2, 7, 7, 8), Place("x", 7, True)),
        ((2, 7, 7, 7), Place("x", 7, False)),
        ((2, 8, 1, 1), None),
        ((2, 8, 7, 5), None),
        ((2, 8), None),
    ],
)
def test_a_map_is_told_by_its_shape(shape: tuple[int, ...], place: Place | None) -> None:
    assert locate("x", torch.zeros(shape)) == place
    assert locate("x", [torch.zeros(shape)]) is None


def test_what_is_inside_a_block_does_not_count() -> None:
    places = [Place("a.one", 8, False), Place("a", 4, False), Place("ab", 4, False)]
    assert block_ends(places) == places[1:]


@pytest.mark.parametrize("model", ["mobilenet_v3_small", "swin_t", "regnet_x_400mf"])
def test_the_seed_alone_decides_every_value(model: str) -> None:
    check_seed_decides(f"torchvision:{model}")


def test_initial_values_are_as_wide_as_he_and_the_library_say() -> None:
    model = build("torchvision:swin_t", seed=0)
    state = {key.removeprefix("net."): tensor for key, tensor in model.state_dict().items()}
    stem, linear = state["features.0.0.weight"], state["features.1.0.mlp.0.weight"]
    assert stem.std().item() == pytest.approx((2 / 48) ** 0.5, rel=0.05)
    assert linear.std().item() == pytest.approx(0.02, rel=0.05)
    table = state["features.1.0.attn.relative_position_bias_table"]
    assert table.std().item() == pytest.approx(0.02, rel=0.15)
    assert (state["features.1.0.norm1.weight"] == 1).all()
    index = state["features.1.0.attn.relative_position_index"]
    assert (index.min(), index.max()) == (0, 168)  # (2 · 7 - 1)² - 1: counted, not drawn


def test_tensors_that_come_from_a_checkpoint_are_all_that_is_needed() -> None:
    """`allocate` and a state dict give the network: what no state dict holds is there."""
    check_tables_come_back("torchvision:swin_t")


@pytest.mark.parametrize(("channels", "sobel", "inputs"), [(1, False, 1), (4, False, 4), (3, True, 2), (1, True, 2)])
@pytest.mark.parametrize("model", SMALL)
def test_the_first_convolution_takes_the_images_channels_or_sobels(
    model: str, channels: int, sobel: bool, inputs: int
) -> None:
    backbone = empty(f"torchvision:{model}", channels=channels, sobel=sobel).eval()
    first = next(module for module in backbone.net.modules() if isinstance(module, nn.Conv2d))
    assert first.weight.shape[1] == first.in_channels == inputs
    assert backbone.embed(torch.empty(2, channels, 64, 64, device="meta")).shape == (2, backbone.embedding_dim)
    assert backbone.arguments == {"name": f"torchvision:{model}", "channels": channels, "sobel": sobel}


@pytest.mark.parametrize(
    ("model", "size", "resize"),
    [("densenet121", 224, 256), ("inception_v3", 299, 342), ("efficientnet_b1", 240, 256), ("vit_h_14", 224, 224)],
)
def test_preprocessing_is_that_of_the_first_published_weights(model: str, size: int, resize: int) -> None:
    standard = standard_preprocessing(f"torchvision:{model}")
    assert (standard.size, standard.resize, standard.channels) == (size, resize, 3)
    assert standard.mean == (0.485, 0.456, 0.406)
    assert standard.std == (0.229, 0.224, 0.225)
    assert channels_for(f"torchvision:{model}", 1) == 3


def test_googlenet_has_no_extra_classifiers() -> None:
    assert not any("aux" in key for key in empty("torchvision:googlenet").state_dict())


def test_an_unknown_name_is_an_error_that_names_a_near_one() -> None:
    with pytest.raises(UserError, match=r"no network densenet12 \(did you mean 'torchvision:densenet121'\?\)"):
        find("torchvision:densenet12")
    with pytest.raises(UserError, match=r"no network fasterrcnn_resnet50_fpn") as caught:
        find("torchvision:fasterrcnn_resnet50_fpn")
    assert "list_models" in caught.value.fix
    with pytest.raises(UserError, match="'torchvision:' does not say which network of torchvision") as caught:
        find("torchvision:")
    assert caught.value.fix.startswith("torchvision:NAME; the names: python -c 'from torchvision import models; print(")
    with pytest.raises(UserError, match=r"torchvison:alexnet is .* \(did you mean 'torchvision:alexnet'\?\)") as caught:
        find("torchvison:alexnet")
    assert "torchvision:NAME" in caught.value.fix


def test_an_unknown_layer_and_an_odd_size_are_errors() -> None:
    backbone = empty("torchvision:vit_b_16").eval()
    with pytest.raises(UserError, match="has no layer 'stage1'") as caught:
        backbone(torch.empty(1, 3, 224, 224, device="meta"), ["stage1"])
    assert caught.value.fix == "embedding"
    with pytest.raises(UserError, match="vit_b_16 takes no images of 256 × 256 px") as caught:
        backbone(torch.empty(1, 3, 256, 256, device="meta"), ["embedding"])
    assert caught.value.fix == "a size of 224"
    small = empty("torchvision:inception_v3").eval()
    with pytest.raises(UserError, match="takes no images of 74 × 74 px"):
        small(torch.empty(1, 3, 74, 74, device="meta"), ["stage1"])
    assert small(torch.empty(1, 3, 75, 80, device="meta"), ["stage1"])["stage1"].shape == (1, 32, 37, 39)


def test_gradients_reach_the_first_convolution() -> None:
    backbone = build("torchvision:mobilenet_v3_small", sobel=True, seed=0)
    maps = backbone(noise(64), ["stage3", "embedding"])
    (maps["stage3"].square().mean() + maps["embedding"].square().mean()).backward()
    first = next(module for module in backbone.net.modules() if isinstance(module, nn.Conv2d))
    assert first.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in backbone.sobel.parameters())


def test_a_network_that_cannot_be_built_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args, **kwargs):
        raise ValueError("three is too many\nand more")

    monkeypatch.setattr(models, "get_model", broken)
    with pytest.raises(
        UserError,
        match=r"mnasnet1_3 cannot be taken as a backbone: three is too many\n  try: another network of torchvision$",
    ):
        find("torchvision:mnasnet1_3")
