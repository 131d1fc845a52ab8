"""State dicts in a library's names: which backbone's they are, and which of their tensors is the classifier."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from results.errors import UserError
from zoo.backbones import SPELLED, empty, find
from zoo.backbones.library import Library
from zoo.released.fitting import COUNTER
from zoo.renaming import Named, Rule
from zoo.tensors import mismatches

# What a file without `--backbone` is compared with, by name and shape.
TRIED = (
    *("resnet50", "vgg16", "torchvision:resnet18", "torchvision:resnet34", "torchvision:resnet101"),
    *("torchvision:alexnet", "torchvision:vgg16", "torchvision:densenet121"),
)
HEAD = "top_layer."
CLASSIFIER = re.compile(r"(fc|classifier|heads?)(\.|$)")  # how libraries call it
OLD = Rule(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.")  # torchvision's files of DenseNets predate its names
AUXILIARY = Rule(r"^(aux[12]|AuxLogits)\.", None, "a classifier that helped training")


def find_backbone(path: Path, named: Named) -> str:
    """The one backbone of TRIED that takes all tensors. UserError that says what was tried."""
    fitting = [name for name in TRIED if fits(named, name)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UserError(
            f"{path.name} fits several backbones: {', '.join(fitting)}", str(path), advise(path, fitting[0])
        )
    found = f"{path.name} does not fit any backbone that was tried: {', '.join(TRIED)}"
    raise UserError(f"{found} (it has {len(named.tensors)} tensors)", str(path), advise(path))


def advise(path: Path, name: str = "") -> str:
    """What to type for a file that is backbone `name`'s, or one's that only its owner knows."""
    command = f"python -m zoo.checkpoint import {shlex.quote(str(path))} --backbone"
    return f"{command} {name}" if name else f"{command} NAME (one of {SPELLED})"


def fits(named: Named, name: str) -> bool:
    """Whether all tensors but a classifier's are the backbone's by name and shape; counters may be missing."""
    try:
        tensors = named.rename(placing(named, name)).tensors
    except ValueError:
        return False
    wanted = {key: tensor.shape for key, tensor in empty(name).state_dict().items()}
    wanted = {key: shape for key, shape in wanted.items() if key in tensors or not key.endswith(COUNTER)}
    return not mismatches(wanted, {key: tensor for key, tensor in tensors.items() if not key.startswith(HEAD)})


def placing(named: Named, name: str) -> tuple[Rule, ...]:
    """The rules for backbone `name`: a last linear layer is kept as the head, any other classifier is left out."""
    prefix = "net." if issubclass(find(name), Library) else ""
    ours = empty(name).state_dict()
    plain = named.rename((OLD, AUXILIARY)).tensors
    spare = [key for key in plain if f"{prefix}{key}" not in ours and not key.startswith("sobel.")]
    parents = {key.rpartition(".")[0] for key in spare}
    rules = [OLD, AUXILIARY]
    if len(parents) == 1:
        rules += [
            classifier(parent, plain[f"{parent}.weight"].ndim) for parent in parents if is_classifier(parent, spare)
        ]
    if prefix:
        rules.append(Rule(rf"^(?!{re.escape(HEAD)})", prefix))
    return tuple(rules)


def is_classifier(parent: str, names: list[str]) -> bool:
    """Whether the one module that has the tensors is a classifier by its name and theirs."""
    return bool(CLASSIFIER.match(parent)) and {f"{parent}.weight"} <= {*names} <= {f"{parent}.weight", f"{parent}.bias"}


def classifier(parent: str, ndim: int) -> Rule:
    """What becomes of the classifier at `parent`: a linear layer's weight has two dimensions."""
    pattern = rf"^{re.escape(parent)}\.(?=weight$|bias$)"
    if ndim == 2:
        return Rule(pattern, HEAD)
    return Rule(pattern, None, "a classifier that is no linear layer")
