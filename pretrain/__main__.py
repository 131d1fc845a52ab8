"""The methods there are, what else can be done with them, and the checkpoints.

python -m pretrain
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from importlib import import_module
from pathlib import Path

from tabulate import tabulate

from zoo.checkpoint import RUNS, available
from zoo.run import guarded, registry, shown_path

BESIDE = ("pretrain.ablate", "pretrain.assign")


def main() -> None:
    """Print the lists."""
    parser = argparse.ArgumentParser(prog="python -m pretrain", description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=RUNS, help="where checkpoints made here are kept")
    runs = parser.parse_args().runs
    methods = [describe(name, kind) for name, kind in sorted(registry("pretrain").items())]
    print(tabulate(methods, headers=["method", "", "presets besides digits"], maxcolwidths=[None, 70, None]))
    print()
    print(tabulate([summarise(name) for name in BESIDE], headers=["besides", ""]))
    rows = []
    for name, path, told in available(runs):
        trained = "damaged: " + told["error"] if "error" in told else f"{told['method']}, epoch {told['epoch']}"
        data = (told.get("dataset") or {}).get("name", "–")
        limit = f"a smoke run on {told['limit']} images" if told.get("limit") else ""
        rows.append([name, trained, data, told.get("key") or "–", limit, shown_path(path.parent)])
    print()
    print(tabulate(rows, headers=["checkpoint", "", "data set", "key", "", "lies in"]))
    print("\nand random-<backbone>[-sobel]@<seed>, which needs no file")


def describe(name: str, kind: type) -> list[str]:
    """A method's line of the table: its name, what it is, its presets."""
    presets = ", ".join(getattr(kind, "presets", ()))
    return [*summarise(name), textwrap.fill(presets, 40, break_on_hyphens=False)]


def summarise(name: str) -> list[str]:
    """A module's name and what it is."""
    return [name, (import_module(name).__doc__ or "").partition("\n")[0]]


if __name__ == "__main__":
    sys.exit(guarded(main))
