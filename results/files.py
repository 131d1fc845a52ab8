"""Files that are whole or absent: canonical digests, and writing through a temporary sibling and a rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from results.errors import UserError

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}(\..+)?")  # the names that new_sibling gives
ROOT = Path(__file__).resolve().parent.parent  # the clone: the suite runs from it (editable install)

FIXES = {
    errno.ENOSPC: "free some space, or point the command's output elsewhere",
    errno.EDQUOT: "free some of your quota, or point the command's output elsewhere",
    errno.EROFS: "the file system is read-only: point the command's output elsewhere",
    errno.EACCES: "make the folder writable (chmod u+w), or point the command's output elsewhere",
    errno.EPERM: "make the folder writable (chmod u+w), or point the command's output elsewhere",
    errno.ENOTDIR: "a file stands where a folder is needed: move it, or point the command's output elsewhere",
    errno.EEXIST: "a file stands where a folder is needed: move it, or point the command's output elsewhere",
    errno.EISDIR: "a folder stands where a file is needed: move it, or point the command's output elsewhere",
    errno.ENAMETOOLONG: "use a shorter name",
}


def digest(value: Any) -> str:
    """The sha256 (hex) of a value's canonical JSON.

    Keys sorted, no spaces, tuples as lists; NaN or infinity is a ValueError, a type JSON lacks a TypeError.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary sibling of `path` to write to; it takes the name `path` only if the block ends well.

    Parent folders are made. A full or read-only disk is a UserError, and so is what is no file at `path`: a folder, or
    a device, which would be replaced. What stood at `path` stays as it was.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "no file"
        raise UserError(f"cannot write {path}: it is {kind}", fix="the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = new_sibling(path)
    except OSError as error:
        raise as_user_error(error, path) from error
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise  # a library's own error, or one about another file: the caller's affair
        raise as_user_error(error, path) from error
    finally:
        with suppress(OSError):  # after the rename it is gone already
            temporary.unlink()


def new_sibling(path: Path) -> Path:
    """A new, empty, hidden file beside `path`, with the same ending (some writers look at it)."""
    # 40 letters of the name at most: the file system's limit of 255 bytes holds for the temporary name too
    sibling = path.parent / f".{path.stem[:40]}.{secrets.token_hex(6)}{path.suffix[:40]}"
    # not tempfile.mkstemp: its mode is 0600, and a committed or shared file wants the umask's
    os.close(os.open(sibling, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return sibling


def remove_torn(folder: Path) -> None:
    """Remove the temporary files that writes into the folder left where their process was killed."""
    for path in folder.glob(".*"):
        if TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Force a written file to the disk, so that a power cut after the rename leaves no half of one."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def as_user_error(error: OSError, path: Path) -> UserError:
    """The UserError that says why `path` cannot be written, and what to do about it."""
    fix = FIXES.get(error.errno or 0, "point the command's output elsewhere")
    return UserError(f"cannot write {path}: {error.strerror}", str(path.parent), fix)


def check_writable(folder: str | Path) -> None:
    """UserError unless files can be written in the folder, which is made."""
    probe = Path(folder) / "writable"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        sibling = new_sibling(probe)
    except OSError as error:
        raise as_user_error(error, probe.parent) from error
    sibling.unlink(missing_ok=True)  # a run there that ends removes it too


def write_bytes(path: str | Path, data: bytes | memoryview) -> None:
    """Write bytes atomically (see `replacing`)."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically, newlines as they are."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as JSON (sorted keys, indent 1) atomically; NaN is a ValueError, nothing is written."""
    write_text(path, json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n")
