"""The methods there are, and the checkpoints.

python -m pretrain
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

from tabulate import tabulate

from zoo.checkpoint import RUNS, available
from zoo.run import guarded, registry, shown_path


def main() -> None:
    """Print both lists."""
    parser = argparse.ArgumentParser(prog="python -m pretrain", description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=Path, default=RUNS, help="where checkpoints made here are kept")
    runs = parser.parse_args().runs
    methods = [describe(name, kind) for name, kind in sorted(registry("pretrain").items())]
    print(tabulate(methods, headers=["method", "", "presets besides digits"], maxcolwidths=[None, 70, None]))
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
    summary = (sys.modules[kind.__module__].__doc__ or "").partition("\n")[0]
    presets = ", ".join(getattr(kind, "presets", ()))
    return [name, summary, textwrap.fill(presets, 40, break_on_hyphens=False)]


if __name__ == "__main__":
    sys.exit(guarded(main))
