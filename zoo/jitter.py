"""MMDC's colour augmentation on a batch (mmdc.md 1.7): the four changes of ColorJitter, and random grey.

Pillow's definitions, with a factor and an order of its own for each image; computed in float and rounded
once, at the end (Pillow rounds after each change, and keeps the hue in 256 steps).
"""

from __future__ import annotations

import torch
from torch import Tensor

STRENGTH, HUE, GREY = 0.4, 0.125, 0.2  # factors 1 ± .4; hue ± 1/8 of the circle; one image in five turns grey


def jitter(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 (B, 3 or 1, H, W) with brightness, contrast, saturation and hue changed, then perhaps grey."""
    count, channels = pixels.shape[:2]
    order = torch.rand(count, 4, generator=generator).argsort(1).to(pixels.device)
    amount = (2 * torch.rand(count, 4, generator=generator) - 1).to(pixels.device)
    grey = (torch.rand(count, generator=generator) < GREY).to(pixels.device)
    x = pixels.float().expand(-1, 3, -1, -1).clone()
    for turn in range(4):
        for number, change in enumerate((brightness, contrast, saturation, hue)):
            rows = (order[:, turn] == number).nonzero()[:, 0]
            x[rows] = change(x[rows], amount[rows, number, None, None, None])
    x = torch.where(grey[:, None, None, None], luminance(x), x)
    return x[:, :channels].round().to(torch.uint8)


def luminance(x: Tensor) -> Tensor:
    """Pillow's grey, (B, 1, H, W)."""
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)


def brightness(x: Tensor, amount: Tensor) -> Tensor:
    """0..255 (B, 3, H, W), blended with black; `amount` (B, 1, 1, 1) in -1..1, as for the other changes."""
    return _blend(x, torch.zeros_like(x), amount)


def contrast(x: Tensor, amount: Tensor) -> Tensor:
    """Blended with the image's mean grey."""
    # whole levels summed in float64: exact, so the mean does not depend on the number of threads
    mean = luminance(x).round().double().mean((1, 2, 3), keepdim=True).round()
    return _blend(x, mean.float(), amount)


def saturation(x: Tensor, amount: Tensor) -> Tensor:
    """Blended with its own grey."""
    return _blend(x, luminance(x), amount)


def _blend(x: Tensor, other: Tensor, amount: Tensor) -> Tensor:
    return (other + (1 + STRENGTH * amount) * (x - other)).clamp(0, 255)


def hue(x: Tensor, amount: Tensor) -> Tensor:
    """Colours moved along the circle of hues by `amount` eighths of it (HSV, in sixths of the circle)."""
    top, low = x.amax(1), x.amin(1)
    spread = top - low
    red, green, blue = x.unbind(1)
    divisor = torch.where(spread == 0, 1, spread)  # grey has no hue: any will do
    angle = torch.where(top == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    angle = torch.where(top == red, (green - blue) / divisor, angle)
    position = angle[:, None] + 6 * HUE * amount + x.new_tensor([5, 3, 1]).view(3, 1, 1)
    position = position.remainder(6)
    return top[:, None] - spread[:, None] * torch.minimum(position, 4 - position).clamp(0, 1)
