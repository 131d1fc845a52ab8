"""Checkpoints of ours as files for other libraries: renamed tensors, which the library's own network loads strictly.

torchvision and timm get a state dict; detectron2 and mmsegmentation get what their loaders expect around it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from results.errors import UserError
from results.files import replacing
from zoo.backbones import find
from zoo.backbones.backbone import own_generator
from zoo.backbones.library import construct_on_device
from zoo.backbones.timm_models import library as timm
from zoo.backbones.torchvision_models import OPTIONS
from zoo.checkpoint import Checkpoint
from zoo.renaming import Line, Named, Rule
from zoo.tensors import mismatches

LIBRARIES = ("torchvision", "timm", "detectron2", "mmseg")
OTHERWISE = {".pkl": "a plain pickle", ".pyth": "a file of pycls"}  # detectron2 goes by the name
NET = Rule(r"^net\.", "")  # where `torchvision:NAME` and `timm:NAME` keep the library's network
STAGES = tuple(Rule(rf"^layer{stage}\.", f"res{stage + 1}.") for stage in (1, 2, 3, 4))
# detectron2's names (modeling/backbone/resnet.py): a batch norm belongs to its convolution.
DETECTRON2 = (
    Rule(r"num_batches_tracked$", None, "detectron2's frozen batch norm counts nothing"),
    Rule(r"^conv1\.", "stem.conv1."),
    Rule(r"^bn1\.", "stem.conv1.norm."),
    *STAGES,
    Rule(r"\.bn(\d)\.", r".conv\1.norm."),
    Rule(r"\.downsample\.0\.", ".shortcut."),
    Rule(r"\.downsample\.1\.", ".shortcut.norm."),
)
# timm writes VGG's fully connected layers as convolutions on the last map.
TIMM_VGG = (Rule(r"^classifier\.0\.", "pre_logits.fc1."), Rule(r"^classifier\.3\.", "pre_logits.fc2."))
DROPOUT = "in training, {} drops values after both fully connected layers, DeepCluster's VGG-16 after the first alone"

RECTIFIED = "a head that was trained here saw the embedding after a ReLU; the library has none before its last layer"


@dataclass(frozen=True)
class Target:
    """How a backbone goes to a library.

    head: what the library calls its last linear layer, "" where it has none. model: its name of the network.
    wrap: what the file holds, given the tensors. reshape: other shapes of tensors, given their new names. Notes are
    for the reader; {mean} and {std} in them become the checkpoint's, of pixels from 0 to 255.
    """

    model: str
    rules: tuple[Rule, ...] = ()
    head: str = ""
    wrap: Callable[[dict[str, Tensor]], Any] = dict
    reshape: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exported:
    """What the file is to hold, what became of each tensor, and what to know when using it."""

    value: Any
    lines: list[Line]
    notes: list[str]


def export(checkpoint: Checkpoint, library: str, path: Path) -> Exported:
    """Write a checkpoint for a library, atomically. UserError where the library has no such network."""
    if library == "detectron2" and path.suffix in OTHERWISE:
        happened = f"detectron2 would read {path.name} as {OTHERWISE[path.suffix]}, and it is written in torch's format"
        raise UserError(happened, fix=f"--out {path.with_suffix('.pth').name}")
    exported = convert(checkpoint, library)
    with replacing(path) as temporary, temporary.open("wb") as file:  # by name, the file would hold the temporary one
        torch.save(exported.value, file)
    return exported


def convert(checkpoint: Checkpoint, library: str) -> Exported:
    """A checkpoint's tensors as a library names them. UserError where the library has no such network."""
    target = choose(checkpoint, library)
    named = Named.take({f"backbone/{name}": tensor for name, tensor in checkpoint.groups["backbone"].items()})
    named = named.rename((Rule("^backbone/", ""), NET, *target.rules))
    tensors = {name: target.reshape(name, tensor) for name, tensor in named.tensors.items()}
    kept, left = place_head(checkpoint, target)
    lines = [Line(named.origins[name], name, tuple(tensor.shape)) for name, tensor in tensors.items()]
    lines += [Line(f"head/top_layer.{name.rpartition('.')[2]}", name, tuple(kept[name].shape)) for name in kept]
    tensors |= kept
    check_library(library, target, tensors, checkpoint.backbone["channels"])
    return Exported(target.wrap(tensors), [*lines, *named.left, *left], notes(checkpoint, target))


def choose(checkpoint: Checkpoint, library: str) -> Target:
    """How this checkpoint goes to the library. UserError where the library has no such network."""
    name, sobel = checkpoint.backbone["name"], checkpoint.backbone["sobel"]
    own, _, model = name.rpartition(":")
    if library not in LIBRARIES:
        raise UserError(f"nothing is written for {library}", fix=f"--to {' | '.join(LIBRARIES)}")
    here = f"use it from Python: zoo.checkpoint.resolve('{checkpoint.name}').build_backbone()"
    if sobel:
        raise UserError(f"{library} has no {name} behind a Sobel filter", fix=here)
    if checkpoint.backbone["channels"] != find(name).channels and library != "timm":
        raise UserError(f"{library} has no {name} of {checkpoint.backbone['channels']} channels", fix=here)
    if own == library:
        return Target(model, head=last_linear(build(library, model, 2, find(name).channels), 2), notes=(RECTIFIED,))
    targets = TARGETS.get(name, {})
    if library not in targets:
        others = f"--to {' | '.join(targets)}, or " if targets else f"--to {own}, or " if own else ""
        raise UserError(f"{library} has no network with the tensors of {name}", fix=others + here)
    return targets[library]


def place_head(checkpoint: Checkpoint, target: Target) -> tuple[dict[str, Tensor], list[Line]]:
    """The top layer under the library's name if it is one linear layer on the embedding, and lines for the rest."""
    held = checkpoint.groups.get("head", {})
    weight, bias = held.get("top_layer.weight"), held.get("top_layer.bias")
    dim = find(checkpoint.backbone["name"]).embedding_dim
    fits = weight is not None and bias is not None and weight.shape == (len(bias), dim)
    kept = {f"{target.head}.weight": weight, f"{target.head}.bias": bias} if target.head and fits else {}
    taken = {"top_layer.weight", "top_layer.bias"} if kept else set()
    why = "left out: the library's network has no place for it"
    left = [Line(f"head/{name}", why, tuple(tensor.shape)) for name, tensor in held.items() if name not in taken]
    groups = {group: tensors for group, tensors in checkpoint.groups.items() if group not in ("backbone", "head")}
    left += [
        Line(f"{group}/{name}", why, tuple(t.shape)) for group, tensors in groups.items() for name, t in tensors.items()
    ]
    return {name: tensor for name, tensor in kept.items() if tensor is not None}, left


def notes(checkpoint: Checkpoint, target: Target) -> list[str]:
    """What to know when using the file."""
    asked = checkpoint.preprocessing
    colours = {1: "grey", 3: "RGB"}.get(asked.channels, f"{asked.channels} channels")
    images = f"images of {asked.size} px, in {colours}, (pixel / 255 - mean) / std; mean {asked.mean}, std {asked.std}"
    mean, std = bytewise(asked.mean, asked.channels), bytewise(asked.std, asked.channels)
    return [images, *(note.format(mean=mean, std=std) for note in target.notes)]


def bytewise(values: tuple[float, ...], channels: int) -> list[float]:
    """Values of pixels in [0, 1], one a channel or one for all, as those of pixels from 0 to 255, one a channel."""
    return [round(255 * value, 6) for value in (values if len(values) == channels else values * channels)]


def build(library: str, model: str, outputs: int, channels: int) -> nn.Module:
    """A library's network, without values where it can be built so; timm builds no head for 0 outputs."""
    with own_generator(), torch.device("meta"):
        return construct_on_device(lambda: BUILDERS[library](model, outputs, channels))


def build_torchvision(model: str, outputs: int, channels: int) -> nn.Module:
    """A classifier of torchvision; it always has outputs, and three channels."""
    from torchvision.models import get_model  # here: importing it takes a second

    return get_model(model, weights=None, num_classes=outputs or 1, **OPTIONS.get(model, {}))


def build_timm(model: str, outputs: int, channels: int) -> nn.Module:
    """A network of timm."""
    return timm().create_model(model, pretrained=False, num_classes=outputs, in_chans=channels)


BUILDERS = {"torchvision": build_torchvision, "timm": build_timm}


def last_linear(net: nn.Module, outputs: int) -> str:
    """The name of a classifier's last linear layer, "" where its last layer is another."""
    linear = [path for path, module in net.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear and net.get_parameter(f"{linear[-1]}.weight").shape[0] == outputs else ""


def check_library(library: str, target: Target, tensors: dict[str, Tensor], channels: int) -> None:
    """UserError unless the library as installed builds a network of just these tensors, but for a head."""
    if library not in BUILDERS:
        return
    given = tensors.get(f"{target.head}.bias")
    outputs = 0 if given is None else len(given)
    wanted = {name: t.shape for name, t in build(library, target.model, outputs, channels).state_dict().items()}
    if library == "torchvision" and not outputs:
        last = target.head or [*wanted][-1].rpartition(".")[0]
        wanted = {name: shape for name, shape in wanted.items() if name.rpartition(".")[0] != last}
    faults = mismatches(wanted, tensors)
    if faults:
        raise UserError(f"{target.model} of the {library} installed here has other tensors: {'; '.join(faults)}")


def wrap_detectron2(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """As detectron2's own converter writes it: by names alone no detector would find them (`backbone.bottom_up.…`)."""
    return {"model": tensors, "__author__": "clusterzoo", "matching_heuristics": True}


def wrap_mmseg(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """As mmengine's runner saves a segmentor."""
    return {"state_dict": {f"backbone.{name}": tensor for name, tensor in tensors.items()}, "meta": {}}


def as_convolution(name: str, tensor: Tensor) -> Tensor:
    """A linear layer's weight as the convolution over the whole map that timm has in its place."""
    side = {"pre_logits.fc1.weight": 7, "pre_logits.fc2.weight": 1}.get(name)
    return tensor.reshape(len(tensor), -1, side, side) if side else tensor


RESNET50 = {
    "torchvision": Target("resnet50", head="fc"),
    "timm": Target("resnet50", head="fc"),
    "detectron2": Target(
        "resnet50",
        DETECTRON2,
        wrap=wrap_detectron2,
        notes=(
            "in detectron2: MODEL.WEIGHTS FILE MODEL.RESNETS.DEPTH 50 MODEL.RESNETS.STRIDE_IN_1X1 False "
            "INPUT.FORMAT RGB MODEL.PIXEL_MEAN '{mean}' MODEL.PIXEL_STD '{std}'",
            "detectron2's own values are others: BGR, and the stride in the first convolution of a block; "
            "with them the file loads too, and gives other features",
        ),
    ),
    "mmseg": Target(
        "resnet50",
        wrap=wrap_mmseg,
        notes=(
            "in mmsegmentation: backbone=dict(type='ResNet', depth=50, style='pytorch', init_cfg=dict("
            "type='Pretrained', checkpoint=FILE, prefix='backbone.')), and in data_preprocessor "
            "mean={mean}, std={std}, bgr_to_rgb=True",
            "without the prefix mmengine loads nothing and only warns; ResNetV1c has another stem, style='caffe' the "
            "stride in the first convolution of a block, and mmsegmentation reads images in BGR",
        ),
    ),
}
TARGETS: dict[str, dict[str, Target]] = {
    "resnet50": RESNET50,
    "torchvision:resnet50": RESNET50,
    "timm:resnet50": RESNET50,
    "vgg16": {
        "torchvision": Target("vgg16_bn", head="classifier.6", notes=(DROPOUT.format("torchvision"),)),
        "timm": Target("vgg16_bn", TIMM_VGG, head="head.fc", reshape=as_convolution, notes=(DROPOUT.format("timm"),)),
    },
}
