"""Which data sets are here, how to get the others, and which images of one are corrupt.

python -m zoo.datasets [NAME …] [--data-dir DIR]
python -m zoo.datasets --download mnist --data-dir DIR
python -m zoo.datasets --verify folder:PATH [--out LIST]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tabulate import tabulate

from results.errors import UserError, did_you_mean
from results.files import ROOT
from zoo.datasets import DATASETS, SPELLED, find
from zoo.datasets.dataset import Dataset, Missing
from zoo.datasets.verify import verify

HEADERS = ("data set", "present", "images", "classes", "size", "fingerprint", "licence", "how to get it")
DOWNLOADS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "stl10": "STL10"}  # torchvision's classes


def main(arguments: list[str] | None = None) -> int:
    """Print the table; the exit code: 2 if what was asked for is unknown, absent or damaged; 1 for corrupt images."""
    options = parse(arguments)
    try:
        if options.download:
            download(options.download, options.data_dir or ROOT / "data")
        if options.verify:
            return verify(find(options.verify, options.data_dir), options.out)
        datasets = [find(name, options.data_dir) for name in options.names or DATASETS]
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    found = [row(dataset) for dataset in datasets]
    print(tabulate([cells for cells, _ in found], HEADERS, disable_numparse=True))
    # that one is absent is an error where it was asked for, and what the table says where it was not
    faults = [fault for _, fault in found if fault and (options.names or not isinstance(fault, Missing))]
    for fault in faults:
        print(f"\n{fault}", file=sys.stderr)
    return 2 if faults else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m zoo.datasets", description="Which data sets are here.")
    known = ", ".join(DATASETS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{known}, {SPELLED}; default: the named")
    parser.add_argument("--data-dir", type=Path, help="where to look first; then $ZOO_DATA, the clone's data/")
    fetched = " or ".join(DOWNLOADS)
    parser.add_argument("--download", metavar="NAME", help=f"fetch {fetched} with torchvision")
    parser.add_argument("--verify", metavar="NAME", help="decode every image of a data set; 1 if some are corrupt")
    parser.add_argument("--out", type=Path, metavar="LIST", help="where --verify lists them; default: NAME-corrupt.txt")
    return parser.parse_args(arguments)


def row(dataset: Dataset) -> tuple[list[str], UserError | None]:
    """The data set's line of the table, and what is wrong with it."""
    try:
        dataset.preflight()
        return [dataset.name, "yes", *describe(dataset), dataset.licence, ""], None
    except UserError as error:
        present = "no" if isinstance(error, Missing) else "damaged"
        return [dataset.name, present, *["–"] * 4, dataset.licence, dataset.source], error


def describe(dataset: Dataset) -> list[str]:
    """Images per split, classes, size and short fingerprint."""
    counts = ", ".join(f"{split} {count}" for split, count in dataset.splits.items())
    return [counts, str(len(dataset.classes) or "–"), str(dataset.size or "–"), dataset.fingerprint()[:12]]


def download(name: str, data_dir: Path) -> None:
    """Fetch a data set's files below `data_dir`, by torchvision (which checks their sums)."""
    if name not in DOWNLOADS:
        hint = did_you_mean(name, DOWNLOADS)
        fix = f"--download {' or --download '.join(DOWNLOADS)}"
        raise UserError(f"there is no download of '{name}'{hint}", fix=fix)
    from torchvision import datasets

    try:
        getattr(datasets, DOWNLOADS[name])(root=str(data_dir), download=True)
    except (OSError, RuntimeError) as error:  # no network, a wrong sum, a full disk
        fix = f"once more; or put the files into {data_dir / name} by hand"
        raise UserError(f"{name} could not be fetched: {error}", str(data_dir), fix) from error


if __name__ == "__main__":
    sys.exit(main())
