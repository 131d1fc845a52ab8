"""ImageNet-10: ten classes of ImageNet at 96 x 96, as MMDC and DAC cluster them (mmdc.md 1.9).

Departures from the paper: the released program dropped the images that are not in RGB (some are in CMYK); here they
are converted, as everywhere, so that everyone has the same images and none is missing from the 13 000. It resized with
Pillow's default filter of the day, which is not on record: the nearest pixel before Pillow 7.0 (January 2020),
bicubic since. The paper is of 2019, so the nearest pixel is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from results.files import digest
from zoo.datasets.folder import ImageNet, Split, scan_classes
from zoo.datasets.images import FileImages
from zoo.views import View

SIDE = 96
CLASSES = (
    *("n02056570", "n02085936", "n02128757", "n02690373", "n02692877"),
    *("n03095699", "n04254680", "n04285008", "n04467665", "n07747607"),
)


class ImageNet10(ImageNet):
    """13 000 + 500 photographs. The paper clusters those of train alone."""

    name = "imagenet10"
    counts = {"classes": 10, "train": 13000, "val": 500}  # noqa: RUF012
    merged = ("train",)
    size = SIDE

    def gather(self) -> dict[str, Split]:
        """See CountedFolder.gather; other classes are not looked at."""
        return {split: scan_classes(self.location, self.location / split, CLASSES) for split in ("train", "val")}

    def read(self, split: str) -> FileImages:
        """See Dataset.read."""
        found = super().read(split)
        return SmallImages(found.root, found.paths, found.labels)

    def fingerprint(self, full: bool = False) -> str:
        """See Folder.fingerprint; a folder of the same files is another data set, since its images are larger."""
        return digest([self.name, SIDE, "nearest", super().fingerprint(full)])


class SmallImages(FileImages):
    """Images in files, brought to SIDE x SIDE before any view."""

    def see(self, number: int, view: View, draws: torch.Generator) -> Tensor:
        """See FileImages.see."""
        return super().see(number, Small(view), draws)


@dataclass(frozen=True)
class Small(View):
    """What `view` shows of the images at SIDE x SIDE: the nearest pixels, the aspect not kept."""

    view: View

    def tensors(self, pixels: Tensor, generator: Generator) -> Tensor:
        """See View.tensors."""
        rows, columns = (nearest(side) for side in pixels.shape[-2:])
        return self.view.tensors(pixels[..., rows[:, None], columns], generator)


def nearest(side: int) -> Tensor:
    """Of `side` pixels the SIDE that Pillow takes: long (SIDE,)."""
    ramp = Image.fromarray(np.arange(side, dtype=np.int32)[None])
    return torch.from_numpy(np.array(ramp.resize((SIDE, 1), Image.Resampling.NEAREST))[0]).long()
