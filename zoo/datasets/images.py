"""Images of a data set and their labels, read in batches through a view.

What a view draws depends on the seed and the position in the order alone: not on device or workers.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from results.errors import UserError
from zoo.datasets.decoding import Place, read_rgb
from zoo.pieces import join, on
from zoo.seeds import generator
from zoo.views import Stretch, View

Batch = tuple[np.ndarray, Tensor]
Result = TypeVar("Result")


class Images(ABC):
    """`labels`: class of each image, int64 (N,), or None."""

    labels: np.ndarray | None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def subset(self, ids: np.ndarray) -> Self:
        """The images `ids`, in that order."""

    @classmethod
    @abstractmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All images of the parts, one part after the other."""

    @abstractmethod
    def batches(
        self,
        order: np.ndarray,
        batch: int | Sequence[int],
        view: View,
        seed: int,
        device: str | torch.device = "cpu",
        workers: int = 0,
        first: int = 0,
        part: Callable[[int], slice] = slice,
    ) -> Iterator[Batch]:
        """(ids, pixels) of the images in `order`, `batch` at a time from batch `first` on, the last being what is left.

        batch: or the number of images in each. part(n): which of the n images of a batch are wanted.

        pixels: 0..255, uint8 or float32 (B, C, h, w) on `device`, with whatever further axes the view adds.
        UserError, here and not in a worker, for an image that cannot be read.
        """

    def materialise(self, side: int, workers: int = 0) -> ArrayImages:
        """All images at side x side in memory: bilinear, the aspect not kept (mmdc.md 1.9)."""
        pixels: Tensor | None = None
        for ids, seen in self.batches(np.arange(len(self)), 256, Stretch(side), seed=0, workers=workers):
            if pixels is None:
                pixels = torch.empty((len(self), *seen.shape[1:]), dtype=torch.uint8)
            pixels[torch.from_numpy(ids)] = seen
        if pixels is None:
            raise UserError("there are no images to resize")
        return ArrayImages(pixels, self.labels)


class ArrayImages(Images):
    """Images in memory: `pixels` uint8 (N, C, H, W), on the CPU or moved to a GPU once."""

    def __init__(self, pixels: Tensor, labels: np.ndarray | None) -> None:
        self.pixels = pixels
        self.labels = labels

    def __len__(self) -> int:
        return len(self.pixels)

    def subset(self, ids: np.ndarray) -> ArrayImages:
        """See Images.subset."""
        chosen = torch.from_numpy(ids).to(self.pixels.device)
        return ArrayImages(self.pixels[chosen], choose(self.labels, ids))

    @classmethod
    def joined(cls, parts: Sequence[ArrayImages]) -> ArrayImages:
        """See Images.joined."""
        return cls(torch.cat([part.pixels for part in parts]), join_labels(parts))

    def to(self, device: str | torch.device) -> ArrayImages:
        """The same images with their pixels on `device`, where the views are then computed."""
        return ArrayImages(self.pixels.to(device), self.labels)

    def batches(
        self,
        order: np.ndarray,
        batch: int | Sequence[int],
        view: View,
        seed: int,
        device: str | torch.device = "cpu",
        workers: int = 0,
        first: int = 0,
        part: Callable[[int], slice] = slice,
    ) -> Iterator[Batch]:
        """See Images.batches; `workers` are of no use here."""
        for number, (start, size) in enumerate(stretches(len(order), batch, first), first):
            ids, wanted = order[start : start + size], part(size)
            pixels = self.pixels[torch.from_numpy(ids).to(self.pixels.device)].to(device)
            seen = view.tensors(pixels, generator(seed, number))  # of all: draws are the same whatever the part
            yield ids[wanted], seen.unflatten(0, (size, -1))[wanted].flatten(0, 1)


class FileImages(Images):
    """Images in files, read and decoded to RGB whenever they are asked for.

    root: the folder that paths are relative to.
    paths: as strings, or as records (see `table`) of the first fields of Place: files take `path` alone, files of
    known size `path` and `size`, stretches of files all four.

    An image costs the bytes of the longest path (and key), 8 for each number beside it and 8 for its label: with
    paths of 40 letters, 100 million images of a folder take 4.8 GB.
    """

    def __init__(self, root: Path, paths: Sequence[str] | np.ndarray, labels: np.ndarray | None) -> None:
        self.root = root
        self.paths = as_records(paths)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, ids: np.ndarray) -> Self:
        """See Images.subset."""
        return type(self)(self.root, self.paths[ids], choose(self.labels, ids))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """See Images.joined; the parts have one root."""
        return cls(parts[0].root, np.concatenate([part.paths for part in parts]), join_labels(parts))

    @property
    def names(self) -> np.ndarray:
        """What each image is called in lists and fingerprints, bytes (N,): its path relative to `root`, and key."""
        paths = self.paths["path"]
        if "key" not in (self.paths.dtype.names or ()):
            return paths
        return np.char.add(np.char.add(paths, b":"), self.paths["key"])

    def place(self, number: int) -> Place:
        """Where image `number` lies."""
        path, *rest = self.paths[number].item()
        return Place(self.root / os.fsdecode(path), *rest)

    def path(self, number: int) -> Path:
        """The file that image `number` lies in."""
        return self.place(number).path

    def batches(
        self,
        order: np.ndarray,
        batch: int | Sequence[int],
        view: View,
        seed: int,
        device: str | torch.device = "cpu",
        workers: int = 0,
        first: int = 0,
        part: Callable[[int], slice] = slice,
    ) -> Iterator[Batch]:
        """See Images.batches: one view call per image, in `workers` threads beside the caller's.

        On a GPU the resizing is left to it, where the view can be: see zoo/pieces.py.
        """
        device = torch.device(device)
        shown = on(device, view)
        parts = [range(start, start + size)[part(size)] for start, size in stretches(len(order), batch, first)]
        positions = chain.from_iterable(parts)
        most = 2 * max(map(len, parts), default=0)
        seen = ahead(lambda at: self.see(order[at], shown, generator(seed, at)), positions, workers, most)
        for wanted in parts:
            ids = order[wanted.start : wanted.stop]
            yield ids, self.join(list(islice(seen, len(ids))), device)

    def join(self, seen: Sequence[Any], device: torch.device) -> Any:
        """What a view showed of the images of a batch, together: pixels (B, …, C, h, w) on the device."""
        return join(seen, device)

    def see(self, number: int, view: View, draws: torch.Generator) -> Tensor:
        """One image through a view, as the view gives it. UserError naming the file if it cannot be."""
        place, again = self.place(number), draws.clone_state()
        try:
            image = read_rgb(place, lambda height, width: view.reduction(height, width, again))
            return view.image(image, draws)
        except UserError as error:
            raise error if error.looked else UserError(error.happened, str(place), error.fix) from error


def stretches(count: int, batch: int | Sequence[int], first: int = 0) -> Iterator[tuple[int, int]]:
    """(start, size) of the batches of `count` images, `batch` in each or as it says, from batch `first` on."""
    if isinstance(batch, int):
        starts = range(first * batch, count, batch)
        yield from ((start, min(batch, count - start)) for start in starts)
    else:
        yield from islice(zip(accumulate(batch, initial=0), batch), first, None)


def as_records(paths: Sequence[str] | np.ndarray) -> np.ndarray:
    """Paths as FileImages keeps them: one array, for as Python strings they would take three times the memory."""
    return paths if isinstance(paths, np.ndarray) else table(path=[os.fsencode(path) for path in paths])


def table(**columns: Sequence[bytes] | Sequence[int] | np.ndarray) -> np.ndarray:
    """The columns as one array (N,) of records; texts are bytes, as wide as the longest."""
    arrays = {name: np.array(values) for name, values in columns.items()}
    found = np.empty(len(next(iter(arrays.values()))), [(name, values.dtype) for name, values in arrays.items()])
    for name, values in arrays.items():
        found[name] = values
    return found


def ahead(work: Callable[[int], Result], numbers: Iterable[int], workers: int, most: int) -> Iterator[Result]:
    """work(number) for each of the numbers in their order, by `workers` threads that run up to `most` results ahead.

    Threads, not processes: decoders let go of Python's lock, while every fork would make the whole memory of a
    process that computes copy itself, page by page. 0 workers: made when asked for.
    """
    if not workers:
        yield from map(work, numbers)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        waiting: deque[Future[Result]] = deque()
        for number in numbers:
            waiting.append(pool.submit(work, number))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def choose(labels: np.ndarray | None, ids: np.ndarray) -> np.ndarray | None:
    """The labels of the images `ids`, if there are any."""
    return None if labels is None else labels[ids]


def join_labels(parts: Sequence[Images]) -> np.ndarray | None:
    """The labels of all parts, or None if one has none."""
    labels = [part.labels for part in parts if part.labels is not None]
    return np.concatenate(labels) if len(labels) == len(parts) else None
