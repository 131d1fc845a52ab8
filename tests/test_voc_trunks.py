"""The trunk inside each model that is fine-tuned computes what the plain backbone computes, as it is when it learns."""

import pytest
import torch
from networks import lively, noise
from torchvision.models.detection.image_list import ImageList

from transfer.detection.model import Detector
from transfer.fcn import Fcn
from transfer.finetuning import train
from transfer.voc_classification import Classifier

TRUNKS = {
    "alexnet32": ("alexnet32", False),
    "alexnet32-sobel": ("alexnet32", True),
    "small_vgg": ("small_vgg", False),
    "resnet18": ("resnet18", False),
}


def maps_in(model, compute):
    """The map of each layer of the model's trunk while `compute` runs; a layer that is not run has none."""
    maps, hooks = {}, []
    for module, layer in model.backbone.links():
        if layer is not None:

            def keep(module, inputs, output, layer=layer):
                maps[layer] = output.clone()

            hooks.append(module.register_forward_hook(keep))
    with torch.no_grad():
        compute()
    for hook in hooks:
        hook.remove()
    return maps


def classifier(backbone, x):
    model = Classifier(backbone, 3, 0)
    train(model)
    return maps_in(model, lambda: model(x))


def fcn(backbone, x):
    """Of a ResNet, whose res4 and res5 keep the resolution of res3, the cells that it had."""
    model = Fcn(backbone, 3, 0)
    train(model)
    maps = maps_in(model, lambda: model(x))
    return maps | {
        layer: maps[layer][..., ::step, ::step] for layer, step in (("res4", 2), ("res5", 4)) if layer in maps
    }


def detector(backbone, x):
    """Of a ResNet up to res4: res5 sees regions."""
    model = Detector(backbone, 3, 0, (16,), 20, 4)
    train(model)
    targets = [{"boxes": torch.tensor([[4.0, 4, 20, 24]]), "labels": torch.tensor([2])} for _ in x]
    maps = maps_in(model, lambda: model(ImageList(x, [(x.shape[-2], x.shape[-1])] * len(x)), [], targets))
    maps.pop("res5", None)
    return maps


@pytest.mark.parametrize("trunk_of", [classifier, fcn, detector])
@pytest.mark.parametrize("name", TRUNKS)
def test_the_trunks_activations_are_the_plain_backbones(name, trunk_of):
    kind, sobel = TRUNKS[name]
    backbone = lively(kind, sobel=sobel)
    x = noise(backbone.size, backbone.channels)
    with torch.no_grad():
        wanted = backbone(x, backbone.layers)
    found = trunk_of(backbone, x)
    missing = {"res5"} if (trunk_of, name) == (detector, "resnet18") else set()
    assert found.keys() == set(backbone.layers) - missing
    for layer, values in found.items():
        assert wanted[layer].std() > 0.01
        assert (values - wanted[layer]).abs().max() <= 1e-5 * wanted[layer].abs().max(), layer
