"""Pascal VOC: devkits of images with boxes and masks, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from zoo.voc.devkit import Devkit, Voc2007, Voc2012
from zoo.voc.minivoc import MiniVoc, MiniVocFashion

__all__ = ["VOCS", "Devkit"]

VOCS: dict[str, Callable[[Path | None], Devkit]] = {
    kind.name: kind for kind in (Voc2007, Voc2012, MiniVoc, MiniVocFashion)
}
