"""Scenes of several objects: small pictures cut out, turned, sized, coloured and laid on photographs, some over others.

truncated   an object of which more than 5 % lies outside the image
occluded    … of which later objects cover more than 5 % of what lies inside
difficult   … of which less than HIDDEN is seen, or whose box is smaller than TINY pixels both ways
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from zoo.voc.annotation import Box
from zoo.voc.masks import BORDER

SHORT, LONG = 120, 160  # pixels: the shorter side of every image, and the longest that the other can be
OBJECTS = (0.45, 0.3, 0.15, 0.1)  # how many images have 1, 2, 3, 4 objects
EXTENT = (40, 112)  # pixels: the longer side of an object before it is turned
DEGREES = 15.0  # largest rotation
CUT = 0.25  # how many objects may lie over the border
HIDDEN, TINY = 0.4, 20
SEEN = 0.2  # what is left to see of every object, at least
LIGHT = 155  # the luminance from which a ground has darker objects
LUMINANCE = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Pictures:
    """What objects are made of: grey pictures on black, uint8 (N, S, S), and the class of each, int64 (N,).

    edge: between these levels (0..1) a pixel turns from background to object.
    floor: the brightness of the darkest part of an object, in that of its lightest.
    """

    pixels: np.ndarray
    labels: np.ndarray
    edge: tuple[float, float]
    floor: float

    def draw(self, rng: np.random.Generator) -> tuple[int, np.ndarray]:
        """(class, picture), each class equally often."""
        label = int(rng.choice(np.unique(self.labels)))
        return label, self.pixels[rng.choice(np.flatnonzero(self.labels == label))]


@dataclass
class Item:
    """One object in a scene: its class, the share of it that lies inside, and where, and where it is seen."""

    label: int
    area: int  # pixels, with what lies outside
    inside: np.ndarray  # bool (height, width)
    seen: np.ndarray

    @property
    def share(self) -> float:
        """How much of the object is seen."""
        return self.seen.sum() / max(1, self.area)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The pixels that are seen, from 1 on and inclusive: xmin, ymin, xmax, ymax."""
        rows, columns = (np.flatnonzero(self.seen.any(axis)) + 1 for axis in (1, 0))
        return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])

    @property
    def difficult(self) -> bool:
        """See above."""
        left, top, right, bottom = self.box
        return bool(self.share < HIDDEN or max(right - left, bottom - top) + 1 < TINY)

    def describe(self, classes: Sequence[str]) -> Box:
        """Its box, with VOC's flags."""
        inside = self.inside.sum()
        truncated, occluded = bool(inside < 0.95 * self.area), bool(self.seen.sum() < 0.95 * inside)
        return Box(classes[self.label], self.box, self.difficult, truncated, occluded)


@dataclass
class Scene:
    """An image, float64 (height, width, 3) in 0..255, and the objects in it, the later over the earlier."""

    pixels: np.ndarray
    items: list[Item]

    def mask(self) -> np.ndarray:
        """uint8 (height, width): the class, from 1 on; BORDER on the pixel around objects and on difficult ones."""
        mask = np.zeros(self.pixels.shape[:2], dtype=np.uint8)
        for item in self.items:
            mask[item.seen] = BORDER if item.difficult else item.label + 1
        for item in self.items:
            around = Image.fromarray(item.seen.astype(np.uint8)).filter(ImageFilter.MaxFilter(3))
            mask[(np.asarray(around) > 0) & ~item.seen] = BORDER
        return mask

    def image(self) -> Image.Image:
        """The image, 8 bits a channel."""
        return Image.fromarray(np.clip(np.rint(self.pixels), 0, 255).astype(np.uint8))


def draw_scene(pictures: Pictures, photograph: Image.Image, rng: np.random.Generator) -> Scene:
    """A scene with 1 to 4 objects. photograph: what backgrounds are cut from, at least SHORT pixels wide and high."""
    longer, upright = int(rng.integers(SHORT, LONG + 1)), bool(rng.integers(2))
    scene = Scene(draw_background(photograph, (longer, SHORT) if upright else (SHORT, longer), rng), [])
    wanted = 1 + int(rng.choice(len(OBJECTS), p=OBJECTS))
    for _ in range(20 * wanted):
        if len(scene.items) < wanted:
            place(scene, pictures, rng)
    return scene


def draw_background(photograph: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """float64 (height, width, 3), a part of the photograph in `size` (height, width), fainter, some mirrored."""
    height, width = size
    most = min(photograph.width / width, photograph.height / height, 1.5)
    scale = rng.uniform(0.6 * most, most)
    left = rng.uniform(0, photograph.width - scale * width)
    top = rng.uniform(0, photograph.height - scale * height)
    part = (left, top, left + scale * width, top + scale * height)
    seen = photograph.resize((width, height), Image.Resampling.BICUBIC, box=part)
    pixels = np.asarray(seen, dtype=np.float64)[:, :: rng.choice((1, -1))]
    return rng.uniform(0, 40) + rng.uniform(0.25, 0.45) * pixels


def place(scene: Scene, pictures: Pictures, rng: np.random.Generator) -> None:
    """Lay one object on the scene, unless too little of it, or of those before it, would be seen."""
    label, picture = pictures.draw(rng)
    alpha, shade = cut_out(picture, pictures, rng)
    size = np.array(scene.pixels.shape[:2])
    shape = np.array(alpha.shape)
    over = 0.7 * shape if rng.random() < CUT else np.zeros(2)
    first = np.rint(rng.uniform(-over, np.maximum(size - shape + over, -over))).astype(int)
    start, end = np.maximum(first, 0), np.minimum(first + shape, size)
    if (end <= start).any():
        return
    there = tuple(slice(*ends) for ends in zip(start, end))
    part = tuple(slice(*ends) for ends in zip(start - first, end - first))
    inside = np.zeros(size, dtype=bool)
    inside[there] = alpha[part] > 0.5
    item = Item(label, int((alpha > 0.5).sum()), inside, inside)
    before = [Item(other.label, other.area, other.inside, other.seen & ~inside) for other in scene.items]
    if min(other.share for other in (*before, item)) < SEEN:
        return
    scene.items = [*before, item]
    ground = scene.pixels[there]
    colour = draw_colour((ground[alpha[part] > 0.5] @ LUMINANCE).mean(), rng)
    cover = alpha[part][..., None]
    scene.pixels[there] = ground * (1 - cover) + shade[part][..., None] * colour * cover


def cut_out(picture: np.ndarray, pictures: Pictures, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(opacity, brightness) of an object, float64 (h, w) in 0..1, in a size and a rotation of its own."""
    low, high = pictures.edge
    rows, columns = (np.flatnonzero((picture > 255 * low).any(axis)) for axis in (1, 0))
    whole = Image.fromarray(picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    scale = np.exp(rng.uniform(*np.log(EXTENT))) / max(whole.size)
    large = whole.resize([max(3, round(scale * side)) for side in whole.size], Image.Resampling.BICUBIC)
    framed = Image.new("L", (large.width + 4, large.height + 4))
    framed.paste(large, (2, 2))  # black around it, for an edge that is not cut
    turned = framed.rotate(rng.uniform(-DEGREES, DEGREES), Image.Resampling.BICUBIC, expand=True)
    level = np.asarray(turned, dtype=np.float64) / 255
    return np.clip((level - low) / (high - low), 0, 1), pictures.floor + (1 - pictures.floor) * level


def draw_colour(ground: float, rng: np.random.Generator) -> np.ndarray:
    """float64 (3,) in 0..255: a colour of any hue, well lighter than a ground of this luminance.

    Darker than a light one, which photographs are not (see draw_background), but objects that lie below.
    """
    far = rng.uniform(100, 160)
    luminance = ground + far if ground < LIGHT else ground - far
    hue = rng.uniform(-1, 1, 3)
    hue -= hue @ LUMINANCE
    return np.clip(luminance + 50 * hue / np.abs(hue).max(), 0, 255)
