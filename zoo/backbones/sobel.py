"""The Sobel front-end of DeepCluster: the image's channel mean, then its two derivatives. Never trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

OUTPUTS = 2  # channels: the horizontal and the vertical derivative
KERNELS = (
    ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0)),
    ((1.0, 2.0, 1.0), (0.0, 0.0, 0.0), (-1.0, -2.0, -1.0)),
)


def sobel_filter(channels: int) -> nn.Sequential:
    """Two frozen convolutions: (N, channels, h, w) -> mean (N, 1, h, w) -> derivatives (N, 2, h, w).

    They see the normalised image, and pad its mean with one pixel of zeros, which draws a frame around the
    derivatives: so do the released models. Their values are `constants`.
    """
    mean = nn.Conv2d(channels, 1, kernel_size=1)
    derivatives = nn.Conv2d(1, OUTPUTS, kernel_size=3, padding=1)
    return nn.Sequential(mean, derivatives).requires_grad_(False)


def constants(channels: int) -> dict[str, Tensor]:
    """The state dict of `sobel_filter`: weights 1/channels, the two kernels, and biases of zero."""
    return {
        "0.weight": torch.full((1, channels, 1, 1), 1 / channels),
        "0.bias": torch.zeros(1),
        "1.weight": torch.tensor(KERNELS)[:, None],
        "1.bias": torch.zeros(OUTPUTS),
    }
