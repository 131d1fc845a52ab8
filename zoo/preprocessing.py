"""How a checkpoint wants its images: side, channels, mean and standard deviation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from results.errors import UserError


@dataclass(frozen=True)
class Preprocessing:
    """An image's way into a network: shorter side to `resize`, centre crop of `size`, then `normalise`.

    size, resize: pixels. mean, std: of pixels in [0, 1], one value a channel, or one for all.
    """

    size: int
    resize: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        # JSON and the command line give lists, and a frozen class should hash
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        object.__setattr__(self, "std", tuple(map(float, self.std)))
        for values in (self.mean, self.std):
            if len(values) not in (1, self.channels):
                raise ValueError(f"{len(values)} values of mean or std for {self.channels} channels")

    def normalise(self, pixels: Tensor) -> Tensor:
        """(pixels / 255 - mean) / std in float32, (…, channels, h, w), on the device of `pixels`.

        pixels: (…, C, h, w), uint8 or float in 0 … 255. One channel is repeated, several are averaged into
        one; any other change is a UserError. The arithmetic is torchvision's ToTensor and Normalize.
        """
        x = adapt(pixels.to(torch.float32, copy=True).div_(255), self.channels)
        if any(self.mean):
            x.sub_(column(self.mean, x.device))
        if any(value != 1 for value in self.std):
            x.div_(column(self.std, x.device))
        return x


def adapt(x: Tensor, channels: int) -> Tensor:
    """The images (…, C, h, w) with `channels` channels: repeated from one, or averaged into one."""
    given = x.shape[-3]
    if given == channels:
        return x
    if channels == 1:
        return x.mean(-3, keepdim=True)
    if given == 1:
        return x.expand(*x.shape[:-3], channels, *x.shape[-2:]).contiguous()
    raise UserError(f"images of {given} channels for a network of {channels}", fix="images in grey or RGB")


@cache
def column(values: tuple[float, ...], device: Any) -> Tensor:
    """The values as a tensor (C, 1, 1), made once a device: a copy to a GPU would wait for it."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)[:, None, None]
