"""Where the bytes of an image lie, and the image that they are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from results.errors import UserError

Reduction = Callable[[int, int], int]


@dataclass(frozen=True)
class Place:
    """Where the bytes of an image lie: a file, or a stretch of one that has a name."""

    path: Path
    size: int = -1  # bytes; -1: to the end of the file
    offset: int = 0
    key: bytes = b""

    def __str__(self) -> str:
        return self.called(str(self.path))

    @property
    def name(self) -> str:
        """What messages call the image: without the folders."""
        return self.called(self.path.name)

    def called(self, path: str) -> str:
        """The path, with the name of the stretch if it is one."""
        return f"{path}:{os.fsdecode(self.key)}" if self.key else path

    def read(self) -> bytes:
        """The bytes. OSError if the file cannot be read."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def content(self, full: bool) -> bytes:
        """The size as text, or with `full` the sha256 of the bytes. UserError naming what cannot be read."""
        try:
            if full:
                return hashlib.sha256(self.read()).digest()
            return str(self.path.stat().st_size if self.size < 0 else self.size).encode()
        except OSError as error:
            raise UserError(f"cannot read the image {self.name}: {error.strerror}", str(self)) from error


def whole(height: int, width: int) -> int:
    """No reduction."""
    return 1


def read_rgb(place: Place, reduction: Reduction = whole) -> Image.Image:
    """The image that lies there, as 8-bit RGB. UserError naming it if it cannot be decoded whole.

    DeepCluster tolerates truncated files: we name them.
    """
    try:
        return decode(place, reduction)
    except Exception as error:  # damaged bytes make decoders fail in any way
        raise UserError(
            f"cannot read the image {place.name}: {reason(error)}",
            str(place),
            "replace it; python -m zoo.datasets --verify NAME lists all such images, for --exclude",
        ) from error


def decode(place: Place, reduction: Reduction = whole) -> Image.Image:
    """The image that lies there, as 8-bit RGB, or whatever error the decoder has.

    reduction: by how much (1, 2, 4 or 8) an image of this height and width may come out smaller; JPEGs then do, for
    their decoder has less to compute. Grey is repeated, transparency dropped, 16 bits scaled to 8 (Pillow would clip
    them); EXIF rotation is not applied (as in torchvision).
    """
    image = Image.open(BytesIO(place.read()))
    if image.format == "JPEG":
        factor = reduction(image.height, image.width)
        image.draft(None, (image.width // factor, image.height // factor))
    image.load()
    return image if image.mode == "RGB" else scale_deep(image).convert("RGB")


def reason(error: Exception) -> str:
    """Why an image could not be decoded, on one line and without the paths that some decoders add."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no image of a known format"
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(said.split()) or type(error).__name__


def scale_deep(image: Image.Image) -> Image.Image:
    """A 16-bit grey image scaled to 8 bits; any other as it is."""
    if not image.mode.startswith("I"):
        return image
    levels: Any = np.asarray(image, dtype=np.float64)
    return Image.fromarray(np.clip(np.rint(levels / 257), 0, 255).astype(np.uint8))
