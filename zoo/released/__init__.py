"""Models as others released them, read into checkpoints.

`opening` opens a file without running anything in it, `formats` says what its tensors are to us, and `fitting` takes
all of them or none.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.errors import UserError
from zoo.backbones import standard_preprocessing
from zoo.checkpoint import Checkpoint
from zoo.released.fitting import Fitted, fit, take
from zoo.released.formats import FORMATS, Format
from zoo.released.opening import READABLE, file_digest, is_ours, unpickle
from zoo.renaming import Line
from zoo.tensors import content

__all__ = ["READABLE", "Imported", "bring", "is_ours", "read"]


@dataclass(frozen=True)
class Imported:
    """A checkpoint, and what became of each tensor of the file that it was made of."""

    checkpoint: Checkpoint
    lines: list[Line]


def read(path: str | os.PathLike, backbone: str = "") -> Checkpoint:
    """The checkpoint in a released file; all as in `bring`."""
    return bring(path, backbone).checkpoint


def bring(path: str | os.PathLike, backbone: str = "") -> Imported:
    """The checkpoint in a released file, and the map of its tensors.

    backbone: its name, where the file does not tell. What the file does not say stays unsaid: dataset and seed are
    None, and the settings hold a digest of the tensors, so that its recipe is its own. UserError for a file that is
    damaged, hostile, foreign, or unfit.
    """
    path = Path(path)
    held = unpickle(path)
    kind, state = recognise(path, held)
    named = take(path, state, kind.rules)
    name = backbone or kind.backbone(path, named, held)
    named = take(path, named, kind.placing(named, name))
    fitted = fit(path, name, named, kind)
    fitted.groups["clustering"] = kind.clustering(held)
    others = [Line(key, after) for key, after in kind.others(held).items()]
    return Imported(assemble(path, kind, name, fitted, held), [*fitted.lines, *others])


def recognise(path: Path, held: Any) -> tuple[Format, dict[Any, Any]]:
    """The format of what a file held, and the state dict in it. UserError if there is none."""
    for kind in FORMATS:
        state = kind.find(held)
        if state is not None:
            return kind, state
    raise UserError(f"{path.name} is in no format known here: it has no state dict", str(path), READABLE)


def assemble(path: Path, kind: Format, name: str, fitted: Fitted, held: Any) -> Checkpoint:
    """The checkpoint of what was fitted."""
    named, groups = fitted.named, fitted.groups
    weights = content(groups, {})[:12]
    method = kind.method(named)
    notes = [*fitted.notes, *kind.notes(named, held)]
    return Checkpoint(
        name="-".join([method, name, *(["sobel"] if fitted.sobel else []), weights[:8]]),
        method=method,
        backbone={"name": name, "channels": fitted.channels, "sobel": fitted.sobel},
        preprocessing=kind.preprocessing(standard_preprocessing(name, fitted.channels)),
        dataset=None,
        epoch=kind.epochs(held),
        settings={"released": weights, **clusters(groups["head"])},
        seed=None,
        source="; ".join([f"imported from {path.name} (sha256 {file_digest(path)})", *notes]),
        groups=groups,
    )


def clusters(head: dict[str, Any]) -> dict[str, Any]:
    """The setting k: outputs of the top layer or number of prototypes, a list of numbers where there are several."""
    tops = [len(head[key]) for key in head if key == "top_layer.weight" or key.startswith("prototypes")]
    return {"k": tops[0] if len(tops) == 1 else tops} if tops else {}
