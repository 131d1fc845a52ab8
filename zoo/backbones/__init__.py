"""The backbones, by name: a new one is a file with its table, and an entry here."""

from __future__ import annotations

from statistics import fmean

import torch

from results.errors import UserError, did_you_mean
from zoo.backbones.alexnet import AlexNet
from zoo.backbones.alexnet32 import AlexNet32
from zoo.backbones.backbone import EMBEDDING, Backbone
from zoo.backbones.small_vgg import SmallVGG
from zoo.preprocessing import Preprocessing

__all__ = [
    "BACKBONES",
    "EMBEDDING",
    "Backbone",
    "build",
    "channels_for",
    "empty",
    "find",
    "standard_preprocessing",
]

BACKBONES: dict[str, type[Backbone]] = {entry.name: entry for entry in (AlexNet, AlexNet32, SmallVGG)}


def find(name: str) -> type[Backbone]:
    """The backbone class called `name`. UserError if there is none."""
    if name not in BACKBONES:
        known = ", ".join(BACKBONES)
        raise UserError(f"{name} is not among the backbones{did_you_mean(name, BACKBONES)}", fix=f"one of {known}")
    return BACKBONES[name]


def channels_for(name: str, dataset_channels: int) -> int:
    """The image channels a backbone takes for a data set: its own, or the data set's (small_vgg)."""
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


def build(name: str, channels: int | None = None, sobel: bool = False, seed: int = 0) -> Backbone:
    """A new backbone on the CPU with the initial weights that `seed` gives, in training mode.

    channels: of the image; by default the backbone's own. The global generators of torch and numpy are not
    touched. UserError for an unknown name.
    """
    backbone = empty(name, channels, sobel).to_empty(device="cpu")
    backbone.draw(seed)
    return backbone
