"""What a view is, and those that show one window of each image: drawn, cut out, resized, perhaps mirrored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from zoo.warp import resize_fast

BILINEAR = Image.Resampling.BILINEAR
Box = tuple[int, int, int, int]  # top, left, height, width


class View(ABC):
    """How images become the pixels that a network sees."""

    @abstractmethod
    def tensors(self, pixels: Tensor, generator: Generator) -> Tensor:
        """uint8 (B, C, H, W) to uint8 or float32 0..255 (B, …, C, h, w), on the same device."""

    def reduction(self, height: int, width: int, draws: Generator) -> int:
        """By how much (1, 2, 4 or 8) a decoder may shrink an image of this size whose view takes these draws."""
        return 1

    def image(self, image: Image.Image, generator: Generator) -> Tensor:
        """One image, to uint8 (…, C, h, w)."""
        seen = self.tensors(to_tensor(image)[None], generator)[0]
        return seen if seen.dtype == torch.uint8 else seen.round().to(torch.uint8)


class Window(NamedTuple):
    """A square that is shown of an image: a box of it is resized, and the square then cut out, perhaps mirrored."""

    box: Box
    full: tuple[int, int]  # height, width that the box is resized to
    corner: tuple[int, int] = (0, 0)  # top, left of the square in that
    mirrored: bool = False


class OneWindow(View):
    """A view that shows of each image one window, `size` pixels a side."""

    size: int

    @abstractmethod
    def window(self, height: int, width: int, generator: Generator) -> Window:
        """What is shown of an image of this size."""

    def resized(self, image: Image.Image, height: int, width: int) -> Tensor:
        """The image at its new size, uint8 (C, height, width): as Pillow makes it."""
        return to_tensor(image.resize((width, height), BILINEAR))

    def image(self, image: Image.Image, generator: Generator) -> Tensor:
        """See View.image."""
        return self.show(image, self.window(image.height, image.width, generator))

    def show(self, image: Image.Image, window: Window) -> Tensor:
        """The window of the image, uint8 (C, size, size)."""
        top, left = window.corner
        full = self.resized(crop(image, window.box), *window.full)
        seen = full[:, top : top + self.size, left : left + self.size]
        return seen.flip(-1) if window.mirrored else seen


class TrainingWindow(OneWindow):
    """One that photographs are trained with: torch resizes them."""

    def resized(self, image: Image.Image, height: int, width: int) -> Tensor:
        """See OneWindow.resized."""
        return resize_fast(to_tensor(image), height, width)


def crop(image: Image.Image, box: Box) -> Image.Image:
    """The box of the image."""
    top, left, height, width = box
    whole = (height, width) == (image.height, image.width)
    return image if whole else image.crop((left, top, left + width, top + height))


def to_tensor(image: Image.Image) -> Tensor:
    """The image as uint8 (C, H, W); in memory its channels stay innermost, as decoders leave them."""
    pixels = np.array(image)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)
