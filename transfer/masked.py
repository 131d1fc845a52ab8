"""Images with their masks: the mask is the last channel of the pixels, and goes through views with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from results.errors import UserError
from zoo.datasets.decoding import read_rgb
from zoo.datasets.images import FileImages
from zoo.views import draw_flips, flip
from zoo.voc import Devkit
from zoo.voc.devkit import SEGMENTATION
from zoo.voc.masks import BORDER, read_mask
from zoo.windows import View, to_tensor


class MaskedImages(FileImages):
    """The images of a set of Segmentation; in batches they are uint8 (B, 4, h, w): red, green, blue, class."""

    def __init__(self, kit: Devkit, split: str) -> None:
        images = kit.read(split, SEGMENTATION)
        super().__init__(images.root, images.paths, None)
        self.kit, self.masks = kit, kit.masks(split)

    def see(self, number: int, view: View, draws: Generator) -> Tensor:
        """One image and its mask through a view. UserError naming the file if one of them cannot be."""
        image = read_rgb(self.place(number))
        try:
            mask = read_mask(self.masks[number], (image.height, image.width), len(self.kit.classes))
        except UserError as error:
            raise UserError(error.happened, error.looked, self.kit.mend) from error
        together = torch.cat([to_tensor(image), torch.from_numpy(mask)[None]])
        return view.tensors(together[None], draws)[0]


class Whole(View):
    """The image as it is."""

    def tensors(self, pixels: Tensor, generator: Generator) -> Tensor:
        """See View.tensors."""
        return pixels


@dataclass(frozen=True)
class Placed(View):
    """The image laid at random in a square of `side` pixels, or a square cut out at random; mirrored half the time.

    colour: red, green and blue (0..255) of what is around the image, where the mask is BORDER.
    """

    side: int
    colour: tuple[int, int, int]
    flip: bool

    def tensors(self, pixels: Tensor, generator: Generator) -> Tensor:
        """See View.tensors, here for images with masks (B, 4, H, W)."""
        laid = torch.stack([self._lay(image, generator) for image in pixels])
        return flip(laid, draw_flips(len(laid), generator)) if self.flip else laid

    def _lay(self, image: Tensor, generator: Generator) -> Tensor:
        (top, bottom), (left, right) = (self._ends(length, generator) for length in image.shape[-2:])
        around = (*self.colour, BORDER)
        return torch.stack([F.pad(one, (left, right, top, bottom), value=level) for one, level in zip(image, around)])

    def _ends(self, length: int, generator: Generator) -> tuple[int, int]:
        """How many pixels are added (less than 0: cut off) before and after a side of this length."""
        spare = self.side - length
        before = int(torch.randint(abs(spare) + 1, (), generator=generator))
        return (before, spare - before) if spare >= 0 else (-before, spare + before)
