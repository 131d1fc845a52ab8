"""Where objects may be: selective search (Uijlings et al. 2013), which Fast R-CNN classifies the boxes of.

    images = dataset.read("trainval")
    boxes = propose(images, cache, selective_search(), workers=16)
    boxes[0]        # float32 (n, 4): x1, y1, x2, y2

A box is edges counted from 0: x1, y1, x2, y2 with x2 - x1 its width, so that a whole image of 500x375 is 0, 0, 500, 375
(VOC's XML has 1, 1, 500, 375: transfer.scores.to_edges). An image of VOC takes one to two seconds of one core. Its
rectangles are kept in cache/ under its own bytes' digest: a run that was stopped goes on where it was, and splits and
years share what they share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from results.errors import UserError
from results.files import replacing
from zoo import arrays
from zoo.datasets.decoding import read_rgb
from zoo.datasets.images import FileImages, ahead
from zoo.seeds import numpy_generator

SIDE = 16  # pixels that both sides of a box have at least
MOST = 2000  # boxes of an image


@dataclass(frozen=True)
class Search:
    """A way to find rectangles.

    name: with whatever decides the rectangles: what is cached under one name is never taken for another's.
    find: an image, uint8 RGB (H, W, 3), to its rectangles: integers x, y, width, height (n, 4), in any order.
    """

    name: str
    find: Callable[[np.ndarray], np.ndarray]


def selective_search() -> Search:
    """OpenCV's selective search, `fast` as in the literature: two colour spaces, two similarities, k 150 and 300.

    It finds the same rectangles in every run, but in an order drawn with C's rand(), which no seed of OpenCV's rules:
    so they are ordered anew when read. UserError without OpenCV's contrib modules.
    """
    try:
        import cv2

        make = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation
    except (ImportError, AttributeError) as error:  # AttributeError: OpenCV, but the build without contrib
        raise UserError(
            "selective search needs OpenCV with its contrib modules (opencv-contrib-python-headless)",
            f"the installed packages: {error}",
            "make engines",
        ) from error
    cv2.setNumThreads(1)  # images are searched side by side: more threads for one would only be in the others' way

    def find(image: np.ndarray) -> np.ndarray:
        search = make()
        search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))  # OpenCV's images are BGR
        search.switchToSelectiveSearchFast()
        return np.asarray(search.process())

    return Search(f"selective-search-fast-opencv-{cv2.__version__}", find)


class Proposals:
    """Boxes of each image, float32 (n, 4), read when asked for; n may be 0 where the image is small or uniform."""

    def __init__(self, paths: Sequence[Path], side: int = SIDE, most: int = MOST) -> None:
        self.paths, self.side, self.most = paths, side, most

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> np.ndarray:
        return choose(_read(self.paths[number]), self.side, self.most)


def propose(
    images: FileImages,
    cache: Path,
    search: Search,
    workers: int,
    side: int = SIDE,
    most: int = MOST,
    quiet: bool = False,
) -> Proposals:
    """The proposals of the images, after searching those that are not in the cache, in `workers` threads.

    UserError naming an image that cannot be read, or if the disk is full.
    """
    folder = cache / "proposals" / search.name
    names = ahead(lambda number: images.place(number).content(full=True).hex(), range(len(images)), workers, 256)
    paths = [folder / name[:2] / f"{name}.npy" for name in names]
    missing = {path: number for number, path in enumerate(paths) if not path.exists()}  # equal images are one
    searched = _search(images, missing, search, workers)
    hidden = True if quiet else None  # None: no bar where stderr is not a terminal
    for _ in tqdm(searched, desc="selective search", total=len(missing), disable=hidden, leave=False):
        pass
    return Proposals(paths, side, most)


def _search(images: FileImages, missing: dict[Path, int], search: Search, workers: int) -> Iterator[None]:
    """Make the file of each image; one step an image."""
    places = list(missing.items())

    def make(at: int) -> None:
        path, number = places[at]
        found = search.find(np.asarray(read_rgb(images.place(number))))
        with replacing(path) as temporary:
            np.save(temporary, found.astype(np.int32).reshape(-1, 4))

    return ahead(make, range(len(places)), workers, most=2 * workers)


def _read(path: Path) -> np.ndarray:
    try:
        return arrays.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read the proposals: {error}", str(path), f"rm {path}") from error


def choose(rectangles: np.ndarray, side: int, most: int) -> np.ndarray:
    """The boxes, float32 (n, 4), of rectangles x, y, width, height (m, 4) whose sides are `side` or more, each once.

    At most `most` of them, in the manner of Uijlings et al. 3.3: ordered by place times a draw from 0…1, where the
    place in the hierarchy, which OpenCV does not tell, is that among the areas. The same for any order given.
    """
    x, y, width, height = np.unique(rectangles, axis=0).astype(np.int64).T
    boxes = np.stack([x, y, x + width, y + height], axis=1)
    large = np.flatnonzero((width >= side) & (height >= side))
    by_area = large[np.argsort(-(width * height)[large], kind="stable")]
    places = np.arange(1, len(large) + 1) * numpy_generator(0, "selective search").random(len(large))
    return boxes[by_area[np.argsort(places)[:most]]].astype(np.float32)
