"""Checkpoints: a network's tensors, and what they are. Any command's `--checkpoint` is resolved here.

python -m zoo.checkpoint import FILE     a released DeepCluster (.pth.tar) or MMDC (model.pt) file
python -m zoo.checkpoint show NAME|FILE  what a checkpoint is and holds
"""

from __future__ import annotations

import argparse
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
from zoo.backbones import BACKBONES, Backbone, build, empty, find, standard_preprocessing
from zoo.header import ENTRY, FIELDS, SCHEMA, describe, refuse, summarise
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
        backbone.check(chosen)
        return chosen

    def build_backbone(self) -> Backbone:
        """The backbone with this checkpoint's tensors, on the CPU, in eval mode. UserError unless all fit."""
        self.check(self.name)
        backbone = empty(**self.backbone).to_empty(device="cpu")
        backbone.load_state_dict(self.groups["backbone"])
        return backbone.eval()

    def check(self, looked: str) -> None:
        """UserError naming each tensor of the backbone that is missing, unexpected or of another shape."""
        wanted = {name: tensor.shape for name, tensor in empty(**self.backbone).state_dict().items()}
        faults = mismatches(wanted, self.groups.get("backbone", {}))
        if faults:
            raise UserError(f"{self.name} does not fit {self.backbone['name']}: {'; '.join(faults)}", looked)

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
        raise UserError(f"'{name}' is no name for a checkpoint", fix="a name without /")


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
        raise UserError(f"'{reference}' says no backbone and seed", fix="random-<backbone>[-sobel]@<seed>")
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
    chosen = parse(arguments)
    try:
        bring_in(chosen) if chosen.command == "import" else show(resolve(chosen.reference, chosen.runs))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line: `import` with file, name, out and runs, or `show` with reference and runs."""
    summary, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m zoo.checkpoint",
        description=summary,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    importing = commands.add_parser("import", help="make a checkpoint of a released model")
    importing.add_argument("file", type=Path, help="a DeepCluster .pth.tar or an MMDC model.pt")
    importing.add_argument("--name", help="the checkpoint's name (default: method, backbone and start of its digest)")
    importing.add_argument("--out", type=Path, help="where to write it (default: RUNS/imported/<name>.safetensors)")
    showing = commands.add_parser("show", help="what a checkpoint is and holds")
    showing.add_argument("reference", metavar="NAME|FILE", help="as any command's --checkpoint takes it")
    for command in (importing, showing):
        command.add_argument("--runs", type=Path, default=RUNS, help="where checkpoints made here are kept")
    return parser.parse_args(arguments)


def bring_in(chosen: argparse.Namespace) -> None:
    """Import a released file and print what it is, where it lies and what to type next."""
    from zoo import released  # here, because it imports this module

    checkpoint = released.read(chosen.file)
    checkpoint.name = chosen.name or checkpoint.name
    check_name(checkpoint.name)
    if "@" in checkpoint.name or checkpoint.name.startswith("random-"):
        raise UserError(f"'{checkpoint.name}' would be read as NAME@key or random-…", fix="another --name")
    path = chosen.out or chosen.runs / "imported" / f"{checkpoint.name}.safetensors"
    if path.exists() and describe(path)["sha256"] != checkpoint.sha256:
        raise UserError(f"{path.name} exists and holds something else", str(path.parent), "--name or --out")
    checkpoint.save(path)
    show(checkpoint)
    usual = chosen.out is None and chosen.runs == RUNS
    command = f"python -m probes.linear --layer conv3 --checkpoint {checkpoint.name if usual else path}"
    print(f"{'written to':13} {shown(path)}\n{'next':13} {command}")


def show(checkpoint: Checkpoint) -> None:
    """Print what a checkpoint is and what its groups hold."""
    lines = {"name": checkpoint.name, "sha256": checkpoint.sha256}
    lines |= {field: getattr(checkpoint, field) for field in FIELDS if field != "name"}
    for field, value in lines.items():
        plain = asdict(value) if isinstance(value, Preprocessing) else value
        print(f"{field:13} {plain if isinstance(plain, str) else json.dumps(plain)}")
    shapes = {name: list(tensor.shape) for name, tensor in flatten(checkpoint.groups).items()}
    for group, held in summarise(shapes).items():
        print(f"{group:13} {held['tensors']} tensors, {held['parameters']:,} values")


if __name__ == "__main__":
    from zoo.checkpoint import main as same  # the module that zoo.released imports, not a second copy of it

    sys.exit(same())
