"""Pictures of what a network found, beside what there is: boxes drawn on images, and masks, in VOC's colours."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from results.files import replacing
from zoo.voc.masks import palette

SIDE = 480  # pixels: images with a shorter side below are drawn larger, by a whole factor
LINE, TEXT, GAP = 3, 14, 12  # pixels: of boxes, of letters, around panels
FONT = ImageFont.load_default(TEXT)
OPAQUE = 0.6  # of a mask over its image


class Mark(NamedTuple):
    """A box to draw: edges counted from 0 (x1, y1, x2, y2), the number of its class, from 0, and what is written."""

    edges: Sequence[float]
    label: int
    text: str


class Panel(NamedTuple):
    """A picture, and above it a title and the classes that colours stand for: their numbers, from 0, and names."""

    title: str
    image: Image.Image
    key: Sequence[tuple[int, str]] = ()


def draw_boxes(image: Image.Image, marks: Sequence[Mark]) -> Image.Image:
    """The image, perhaps enlarged, with the boxes, the first on top."""
    seen, factor = enlarge(image)
    canvas = ImageDraw.Draw(seen)
    for mark in reversed(marks):
        x1, y1, x2, y2 = (factor * edge for edge in mark.edges)
        canvas.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour(mark.label), width=LINE)
        width, height = sides_of(mark.text)
        write(canvas, min(x1, seen.width - width), max(0, y1 - height), mark.text, mark.label)
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
    keys = [lay_key(panel) for panel in panels]
    above = 2 * GAP + TEXT + max((below for key in keys for _, below in key), default=0)
    width = GAP + sum(panel.image.width + GAP for panel in panels)
    sheet = Image.new("RGB", (width, above + max(panel.image.height for panel in panels) + GAP), "white")
    canvas, left = ImageDraw.Draw(sheet), GAP
    for panel, key in zip(panels, keys):
        canvas.text((left, GAP - 2), panel.title, fill="black", font=FONT)
        for (label, name), (right, below) in zip(panel.key, key):
            write(canvas, left + right, GAP - 2 + below, name, label)
        sheet.paste(panel.image, (left, above))
        left += panel.image.width + GAP
    with replacing(path) as temporary:
        sheet.save(temporary)


def lay_key(panel: Panel) -> list[tuple[int, int]]:
    """Where the classes above a panel are written, from where its title is: (right, down) in pixels, line by line."""
    places: list[tuple[int, int]] = []
    left, top = ceil(FONT.getlength(panel.title)) + GAP, 0
    for _, name in panel.key:
        width, _ = sides_of(name)
        if places and left + width > panel.image.width:
            left, top = 0, top + TEXT + GAP
        places.append((left, top))
        left += width + GAP // 2
    return places


def write(canvas: ImageDraw.ImageDraw, left: float, top: float, text: str, label: int) -> None:
    """Write a text on the colour of a class."""
    ground, (width, height) = colour(label), sides_of(text)
    canvas.rectangle((left, top, left + width, top + height), fill=ground)
    canvas.text((left + 2, top + 1), text, fill="white" if sum(ground) < 400 else "black", font=FONT)


def sides_of(text: str) -> tuple[int, int]:
    """Width and height in pixels of a text on its ground."""
    return ceil(FONT.getlength(text)) + 4, TEXT + 5


def enlarge(image: Image.Image) -> tuple[Image.Image, int]:
    """A copy of the image, large enough to write on, and how much larger it is."""
    factor = max(1, -(-SIDE // min(image.size)))
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST), factor


def colour(label: int) -> tuple[int, int, int]:
    """VOC's colour of a class, numbered from 0: masks have it one further on."""
    red, green, blue = palette()[label + 1].tolist()
    return red, green, blue
