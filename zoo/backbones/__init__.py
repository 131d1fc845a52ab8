"""The backbones, by name: a new one is a file with its table, and an entry here.

Networks of other libraries are `torchvision:NAME` and `timm:NAME`.
"""

from __future__ import annotations

from contextlib import suppress
from statistics import fmean
from typing import NoReturn

import torch

from results.errors import UserError, did_you_mean
from zoo.backbones import timm_models, torchvision_models
from zoo.backbones.alexnet import AlexNet
from zoo.backbones.alexnet32 import AlexNet32
from zoo.backbones.backbone import EMBEDDING, Backbone
from zoo.backbones.resnet import ResNet18, ResNet34, ResNet50
from zoo.backbones.small_vgg import SmallVGG
from zoo.backbones.vgg16 import VGG16
from zoo.preprocessing import Preprocessing

__all__ = [
    "BACKBONES",
    "EMBEDDING",
    "LIBRARIES",
    "SPELLED",
    "Backbone",
    "allocate",
    "build",
    "channels_for",
    "empty",
    "find",
    "standard_preprocessing",
]

OWN = (AlexNet, AlexNet32, VGG16, SmallVGG, ResNet18, ResNet34, ResNet50)
BACKBONES: dict[str, type[Backbone]] = {entry.name: entry for entry in OWN}
LIBRARIES = {module.PREFIX: module for module in (torchvision_models, timm_models)}
SPELLED = ", ".join([*BACKBONES, *(f"{library}:NAME" for library in LIBRARIES)])


def find(name: str) -> type[Backbone]:
    """The backbone class called `name`. UserError if there is none."""
    library, colon, model = name.partition(":")
    if colon and library in LIBRARIES:
        return LIBRARIES[library].find(model)
    if name not in BACKBONES:
        refuse(name)
    return BACKBONES[name]


def refuse(name: str) -> NoReturn:
    """UserError: no backbone has that name; perhaps a network of a library has it, or a similar one."""
    known = [*BACKBONES, *list_foreign()]
    same = [other for other in known if other.endswith(f":{name}")]
    if same:
        raise UserError(f"{name} is not among our own backbones; others have it", fix=" or ".join(same))
    raise UserError(f"{name} is not among the backbones{did_you_mean(name, known)}", fix=f"one of {SPELLED}")


def list_foreign() -> list[str]:
    """The names of other libraries' networks, as `find` takes them."""
    found = []
    for library, module in LIBRARIES.items():
        with suppress(UserError):  # timm is an extra
            found += [f"{library}:{model}" for model in module.names()]
    return found


def channels_for(name: str, dataset_channels: int) -> int:
    """The image channels a backbone takes for a data set: its own, or the data set's (MMDC's networks)."""
    backbone = find(name)
    return dataset_channels if backbone.follows_dataset else backbone.channels


def standard_preprocessing(name: str, channels: int | None = None) -> Preprocessing:
    """How a backbone takes its images where nothing else is said; `channels` as in `build`."""
    backbone = find(name)
    channels = backbone.channels if channels is None else channels
    mean, std = (
        values if len(values) == channels else (fmean(values),) * channels for values in (backbone.mean, backbone.std)
    )
    return Preprocessing(backbone.size, backbone.resize, channels, mean, std)


def empty(name: str, channels: int | None = None, sobel: bool = False) -> Backbone:
    """A backbone of names and shapes alone (torch's meta device): it takes no memory and draws nothing."""
    with torch.device("meta"):
        return find(name)(channels, sobel)


def allocate(name: str, channels: int | None = None, sobel: bool = False) -> Backbone:
    """A backbone on the CPU into which a state dict is to be loaded: its tensors have no values yet."""
    return find(name).allocate(channels, sobel)


def build(name: str, channels: int | None = None, sobel: bool = False, seed: int = 0) -> Backbone:
    """A new backbone on the CPU with the initial weights that `seed` gives, in training mode.

    channels: of the image; by default the backbone's own. The global generators of torch and numpy are not
    touched. UserError for an unknown name.
    """
    backbone = allocate(name, channels, sobel)
    backbone.draw(seed)
    return backbone
