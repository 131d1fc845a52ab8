"""Networks of other libraries as backbones: built by the library, initialised so that a seed decides every value."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cache
from math import inf
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from results.errors import UserError, did_you_mean
from zoo.backbones.backbone import Backbone, fill_normal


class Library(Backbone):
    """A network of a library, without its classifier, in `net`; keys of the state dict are `net.` and the library's.

    Its layers are `stage1` … from shallow to deep. A subclass is a library; `declare` makes one class a network.
    """

    sides = (1, inf)  # which of them it takes is tried
    model: ClassVar[str]  # the library's name of the network
    net: Any  # nn.Module

    @classmethod
    def construct(cls, inputs: int) -> nn.Module:
        """The network for an input of `inputs` channels, with the library's initial values."""
        raise NotImplementedError

    def make(self, inputs: int) -> None:
        self.net = construct_on_device(lambda: self.construct(inputs))

    @classmethod
    def allocate(cls, channels: int | None = None, sobel: bool = False) -> Self:
        """Built on the CPU: libraries keep tables (relative positions) that no state dict holds."""
        return cls(channels, sobel)

    def check_size(self, height: int, width: int) -> None:
        """UserError for images that the network does not take: at another size than its own it is tried."""
        kind = cast(Hashable, type(self))  # which mypy doubts of a module's class
        if (height, width) != (self.size, self.size) and not runs(kind, height, width):
            raise UserError(f"{self.name} takes no images of {height} × {width} px", fix=f"a size of {self.size}")

    def fill(self, generator: np.random.Generator) -> None:
        """Constants (norms, layer scales) stay the library's; what it draws is drawn again.

        Convolutions are He-normal by inputs, so that the signal neither fades nor grows in a network whose batch norms
        are the identity; all else (linear layers, tokens, tables of positions) is as wide as the library draws it.
        """
        widths = {module.weight: he(module) for module in self.net.modules() if isinstance(module, nn.Conv2d)}
        for parameter in self.net.parameters():
            if parameter.requires_grad and (parameter != parameter.flatten()[0]).any():
                redraw(parameter, widths.get(parameter), generator)


def construct_on_device(construct: Callable[[], nn.Module]) -> nn.Module:
    """What `construct` makes, on torch's default device; perhaps made on the CPU and brought there."""
    try:
        return construct()
    except RuntimeError:  # it reckons with tensors' values while it is built (RegNet): not on the meta device
        device = torch.get_default_device()
        with torch.device("cpu"):
            return construct().to(device)


def he(module: nn.Conv2d) -> float:
    """The standard deviation of He et al., ICCV 2015: sqrt(2 / values that go into one output)."""
    return (2 / module.weight[0].numel()) ** 0.5


@torch.no_grad()
def redraw(parameter: nn.Parameter, std: float | None, generator: np.random.Generator) -> None:
    """N(0, std²); without a std, that of the parameter's own values.

    Two digits of it: the rest depends on how a processor's torch rounds.
    """
    fill_normal(parameter, std or float(f"{parameter.double().std():.2g}"), generator)


def check_name(prefix: str, model: str, names: Sequence[str], listing: str) -> None:
    """UserError unless a library has a network of that name. listing: the Python that prints the names."""
    fix = f"{prefix}:NAME; the names: python -c '{listing}'"
    if not model:
        raise UserError(f"'{prefix}:' does not say which network of {prefix}", fix=fix)
    if model not in names:
        near = did_you_mean(model, names).replace("'", f"'{prefix}:", 1)
        raise UserError(f"{prefix} has no network {model}{near}", fix=fix)


def declare(kind: type[Library], prefix: str, model: str, describe: Callable[[nn.Module], dict[str, Any]]) -> Any:
    """The class of one network. describe: the table of a network (in eval mode, on the meta device).

    UserError for a network that cannot be built or described.
    """
    named: Any = type(f"{prefix}:{model}", (kind,), {"name": f"{prefix}:{model}", "model": model})
    try:
        with torch.device("meta"), torch.inference_mode():
            table = describe(named().net.eval())
    except Exception as error:  # a library can fail anywhere
        reason = (str(error) or type(error).__name__).splitlines()[0]
        fix = f"another network of {prefix}"
        raise UserError(f"{named.name} cannot be taken as a backbone: {reason}", fix=fix) from error
    for field, value in table.items():
        setattr(named, field, value)
    return named


def stages(count: int) -> tuple[str, ...]:
    """The names stage1 … of `count` layers."""
    return tuple(f"stage{number + 1}" for number in range(count))


def blank(side: int, width: int | None = None) -> Tensor:
    """Two RGB images without values, (2, 3, side, width)."""
    return torch.empty(2, 3, side, width or side, device="meta")


@cache
def runs(kind: Any, height: int, width: int) -> bool:
    """Whether a network takes images of that size: it is tried on the meta device."""
    with torch.device("meta"), torch.inference_mode():
        net = kind().net.eval()
        try:
            net(blank(height, width))
        except (RuntimeError, AssertionError, ValueError):
            return False
    return True
