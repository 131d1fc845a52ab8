"""Where the images of a tar shard lie in it, found once and then remembered in cache/shards."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from results.errors import UserError
from results.files import ROOT, digest, replacing
from zoo import arrays
from zoo.datasets.images import table

VERSION = 1  # of what is remembered
FIELDS = ("key", "size", "offset", "label")
IMAGES = ("jpg", "jpeg", "png", "webp")
ONE = f"one of .{' .'.join(IMAGES)} for each key"
LABEL = 'a number or a name in KEY.cls, or in KEY.json under "label"'
IGNORED = re.compile(r"\.[^.].*|__[^/]*__")  # hidden files; webdataset's own
COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
Sample = dict[str, tarfile.TarInfo]  # the members of one key by field


def index(shard: Path) -> np.ndarray:
    """Records (N,) of key, size, offset and label (b"" for none) of the images in a shard, sorted by key.

    UserError naming the shard, and the key, if the shard is compressed, cut off, or not laid out as shards.py says.
    """
    state = shard.stat()
    key = digest([VERSION, str(shard.resolve()), state.st_size, state.st_mtime_ns])
    memo = ROOT / "cache" / "shards" / f"{key[:32]}.npy"
    with suppress(OSError, ValueError, EOFError):  # not there, or damaged
        known = arrays.load(memo, allow_pickle=False)
        if known.dtype.names == FIELDS:
            return known
    found = read_index(shard)
    with suppress(OSError, UserError), replacing(memo) as temporary:  # a cache that cannot be written is done without
        np.save(temporary, found, allow_pickle=False)
    return found


def read_index(shard: Path) -> np.ndarray:
    """See `index`; reads the headers of all members, and the labels."""
    with shard.open("rb") as file:
        check_plain(file, shard)
        samples = group(file, shard)
        if not samples:
            raise UserError(f"there are no images in {shard.name}", str(shard), ONE)
        images = {key: pick_image(sample, shard, key) for key, sample in samples.items()}
        keys = sorted(samples)
        return table(
            key=[os.fsencode(key) for key in keys],
            size=[images[key].size for key in keys],
            offset=[images[key].offset_data for key in keys],
            label=[read_label(file, samples[key], shard, key) for key in keys],
        )


def check_plain(file: BinaryIO, shard: Path) -> None:
    """UserError if the shard is compressed: then nothing in it can be read without all that is before."""
    start = file.read(8)
    file.seek(0)
    for magic, command in COMPRESSED.items():
        if start.startswith(magic):
            happened = f"{shard.name} is compressed, and its images cannot be read one by one"
            raise UserError(happened, str(shard), f"{command} {shard}, for a plain tar file")


def group(file: BinaryIO, shard: Path) -> dict[str, Sample]:
    """The members of a shard by key and field. UserError naming one that is no file, or is there twice."""
    samples: dict[str, Sample] = {}
    for member in members(file, shard):
        folder, slash, base = member.name.removeprefix("./").rpartition("/")
        if member.isdir() or any(IGNORED.fullmatch(part) for part in (*folder.split("/"), base)):
            continue
        stem, _, field = base.partition(".")
        key, field = folder + slash + stem, field.lower()
        if not member.isreg() or member.issparse():
            happened = f"{shard.name}:{key} has a member that is no plain file, {base}"
            raise UserError(happened, str(shard), "make the shard again, with tar --dereference --hard-dereference")
        if field in samples.setdefault(key, {}):
            raise UserError(f"{shard.name}:{key} has two members .{field}", str(shard), "another key for each image")
        samples[key][field] = member
    return samples


def members(file: BinaryIO, shard: Path) -> Iterator[tarfile.TarInfo]:
    """The members of a tar file. UserError if it is not whole, of most of which tarfile itself says nothing."""
    last = "its beginning"
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                last = member.name
                yield member
            file.seek(tar.offset)
    except (tarfile.TarError, ValueError) as error:
        raise UserError(f"{shard.name} is cut off or damaged at {last}: {error}", str(shard), "get it again") from error
    ends = [not block.strip(b"\0") for block in iter(lambda: file.read(1 << 20), b"")]  # zeros end a tar file
    if not ends or not all(ends):
        happened = f"{shard.name} is cut off or damaged after {last}, or more than one tar file"
        raise UserError(happened, str(shard), "get it again, or each of its parts as a file")


def pick_image(sample: Sample, shard: Path, key: str) -> tarfile.TarInfo:
    """The member that is the sample's image. UserError unless there is exactly one."""
    found = [field for field in sample if field in IMAGES]
    if len(found) != 1:
        held = ", ".join(f".{field}" for field in sample)
        what = f"{len(found)} images" if found else "no image"
        raise UserError(f"{shard.name}:{key} has {what} among its members {held}", str(shard), ONE)
    return sample[found[0]]


def read_label(file: BinaryIO, sample: Sample, shard: Path, key: str) -> bytes:
    """What the sample's label says, b"" without one. UserError if it cannot be read."""
    member = sample.get("cls", sample.get("json"))
    if member is None:
        return b""
    file.seek(member.offset_data)
    content = file.read(member.size)
    try:
        return os.fsencode(check_text(content.decode()) if "cls" in sample else pick_label(json.loads(content)))
    except ValueError as error:
        raise UserError(f"the label of {shard.name}:{key} cannot be read: {error}", str(shard), LABEL) from error


def check_text(written: str) -> str:
    """The label in a sample's text. ValueError if there is none."""
    if not written.strip():
        raise ValueError("it is empty")
    return written.strip()


def pick_label(said: object) -> str:
    """The label in a sample's JSON, "" if it has none. ValueError if that is neither a number nor a name."""
    found = [said[name] for name in ("label", "cls") if said.get(name) is not None] if isinstance(said, dict) else []
    if not found:
        return ""
    if isinstance(found[0], bool) or not isinstance(found[0], int | str):
        raise ValueError(f"{found[0]!r} is neither a whole number nor a name")
    return str(found[0])
