"""The data sets, by name: `find("mnist", data_dir)`. Another is one entry in DATASETS, or a kind in COLLECTIONS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from results.errors import UserError, did_you_mean
from zoo.datasets.cifar import Cifar10, Cifar100, Cifar100Coarse
from zoo.datasets.collection import Collection
from zoo.datasets.dataset import Dataset
from zoo.datasets.digits import Digits
from zoo.datasets.folder import Folder, ImageNet
from zoo.datasets.idx import FashionMnist, Mnist
from zoo.datasets.imagenet10 import ImageNet10
from zoo.datasets.listed import Listed
from zoo.datasets.places import Places205, Places365
from zoo.datasets.shards import Shards
from zoo.datasets.stl10 import Stl10
from zoo.datasets.tiny_imagenet import TinyImageNet


def find_voc(name: str) -> Callable[[Path | None], Dataset]:
    """What opens one of zoo.voc's data sets: imported when it is asked for, since zoo.voc imports this package."""

    def find_in(data_dir: Path | None) -> Dataset:
        from zoo.voc import VOCS

        return VOCS[name](data_dir)

    return find_in


DATASETS: dict[str, Callable[[Path | None], Dataset]] = {
    "digits": lambda data_dir: Digits(),
    "mnist": Mnist,
    "fashion-mnist": FashionMnist,
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "cifar100-20": Cifar100Coarse,
    "stl10": Stl10,
    "tiny-imagenet": TinyImageNet,
    "imagenet10": ImageNet10,
    "imagenet": ImageNet,
    "places205": Places205,
    "places365": Places365,
    **{name: find_voc(name) for name in ("voc2007", "voc2012", "minivoc", "minivoc-fashion")},
}
COLLECTIONS: dict[str, Callable[[str], Collection]] = {  # by what stands before the colon
    "folder": lambda place: Folder(Path(place).expanduser()),
    "list": Listed,
    "shards": Shards,
}
SPELLED = "folder:PATH, list:FILE or shards:PATTERN"


def find(name: str, data_dir: Path | None = None) -> Dataset:
    """The data set called `name`, or the collection that it spells; whether it is there is for its preflight to say."""
    kind, colon, place = name.partition(":")
    if colon and kind in COLLECTIONS:
        if not place:
            raise UserError(f"'{name}' does not say where the images are", fix=SPELLED)
        return COLLECTIONS[kind](place)
    if name not in DATASETS:
        hint = did_you_mean(name, DATASETS)
        raise UserError(f"there is no data set '{name}'{hint}", fix=f"{', '.join(DATASETS)}, {SPELLED}")
    return DATASETS[name](data_dir)
