"""Tensors in named groups: what a checkpoint holds, told apart by content and compared by name and shape."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from results.files import digest

Groups = dict[str, dict[str, Tensor]]


def flatten(groups: Groups) -> dict[str, Tensor]:
    """The tensors of all groups as {"group/name": tensor}, on the CPU, contiguous, sorted by name."""
    named = {f"{group}/{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}
    return {name: named[name].detach().cpu().contiguous() for name in sorted(named)}


def unflatten(named: Mapping[str, Tensor]) -> Groups:
    """The groups that `flatten` made flat."""
    groups: Groups = {}
    for key, tensor in named.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups


def content(groups: Groups, settings: Mapping) -> str:
    """The sha256 (hex) of tensors (group, name, dtype, shape, bytes) and settings."""
    state = hashlib.sha256(digest(settings).encode())
    for name, tensor in flatten(groups).items():
        state.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def mismatches(wanted: Mapping[str, Sequence[int]], given: Mapping[str, Tensor]) -> list[str]:
    """What a dict of tensors lacks, has too much, or has in another shape, a few names of each; empty if it fits."""
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    other = [
        f"{name} is {tuple(given[name].shape)}, not {tuple(shape)}"
        for name, shape in wanted.items()
        if name in given and tuple(given[name].shape) != tuple(shape)
    ]
    faults = {"missing ": missing, "unexpected ": unexpected, "": other}
    return [kind + shorten(found) for kind, found in faults.items() if found]


def shorten(texts: Sequence[str], most: int = 3) -> str:
    """The first of the texts in one line, and how many there are more."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
