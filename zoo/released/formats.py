"""The formats of released models, an entry each: how a file is recognised and what its tensors are called here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from results.errors import UserError
from zoo.backbones import empty
from zoo.backbones.sobel import constants
from zoo.preprocessing import Preprocessing
from zoo.released.fitting import Filling, Shapes
from zoo.released.heads import linear_heads, projection_heads
from zoo.released.opening import READABLE
from zoo.released.plain import find_backbone, placing
from zoo.renaming import Named, Rule

MODULE = Rule(r"^module\.", "")  # what DataParallel adds
HOLDERS = ("state_dict", "model")  # where programs keep the network's tensors
READ = {*HOLDERS, "model_state_dict", "classy_state_dict", "epoch", "arch"}
# MMDC evaluates on the centre 24 of 28 px in grey (MNIST) and 20 of 32 px in colour (CIFAR), enlarged to 32:
# the centre 32 px of an image enlarged to these sides first, by image channels.
RESIZE = {1: 37, 3: 51}


class Format:
    """What a file is to us. A subclass says what differs; `read` asks its methods in this order."""

    rules: ClassVar[tuple[Rule, ...]] = (MODULE,)
    finished: ClassVar[int] = 0  # epochs finished when the file says epoch 0

    def find(self, held: Any) -> dict[Any, Any] | None:
        """The state dict in what a file held, None where it is another format's."""
        raise NotImplementedError

    def backbone(self, path: Path, named: Named, held: Any) -> str:
        """The backbone's name. UserError if we have none."""
        raise NotImplementedError

    def placing(self, named: Named, name: str) -> tuple[Rule, ...]:
        """Rules that depend on the backbone."""
        return ()

    def fillings(self, state: Mapping[str, Tensor], name: str) -> dict[str, Filling]:
        """What the format leaves out of the backbone, besides batch norm's counters."""
        return {}

    def heads(self, state: Mapping[str, Tensor], dim: int) -> Shapes:
        """The names and shapes of the head's tensors, for an embedding of `dim`."""
        return linear_heads(state, dim, ("top_layer",))

    def clustering(self, held: Any) -> dict[str, Tensor]:
        """The tensors of the group `clustering`."""
        return {}

    def method(self, named: Named) -> str:
        """The method that trained the model; `imported` where the file does not tell."""
        return "imported"

    def preprocessing(self, standard: Preprocessing) -> Preprocessing:
        """How the images are taken, given how the backbone usually takes them."""
        return standard

    def notes(self, named: Named, held: Any) -> list[str]:
        """What a reader of the checkpoint should know."""
        return []

    def epochs(self, held: Any) -> int:
        """Epochs finished, 0 where the file does not say."""
        epoch = held.get("epoch")
        return int(epoch) + self.finished if isinstance(epoch, int | float) else 0

    def others(self, held: Any) -> dict[str, str]:
        """What else the file holds, and what becomes of it."""
        if find_state(held) is held:
            return {}
        return {str(key): "left out: no part of the network" for key in held if key not in READ}


class DeepCluster(Format):
    """Caron et al., ECCV 2018: epoch, arch and state_dict; only `features` was wrapped, in `module`."""

    # DeeperCluster has the network in `body`, and another name for the top layer
    rules = (Rule(r"(^|(?<=\.))(module|body)\.", ""), Rule(r"^pred_layer\.", "top_layer."))

    def find(self, held: Any) -> dict[Any, Any] | None:
        state = find_state(held)
        return state if mentions(state, "top_layer.", "pred_layer.") else None

    def backbone(self, path: Path, named: Named, held: Any) -> str:
        guessed = "vgg16" if "classifier.3.weight" in named.tensors else "alexnet"
        name = str(held.get("arch", guessed))
        if name not in ("alexnet", "vgg16"):
            raise UserError(f"{path.name} is a {name}, which DeepCluster has not", str(path), READABLE)
        return name

    def method(self, named: Named) -> str:
        return "deepcluster"

    def notes(self, named: Named, held: Any) -> list[str]:
        padded = "sobel.0.weight" in named.tensors and "body." in named.origins["sobel.0.weight"]
        return ["DeeperCluster's Sobel sees another border: it pads the image, not with zeros"] if padded else []


class DeeperCluster(DeepCluster):
    """Caron et al., ICCV 2019: a VGG-16, spelled `module.body.` and `module.pred_layer.`."""

    def find(self, held: Any) -> dict[Any, Any] | None:
        state = find_state(held)
        return state if mentions(state, "body.classifier.3.") else None

    def method(self, named: Named) -> str:
        return "deepercluster"


class SwAV(Format):
    """Caron et al., NeurIPS 2020: ResNet-50s of SwAV, and of DeepCluster-v2, which has several heads of prototypes."""

    def find(self, held: Any) -> dict[Any, Any] | None:
        state = find_state(held)
        return state if mentions(state, "projection_head.", "prototypes.") else None

    def backbone(self, path: Path, named: Named, held: Any) -> str:
        return "resnet50"

    def heads(self, state: Mapping[str, Tensor], dim: int) -> Shapes:
        return projection_heads(state, dim)

    def method(self, named: Named) -> str:
        return "deepclusterv2" if mentions(named.tensors, "prototypes.prototypes") else "swav"


class VISSL(Format):
    """VISSL's model zoo: the trunk's blocks, of its copy of DeepCluster's AlexNet or of a ResNet-50.

    The AlexNet has neither Sobel filter nor fully connected layers. The filter is a constant; the layers are NaN,
    so that an embedding is refused, not made up.
    """

    rules = (
        MODULE,
        Rule(r"^(trunk\.)?(base_model\.)?(?=_feature_blocks\.)", ""),  # a whole model's, and a frozen trunk's names
        # block: a convolution and its batch norm, which are at these indices of `features`
        *(
            Rule(rf"^_feature_blocks\.{block}\.{part}\.", f"features.{index + part}.")
            for block, index in {0: 0, 2: 4, 4: 8, 5: 11, 6: 14}.items()
            for part in (0, 1)
        ),
        Rule(r"^_feature_blocks\.", ""),
        Rule(r"^heads\.", None, "the head of VISSL's task"),
    )

    def find(self, held: Any) -> dict[Any, Any] | None:
        state = find_trunk(held)
        return state if mentions(state, "_feature_blocks.") else None

    def backbone(self, path: Path, named: Named, held: Any) -> str:
        return "alexnet" if "features.0.weight" in named.tensors else "resnet50"

    def fillings(self, state: Mapping[str, Tensor], name: str) -> dict[str, Filling]:
        if name != "alexnet":
            return {}
        sobel = {f"sobel.{key}": Filling(tensor, "VISSL's constant") for key, tensor in constants(3).items()}
        linear = {key: tensor for key, tensor in empty(name).state_dict().items() if key.startswith("classifier.")}
        return sobel | {key: Filling(torch.full(tensor.shape, torch.nan), "NaN") for key, tensor in linear.items()}

    def heads(self, state: Mapping[str, Tensor], dim: int) -> Shapes:
        return {}

    def method(self, named: Named) -> str:
        return "deepcluster" if "features.0.weight" in named.tensors else "imported"

    def epochs(self, held: Any) -> int:
        return 0

    def notes(self, named: Named, held: Any) -> list[str]:
        lacks = "VISSL's copy lacks the fully connected layers: they are NaN, and only the conv layers can be used"
        return [lacks] if "features.0.weight" in named.tensors else []


class MMDC(Format):
    """Shiran & Weinshall, ICPR 2020: epoch, targets and model_state_dict, of a small VGG or a ResNet."""

    finished = 1

    def find(self, held: Any) -> dict[Any, Any] | None:
        state = held.get("model_state_dict") if isinstance(held, dict) else None
        return state if isinstance(state, dict) else None

    def backbone(self, path: Path, named: Named, held: Any) -> str:
        if "conv1.weight" not in named.tensors:
            return "small_vgg"
        return "resnet34" if "layer1.2.conv1.weight" in named.tensors else "resnet18"

    def heads(self, state: Mapping[str, Tensor], dim: int) -> Shapes:
        return linear_heads(state, dim, ("top_layer", "rotnet_head"))

    def clustering(self, held: Any) -> dict[str, Tensor]:
        return summarise_targets(held.get("targets"))

    def method(self, named: Named) -> str:
        return "mmdc"

    def preprocessing(self, standard: Preprocessing) -> Preprocessing:
        return replace(standard, resize=RESIZE.get(standard.channels, standard.resize))

    def notes(self, named: Named, held: Any) -> list[str]:
        lost = [] if self.clustering(held) else ["the means of its clusters are not in the file"]
        crop = "images are taken as MMDC takes CIFAR's: its STL-10, ImageNet-10 and Tiny ImageNet are of 64 px"
        return [*lost, crop] if "conv1.weight" in named.tensors else lost

    def others(self, held: Any) -> dict[str, str]:
        kept = {"targets": "clustering/means, clustering/sizes"} if self.clustering(held) else {}
        return super().others(held) | kept


class Plain(Format):
    """A state dict in a library's names: a backbone's by `--backbone`, or found among those that are tried."""

    def find(self, held: Any) -> dict[Any, Any] | None:
        return find_state(held)

    def backbone(self, path: Path, named: Named, held: Any) -> str:
        return find_backbone(path, named)

    def placing(self, named: Named, name: str) -> tuple[Rule, ...]:
        return placing(named, name)

    def heads(self, state: Mapping[str, Tensor], dim: int) -> Shapes:
        return super().heads(state, dim) if mentions(state, "top_layer.") else {}


FORMATS: tuple[Format, ...] = (VISSL(), MMDC(), DeeperCluster(), DeepCluster(), SwAV(), Plain())


def find_state(held: Any) -> dict[Any, Any] | None:
    """The state dict that a file held, by itself (its tensors have dots in their names) or under a usual name."""
    if not isinstance(held, dict):
        return None
    for holder in HOLDERS:
        if isinstance(held.get(holder), dict):
            return held[holder]
    return held if any(isinstance(value, Tensor) and "." in str(key) for key, value in held.items()) else None


def find_trunk(held: Any) -> dict[Any, Any] | None:
    """The tensors of a VISSL file: `model_state_dict`, or trunk and heads in a training's `classy_state_dict`."""
    if not isinstance(held, dict):
        return None
    state: Any = held
    for key in ("classy_state_dict", "base_model", "model"):
        state = state.get(key) if isinstance(state, dict) else None
    if isinstance(state, dict) and isinstance(state.get("trunk"), dict):
        return state["trunk"] | {f"heads.{key}": value for key, value in dict(state.get("heads") or {}).items()}
    state = held.get("model_state_dict", held)
    return state if isinstance(state, dict) else None


def mentions(state: Mapping[Any, Any] | None, *parts: str) -> bool:
    """Whether one of the names holds one of the parts."""
    return any(part in str(key) for key in state or () for part in parts)


def summarise_targets(targets: Any) -> dict[str, Tensor]:
    """MMDC's one-hot targets (n, k) as means (k, k), the identity, and cluster sizes (k,); else nothing.

    Of other targets the means are lost: the released program did not save them.
    """
    if not isinstance(targets, np.ndarray) or targets.ndim != 2 or not targets.size:
        return {}
    if not (np.isin(targets, (0, 1)).all() and (targets.sum(1) == 1).all()):
        return {}
    return {"means": torch.eye(targets.shape[1]), "sizes": torch.from_numpy(targets.sum(0)).long()}
