"""Pictures of what a network found, beside what there is: boxes drawn on images, and masks, in VOC's colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from results.files import replacing
from zoo.voc.masks import palette

SIDE = 480  # pixels: images with a shorter side below are drawn larger, by a whole factor
LINE, TEXT, GAP = 3, 14, 12  # pixels: of boxes, of letters, around panels
OPAQUE = 0.6  # of a mask over its image


class Mark(NamedTuple):
    """A box to draw: edges counted from 0 (x1, y1, x2, y2), the number of its class, from 0, and what is written."""

    edges: Sequence[float]
    label: int
    text: str


class Panel(NamedTuple):
    """A picture and the line above it."""

    title: str
    image: Image.Image


def draw_boxes(image: Image.Image, marks: Sequence[Mark]) -> Image.Image:
    """The image, perhaps enlarged, with the boxes, the first on top."""
    seen, factor = enlarge(image)
    canvas, font = ImageDraw.Draw(seen), ImageFont.load_default(TEXT)
    for mark in reversed(marks):
        x1, y1, x2, y2 = (factor * edge for edge in mark.edges)
        ground = colour(mark.label)
        canvas.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=ground, width=LINE)
        _, _, width, height = canvas.textbbox((0, 0), mark.text, font)
        left, top = min(x1, seen.width - width - 4), max(0, y1 - height - 4)
        canvas.rectangle((left, top, left + width + 4, top + height + 4), fill=ground)
        canvas.text((left + 2, top + 1), mark.text, fill="white" if sum(ground) < 400 else "black", font=font)
    return seen


def draw_mask(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """The image, perhaps enlarged, under a mask uint8 (height, width): the number of a class, 0 background."""
    seen, factor = enlarge(image)
    large = mask.repeat(factor, 0).repeat(factor, 1)
    weight = OPAQUE * (large > 0)[..., None]
    mixed = (1 - weight) * np.asarray(seen) + weight * palette()[large]
    return Image.fromarray(mixed.round().astype(np.uint8))


def save_beside(path: Path, panels: Sequence[Panel]) -> None:
    """Write the panels, side by side under their titles, to a PNG file. UserError if the disk does not take it."""
    font = ImageFont.load_default(TEXT)
    width = GAP + sum(panel.image.width + GAP for panel in panels)
    above = 2 * GAP + TEXT
    sheet = Image.new("RGB", (width, above + max(panel.image.height for panel in panels) + GAP), "white")
    canvas, left = ImageDraw.Draw(sheet), GAP
    for panel in panels:
        canvas.text((left, GAP - 2), panel.title, fill="black", font=font)
        sheet.paste(panel.image, (left, above))
        left += panel.image.width + GAP
    with replacing(path) as temporary:
        sheet.save(temporary)


def enlarge(image: Image.Image) -> tuple[Image.Image, int]:
    """A copy of the image, large enough to write on, and how much larger it is."""
    factor = max(1, -(-SIDE // min(image.size)))
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST), factor


def colour(label: int) -> tuple[int, int, int]:
    """VOC's colour of a class, numbered from 0: masks have it one further on."""
    red, green, blue = palette()[label + 1].tolist()
    return red, green, blue
