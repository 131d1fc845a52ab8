"""Backbones for tests: with initial weights and moved statistics, made once; and images for them."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from zoo.backbones import build

SMALL = ["alexnet32", "small_vgg"]


@cache
def built(name: str):
    """A backbone with Sobel, in eval mode, whose running statistics are not the identity; made once."""
    model = build(name, sobel=True, seed=3)
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def images(model: nn.Module, n: int = 2, device: str = "cpu") -> Tensor:
    """n random images at the backbone's default size; on the CPU no larger than the small ones of 64 px."""
    if device == "meta":
        return torch.empty(n, model.channels, model.size, model.size, device=device)
    generator = torch.Generator().manual_seed(1)
    side = min(model.size, 64)
    return torch.randn(n, model.channels, side, side, generator=generator)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
