"""What a checkpoint file says of itself, read without torch: the JSON header of safetensors."""

from __future__ import annotations

import json
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

from results.errors import UserError

SCHEMA = 1
ENTRY = "clusterzoo"  # our one entry in safetensors' __metadata__: all else about the checkpoint, as JSON
FIELDS = (
    *("name", "method", "backbone", "preprocessing", "dataset", "epoch", "settings", "seed"),
    *("recipe", "limit", "key", "source"),
)
LONGEST = 100_000_000  # bytes of a header: safetensors' own limit
FOREIGN = "python -m zoo.checkpoint import FILE, if it is a model that others released"
DAMAGED = "copy or download the file again, or repeat the command that made it"


def describe(path: str | PathLike) -> dict[str, Any]:
    """The description in a checkpoint's header: FIELDS, `schema`, `sha256`, and what its `groups` hold.

    groups: {name: {"tensors": count, "parameters": values in them}}. Only the header is read. UserError for a
    file that is missing, truncated, foreign, or written in another schema.
    """
    path = Path(path)
    tensors = read_header(path)
    try:
        description = json.loads(tensors.pop("__metadata__", {})[ENTRY])
        schema = description["schema"]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path.name} is a safetensors file, but no checkpoint of ours", str(path), FOREIGN) from error
    if schema != SCHEMA:
        raise UserError(
            f"{path.name} has schema {schema}, and this version reads {SCHEMA}", str(path), "update the suite"
        )
    absent = [field for field in (*FIELDS, "sha256") if field not in description]
    if absent:
        refuse(path, f"its description lacks {', '.join(absent)}")
    return description | {"groups": summarise({name: entry["shape"] for name, entry in tensors.items()})}


def summarise(shapes: dict[str, list[int]]) -> dict[str, dict[str, int]]:
    """Tensors and parameters of each group, from the shape of each tensor `group/name`."""
    groups: dict[str, dict[str, int]] = {}
    for name, shape in shapes.items():
        group = groups.setdefault(name.partition("/")[0], {"tensors": 0, "parameters": 0})
        group["tensors"] += 1
        group["parameters"] += prod(shape)
    return groups


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file. UserError unless the file is as long as the header says.

    Layout: the header's length (8 bytes, little-endian), the header in JSON, the tensors' bytes.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if 0 < length <= LONGEST else b""
    except OSError as error:
        raise UserError(
            f"cannot read {path.name}: {error.strerror}", str(path), "python -m pretrain lists checkpoints"
        ) from error
    try:
        header = json.loads(text)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        total = 8 + length + max(ends, default=0)
    except (ValueError, AttributeError, TypeError, LookupError, RecursionError) as error:
        if size < 9 or text[:1] == b"{":
            refuse(path, f"it ends after {size} bytes" if size < 8 + length else "its header cannot be read")
        raise UserError(f"{path.name} is no checkpoint: it is not a safetensors file", str(path), FOREIGN) from error
    if size != total:
        refuse(path, f"it has {size} bytes where {total} are announced")
    return header


def refuse(path: Path, why: str) -> NoReturn:
    """UserError: the file is damaged."""
    raise UserError(f"{path.name} is damaged: {why}", str(path), DAMAGED)
