"""Images of files resized on a GPU, a batch at a time.

The threads that decode then only draw what a view shows of an image and cut out the pixels that it depends on. The
pieces of a batch, each of its own size, go to the device in one copy and are resized there, with the same draws and to
the pixels that images in memory give: Pillow's (zoo/warp.py says how exactly), also for the two views that photographs
are trained with, which the threads resize by torch where the device is the CPU, a grey level from that at most (two
in one of some millions of values).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Generator, Tensor

from zoo.warp import resample
from zoo.windows import Box, OneWindow, View, Window, crop, to_tensor

LARGEST = 3  # times the size shown: threads resize themselves what is larger, so that waiting pieces stay small
PORTION = 64  # images that are padded to one size and resized at a time: less than a gigabyte for 224 pixels
Side = tuple[int, int, int, int, int]  # see zoo/warp.py


class Piece(NamedTuple):
    """Part of an image, and how what is shown of it is made."""

    pixels: Tensor  # uint8 (C, h, w)
    rows: Side
    columns: Side
    size: int  # of the square shown


@dataclass(frozen=True)
class Pieces(View):
    """What a view shows of images in files, left in pieces for `join`."""

    view: OneWindow

    def tensors(self, pixels: Tensor, generator: Generator) -> Tensor:
        """See View.tensors."""
        return self.view.tensors(pixels, generator)

    def reduction(self, height: int, width: int, draws: Generator) -> int:
        """See View.reduction."""
        return self.view.reduction(height, width, draws)

    def image(self, image: Image.Image, generator: Generator) -> Any:
        """One image, to a Piece."""
        size, window = self.view.size, self.view.window(image.height, image.width, generator)
        box, rows, columns = needed(window, size)
        if max(box[2:]) <= LARGEST * size:
            return Piece(to_tensor(crop(image, box)), rows, columns, size)
        as_it_is = (0, size, size, 0, 1)
        return Piece(self.view.show(image, window), as_it_is, as_it_is, size)


def on(device: torch.device, view: View) -> View:
    """The view whose images `join` brings to the device: the same, or its pieces if they are to be resized there."""
    return Pieces(view) if device.type != "cpu" and isinstance(view, OneWindow) else view


def needed(window: Window, size: int) -> tuple[Box, Side, Side]:
    """The smallest box that decides what is shown in a window of `size` pixels, and how its sides are resized."""
    (top, left, height, width), (tall, wide), (row, column), mirrored = window
    first_row, end_row = reach(height, tall, row, size)
    first, end = reach(width, wide, column, size)
    across = (column + size - 1, -1) if mirrored else (column, 1)
    box = (top + first_row, left + first, end_row - first_row, end - first)
    return box, (first_row, height, tall, row, 1), (first, width, wide, *across)


def reach(length: int, full: int, start: int, size: int) -> tuple[int, int]:
    """Which of `length` pixels, resized to `full`, decide the `size` from `start` on: first, and one past the last."""
    scale = length / full
    support = max(scale, 1)
    first, end = (start + 0.5) * scale - support, (start + size - 0.5) * scale + support
    return max(0, math.floor(first)), min(length, math.ceil(end))


def join(seen: Sequence[Tensor | Piece], device: torch.device) -> Tensor:
    """A batch of what a view showed of images, all tensors or all pieces, on the device: uint8 (B, …, C, h, w)."""
    # channels innermost, as decoders leave them and convolutions want them: nothing is transposed
    parts = [(one.pixels if isinstance(one, Piece) else one).movedim(-3, -1) for one in seen]
    pieces = [one for one in seen if isinstance(one, Piece)]
    if pieces:
        rows = [part.flatten(0, 1) for part in parts]
        pixels = torch.cat(rows, out=room(device, sum(map(len, rows)), rows[0].shape[1]))
        return resize_pieces(pixels.to(device, non_blocking=True), pieces)
    together = torch.stack(parts, out=room(device, len(parts), *parts[0].shape))
    return together.to(device, non_blocking=True).movedim(-1, -3)


def room(device: torch.device, *shape: int) -> Tensor:
    """Memory of the host for uint8 values, from where they are copied to a GPU while it computes."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")


def resize_pieces(pixels: Tensor, pieces: Sequence[Piece]) -> Tensor:
    """What is shown of the pieces, whose pixels (N, C) lie one after another: uint8 (B, C, size, size)."""
    sides = torch.tensor([(piece.rows, piece.columns) for piece in pieces]).to(pixels.device, non_blocking=True)
    shapes = [(piece.pixels.shape[-2], piece.pixels.shape[-1]) for piece in pieces]
    starts = list(accumulate((height * width for height, width in shapes), initial=0))
    size, done = pieces[0].size, []
    for at in range(0, len(pieces), PORTION):
        some = slice(at, at + PORTION)
        padded = pad(pixels, starts[:-1][some], shapes[some])
        done.append(resample(padded, sides[some, 0], sides[some, 1], size, size))
    return torch.cat(done)


def pad(pixels: Tensor, starts: Sequence[int], shapes: Sequence[tuple[int, int]]) -> Tensor:
    """The pieces of these shapes that start at these pixels (N, C), as (B, C, h, w), filled up with those of others."""
    tall, wide = map(max, zip(*shapes))
    numbers = torch.tensor([starts, [width for _, width in shapes]]).to(pixels.device, non_blocking=True)
    start, width = numbers[:, :, None, None]
    row, column = torch.arange(tall, device=pixels.device)[:, None], torch.arange(wide, device=pixels.device)
    places = (start + row * width + column).clamp(max=len(pixels) - 1)
    return pixels[places].movedim(-1, 1)
