"""Images with the boxes of their objects, and with proposals, as a detector sees them: scaled, perhaps mirrored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from results.errors import UserError
from transfer.proposals import Proposals
from transfer.scores import to_edges
from zoo.datasets.decoding import read_rgb
from zoo.datasets.images import FileImages
from zoo.voc import Devkit
from zoo.voc.annotation import Annotation
from zoo.voc.devkit import ANNOTATIONS, list_of, path_of
from zoo.warp import resize_fast
from zoo.windows import View, to_tensor


@dataclass(frozen=True)
class Seen:
    """An image as a detector sees it. Boxes are edges counted from 0, in these pixels."""

    pixels: Tensor  # uint8 (C, h, w)
    size: tuple[int, int]  # height, width of the image in its file
    boxes: Tensor  # float32 (n, 4), of the objects that are learned from
    labels: Tensor  # int64 (n,): their classes, from 1 on
    proposals: Tensor | None = None  # float32 (m, 4)

    @property
    def scale(self) -> Tensor:
        """How much larger it is than in its file: float32 (4,), for boxes."""
        height, width = (seen / full for seen, full in zip(self.pixels.shape[-2:], self.size))
        return torch.tensor([width, height, width, height])


@dataclass(frozen=True)
class Scaled(View):
    """The image with its shorter side at one of `sides`, or less where the longer would be more than `longest`.

    flip: whether half of the images are mirrored.
    """

    sides: tuple[int, ...]
    longest: int
    flip: bool = False

    def draw(self, height: int, width: int, generator: Generator) -> tuple[int, int, bool]:
        """(height, width, mirrored) of what is seen of an image of this size."""
        side = self.sides[int(torch.randint(len(self.sides), (), generator=generator))]
        scale = min(side / min(height, width), self.longest / max(height, width))
        mirrored = self.flip and bool(torch.rand((), generator=generator) < 0.5)
        return max(1, round(scale * height)), max(1, round(scale * width)), mirrored

    def tensors(self, pixels: Tensor, generator: Generator) -> Tensor:
        """See View.tensors; all images with the first one's draws."""
        height, width, mirrored = self.draw(pixels.shape[-2], pixels.shape[-1], generator)
        seen = torch.stack([resize_fast(image, height, width) for image in pixels])
        return seen.flip(-1) if mirrored else seen


class Scenes(FileImages):
    """Images of a set of Main with their annotations; batches hold a list of Seen.

    rows: which images, by their place in the set. learning: without those that show no object that is not difficult:
    py-faster-rcnn leaves them out of the training, too. UserError if none is left, and for an annotation without any
    object of an image that shows some by the lists.
    """

    def __init__(self, kit: Devkit, split: str, rows: np.ndarray, learning: bool = False) -> None:
        names = kit.ids(split)
        found = {row: kit.annotation(names[row]) for row in rows.tolist()}
        check_annotated(kit, split, found)
        self.annotations = [one for one in found.values() if learnable(one) or not learning]
        if not self.annotations:
            happened = f"none of {len(rows)} images has an object to learn from: all are difficult"
            raise UserError(happened, fix="more images (a larger --limit, or none)")
        kept = [row for row, one in found.items() if learnable(one) or not learning]
        images = kit.read(split).subset(np.array(kept))
        super().__init__(images.root, images.paths, None)
        self.kit = kit
        self.proposals: Proposals | None = None
        self.regions = "rpn"  # what finds them

    def see(self, number: int, view: View, draws: Generator) -> Any:
        """One image through a view. UserError naming the file that is not as it should be."""
        assert isinstance(view, Scaled)
        image = read_rgb(self.place(number))
        height, width, mirrored = view.draw(image.height, image.width, draws)
        pixels = resize_fast(to_tensor(image), height, width)
        scale = torch.tensor([width / image.width, height / image.height] * 2)

        def follow(boxes: Tensor) -> Tensor:
            return mirror(boxes * scale, width) if mirrored else boxes * scale

        boxes, labels = self.objects(number, (image.height, image.width))
        proposals = None if self.proposals is None else follow(torch.from_numpy(self.proposals[number]))
        pixels = pixels.flip(-1) if mirrored else pixels
        return Seen(pixels, (image.height, image.width), follow(boxes), labels, proposals)

    def objects(self, number: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(edges, float32 (n, 4); classes from 1 on, int64 (n,)) of the objects that are learned from.

        UserError if they are of another image than this one, of height and width `size`.
        """
        annotation, (height, width) = self.annotations[number], size
        boxes = [box for box in annotation.boxes if not box.difficult]
        corners = np.array([box.corners for box in boxes]).reshape(-1, 4)
        edges = to_edges(corners).clip(0, [width, height, width, height])
        if annotation.size != size or (edges[:, 2:] <= edges[:, :2]).any():
            said, found = (f"{across} x {down} pixels" for down, across in (annotation.size, size))
            what = f"is of {said}, and the image has {found}" if said != found else "has a box outside the image"
            raise UserError(f"the annotation {annotation.name}.xml {what}", str(self.path(number)), self.kit.mend)
        labels = [1 + self.kit.classes.index(box.name) for box in boxes]
        return torch.from_numpy(edges).float(), torch.tensor(labels, dtype=torch.int64)

    def join(self, seen: Sequence[Any], device: torch.device) -> Any:
        """See FileImages.join: images of different sizes stay a list."""
        return list(seen)


def check_annotated(kit: Devkit, split: str, annotations: dict[int, Annotation]) -> None:
    """UserError for an image of the set (by its place in it) that shows a class by its list, and has no object."""
    presence = kit.presence(split)
    for row, annotation in annotations.items():
        if not annotation.boxes and (presence[row] == 1).any():
            name = kit.classes[int((presence[row] == 1).argmax())]
            what = f"has no object, but {list_of(name, split)} says that the image shows a {name}"
            raise kit.broken(path_of(annotation.name, ANNOTATIONS), what)


def learnable(annotation: Annotation) -> bool:
    """Whether the image has an object that is not difficult."""
    return any(not box.difficult for box in annotation.boxes)


def mirror(boxes: Tensor, width: int) -> Tensor:
    """The boxes (n, 4) where they are in the mirrored image."""
    return torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
