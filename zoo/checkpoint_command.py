"""Checkpoints, in and out: import released models, show what a checkpoint is, write one for other libraries.

python -m zoo.checkpoint import FILE                      a model of DeepCluster, DeeperCluster, DeepCluster-v2, SwAV,
                                                          VISSL, MMDC, or a state dict of torchvision
python -m zoo.checkpoint import FILE --backbone NAME      a state dict that does not tell its network
python -m zoo.checkpoint assignments FILE                 DeepCluster's {arch}_cluster_assignment.pickle, as a csv
python -m zoo.checkpoint show NAME|FILE                   what a checkpoint is and holds
python -m zoo.checkpoint export NAME|FILE --to timm --out FILE
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from results.errors import UserError, ending
from zoo import released
from zoo.backbones import EMBEDDING, SPELLED, find
from zoo.checkpoint import RUNS, Checkpoint, check_name, describe, resolve, shown
from zoo.export import LIBRARIES, export
from zoo.header import FIELDS, summarise
from zoo.preprocessing import Preprocessing
from zoo.released import assignments
from zoo.renaming import render
from zoo.tensors import flatten


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    chosen = parse(arguments)
    return ending(lambda: chosen.run(chosen))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line: `run`, the function of the command, and what it takes."""
    summary, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m zoo.checkpoint",
        description=summary,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    importing = commands.add_parser("import", help="make a checkpoint of a released model")
    importing.add_argument("file", type=Path, help=released.READABLE)
    importing.add_argument("--backbone", default="", help=f"its backbone, where the file does not tell: {SPELLED}")
    importing.add_argument("--name", help="the checkpoint's name (default: method, backbone and start of its digest)")
    importing.add_argument("--out", type=Path, help="where to write it (default: RUNS/imported/<name>.safetensors)")
    importing.set_defaults(run=bring_in)
    listing = commands.add_parser("assignments", help="read DeepCluster's released clusters")
    listing.add_argument("file", type=Path, help=assignments.EXPECTED)
    listing.add_argument("--out", type=Path, help="a csv to write, with the columns path and cluster")
    listing.set_defaults(run=list_assignments)
    showing = commands.add_parser("show", help="what a checkpoint is and holds")
    showing.set_defaults(run=lambda chosen: show(resolve(chosen.reference, chosen.runs)))
    exporting = commands.add_parser("export", help="write a checkpoint for another library")
    exporting.add_argument("--to", required=True, choices=LIBRARIES, help="the library")
    exporting.add_argument("--out", type=Path, required=True, help="the file to write, in torch's format")
    exporting.set_defaults(run=send_out)
    for command in (showing, exporting):
        command.add_argument("reference", metavar="NAME|FILE", help="as any command's --checkpoint takes it")
    for command in (importing, showing, exporting):
        command.add_argument("--runs", type=Path, default=RUNS, help="where checkpoints made here are kept")
    return parser.parse_args(arguments)


def bring_in(chosen: argparse.Namespace) -> None:
    """Import a released file and print its tensors, what it is, where it lies and what to type next."""
    imported = released.bring(chosen.file, chosen.backbone)
    checkpoint = imported.checkpoint
    checkpoint.name = chosen.name or checkpoint.name
    check_name(checkpoint.name)
    if "@" in checkpoint.name or checkpoint.name.startswith("random-"):
        fix = "--name with a name that has no @ and does not begin with random-"
        raise UserError(f"'{checkpoint.name}' would be read as NAME@key or random-…", fix=fix)
    path = chosen.out or chosen.runs / "imported" / f"{checkpoint.name}.safetensors"
    if path.exists() and not holds(path, checkpoint):
        fix = "--name with another name, or --out with another file"
        raise UserError(f"{path.name} exists and holds something else", str(path.parent), fix)
    checkpoint.save(path)
    print(render(imported.lines), end="\n\n")
    show(checkpoint)
    usual = chosen.out is None and chosen.runs == RUNS
    command = f"python -m probes.linear --layer {middle(checkpoint)} --checkpoint {checkpoint.name if usual else path}"
    print(f"{'written to':13} {shown(path)}\n{'next':13} {command}")


def holds(path: Path, checkpoint: Checkpoint) -> bool:
    """Whether a file is the checkpoint's already."""
    try:
        return describe(path)["sha256"] == checkpoint.sha256
    except UserError:
        return False


def middle(checkpoint: Checkpoint) -> str:
    """The layer that is worth a first probe: a middle one; the embedding of a network without maps."""
    layers = find(checkpoint.backbone["name"]).layers
    return layers[len(layers) // 2] if layers else EMBEDDING


def list_assignments(chosen: argparse.Namespace) -> None:
    """Print what the released clusters are, and write them as a csv."""
    found = assignments.read(chosen.file)
    for name, value in assignments.describe(found).items():
        print(f"{name:13} {value}")
    if chosen.out is not None:
        assignments.write(found, chosen.out)
        print(f"{'written to':13} {shown(chosen.out)}")


def send_out(chosen: argparse.Namespace) -> None:
    """Write a checkpoint for another library and print its tensors and what to know."""
    exported = export(resolve(chosen.reference, chosen.runs), chosen.to, chosen.out)
    print(render(exported.lines), end="\n\n")
    for note in exported.notes:
        print(f"{'note':13} {note}")
    print(f"{'written to':13} {shown(chosen.out)}")


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
    print(f"{'layers':13} {', '.join((*find(checkpoint.backbone['name']).layers, EMBEDDING))}")
