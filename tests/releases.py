"""Released files of DeepCluster and MMDC, made here in the layouts that their protocols describe."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zoo.backbones import Backbone, build, empty
from zoo.backbones.sobel import constants
from zoo.checkpoint import Checkpoint

K = 7
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def uncounted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as torch wrote it before 0.4.1."""
    return OrderedDict((key, tensor) for key, tensor in state.items() if not key.endswith("tracked"))


def same_maps(one: Checkpoint, network: Backbone, place: Path, side: int, layers: Sequence[str] = ()) -> None:
    """Assert that a checkpoint, saved and loaded, gives the maps of the network it was made from."""
    one.save(place / "ours.safetensors")
    again = Checkpoint.load(place / "ours.safetensors")
    assert (again.sha256, again.recipe) == (one.sha256, one.recipe)
    x = torch.randn(2, network.channels, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, got = network(x, layers or network.layers), again.build_backbone()(x, layers or network.layers)
    assert all(torch.equal(got[layer], expected[layer]) for layer in expected)


def alexnet_state(sobel: bool = True) -> dict[str, Tensor]:
    """DeepCluster's tensors without the counters: random convolutions, and linear layers that take no room."""
    torch.manual_seed(0)
    state: dict[str, Tensor] = OrderedDict()
    for name, tensor in empty("alexnet", sobel=sobel).state_dict().items():
        if name.startswith("features") and not name.endswith("tracked"):
            state[name] = torch.rand(tensor.shape) if name.endswith("running_var") else torch.randn(tensor.shape)
        if name.startswith("classifier"):
            state[name] = torch.full((), 0.5).expand(tensor.shape)
    state["top_layer.weight"] = torch.randn(K, 4096)
    state["top_layer.bias"] = torch.randn(K)
    if sobel:
        state |= {f"sobel.{name}": tensor for name, tensor in constants(3).items()}
    return state


def spell(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    """The same tensors under the keys of one of the released programs."""
    rename = {
        "features.module.": lambda key: key.replace("features.", "features.module."),
        "module.": lambda key: f"module.{key}",
        "none": lambda key: key,
        "DeeperCluster": lambda key: (
            f"module.{key}".replace("top_layer", "pred_layer") if key.startswith("top") else f"module.body.{key}"
        ),
    }[how]
    return OrderedDict((rename(key), tensor) for key, tensor in state.items())


def write(path: Path, value: object, zipped: bool = True, **options: object) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped, **options)
    return path


def deepcluster(path: Path, how: str = "features.module.", zipped: bool = True, **changed: object) -> Path:
    held = {"epoch": 200, "arch": "alexnet", "state_dict": spell(alexnet_state(), how)}
    return write(path / "checkpoint.pth.tar", held | changed, zipped)


def mmdc_network(channels: int = 1, heads: tuple[str, ...] = ("top_layer",), name: str = "small_vgg") -> nn.Module:
    """A backbone with its heads as one module, so that torch writes its state dict and optimiser as released."""
    network = build(name, channels=channels, seed=4)
    for head in heads:
        setattr(network, head, nn.Linear(network.embedding_dim, 4 if head == "rotnet_head" else K))
    return network


def mmdc(path: Path, network: nn.Module, zipped: bool = True, prefix: str = "", **changed: object) -> Path:
    targets = np.eye(K)[np.random.default_rng(0).integers(0, K, 50)]
    thin = [parameter for parameter in network.parameters() if parameter.ndim == 1]
    thick = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    optimizer = torch.optim.SGD(
        [{"params": thin, "weight_decay": 0}, {"params": thick, "weight_decay": 5e-4}], lr=0.05, momentum=0.9
    )
    sum(parameter.sum() for parameter in network.parameters()).backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [40])
    held = {
        "epoch": 49,
        "targets": targets,
        "model_state_dict": {f"{prefix}{key}": tensor for key, tensor in network.state_dict().items()},
        "optimizer_state_dict": optimizer.state_dict(),
        "lr_scheduler_state_dict": schedule.state_dict(),
    }
    return write(path / "model.pt", held | changed, zipped)


class Python2Pickler(pickle._Pickler):
    """Writes text as Python 2 wrote its `str`."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012 (as its parent has it)

    def save_str(self, text: str) -> None:
        self.write(b"U" + bytes([len(text)]) + text.encode("ascii"))
        self.memoize(text)

    dispatch[str] = save_str
