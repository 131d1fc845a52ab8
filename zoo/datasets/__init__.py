"""The data sets, by name: `find("mnist", data_dir)`. Another is one entry in DATASETS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from results.errors import UserError, did_you_mean
from zoo.datasets.dataset import Dataset
from zoo.datasets.digits import Digits
from zoo.datasets.folder import Folder, ImageNet
from zoo.datasets.idx import FashionMnist, Mnist

DATASETS: dict[str, Callable[[Path | None], Dataset]] = {
    "digits": lambda data_dir: Digits(),
    "mnist": Mnist,
    "fashion-mnist": FashionMnist,
    "imagenet": ImageNet,
}
FOLDER = "folder:"


def find(name: str, data_dir: Path | None = None) -> Dataset:
    """The data set called `name`, or `folder:PATH`; whether it is there is for its preflight to say."""
    if name.startswith(FOLDER) and name != FOLDER:
        return Folder(Path(name.removeprefix(FOLDER)).expanduser())
    if name not in DATASETS:
        hint = did_you_mean(name, DATASETS)
        raise UserError(f"there is no data set '{name}'{hint}", fix=", ".join(DATASETS) + " or folder:PATH")
    return DATASETS[name](data_dir)
