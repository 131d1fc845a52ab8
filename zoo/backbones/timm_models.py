"""Backbones `timm:NAME`: any network of timm, an extra that is installed on its own.

Layer stageN is the N-th of the network's intermediate maps, as timm gives them; the embedding is what its classifier
is given. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from results.errors import UserError
from zoo.backbones.backbone import EMBEDDING
from zoo.backbones.library import Library, blank, check_name, declare, stages

PREFIX = "timm"


class Timm(Library):
    """A network whose maps timm's `forward_intermediates` gives."""

    @classmethod
    def construct(cls, inputs: int) -> nn.Module:
        return library().create_model(cls.model, pretrained=False, in_chans=inputs, num_classes=0)

    def compute(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        wanted = [layer for layer in self.layers if layer in layers]
        whole = EMBEDDING in layers
        if not wanted:
            return {EMBEDDING: self.net(x)}
        found = self.net.forward_intermediates(
            x,
            indices=[self.layers.index(layer) for layer in wanted],
            stop_early=not whole,
            intermediates_only=not whole,
        )
        if not whole:
            return dict(zip(wanted, found, strict=True))
        last, maps = found
        return {**dict(zip(wanted, maps, strict=True)), EMBEDDING: self.net.forward_head(last)}


def library() -> ModuleType:
    """timm. UserError if it is not installed."""
    try:
        import timm  # here: it is an extra
    except ImportError as error:
        raise UserError("timm is not installed", fix="pip install 'clusterzoo[timm]'") from error
    return timm


def names() -> list[str]:
    """The names of timm's networks, alone and with the tag of their weights. UserError if timm is not installed."""
    return sorted({*library().list_models(), *library().list_pretrained()})


@cache
def find(model: str) -> type[Timm]:
    """The backbone class of one of timm's networks. UserError if there is none of that name, or no timm."""
    check_name(PREFIX, model, names(), "import timm; print(*timm.list_models())")
    return declare(Timm, PREFIX, model, describe)


def describe(net: Any) -> dict[str, Any]:
    """A network's table: layers, and the size and normalisation of its published weights."""
    usual = net.pretrained_cfg
    size = usual["input_size"][-1]
    x = blank(size)
    return {
        "layers": stages(len(net.forward_intermediates(x, intermediates_only=True))),
        "embedding_dim": net(x).shape[1],
        "size": size,
        "resize": int(size / usual["crop_pct"]),  # timm rounds down
        "mean": tuple(usual["mean"]),
        "std": tuple(usual["std"]),
    }
