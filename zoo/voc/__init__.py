"""Pascal VOC: devkits of images with boxes and masks, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from results.errors import UserError
from zoo.datasets.dataset import Dataset
from zoo.voc.devkit import Devkit, Voc2007, Voc2012
from zoo.voc.minivoc import MiniVoc, MiniVocFashion

__all__ = ["VOCS", "Devkit", "as_devkit"]

VOCS: dict[str, Callable[[Path | None], Devkit]] = {
    kind.name: kind for kind in (Voc2007, Voc2012, MiniVoc, MiniVocFashion)
}


def as_devkit(dataset: Dataset, purpose: str, also: str = "") -> Devkit:
    """The data set. UserError if it is no devkit.

    purpose: which task does what on one ("probes.svm ranks the images of"). also: what else there is to type.
    """
    if not isinstance(dataset, Devkit):
        others = ", ".join(name for name in VOCS if name != MiniVoc.name)
        happened = f"{purpose} a devkit of Pascal VOC, and {dataset.name} is none"
        raise UserError(happened, fix=f"--dataset {MiniVoc.name} (or {others}){also}")
    return dataset
