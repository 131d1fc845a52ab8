"""Which data sets are here, how to get the others, and which images of one are corrupt.

python -m zoo.datasets [NAME …] [--data-dir DIR]
python -m zoo.datasets --download mnist --data-dir DIR
python -m zoo.datasets --verify folder:PATH [--out LIST]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from shutil import get_terminal_size
from textwrap import TextWrapper

from tabulate import tabulate

from results.errors import UserError, did_you_mean, ending
from results.files import ROOT
from zoo.datasets import DATASETS, SPELLED, find
from zoo.datasets.dataset import Dataset, Missing
from zoo.datasets.verify import verify

HEADERS = ("data set", "present", "images", "classes", "size", "fingerprint")
WIDTH = 120  # columns of what is no terminal
DOWNLOADS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "stl10": "STL10"}  # torchvision's classes


def main(arguments: list[str] | None = None) -> int:
    """Run the command; its exit code: 2 if what was asked for is unknown, absent or damaged; 1 for corrupt images."""
    options = parse(arguments)
    return ending(lambda: run(options))


def run(options: argparse.Namespace) -> int:
    """Download, verify or list, as the options say; the exit code."""
    check(options)
    if options.download:
        download(options.download, options.data_dir or ROOT / "data")
    if options.verify:
        return verify(find(options.verify, options.data_dir), options.out)
    return show([find(name, options.data_dir) for name in options.names or DATASETS], bool(options.names))


def check(options: argparse.Namespace) -> None:
    """UserError for options that would be passed over."""
    names = " ".join(options.names)
    if options.out is not None and not options.verify:
        fix = f"python -m zoo.datasets --verify {names or 'NAME'} --out {options.out}"
        raise UserError("--out says where --verify lists corrupt images, and there is no --verify", fix=fix)
    if options.names and options.verify:
        fix = f"python -m zoo.datasets --verify {options.verify}"
        raise UserError(f"--verify takes one data set, and {names} stands beside it", fix=fix)


def show(datasets: list[Dataset], asked: bool) -> int:
    """Print what is here, the licences and how to get what is absent, and the faults; the exit code.

    asked: whether the data sets were asked for by name, so that one that is absent is a fault.
    """
    rows, faults, absent = [], [], []
    for dataset in datasets:
        cells, fault = row(dataset)
        rows.append(cells)
        if fault and (asked or not isinstance(fault, Missing)):
            faults.append(fault)
        elif fault:
            absent.append((dataset.name, dataset.source))
    print(tabulate(rows, HEADERS, disable_numparse=True))
    print(f"\nlicences\n{columns([(dataset.name, dataset.licence) for dataset in datasets])}")
    if absent:
        print(f"\nhow to get those that are not here\n{columns(absent)}")
    for fault in faults:
        print(f"\nerror: {fault}", file=sys.stderr)
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
        return [dataset.name, "yes", *describe(dataset)], None
    except UserError as error:
        present = "no" if isinstance(error, Missing) else "damaged"
        return [dataset.name, present, *["–"] * 4], error


def describe(dataset: Dataset) -> list[str]:
    """Images per split, classes, size and short fingerprint."""
    counts = ", ".join(f"{split} {count}" for split, count in dataset.splits.items())
    return [counts, str(len(dataset.classes) or "–"), str(dataset.size or "–"), dataset.fingerprint()[:12]]


def columns(rows: list[tuple[str, str]]) -> str:
    """Names, and beside them texts that are broken at spaces where the terminal ends."""
    width = max(len(name) for name, _ in rows)
    wrap = TextWrapper(get_terminal_size((WIDTH, 0)).columns, break_long_words=False, break_on_hyphens=False)
    wrap.subsequent_indent = " " * (width + 4)
    return "\n".join(wrap.fill(f"  {name:{width}}  {text}") for name, text in rows)


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
