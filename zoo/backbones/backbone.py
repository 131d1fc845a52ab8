"""A backbone with named layers: the maps that probes ask for, and the descriptor that is clustered.

`Backbone` is what all networks share. `Chain` is one whose modules follow one another; networks of other libraries
are in `library`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from results.errors import UserError, did_you_mean
from zoo.backbones.sobel import OUTPUTS, constants, sobel_filter

EMBEDDING = "embedding"


class Backbone(nn.Module):
    """A network up to its descriptor, perhaps behind a Sobel filter. A subclass says how it computes its maps."""

    name: ClassVar[str]
    layers: ClassVar[tuple[str, ...]]  # from shallow to deep
    embedding_dim: ClassVar[int]
    sides: ClassVar[tuple[int, float]]  # least and greatest input side, in pixels
    size: ClassVar[int]  # default input side, in pixels
    resize: ClassVar[int]  # default shorter side before the centre crop
    mean: ClassVar[tuple[float, ...]]  # default normalisation of pixels in [0, 1], one value or one a channel
    std: ClassVar[tuple[float, ...]]
    channels: int = 3  # of the image
    follows_dataset: ClassVar[bool] = False  # whether it takes the data set's channels rather than its own

    def __init__(self, channels: int | None = None, sobel: bool = False) -> None:
        super().__init__()
        self.channels = type(self).channels if channels is None else channels
        with own_generator():
            self.make(OUTPUTS if sobel else self.channels)
            self.sobel = sobel_filter(self.channels) if sobel else None

    def make(self, inputs: int) -> None:
        """Make the modules, for an input of `inputs` channels."""
        raise NotImplementedError

    def compute(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """At least the named maps and descriptor of what `prepare` gives, and nothing deeper."""
        raise NotImplementedError

    def fill(self, generator: np.random.Generator) -> None:
        """Give every tensor but the Sobel filter's its initial value."""
        raise NotImplementedError

    @classmethod
    def allocate(cls, channels: int | None = None, sobel: bool = False) -> Self:
        """A backbone on the CPU with room for what a state dict holds; what none holds has its value."""
        with torch.device("meta"):
            model = cls(channels, sobel)
        return model.to_empty(device="cpu")

    @property
    def arguments(self) -> dict[str, Any]:
        """What `build` needs to make this backbone again: name, channels, sobel."""
        return {"name": self.name, "channels": self.channels, "sobel": self.sobel is not None}

    def forward(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """The maps (N, c, h, w) of the named layers.

        x: (N, channels, h, w), normalised. The name "embedding" gives `embed(x)`. Nothing deeper than the
        deepest layer asked for is computed. UserError for an unknown layer or an input of the wrong size.
        """
        self.check(layers)
        x = self.prepare(x)
        maps = self.compute(x, layers) if layers else {}
        return {layer: maps[layer] for layer in layers}

    def embed(self, x: Tensor) -> Tensor:
        """The descriptor (N, embedding_dim): the last layer before its final ReLU.

        A head is applied as head(relu(embed(x))). A backbone without linear layers gives the flattened map
        after its last pooling, which a ReLU leaves as it is. DeepCluster's released program clusters this.
        """
        return self(x, (EMBEDDING,))[EMBEDDING]

    def prepare(self, x: Tensor) -> Tensor:
        """What the first convolution sees: the image, or its Sobel derivatives. UserError for a bad size."""
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise UserError(f"{self.name} takes (N, {self.channels}, h, w), got {tuple(x.shape)}")
        self.check_size(*x.shape[2:])
        return x if self.sobel is None else self.sobel(x)

    def check_size(self, height: int, width: int) -> None:
        """UserError for images that the network does not take."""
        low, high = self.sides
        if min(height, width) < low or max(height, width) > high:
            sides = f"{low} px" if low == high else f"at least {low} px a side"
            raise UserError(
                f"{self.name} takes images of {sides}, got {height} × {width}", fix=f"a size of {self.size}"
            )

    @classmethod
    def check(cls, layers: Iterable[str]) -> None:
        """UserError if one of the names is no layer of this backbone."""
        known = (*cls.layers, EMBEDDING)
        for layer in layers:
            if layer not in known:
                raise UserError(f"{cls.name} has no layer '{layer}'{did_you_mean(layer, known)}", fix=", ".join(known))

    def draw(self, seed: int) -> None:
        """Give every tensor its initial value, drawn from `seed` alone."""
        self.fill(np.random.default_rng(seed))
        if self.sobel is not None:
            self.sobel.load_state_dict(constants(self.channels))


class Chain(Backbone):
    """A network whose modules follow one another, some of which end a layer."""

    fan: ClassVar[str] = "out"  # He initialisation counts a convolution's outputs ("out") or inputs ("in")
    linear_std: ClassVar[float | None] = 0.01  # of fully connected weights at the start; None: He, by inputs

    def links(self) -> Iterable[tuple[nn.Module, str | None]]:
        """The modules in order, each with the name of the layer that it ends, if it does."""
        raise NotImplementedError

    def descend(self, x: Tensor) -> Tensor:
        """The descriptor (N, embedding_dim) of what the last link gives."""
        raise NotImplementedError

    def compute(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = {}
        for module, layer in self.links():
            x = module(x)
            if layer is not None and layer in layers:
                maps[layer] = x
                if len(maps) == len(set(layers)):
                    return maps
        maps[EMBEDDING] = self.descend(x)  # nothing else is left to be asked for
        return maps

    def fill(self, generator: np.random.Generator) -> None:
        """Convolutions are He-normal, linear layers N(0, .01), biases 0, batch norm the identity.

        So it is in DeepCluster's program and in MMDC's.
        """
        for module in self.modules():
            initialise(module, self.fan, self.linear_std, generator)


@torch.no_grad()
def initialise(module: nn.Module, fan: str, linear_std: float | None, generator: np.random.Generator) -> None:
    """Set one module's initial values; what has neither weights nor statistics is left alone."""
    if isinstance(module, nn.BatchNorm2d):
        module.reset_parameters()
    if isinstance(module, nn.Conv2d):
        ends = module.out_channels if fan == "out" else module.in_channels
        area = module.kernel_size[0] * module.kernel_size[1]
        fill_normal(module.weight, (2 / (area * ends)) ** 0.5, generator)
    if isinstance(module, nn.Linear):
        fill_normal(module.weight, linear_std or (2 / module.in_features) ** 0.5, generator)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        module.bias.zero_()


def fill_normal(tensor: Tensor, std: float, generator: np.random.Generator) -> None:
    """Values from N(0, std²).

    numpy draws them, in float64: torch's normal numbers differ between processors (its AVX2 path rounds in
    another way), and the sha256 of a random checkpoint is part of a record's key.
    """
    values = generator.standard_normal(tuple(tensor.shape))
    values *= std
    tensor.copy_(torch.from_numpy(values))


@contextmanager
def own_generator() -> Iterator[None]:
    """Let torch draw on the CPU from a generator of seed 0, and leave the global one where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield
