"""Models as others released them, read into checkpoints.

`opening` opens a file without running anything in it, `formats` says what its tensors are to us, and `fitting` takes
all of them or none.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.errors import UserError
from zoo.backbones import standard_preprocessing
from zoo.checkpoint import Checkpoint
from zoo.released.fitting import Fitted, Misfit, fit, take
from zoo.released.formats import FORMATS, Format
from zoo.released.opening import READABLE, file_digest, is_ours, unpickle
from zoo.released.plain import advise
from zoo.renaming import Line, Named
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
    try:
        fitted = place(path, name, named, kind)
    except Misfit as error:
        other = find_other(path, named, kind, held) if backbone else ""
        raise UserError(f"{path.name} does not fit {name}: {error}", str(path), advise(path, other)) from error
    fitted.groups["clustering"] = kind.clustering(held)
    others = [Line(key, after) for key, after in kind.others(held).items()]
    return Imported(assemble(path, kind, name, fitted, held), [*fitted.lines, *others])


def place(path: Path, name: str, named: Named, kind: Format) -> Fitted:
    """The tensors as those of backbone `name` and of a head. Misfit if they are not."""
    return fit(path, name, take(path, named, kind.placing(named, name)), kind)


def find_other(path: Path, named: Named, kind: Format, held: Any) -> str:
    """The backbone that the file tells, if its tensors fit; else ""."""
    with suppress(UserError, Misfit):
        told = kind.backbone(path, named, held)
        place(path, told, named, kind)
        return told
    return ""


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
