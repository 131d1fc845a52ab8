"""Batched geometry: Pillow's bilinear resize to the bit, a box of its own for each image, rotation.

Pillow resizes 8-bit images in two passes (rows, then columns) of integer weights, rounding in between. The
same integers are summed here as float32 matrix products, which are exact where a side shrinks 13 times at most, so
data sets in memory and images on a GPU are given the pixels that files decoded one by one give. (Where the height
loses more than twice the pixels of the width, Pillow 13 takes the columns first; there the two differ by one level
at most.)

Boxes are long tensors (B, 4): top, left, height, width. How their sides are resized, `resample` is told by five
numbers each (B, 5): which pixel of the side comes first, the side's length, what it is resized to, which pixel of
that is shown first and the step to the next: -1 where it is mirrored.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BITS = 22  # Pillow's fixed point for 8-bit images (Resample.c: 32 - 8 - 2)
HALF = BITS // 2


def resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """Every image of uint8 (B, C, H, W) at height x width: bilinear, antialiased, bit-equal to Pillow's."""
    if pixels.shape[-2:] == (height, width):
        return pixels
    whole = torch.tensor([[0, 0, *pixels.shape[-2:]]], device=pixels.device)
    return _resample(pixels, whole, height, width)


def resize_crops(pixels: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Each image's own box, cut out and resized as Pillow does, to the bit: uint8 (B, C, size, size)."""
    return _resample(pixels, boxes.to(pixels.device), size, size)


def resize_fast(image: Tensor, height: int, width: int) -> Tensor:
    """One uint8 image (C, H, W) at height x width by torch's kernel: antialiased, a level from Pillow's at most.

    (Two levels in one of some millions of values.)
    """
    batch = image.movedim(0, -1)[None].movedim(-1, 1)  # after image[None] torch takes innermost channels for outermost
    return F.interpolate(batch, (height, width), mode="bilinear", antialias=True)[0]


def _resample(pixels: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    top, left, tall, wide = boxes.unbind(1)
    return resample(pixels, _side(top, tall, height), _side(left, wide, width), height, width)


def _side(start: Tensor, length: Tensor, size: int) -> Tensor:
    """A box's side that is resized to `size` pixels, all of them shown."""
    return torch.stack([-start, length, *(torch.full_like(start, number) for number in (size, 0, 1))], 1)


def resample(pixels: Tensor, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """What is shown of each image, uint8 (B, C, height, width)."""
    across = _apply(pixels, _weights(columns, width, pixels.shape[-1]))
    return _apply(across.mT, _weights(rows, height, pixels.shape[-2])).mT.to(torch.uint8).contiguous()


def _weights(side: Tensor, size: int, count: int) -> Tensor:
    """Pillow's integer weights (B, size, count), float64, that make `size` pixels shown of `count` that are there."""
    first, length, full, start, step = side.unbind(1)
    scale = length.double() / full
    support = scale.clamp(min=1)[:, None, None]  # shrinking widens the filter: antialiasing
    shown = start[:, None] + step[:, None] * torch.arange(size, device=side.device)
    centre = (shown + 0.5) * scale[:, None]
    pixel = first[:, None] + torch.arange(count, device=side.device)
    weight = (1 - ((pixel[:, None] - centre[:, :, None] + 0.5) / support).abs()).clamp(min=0)
    weight *= ((pixel >= 0) & (pixel < length[:, None]))[:, None]  # pixels outside the box do not bleed in
    return (weight / weight.sum(-1, keepdim=True) * 2**BITS + 0.5).floor()


def _apply(pixels: Tensor, weight: Tensor) -> Tensor:
    """One pass along the last axis, rounded to whole grey levels in float32 (B, C, H, size).

    float32 holds integers up to 2^24 and the sums are of up to 2^30, so weights are applied in halves.
    """
    flat = pixels.to(torch.float32, memory_format=torch.contiguous_format).flatten(1, 2)
    high = (weight * 2.0**-HALF).floor()
    # one matrix product per image, or one in all
    upper, lower = (flat @ (part[0] if len(part) == 1 else part).float().mT for part in (high, weight - high * 2**HALF))
    carried = lower.add_(2 ** (BITS - 1)).mul_(2.0**-HALF).floor_()
    levels = upper.add_(carried).mul_(2.0 ** (HALF - BITS)).floor_()  # weights add up to one, so never above 255
    return levels.unflatten(1, pixels.shape[1:3])


def rotate_crops(pixels: Tensor, boxes: Tensor, degrees: Tensor, size: int) -> Tensor:
    """Each image turned counter-clockwise about its centre, its box cut out and resized: float32 (B, C, …).

    One sampling grid does all three, bilinearly. Outside the turned image all is 0; at the box's edges the
    edge is repeated, as when a box that was cut out is resized. For boxes up to `size`: no antialiasing.
    """
    height, width = pixels.shape[-2:]
    top, left, tall, wide = boxes.to(pixels.device, torch.float32).unbind(1)
    y = _centres(top, tall, size)[:, :, None] - height / 2  # (B, size, 1), from the centre of the image
    x = _centres(left, wide, size)[:, None, :] - width / 2  # (B, 1, size)
    angle = (degrees.to(pixels.device, torch.float32) * (math.pi / 180))[:, None, None]
    sine, cosine = angle.sin(), angle.cos()
    grid = torch.stack(((cosine * x - sine * y) * (2 / width), (sine * x + cosine * y) * (2 / height)), -1)
    return F.grid_sample(pixels.float(), grid, padding_mode="zeros", align_corners=False)


def _centres(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Where the output pixels fall on a side, in pixels (B, size), half a pixel inside the box at least."""
    step = (torch.arange(size, device=start.device) + 0.5) / size
    inside = torch.minimum((length[:, None] * step).clamp(min=0.5), length[:, None] - 0.5)
    return start[:, None] + inside


def crops(pixels: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """Each image's own square of `size` pixels, as it is: (B, C, size, size)."""
    places = zip(pixels, top.tolist(), left.tolist())
    return torch.stack([image[:, y : y + size, x : x + size] for image, y, x in places])


def flip(pixels: Tensor, chosen: Tensor) -> Tensor:
    """The batch with the chosen images (B,) mirrored left to right."""
    return torch.where(chosen.to(pixels.device)[:, None, None, None], pixels.flip(-1), pixels)
