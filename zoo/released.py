"""Models as others released them, read into checkpoints: DeepCluster's .pth.tar files and MMDC's model.pt.

Both are pickles, and opening a pickle can run anything: torch's restricted reader opens them, with numpy's
float64 arrays allowed besides tensors and plain values.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct
from torch import Tensor

from results.errors import UserError
from zoo.backbones import empty, find, standard_preprocessing
from zoo.backbones.sobel import constants
from zoo.checkpoint import Checkpoint
from zoo.tensors import Groups, content, mismatches

# What a pickled float64 array calls: MMDC keeps its targets in one. numpy 2 moved `_reconstruct`.
ARRAYS: list[Any] = [
    (_reconstruct, "numpy.core.multiarray._reconstruct"),
    (_reconstruct, "numpy._core.multiarray._reconstruct"),
    *(np.ndarray, np.dtype, type(np.dtype(np.float64))),
]
REFUSED = re.compile(r"GLOBAL ([\w.]+)|got <class '([\w.]+)'>")  # in what torch's reader says
ALIASES = {"pred_layer": "top_layer"}  # DeeperCluster's name for it
WRAPPERS = ("module", "body")  # parts of a key that DataParallel and DeeperCluster add
COUNTER = "num_batches_tracked"  # what torch wrote before 0.4.1 has none
# MMDC evaluates on the centre 24 of 28 px in grey (MNIST) and 20 of 32 px in colour (CIFAR), enlarged to 32:
# the centre 32 px of an image enlarged to these sides first, by image channels.
RESIZE = {1: 37, 3: 51}
READABLE = "a released DeepCluster .pth.tar (alexnet) or MMDC model.pt (small_vgg)"


def is_ours(path: Path) -> bool:
    """Whether a file says by its name or its first bytes that it is safetensors, as our checkpoints are."""
    with path.open("rb") as file:
        start = file.read(9)
    return path.suffix == ".safetensors" or start[8:] == b"{"


def read(path: str | os.PathLike) -> Checkpoint:
    """The checkpoint in a released file.

    What the file does not say stays unsaid: dataset and seed are None, and the settings hold a digest of the
    tensors, so that its recipe is its own. UserError for a file that is damaged, hostile, foreign, or unfit.
    """
    path = Path(path)
    held = unpickle(path)
    if isinstance(held, dict) and isinstance(held.get("state_dict"), dict):
        return read_deepcluster(path, held)
    if isinstance(held, dict) and isinstance(held.get("model_state_dict"), dict):
        return read_mmdc(path, held)
    raise UserError(f"{path.name} is in no format known here: it has no state dict", str(path), READABLE)


def unpickle(path: Path) -> Any:
    """What torch's restricted reader finds in a file, on the CPU. UserError for anything it refuses."""
    try:
        with torch.serialization.safe_globals(ARRAYS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the age of the format
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read {path.name}: {error.strerror or error}", str(path), READABLE) from error
    except Exception as error:  # a torn or foreign file can fail anywhere in torch's readers
        found = REFUSED.search(str(error))
        if found:
            happened = f"{path.name} is refused: it calls {found[1] or found[2]}, which no model needs"
            raise UserError(happened, str(path), f"{READABLE}, from its authors") from error
        raise UserError(f"{path.name} is damaged, or not written by torch", str(path), READABLE) from error


def read_deepcluster(path: Path, held: dict[str, Any]) -> Checkpoint:
    """DeepCluster's dict of epoch, arch and state_dict. UserError for an architecture that we lack."""
    architecture = str(held.get("arch", "alexnet"))
    if architecture != "alexnet":
        known = f"{path.name} is a {architecture}, which is not among the backbones yet"
        raise UserError(known, str(path), READABLE)
    state = rename(held["state_dict"], path)
    groups, notes = fit(path, "alexnet", state)
    if "sobel.0.weight" in state and any("body." in key for key in held["state_dict"]):
        notes.append("DeeperCluster's Sobel sees another border: it pads the image, not with zeros")
    return assemble(path, "deepcluster", "alexnet", groups, epochs(held.get("epoch"), 0), notes)


def read_mmdc(path: Path, held: dict[str, Any]) -> Checkpoint:
    """MMDC's dict of epoch, targets and model_state_dict. UserError for its ResNets."""
    state = rename(held["model_state_dict"], path)
    if "conv1.weight" in state:
        raise UserError(f"{path.name} is a ResNet, which is not among the backbones yet", str(path), READABLE)
    groups, notes = fit(path, "small_vgg", state)
    groups["clustering"] = summarise_targets(held.get("targets"))
    if not groups["clustering"]:
        notes.append("the means of its clusters are not in the file")
    checkpoint = assemble(path, "mmdc", "small_vgg", groups, epochs(held.get("epoch"), 1), notes)
    standard = checkpoint.preprocessing
    checkpoint.preprocessing = replace(standard, resize=RESIZE.get(standard.channels, standard.resize))
    return checkpoint


def rename(state: dict[Any, Any], path: Path) -> dict[str, Tensor]:
    """The state dict under our names, without what wrapping a module adds to them."""
    named: dict[str, Tensor] = {}
    for key, tensor in state.items():
        parts = [ALIASES.get(part, part) for part in str(key).split(".") if part not in WRAPPERS]
        name = ".".join(parts)
        if not is_plain(tensor) or name in named:
            why = "is there twice" if name in named else "is no plain tensor"
            raise UserError(f"the state dict in {path.name} is malformed: {name} {why}", str(path), READABLE)
        named[name] = tensor
    return named


def is_plain(value: Any) -> bool:
    """Whether a value is a tensor that holds numbers: torch's reader also makes sparse, quantised and empty ones."""
    return (
        isinstance(value, Tensor)
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and (value.dtype.is_floating_point or value.dtype == torch.int64)
    )


def fit(path: Path, name: str, state: dict[str, Tensor]) -> tuple[Groups, list[str]]:
    """The tensors as groups `backbone` and `head`, and notes on what was filled in.

    UserError unless every tensor of backbone `name` is there with its shape, and no other.
    """
    sobel = "sobel.0.weight" in state
    channels = inputs(state.get("sobel.0.weight" if sobel else "features.0.weight"), find(name).channels)
    backbone = empty(name, channels, sobel).state_dict()
    wanted = backbone | expected_heads(state, find(name).embedding_dim)
    counters = [key for key in wanted if key.endswith(COUNTER) and key not in state]
    state = state | {key: torch.zeros_like(wanted[key], device="cpu") for key in counters}
    faults = mismatches({key: tensor.shape for key, tensor in wanted.items()}, state)
    if not faults:
        faults = [f"{key} is not finite" for key in wanted if not torch.isfinite(state[key]).all()]
        faults += [f"{key} is not ours" for key in other_sobel(state, channels)] if sobel else []
    if faults:
        raise UserError(f"{path.name} does not fit {name}: {'; '.join(faults)}", str(path), READABLE)
    fitted = {key: state[key].detach().to(wanted[key].dtype).contiguous().clone() for key in wanted}
    head = {key: tensor for key, tensor in fitted.items() if key not in backbone}
    notes = [f"{COUNTER} set to 0, which the file lacks"] if counters else []
    return {"backbone": {key: fitted[key] for key in backbone}, "head": head}, notes


def inputs(weight: Tensor | None, default: int) -> int:
    """The input channels of a convolution's weight; the default where there is none, which is told later."""
    return weight.shape[1] if weight is not None and weight.ndim == 4 else default


def expected_heads(state: Mapping[str, Tensor], dim: int) -> dict[str, Tensor]:
    """The tensors (on the meta device) of the linear heads.

    The top layer has as many outputs as its bias; a rotation head, where there is one, has four.
    """
    bias = state.get("top_layer.bias")
    outputs = {"top_layer": 1 if bias is None else bias.numel()}
    if any(key.startswith("rotnet_head.") for key in state):
        outputs["rotnet_head"] = 4
    heads = {f"{head}.weight": torch.empty(k, dim, device="meta") for head, k in outputs.items()}
    return heads | {f"{head}.bias": torch.empty(k, device="meta") for head, k in outputs.items()}


def other_sobel(state: Mapping[str, Tensor], channels: int) -> list[str]:
    """The tensors of a Sobel filter that are not the constants that ours has."""
    ours = {f"sobel.{key}": tensor for key, tensor in constants(channels).items()}
    return [key for key, tensor in ours.items() if not torch.allclose(state[key].float(), tensor)]


def epochs(value: Any, more: int) -> int:
    """Epochs finished: the number in the file and `more`, or 0 where there is none."""
    return int(value) + more if isinstance(value, int | float) else 0


def summarise_targets(targets: Any) -> dict[str, Tensor]:
    """MMDC's one-hot targets (n, k) as means (k, k), the identity, and cluster sizes (k,); else nothing.

    Of other targets the means are lost: the released program did not save them.
    """
    if not isinstance(targets, np.ndarray) or targets.ndim != 2 or not targets.size:
        return {}
    if not (np.isin(targets, (0, 1)).all() and (targets.sum(1) == 1).all()):
        return {}
    return {"means": torch.eye(targets.shape[1]), "sizes": torch.from_numpy(targets.sum(0)).long()}


def assemble(path: Path, method: str, name: str, groups: Groups, epoch: int, notes: list[str]) -> Checkpoint:
    """The checkpoint of a released file's groups."""
    tensors = groups["backbone"]
    sobel = "sobel.0.weight" in tensors
    channels = tensors["sobel.0.weight" if sobel else "features.0.weight"].shape[1]
    weights = content(groups, {})[:12]
    return Checkpoint(
        name="-".join([method, name, *(["sobel"] if sobel else []), weights[:8]]),
        method=method,
        backbone={"name": name, "channels": channels, "sobel": sobel},
        preprocessing=standard_preprocessing(name, channels),
        dataset=None,
        epoch=epoch,
        settings={"released": weights, "k": len(groups["head"]["top_layer.bias"])},
        seed=None,
        source="; ".join([f"imported from {path.name} (sha256 {file_digest(path)})", *notes]),
        groups=groups,
    )


def file_digest(path: Path) -> str:
    """The sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
