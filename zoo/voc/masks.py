"""The masks of Pascal VOC: PNG files with a palette, whose index of a pixel is its class; 0 background, 255 border."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from results.errors import UserError
from zoo.datasets.decoding import reason

BORDER = 255  # of objects, and what is difficult: not scored
FIX = "replace it by that of the devkit"


def read_mask(path: Path, size: tuple[int, int], classes: int = 20) -> np.ndarray:
    """uint8 (height, width): 0 for the background, 1 … `classes` in their order, BORDER for what is not scored.

    size: (height, width) of the image. UserError naming the file if the mask has another one, no palette (colours or
    grey levels are not classes) or a class that there is not.
    """
    try:
        image = Image.open(path)
        image.load()
    except Exception as error:  # damaged bytes make decoders fail in any way
        raise UserError(f"cannot read the mask {path.name}: {reason(error)}", str(path), FIX) from error
    if image.mode != "P":
        raise UserError(f"the mask {path.name} has no palette: its mode is {image.mode}, not P", str(path), FIX)
    if image.size != size[::-1]:
        found, wanted = (" x ".join(map(str, sides)) for sides in (image.size, size[::-1]))
        raise UserError(f"the mask {path.name} has {found} pixels, and its image {wanted}", str(path), FIX)
    mask = np.array(image)
    wrong = mask[(mask > classes) & (mask != BORDER)]
    if len(wrong):
        happened = f"the mask {path.name} has the class {wrong[0]}, where 0 to {classes} and {BORDER} are expected"
        raise UserError(happened, str(path), FIX)
    return mask


def to_image(mask: np.ndarray) -> Image.Image:
    """A mask (uint8, height x width) as an image with VOC's palette."""
    image = Image.fromarray(mask)
    image.putpalette(palette().tobytes())  # a grey image becomes one of mode P, its levels the indices
    return image


@cache
def palette() -> np.ndarray:
    """uint8 (256, 3): VOC's colours. Three bits of a class at a time are red, green and blue, the lowest weigh most."""
    bits = np.arange(256)[:, None] >> np.arange(8) & 1  # (256, 8), the lowest first
    found = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        found[:, bit % 3] += (bits[:, bit] << 7 - bit // 3).astype(np.uint8)
    return found
