"""Views: what a network is shown of an image. Frozen dataclasses, the same for files and for tensors.

`view.image(PIL image, generator)` gives uint8 (…, C, h, w) for one image, `view.tensors(pixels, generator)`
uint8 or float32 0..255 (B, …, C, h, w) for uint8 (B, C, H, W). All that is random is drawn from the generator
given, on the CPU. For the same draws both give the same pixels (zoo/warp.py says how exactly), but for the two
views that photographs are trained with: their images are resized by torch, four times as fast as by Pillow and
one grey level away from it in a few hundredths of the values. (Files on a GPU: see zoo/pieces.py.)
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Generator, Tensor

from results.errors import UserError
from zoo.jitter import jitter as jitter_colours
from zoo.warp import crops, flip, resize, resize_crops, rotate_crops
from zoo.windows import BILINEAR, Box, OneWindow, TrainingWindow, View, Window, to_tensor

SPARE = 2  # what a reduced decoding leaves over, as Pillow's thumbnails do: resizing then hides how it was reduced
ATTEMPTS = 10  # torchvision's RandomResizedCrop gives up after ten boxes that do not fit


class ShorterSide(View):
    """A view that first brings the shorter side to `resize` pixels, as torchvision's Resize does."""

    resize: int
    size: int

    def __post_init__(self) -> None:
        if not 0 < self.size <= self.resize:
            raise UserError(f"a crop of {self.size} pixels does not fit images resized to {self.resize}")

    @abstractmethod
    def cut(self, pixels: Tensor, generator: Generator) -> Tensor:
        """What is cut out of the resized uint8 images (B, C, H, W)."""

    def tensors(self, pixels: Tensor, generator: Generator) -> Tensor:
        """See View.tensors."""
        height, width = self._sides(*pixels.shape[-2:])
        return self.cut(resize(pixels, height, width), generator)

    def image(self, image: Image.Image, generator: Generator) -> Tensor:
        """See View.image."""
        height, width = self._sides(image.height, image.width)
        return self.cut(to_tensor(image.resize((width, height), BILINEAR))[None], generator)[0]

    def _sides(self, height: int, width: int) -> tuple[int, int]:
        shorter = min(height, width)
        return int(self.resize * height / shorter), int(self.resize * width / shorter)


@dataclass(frozen=True)
class Centre(OneWindow, ShorterSide):
    """Resize the shorter side, then the centre: DeepCluster's clustering pass and its evaluation."""

    resize: int
    size: int

    def cut(self, pixels: Tensor, generator: Generator) -> Tensor:
        """The central square."""
        return centre(pixels, self.size)

    def window(self, height: int, width: int, generator: Generator) -> Window:
        """See OneWindow.window."""
        full = self._sides(height, width)
        return Window((0, 0, height, width), full, middle(full, self.size))


@dataclass(frozen=True)
class RandomCrop(TrainingWindow, ShorterSide):
    """Resize, the central square, a random crop of it, mirrored half the time: deepcluster.md 2.1."""

    resize: int
    size: int
    flip: bool = True

    def reduction(self, height: int, width: int, draws: Generator) -> int:
        """See View.reduction."""
        return halvings(min(height, width), self.resize)

    def cut(self, pixels: Tensor, generator: Generator) -> Tensor:
        """A square of each image, drawn for each."""
        top, left = self._corners(len(pixels), generator)
        seen = crops(centre(pixels, self.resize), top, left, self.size)
        return flip(seen, draw_flips(len(pixels), generator)) if self.flip else seen

    def window(self, height: int, width: int, generator: Generator) -> Window:
        """See OneWindow.window."""
        full = self._sides(height, width)
        (top, left), (down, right) = middle(full, self.resize), self._corners(1, generator)[:, 0].tolist()
        mirrored = self.flip and bool(draw_flips(1, generator))
        return Window((0, 0, height, width), full, (top + down, left + right), mirrored)

    def _corners(self, count: int, generator: Generator) -> Tensor:
        return torch.randint(self.resize - self.size + 1, (2, count), generator=generator)


@dataclass(frozen=True)
class TenCrop(ShorterSide):
    """Resize, then four corners and the centre, and those of the mirrored image: (B, 10, C, size, size)."""

    resize: int
    size: int

    def cut(self, pixels: Tensor, generator: Generator) -> Tensor:
        """Top left, top right, bottom left, bottom right, centre: torchvision's order; then the mirror's."""
        return torch.stack([*self._five(pixels), *self._five(pixels.flip(-1))], 1)

    def _five(self, pixels: Tensor) -> list[Tensor]:
        start, end = slice(None, self.size), slice(-self.size, None)
        corners = [pixels[..., rows, columns] for rows in (start, end) for columns in (start, end)]
        return [*corners, centre(pixels, self.size)]


@dataclass(frozen=True)
class ResizedCrop(TrainingWindow):
    """torchvision's RandomResizedCrop, mirrored half the time: DeepCluster's training view."""

    size: int
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    def tensors(self, pixels: Tensor, generator: Generator) -> Tensor:
        """See View.tensors."""
        height, width = pixels.shape[-2:]
        boxes = self.boxes(len(pixels), height, width, generator)
        seen = resize_crops(pixels, boxes, self.size)
        return flip(seen, draw_flips(len(pixels), generator)) if self.flip else seen

    def window(self, height: int, width: int, generator: Generator) -> Window:
        """See OneWindow.window."""
        top, left, tall, wide = self.boxes(1, height, width, generator)[0].tolist()
        mirrored = self.flip and bool(draw_flips(1, generator))
        return Window((top, left, tall, wide), (self.size, self.size), mirrored=mirrored)

    def reduction(self, height: int, width: int, draws: Generator) -> int:
        """See View.reduction."""
        if halvings(min(height, width), self.size) == 1:
            return 1  # not even of the whole image: without drawing the box
        return halvings(int(self.boxes(1, height, width, draws)[0, 2:].min()), self.size)

    def boxes(self, count: int, height: int, width: int, generator: Generator) -> Tensor:
        """(count, 4) long: top, left, height, width; the first of ten draws that fits, or the central one."""
        share = uniform((count, ATTEMPTS), *self.area, generator)
        low, high = map(math.log, self.ratio)
        ratio = uniform((count, ATTEMPTS), low, high, generator).exp()
        place = uniform((count, 2), 0, 1, generator)
        drawn = zip(share.tolist(), ratio.tolist(), place.tolist())  # floats: files draw for one image at a time
        return torch.tensor([self._box(*numbers, height, width) for numbers in drawn])

    def _box(self, shares: list[float], ratios: list[float], place: list[float], height: int, width: int) -> Box:
        for share, ratio in zip(shares, ratios):
            area = share * height * width
            wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < tall <= height:
                return int(place[0] * (height - tall + 1)), int(place[1] * (width - wide + 1)), tall, wide
        tall = min(height, round(width / self.ratio[0]))
        wide = min(width, round(height * self.ratio[1]))
        return (height - tall) // 2, (width - wide) // 2, tall, wide


@dataclass(frozen=True)
class Several(View):
    """A view taken `count` times of each image, drawn anew each time: (B, count, C, size, size)."""

    view: View
    count: int

    def tensors(self, pixels: Tensor, generator: Generator) -> Tensor:
        """See View.tensors."""
        return torch.stack([self.view.tensors(pixels, generator) for _ in range(self.count)], 1)

    def image(self, image: Image.Image, generator: Generator) -> Tensor:
        """See View.image."""
        return torch.stack([self.view.image(image, generator) for _ in range(self.count)])


@dataclass(frozen=True)
class CropRotate(View):
    """MMDC's training view (mmdc.md 1.7): jitter, flip, rotation, a crop of one of the sides, resize.

    With `degrees` all of it is one bilinear sampling, float32; the paper's program rotates to the nearest
    pixel and then resizes. Without, uint8 and bit-equal to Pillow's.
    """

    crops: tuple[int, ...]
    size: int
    degrees: float = 0.0
    flip: bool = False
    jitter: bool = False

    def tensors(self, pixels: Tensor, generator: Generator) -> Tensor:
        """See View.tensors. UserError for a crop larger than the images."""
        count, (height, width) = len(pixels), pixels.shape[-2:]
        check_crop(max(self.crops), height, width)
        if self.jitter:
            pixels = jitter_colours(pixels, generator)
        if self.flip:
            pixels = flip(pixels, draw_flips(count, generator))
        boxes = self._boxes(count, height, width, generator)
        if not self.degrees:
            return resize_crops(pixels, boxes, self.size)
        degrees = uniform((count,), -self.degrees, self.degrees, generator)
        return rotate_crops(pixels, boxes, degrees, self.size)

    def _boxes(self, count: int, height: int, width: int, generator: Generator) -> Tensor:
        choice = torch.randint(len(self.crops), (count,), generator=generator)
        side = torch.tensor(self.crops)[choice, None].expand(-1, 2)
        spare = torch.tensor([height, width]) - side
        position = (uniform((count, 2), 0, 1, generator) * (spare + 1)).long()
        return torch.cat([position, side], 1)


@dataclass(frozen=True)
class CentreCrop(View):
    """The central square of `crop` pixels, resized to `size`: MMDC's evaluation view (mmdc.md 1.7)."""

    crop: int
    size: int

    def tensors(self, pixels: Tensor, generator: Generator) -> Tensor:
        """See View.tensors. UserError for a crop larger than the images."""
        check_crop(self.crop, *pixels.shape[-2:])
        return resize(centre(pixels, self.crop), self.size, self.size)


@dataclass(frozen=True)
class Stretch(OneWindow):
    """The whole image at size x size, its aspect not kept (mmdc.md 1.9)."""

    size: int

    def tensors(self, pixels: Tensor, generator: Generator) -> Tensor:
        """See View.tensors."""
        return resize(pixels, self.size, self.size)

    def window(self, height: int, width: int, generator: Generator) -> Window:
        """See OneWindow.window."""
        return Window((0, 0, height, width), (self.size, self.size))


def halvings(side: int, size: int) -> int:
    """The largest of 1, 2, 4 and 8 that leaves a side at least SPARE times the size it is resized to."""
    return max(factor for factor in (1, 2, 4, 8) if factor == 1 or side >= SPARE * size * factor)


def rotations(pixels: Tensor) -> Tensor:
    """Each square image by 0, 90, 180 and 270 degrees counter-clockwise, image by image: (4B, C, H, H)."""
    if pixels.shape[-1] != pixels.shape[-2]:
        raise ValueError(f"only square images can be turned by 90 degrees, not {tuple(pixels.shape[-2:])}")
    return torch.stack([torch.rot90(pixels, turn, (-2, -1)) for turn in range(4)], 1).flatten(0, 1)


def middle(sides: tuple[int, ...], size: int) -> tuple[int, int]:
    """Top and left of the central square; half a pixel is rounded to even, as in torchvision's CenterCrop."""
    top, left = (round((side - size) / 2) for side in sides)
    return top, left


def centre(pixels: Tensor, size: int) -> Tensor:
    """The central square (…, size, size)."""
    top, left = middle(pixels.shape[-2:], size)
    return pixels[..., top : top + size, left : left + size]


def draw_flips(count: int, generator: Generator) -> Tensor:
    """(count,) bool, half of them true."""
    return torch.rand(count, generator=generator) < 0.5


def uniform(shape: tuple[int, ...], low: float, high: float, generator: Generator) -> Tensor:
    """float64 between low and high."""
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def check_crop(crop: int, height: int, width: int) -> None:
    """UserError if a square crop does not fit the image."""
    if crop > min(height, width):
        happened = f"a crop of {crop} pixels does not fit an image of {height} x {width}"
        raise UserError(happened, fix="smaller crops, or a larger side")
