"""Images in tar shards, laid out as webdataset does: `shards:PATTERN`, or `shards:TRAIN,VAL` to evaluate on VAL.

PATTERN is a path with ranges or choices in braces (data-{000000..000099}.tar, {a,b}.tar), which must all be there,
and with *, ? and [ ] for whatever is there. A comma outside braces parts the training shards from those to evaluate on.

The members of a sample share a key, their path up to the first dot of the file's name; what follows is the field:
an image (jpg, jpeg, png or webp), and perhaps a label, as text (cls) or in JSON (json: {"label": …} or {"cls": …}).
Other fields are not looked at, nor are hidden files and webdataset's own (__name__).

A shard is read through once: where each image lies in it is remembered in cache/shards, by the shard's path, size and
time. Images are then read from there one by one, so any order of them can be had, whole and without repeats, by any
number of threads or processes; memory holds an index alone (see FileImages: shard, key and 24 bytes an image).
"""

from __future__ import annotations

import glob
import os
import re
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.lib.recfunctions import repack_fields
from tqdm import tqdm

from results.errors import UserError
from zoo.datasets.collection import Collection, Split
from zoo.datasets.dataset import Missing
from zoo.datasets.images import table
from zoo.datasets.labels import number_classes
from zoo.datasets.tar import index

SPLITS = ("train", "val")
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
WILD = re.compile(r"[*?\[{]")


class Shards(Collection):
    """The images in tar shards, sorted by shard and key."""

    source = "shards:DIR/train-{000..099}.tar,DIR/val-{000..009}.tar: tar files of KEY.jpg and, for labels, KEY.cls"

    def __init__(self, spelled: str) -> None:
        patterns = [os.path.abspath(os.path.expanduser(part)) for part in split_patterns(spelled)]
        if len(patterns) > len(SPLITS) or "" in split_patterns(spelled):
            raise UserError(f"shards:{spelled} is neither one pattern nor two", fix=self.source)
        self.patterns = dict(zip(SPLITS, patterns))
        self.name = f"shards:{plain_name(patterns[0])}"
        # of each pattern the folders before the first wildcard
        self.location = Path(os.path.commonpath([os.path.dirname(WILD.split(pattern)[0]) for pattern in patterns]))

    @property
    def origin(self) -> list[str]:
        """See Collection.origin."""
        return ["shards", *self.patterns.values()]

    @cached_property
    def shards(self) -> dict[str, list[Path]]:
        """The shards of each split, sorted. UserError if one is not there, or in both."""
        found = {split: find_shards(pattern) for split, pattern in self.patterns.items()}
        train, *others = found.values()
        both = sorted(set(train).intersection(*others)) if others else []
        if both:
            raise UserError(f"{both[0].name} is a shard of both patterns", str(both[0]), self.source)
        return found

    def _look(self) -> dict[str, Split]:
        rows = {split: gather(shards, self.location) for split, shards in self.shards.items()}

        def called(split: str, at: int) -> str:
            return os.fsdecode(b":".join(rows[split][["path", "key"]][at].item()))

        labels, classes = number_classes({split: found["label"] for split, found in rows.items()}, called)
        return {
            split: Split(repack_fields(found[["path", "size", "offset", "key"]]), labels[split], classes)
            for split, found in rows.items()
        }


def gather(shards: list[Path], root: Path) -> np.ndarray:
    """Records (N,) of path (relative to `root`), key, size, offset and label of all images in the shards."""
    parts = []
    for shard in tqdm(shards, desc="looking through shards", disable=None, leave=False):
        try:
            rows = index(shard)
        except OSError as error:
            happened = f"cannot read the shard {shard.name}: {error.strerror}"
            raise UserError(happened, str(shard), "make it readable (chmod u+r), or get it again") from error
        path = np.full(len(rows), os.fsencode(os.path.relpath(shard, root)))
        parts.append(table(path=path, **{name: rows[name] for name in rows.dtype.names or ()}))
    return np.concatenate(parts)


def find_shards(pattern: str) -> list[Path]:
    """The files that a pattern means, sorted. UserError if one that it spells out is not there, or there is none."""
    found: set[str] = set()
    for path in expand(pattern):
        matches = [path] if os.path.isfile(path) else [match for match in glob.glob(path) if os.path.isfile(match)]
        if not matches:
            kind = UserError if found else Missing
            raise kind(f"there is no shard {os.path.basename(path)}", path, Shards.source)
        found.update(matches)
    return [Path(path) for path in sorted(found)]


def expand(pattern: str) -> list[str]:
    """The paths that a pattern's braces stand for: {08..10} for 08, 09, 10, and {a,b} for a, b."""
    braces = BRACES.search(pattern)
    if braces is None:
        return [pattern]
    bounds = RANGE.fullmatch(braces[1])
    choices = numbers(*bounds.groups()) if bounds else braces[1].split(",")
    head, tail = pattern[: braces.start()], pattern[braces.end() :]
    return [path for choice in choices for path in expand(head + choice + tail)]


def numbers(first: str, last: str) -> list[str]:
    """The numbers from `first` to `last`, as wide as `first` is. UserError if they count down."""
    if int(first) > int(last):
        raise UserError(f"the range {{{first}..{last}}} has no numbers", fix=f"{{{last}..{first}}}")
    return [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]


def split_patterns(spelled: str) -> list[str]:
    """The patterns between the commas that are in no braces."""
    parts, depth = [""], 0
    for letter in spelled:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def plain_name(pattern: str) -> str:
    """What is fixed of a pattern's last part, for names of files; that of its folder if nothing is."""
    folder, base = os.path.split(pattern)
    fixed = re.sub(r"\{[^{}]*\}|\[[^\]]*\]|[*?]", "", base).removesuffix(".tar").strip("-_.")
    return fixed or os.path.basename(folder)
