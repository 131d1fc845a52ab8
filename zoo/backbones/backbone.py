"""A backbone with named layers: the maps that probes ask for, and the descriptor that is clustered.

A subclass is a table: its layers, its convolutions, and the input it was made for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from results.errors import UserError, did_you_mean
from zoo.backbones.sobel import OUTPUTS, constants, sobel_filter

EMBEDDING = "embedding"


class Backbone(nn.Module):
    """Convolutions with batch norm and ReLU (`features`), then perhaps linear layers (`classifier`)."""

    name: ClassVar[str]
    relus: ClassVar[dict[str, int]]  # layer name -> index of its ReLU in `features`, from shallow to deep
    layers: ClassVar[tuple[str, ...]]  # the names alone
    embedding_dim: ClassVar[int]
    flat: ClassVar[int]  # values of the last map, flattened: what `classifier` expects
    sides: ClassVar[tuple[int, float]]  # least and greatest input side, in pixels
    size: ClassVar[int]  # default input side, in pixels
    resize: ClassVar[int]  # default shorter side before the centre crop
    mean: ClassVar[tuple[float, ...]]  # default normalisation of pixels in [0, 1], one value or one a channel
    std: ClassVar[tuple[float, ...]]
    channels: int = 3  # of the image
    follows_dataset: ClassVar[bool] = False  # whether it takes the data set's channels rather than its own
    fan: ClassVar[str] = "out"  # He initialisation counts a convolution's outputs ("out") or inputs ("in")
    linear_std: ClassVar[float | None] = 0.01  # of fully connected weights at the start; None: He, by inputs

    def __init__(self, channels: int | None = None, sobel: bool = False) -> None:
        super().__init__()
        self.channels = type(self).channels if channels is None else channels
        self.features = self.make_features(OUTPUTS if sobel else self.channels)
        self.classifier = self.make_classifier()
        self.sobel = sobel_filter(self.channels) if sobel else None

    def __init_subclass__(cls) -> None:
        cls.layers = tuple(cls.relus)

    @staticmethod
    def make_features(inputs: int) -> nn.Sequential:
        """The convolutional part, for an input of `inputs` channels."""
        raise NotImplementedError

    @staticmethod
    def make_classifier() -> nn.Sequential:
        """The fully connected part up to the descriptor; empty where the flattened map is the descriptor."""
        return nn.Sequential()

    @property
    def arguments(self) -> dict[str, Any]:
        """What `build` needs to make this backbone again: name, channels, sobel."""
        return {"name": self.name, "channels": self.channels, "sobel": self.sobel is not None}

    def forward(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """The maps (N, c, h, w) of the named layers, each after its ReLU and before any pooling.

        x: (N, channels, h, w), normalised. The name "embedding" gives `embed(x)`. Nothing deeper than the
        deepest layer asked for is computed. UserError for an unknown layer or an input of the wrong size.
        """
        self.check(layers)
        wanted = {self.relus[layer]: layer for layer in layers if layer != EMBEDDING}
        stop = len(self.features) if EMBEDDING in layers else max(wanted, default=-1) + 1
        maps: dict[str, Tensor] = {}
        x = self.prepare(x)
        for index in range(stop):
            x = self.features[index](x)
            if index in wanted:
                maps[wanted[index]] = x
        if EMBEDDING in layers:
            maps[EMBEDDING] = self.descend(x)
        return {layer: maps[layer] for layer in layers}

    def embed(self, x: Tensor) -> Tensor:
        """The descriptor (N, embedding_dim): the last layer before its final ReLU.

        A head is applied as head(relu(embed(x))). A backbone without linear layers gives the flattened map
        after its last pooling, which a ReLU leaves as it is. DeepCluster's released program clusters this.
        """
        return self(x, (EMBEDDING,))[EMBEDDING]

    def prepare(self, x: Tensor) -> Tensor:
        """What the first convolution sees: the image, or its Sobel derivatives. UserError for a bad size."""
        low, high = self.sides
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise UserError(f"{self.name} takes (N, {self.channels}, h, w), got {tuple(x.shape)}")
        if min(x.shape[2:]) < low or max(x.shape[2:]) > high:
            sides = f"{low} px" if low == high else f"at least {low} px a side"
            raise UserError(
                f"{self.name} takes images of {sides}, got {x.shape[2]} × {x.shape[3]}",
                fix=f"a size of {self.size}",
            )
        return x if self.sobel is None else self.sobel(x)

    def descend(self, x: Tensor) -> Tensor:
        """The descriptor (N, embedding_dim) of the last map. UserError where the map has another size."""
        x = torch.flatten(x, 1)  # not view: the map may be channels_last
        if x.shape[1] != self.flat:
            raise UserError(
                f"{self.name} has no embedding here: its last map has {x.shape[1]} values, not {self.flat}",
                fix=f"a size of {self.size}, or a conv layer",
            )
        return self.classifier(x)

    @classmethod
    def check(cls, layers: Iterable[str]) -> None:
        """UserError if one of the names is no layer of this backbone."""
        known = (*cls.layers, EMBEDDING)
        for layer in layers:
            if layer not in known:
                raise UserError(f"{cls.name} has no layer '{layer}'{did_you_mean(layer, known)}", fix=", ".join(known))

    def draw(self, seed: int) -> None:
        """Give every tensor its initial value, drawn from `seed` alone.

        Convolutions are He-normal, linear layers N(0, .01), biases 0, batch norm the identity: so it is in
        DeepCluster's program and in MMDC's.
        """
        generator = np.random.default_rng(seed)
        for module in (*self.features, *self.classifier):
            initialise(module, self.fan, self.linear_std, generator)
        if self.sobel is not None:
            self.sobel.load_state_dict(constants(self.channels))


def block(
    inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0, bias: bool = True
) -> list[nn.Module]:
    """A convolution with its batch norm and ReLU: three entries of `features`."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=bias)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


@torch.no_grad()
def initialise(module: nn.Module, fan: str, linear_std: float | None, generator: np.random.Generator) -> None:
    """Set one module's initial values; what has neither weights nor statistics is left alone."""
    if isinstance(module, nn.BatchNorm2d):
        module.reset_parameters()
    if isinstance(module, nn.Conv2d):
        ends = module.out_channels if fan == "out" else module.in_channels
        area = module.kernel_size[0] * module.kernel_size[1]
        fill_normal(module, (2 / (area * ends)) ** 0.5, generator)
    if isinstance(module, nn.Linear):
        fill_normal(module, linear_std or (2 / module.in_features) ** 0.5, generator)


def fill_normal(module: nn.Conv2d | nn.Linear, std: float, generator: np.random.Generator) -> None:
    """Weights from N(0, std²), bias 0.

    numpy draws them, in float64: torch's normal numbers differ between processors (its AVX2 path rounds in
    another way), and the sha256 of a random checkpoint is part of a record's key.
    """
    values = generator.standard_normal(tuple(module.weight.shape))
    values *= std
    module.weight.copy_(torch.from_numpy(values))
    if module.bias is not None:
        module.bias.zero_()
