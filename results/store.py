"""The folder of records: results/records/<task>/<checkpoint name>/<key>.json."""

from __future__ import annotations

import re
from pathlib import Path

from results import files
from results.errors import UserError
from results.record import Record

DEFAULT_STORE = files.ROOT / "results" / "records"


class Store:
    """Records in a folder; reading is strict, writing is whole or nothing."""

    def __init__(self, root: str | Path = DEFAULT_STORE) -> None:
        self.root = Path(root)

    def find(self, task: str, key: str) -> Record | None:
        """The record of that task and key, whatever its checkpoint is called; None where there is none."""
        paths = sorted(self.root.glob(f"{task}/*/{key}.json"))
        return read(paths[0]) if paths else None

    def write(self, record: Record) -> Path:
        """Write a record, in place of the one of the same name and key; its path. Not finite: ValueError."""
        path = self.path(record)
        files.write_text(path, record.to_json())
        return path

    def path(self, record: Record) -> Path:
        """Where a record lies."""
        return self.root / record.task / folder(record.checkpoint_name) / f"{record.key}.json"

    def records(self, task: str | None = None) -> list[Record]:
        """Every record (of one task), sorted by path; a corrupt or foreign file is a UserError naming it."""
        if self.root.exists() and not self.root.is_dir():
            raise UserError(f"{self.root} is no folder of records", fix="--store DIR")
        paths = sorted(self.root.glob(f"{task or '*'}/*/*.json"))
        return [read(path) for path in paths if not path.name.startswith(".")]  # .…: an interrupted write's

    def check_writable(self) -> None:
        """UserError unless a record could be written here."""
        files.check_writable(self.root)


def read(path: Path) -> Record:
    """The record in a file; UserError naming the file if it is none, or lies under another's name."""
    try:
        record = Record.from_json(path.read_text(encoding="utf-8"))
        if path.stem != record.key or path.parent.parent.name != record.task:
            raise ValueError(f"it holds the record {record.task} {record.key}")
    except (OSError, ValueError) as error:  # what is no JSON or UTF-8 is a ValueError too
        fix = "restore it (git checkout) or remove it and run its command again"
        raise UserError(f"{path} cannot be read as a record: {error}", str(path.parent), fix) from error
    return record


def folder(name: str) -> str:
    """A checkpoint's name as a folder's: one path component, whatever the name holds."""
    clean = re.sub(r"[^\w.@+-]", "_", name)[:120]
    return clean if clean.strip(".") else f"_{clean}"
