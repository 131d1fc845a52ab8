"""What one run produced, and from what: one JSON file, whose key is a digest of all that makes its number."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

from results.files import digest

SCHEMA = 1

TYPES: dict[str, tuple[type, ...]] = {
    "schema": (int,),
    "key": (str,),
    "task": (str,),
    "version": (int,),
    "protocol": (str, type(None)),
    "settings": (dict,),
    "checkpoint": (dict, type(None)),
    "dataset": (dict,),
    "metrics": (dict,),
    "details": (dict,),
    "environment": (dict,),
    "command": (str,),
    "started": (str,),
    "seconds": (int, float),
}
DATASET_FIELDS = ("name", "protocol", "fingerprint")
CHECKPOINT_FIELDS = ("name", "sha256", "recipe")


@dataclass(frozen=True)
class Record:
    """One run. Pretraining has no `checkpoint` (None): `details["checkpoint"]` names the one it made."""

    schema: int
    key: str
    task: str
    version: int
    protocol: str | None
    settings: dict[str, Any]
    checkpoint: dict[str, Any] | None  # name, sha256, method, backbone, recipe, seed, epoch, source, dataset
    dataset: dict[str, Any]  # name, protocol ("split" or "merged"), fingerprint, splits {name: count}
    metrics: dict[str, float]
    details: dict[str, Any]  # never read by a table's number
    environment: dict[str, Any]
    command: str
    started: str
    seconds: float

    def to_json(self) -> str:
        """The file's text: keys sorted, indent 1. Metrics that are not finite numbers: ValueError."""
        check(dataclasses.asdict(self))
        return json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        """The record a file holds; what is no JSON, of another schema, or not whole: ValueError saying so."""
        values = json.loads(text)
        check(values)
        record = cls(**values)
        if record.key != record.expected_key():
            raise ValueError(
                f"key {record.key} is not that of its task, settings, checkpoint and data set "
                f"({record.expected_key()}): it was edited"
            )
        return record

    def expected_key(self) -> str:
        """The key that the record's own contents give."""
        sha256 = self.checkpoint["sha256"] if self.checkpoint else None
        return cell_key(self.task, self.version, self.settings, sha256, self.dataset["fingerprint"])

    @property
    def subject(self) -> dict[str, Any]:
        """The checkpoint it evaluated; of pretraining, what tells the one it produced: name, sha256, recipe, seed."""
        if self.checkpoint is not None:
            return self.checkpoint
        made = {"recipe": self.details.get("recipe"), "seed": self.settings.get("seed"), "sha256": None}
        return made | self.details["checkpoint"]

    @property
    def checkpoint_name(self) -> str:
        """The name of the checkpoint it evaluated, or of the one it produced."""
        return self.subject["name"]


def cell_key(
    task: str,
    version: int,
    settings: dict[str, Any],
    checkpoint_sha256: str | None,
    fingerprint: str,
    limit: int | None = None,
) -> str:
    """12 hex digits that name a run by its contents.

    A changed task version, setting, checkpoint, data set or limit gives another key, never a silent hit.
    """
    return digest([task, version, settings, checkpoint_sha256, fingerprint, limit])[:12]


def check(values: Any) -> None:
    """ValueError unless the values are those of a record: schema, fields, their types, finite metrics."""
    if not isinstance(values, dict):
        raise ValueError("it holds no JSON object")
    if values.get("schema") != SCHEMA:
        raise ValueError(f"schema {values.get('schema')!r}, and this version reads {SCHEMA}")
    if values.keys() != TYPES.keys():
        raise ValueError(f"missing or unknown fields: {', '.join(sorted(values.keys() ^ TYPES.keys()))}")
    for name, types in TYPES.items():
        if not isinstance(values[name], types) or isinstance(values[name], bool):
            raise ValueError(f"field {name} is of type {type(values[name]).__name__}")
    check_parts(values)


def check_parts(values: dict[str, Any]) -> None:
    """ValueError unless the data set and the checkpoint are named and the metrics are finite numbers."""
    made = values["details"].get("checkpoint")
    parts: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [("dataset", values["dataset"], DATASET_FIELDS)]
    if values["checkpoint"] is not None:
        parts.append(("checkpoint", values["checkpoint"], CHECKPOINT_FIELDS))
    else:
        parts.append(("details.checkpoint", made if isinstance(made, dict) else {}, ("name",)))
    for name, part, fields in parts:
        if missing := [field for field in fields if field not in part]:
            raise ValueError(f"{name} lacks {', '.join(missing)}")
    for name, value in values["metrics"].items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"metric {name} is no finite number: {value!r}")
