"""What folders, lists and shards held when they were last used, so that a change is said aloud."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

from results.errors import UserError
from results.files import ROOT, digest, write_json
from zoo.datasets.collection import Collection
from zoo.datasets.dataset import Dataset


def say_changes(dataset: Dataset, remember: bool = True) -> None:
    """One line on stderr if images came or went since the data set was last used, with the same ones left out.

    remember: this is a use of it.

    Never an error: what is wrong with the data set is for its preflight to say.
    """
    if not isinstance(dataset, Collection):
        return
    with suppress(UserError):
        images, fingerprint = sum(dataset.splits.values()), dataset.fingerprint()
        memo = place(dataset)
        before = recall(memo)
        if before is not None and before["fingerprint"] != fingerprint:
            change = describe(images - before["images"])
            print(f"{dataset.name} {change}: its records and caches are of the other content", file=sys.stderr)
        if remember:
            with suppress(OSError):
                write_json(memo, {"name": dataset.name, "images": images, "fingerprint": fingerprint})


def place(dataset: Collection) -> Path:
    """The file where it is remembered."""
    left_out = sorted(name.hex() for name in dataset.excluded)
    return ROOT / "cache" / "collections" / f"{digest([dataset.name, dataset.origin, left_out])[:32]}.json"


def recall(memo: Path) -> dict | None:
    """What was remembered; None if nothing was, or it is damaged."""
    with suppress(OSError, ValueError):
        found = json.loads(memo.read_text())
        if isinstance(found, dict) and isinstance(found.get("images"), int) and "fingerprint" in found:
            return found
    return None


def describe(more: int) -> str:
    """What changed, for `more` images than before."""
    plural = "" if abs(more) == 1 else "s"
    if more:
        return f"has {abs(more)} image{plural} {'more' if more > 0 else 'fewer'} than when it was last used"
    return "has as many images as when it was last used, but not the same"
