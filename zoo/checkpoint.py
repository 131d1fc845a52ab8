"""Checkpoints: a network's tensors, and what they are. Any command's `--checkpoint` is resolved here.

python -m zoo.checkpoint imports what others released, shows a checkpoint, and exports one for other libraries.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from results.errors import UserError, did_you_mean
from results.files import ROOT, digest, write_bytes
from zoo.backbones import BACKBONES, Backbone, allocate, build, empty, find, standard_preprocessing
from zoo.header import ENTRY, FIELDS, SCHEMA, describe, refuse
from zoo.preprocessing import Preprocessing
from zoo.tensors import Groups, content, flatten, mismatches, unflatten

__all__ = [
    *("DEFAULT", "REFERENCE", "RUNS", "Checkpoint", "Preprocessing"),
    *("available", "describe", "main", "recipe", "resolve", "standard_preprocessing"),
]

REFERENCE = ROOT / "zoo" / "reference"  # the small checkpoints in git
DEFAULT = "reference"  # means the DeepCluster among them, whatever else was trained under its name
RUNS = ROOT / "runs"
RANDOM = re.compile(r"random-(?P<backbone>.+?)(?P<sobel>-sobel)?@(?P<seed>\d+)")
AGAIN = "train it again, or python -m zoo.checkpoint import it again: another version of the libraries made it"
LIST = "python -m pretrain lists the checkpoints"
ENDINGS = (".safetensors", ".tar", ".pth", ".pt", ".torch")


@dataclass(eq=False, kw_only=True)  # tensors have no one answer to ==; compare sha256
class Checkpoint:
    """Tensors in groups (`backbone`, `head`, `clustering`), and what they are.

    backbone: `Backbone.arguments`. dataset: {name, protocol, fingerprint} of the pretraining, None if unknown
    or none. epoch: epochs finished. settings: without the seed. recipe: by default that of method, backbone,
    dataset and settings. limit: of a smoke run. key: of the run. source: how the checkpoint was made.
    """

    name: str
    method: str
    backbone: dict[str, Any]
    preprocessing: Preprocessing
    dataset: dict[str, str] | None
    epoch: int
    settings: dict[str, Any]
    seed: int | None
    source: str
    groups: Groups
    recipe: str = ""
    limit: int | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        self.recipe = self.recipe or recipe(self.method, self.backbone, self.dataset, self.settings)
        self.groups = {group: tensors for group, tensors in self.groups.items() if tensors}

    @property
    def sha256(self) -> str:
        """Digest of the tensors and the settings, computed afresh: not of name, source, time or commit."""
        return content(self.groups, self.settings)

    def layers(self, choice: str) -> tuple[str, ...]:
        """The layers that a choice means: a layer's name, `embedding`, `all` conv layers or the `deepest`."""
        backbone = find(self.backbone["name"])
        chosen = {"all": backbone.layers, "deepest": backbone.layers[-1:]}.get(choice, (choice,))
        if not chosen:
            raise UserError(f"{backbone.name} has no maps, only an embedding", fix="--layer embedding")
        backbone.check(chosen)
        return chosen

    def build_backbone(self) -> Backbone:
        """The backbone with this checkpoint's tensors, on the CPU, in eval mode. UserError unless all fit."""
        self.check()
        backbone = allocate(**self.backbone)
        backbone.load_state_dict(self.groups["backbone"])
        return backbone.eval()

    def check(self, looked: str = "") -> None:
        """UserError naming tensors of the backbone that are missing, unexpected or of another shape."""
        wanted = {name: tensor.shape for name, tensor in empty(**self.backbone).state_dict().items()}
        faults = mismatches(wanted, self.groups.get("backbone", {}))
        if faults:
            raise UserError(f"{self.name} does not fit {self.backbone['name']}: {'; '.join(faults)}", looked, AGAIN)

    def save(self, path: str | os.PathLike) -> None:
        """Write the checkpoint atomically, as safetensors; equal checkpoints give equal files."""
        description = {field: getattr(self, field) for field in FIELDS}
        description |= {"schema": SCHEMA, "sha256": self.sha256, "preprocessing": asdict(self.preprocessing)}
        # clone: safetensors takes no two tensors that share memory
        tensors = {name: tensor.clone() for name, tensor in flatten(self.groups).items()}
        header = {ENTRY: json.dumps(description, sort_keys=True, allow_nan=False)}
        write_bytes(Path(path), safetensors.torch.save(tensors, header))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Checkpoint:
        """The checkpoint in a file. UserError if it is not whole, not ours, or does not fit its backbone."""
        path = Path(path)
        description = describe(path)
        try:
            tensors = safetensors.torch.load_file(path)
        except (SafetensorError, OSError) as error:
            refuse(path, str(error))
        values = {field: description[field] for field in FIELDS}
        try:
            values["preprocessing"] = Preprocessing(**values["preprocessing"])
            checkpoint = cls(groups=unflatten(tensors), **values)
            check_name(checkpoint.name)
            checkpoint.check(str(path))
        except (TypeError, ValueError, LookupError, AttributeError) as error:  # not what `save` writes
            refuse(path, f"its description is malformed ({type(error).__name__})")
        if checkpoint.sha256 != description["sha256"]:
            refuse(path, "its tensors or settings are not those that were saved")
        return checkpoint


def recipe(method: str, backbone: dict, dataset: dict | None, settings: dict) -> str:
    """12 hex digits for a training whatever its seed: of method, backbone, data set and settings."""
    return digest({"method": method, "backbone": backbone, "dataset": dataset, "settings": settings})[:12]


def check_name(name: str) -> None:
    """UserError unless the name can be a file's: records and checkpoints are kept under it."""
    if name != Path(name).name or name.startswith("."):
        raise UserError(f"'{name}' is no name for a checkpoint", fix="a name without / that does not begin with a dot")


def resolve(reference: str, runs: Path = RUNS) -> Checkpoint:
    """The checkpoint that a command's `--checkpoint` names.

    reference: a file, ours or released; NAME, in runs/*/ or zoo/reference/; NAME@key where a name has several
    keys (a key's start will do); random-<backbone>[-sobel]@<seed>; or `reference`, the DeepCluster in
    zoo/reference/. UserError if there is none, or several.
    """
    if reference.startswith("random-"):
        return draw(reference)
    if reference == DEFAULT:
        return Checkpoint.load(REFERENCE / "deepcluster-alexnet32-digits-s0.safetensors")
    path = Path(reference)
    if path.is_file():
        return read(path)
    if os.sep in reference or path.suffix in ENDINGS:
        raise UserError(f"there is no file {reference}", str(path.parent), LIST)
    return Checkpoint.load(locate(reference, runs))


def draw(reference: str) -> Checkpoint:
    """The random checkpoint `random-<backbone>[-sobel]@<seed>`: initial weights, no training."""
    match = RANDOM.fullmatch(reference)
    if match is None:
        raise UserError(f"'{reference}' does not say a backbone and a seed", fix="random-alexnet32@0, for instance")
    seed = int(match["seed"])
    model = build(match["backbone"], sobel=match["sobel"] is not None, seed=seed)
    return Checkpoint(
        name=reference,
        method="random",
        backbone=model.arguments,
        preprocessing=standard_preprocessing(model.name, model.channels),
        dataset=None,
        epoch=0,
        settings={},
        seed=seed,
        source=f"initial weights of seed {seed}",
        groups={"backbone": model.state_dict()},
    )


def read(path: Path) -> Checkpoint:
    """The checkpoint in a file, ours or released."""
    from zoo import released  # here, because it imports this module

    return Checkpoint.load(path) if released.is_ours(path) else released.read(path)


def locate(reference: str, runs: Path) -> Path:
    """The one file that NAME or NAME@key means. UserError if there are none, or several of different keys."""
    name, _, wanted = reference.partition("@")
    looked = f"{shown(runs)}/*, {shown(REFERENCE)}"
    matches: dict[str, Path] = {}
    for path in files(runs):
        if path.stem == name:
            matches.setdefault(identity(describe(path)), path)  # the first of equals: what was made here
    matches = {key: path for key, path in matches.items() if key.startswith(wanted)}
    if len(matches) > 1:
        listed = ", ".join(f"{name}@{key}" for key in matches)
        raise UserError(f"{reference} is the name of {len(matches)} checkpoints", looked, f"one of {listed}")
    if not matches:
        known = [*(path.stem for path in files(runs)), *(f"random-{backbone}@0" for backbone in BACKBONES)]
        raise UserError(f"there is no checkpoint {reference}{did_you_mean(reference, known)}", looked, LIST)
    return next(iter(matches.values()))


def identity(description: Mapping[str, Any]) -> str:
    """What tells checkpoints of one name apart: the key of the run, or the start of the sha256."""
    return description["key"] or description["sha256"][:12]


def files(runs: Path) -> list[Path]:
    """The files of named checkpoints: those made here, then the reference ones."""
    return [*sorted(runs.glob("*/*.safetensors")), *sorted(REFERENCE.glob("*.safetensors"))]


def available(runs: Path = RUNS) -> list[tuple[str, Path, dict[str, Any]]]:
    """(name, path, description) of every named checkpoint; a damaged file's description is {"error": why}."""
    found = []
    for path in files(runs):
        try:
            description = describe(path)
        except UserError as error:
            description = {"error": error.happened}
        found.append((path.stem, path, description))
    return found


def shown(path: Path) -> str:
    """The path as one would type it from the clone."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `python -m zoo.checkpoint`; its exit code."""
    from zoo import checkpoint_command  # here, because it imports this module

    return checkpoint_command.main(arguments)


if __name__ == "__main__":
    from zoo.checkpoint import main as same  # the module that zoo.released imports, not a second copy of it

    sys.exit(same())
