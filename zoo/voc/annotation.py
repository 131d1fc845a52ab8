"""One annotation of Pascal VOC: the XML file of an image, with a box for each object.

Coordinates are as in the file: pixels counted from 1, the last one inside the box. Two files of VOC2012 have fractions
of pixels. Parts of a person (<part>, with boxes of their own) and the points and actions of VOC2012 are passed over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from results.errors import UserError, did_you_mean

CORNERS = ("xmin", "ymin", "xmax", "ymax")
MARGIN = 1  # pixels that a box may stand over the border of its image: no more than a rounding


@dataclass(frozen=True)
class Box:
    """One object: its class, and the pixels (xmin, ymin, xmax, ymax) that it lies in, from 1 on and inclusive."""

    name: str
    corners: tuple[float, float, float, float]
    difficult: bool = False
    truncated: bool = False
    occluded: bool = False
    pose: str = "Unspecified"


@dataclass(frozen=True)
class Annotation:
    """The objects of one image: its id, its size (height, width) in pixels, and a box each."""

    name: str
    size: tuple[int, int]
    boxes: tuple[Box, ...]


def read_annotation(path: Path, classes: Sequence[str]) -> Annotation:
    """The annotation in a file. UserError naming the file, and the object, that is not as it should be.

    VOC2007 does not say of objects whether they are occluded, nor VOC2012 of each whether it is truncated: False then.
    """
    try:
        root = ElementTree.parse(path).getroot()
        size = read_size(root)
        boxes = tuple(read_object(n, found, size, classes) for n, found in enumerate(root.findall("object"), 1))
    except (OSError, ValueError, ElementTree.ParseError) as error:
        why = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
        why = f"is not XML: {error}" if isinstance(error, ElementTree.ParseError) else why
        raise UserError(f"the annotation {path.name} {why}", str(path), "replace it by that of the devkit") from error
    return Annotation(path.stem, size, boxes)


def read_size(root: Element) -> tuple[int, int]:
    """(height, width) of the image. ValueError if the file does not say."""
    if root.tag != "annotation":
        raise ValueError(f"is of something else: it holds <{root.tag}>, not <annotation>")
    texts = [(root.findtext(f"size/{side}") or "").strip() for side in ("height", "width")]
    if not all(text.isdecimal() and int(text) for text in texts):
        height, width = (text or "?" for text in texts)
        raise ValueError(f"does not say how large the image is (height {height}, width {width})")
    return int(texts[0]), int(texts[1])


def read_object(number: int, found: Element, size: tuple[int, int], classes: Sequence[str]) -> Box:
    """The `number`th object, counted from 1. ValueError for an unknown class, or what is no box in the image."""
    name = (found.findtext("name") or "").strip()
    if name not in classes:
        raise ValueError(f"gives object {number} the class '{name}'{did_you_mean(name, classes)}, which there is not")
    called = f"object {number} ({name})"
    pose = (found.findtext("pose") or "").strip() or Box.pose
    flags = {flag: read_flag(called, found, flag) for flag in ("difficult", "truncated", "occluded")}
    return Box(name, read_corners(called, found, size), pose=pose, **flags)


def read_flag(called: str, found: Element, flag: str) -> bool:
    """Whether a flag of an object is 1; False where it is not said. ValueError for any other text."""
    text = (found.findtext(flag) or "0").strip()
    if text not in ("0", "1"):
        raise ValueError(f"says <{flag}> of {called} with '{text}', where 0 or 1 is expected")
    return text == "1"


def read_corners(called: str, found: Element, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The box of an object. ValueError unless it is one, and in the image."""
    if found.find("bndbox") is None:
        raise ValueError(f"has no <bndbox> for {called}")
    texts = [(found.findtext(f"bndbox/{corner}") or "").strip() for corner in CORNERS]
    shown = ", ".join(f"{corner} {text or '?'}" for corner, text in zip(CORNERS, texts))
    try:
        left, top, right, bottom = map(float, texts)
    except ValueError as error:
        raise ValueError(f"has no numbers for the box of {called}: {shown}") from error
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise ValueError(f"has no numbers for the box of {called}: {shown}")
    if right < left or bottom < top:
        raise ValueError(f"has an inverted box for {called}: {shown}")
    height, width = size
    if min(left, top) < 1 - MARGIN or right > width + MARGIN or bottom > height + MARGIN:
        raise ValueError(f"has a box outside the image ({width} x {height} pixels) for {called}: {shown}")
    return left, top, right, bottom


def format_annotation(annotation: Annotation, folder: str) -> str:
    """The text of an annotation's file, for an image that also has a mask; `folder` is the devkit's (VOC2007)."""
    height, width = annotation.size
    lines = [
        "<annotation>",
        f"\t<folder>{folder}</folder>",
        f"\t<filename>{annotation.name}.jpg</filename>",
        f"\t<size>\n\t\t<width>{width}</width>\n\t\t<height>{height}</height>\n\t\t<depth>3</depth>\n\t</size>",
        "\t<segmented>1</segmented>",
        *map(format_box, annotation.boxes),
        "</annotation>",
    ]
    return "\n".join(lines) + "\n"


def format_box(box: Box) -> str:
    """An object, as it stands in an annotation's file."""
    corners = "\n".join(f"\t\t\t<{name}>{value:g}</{name}>" for name, value in zip(CORNERS, box.corners))
    flags = "\n".join(f"\t\t<{flag}>{getattr(box, flag):d}</{flag}>" for flag in ("truncated", "difficult", "occluded"))
    said = f"\t\t<name>{box.name}</name>\n\t\t<pose>{box.pose}</pose>\n{flags}"
    return f"\t<object>\n{said}\n\t\t<bndbox>\n{corners}\n\t\t</bndbox>\n\t</object>"
