"""A file's tensors against a backbone: every one fits by name and shape, or is left out by a rule, or none is taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from results.errors import UserError
from zoo.backbones import empty, find
from zoo.backbones.sobel import constants
from zoo.released.opening import READABLE
from zoo.renaming import Line, Named, Rule
from zoo.tensors import Groups, mismatches, shorten

COUNTER = "num_batches_tracked"  # what torch wrote before 0.4.1 has none
ABSENT = "(not in the file)"
Shapes = dict[str, tuple[int, ...]]


class Misfit(ValueError):
    """The tensors are not those of the backbone and the head: what does not fit."""


class Filling(NamedTuple):
    """A tensor that a file may lack, and what it is."""

    tensor: Tensor
    what: str


class Kind(Protocol):
    """What fitting asks of a format."""

    def heads(self, state: Mapping[str, Tensor], dim: int) -> Shapes:
        """The names and shapes of the head's tensors, for an embedding of `dim`."""
        ...

    def fillings(self, state: Mapping[str, Tensor], name: str) -> dict[str, Filling]:
        """What the format leaves out of backbone `name`, besides batch norm's counters."""
        ...


@dataclass(frozen=True)
class Fitted:
    """A file's tensors in groups, what backbone takes them, what became of each, and notes on what was filled in."""

    named: Named
    groups: Groups
    channels: int
    sobel: bool
    lines: list[Line]
    notes: list[str]


def take(path: Path, state: Mapping[Any, Any] | Named, rules: Iterable[Rule]) -> Named:
    """A state dict after the rules. UserError for what is no plain tensor, and for names that become one."""
    try:
        if not isinstance(state, Named):
            odd = [str(key) for key, value in state.items() if not is_plain(value)]
            if odd:
                raise ValueError(f"no plain tensor: {shorten(odd)}")
            state = Named.take({str(key): tensor for key, tensor in state.items()})
        return state.rename(rules)
    except ValueError as error:
        raise UserError(f"the state dict in {path.name} is malformed: {error}", str(path), READABLE) from error


def is_plain(value: Any) -> bool:
    """Whether a value is a tensor that holds numbers: torch's reader also makes sparse, quantised and empty ones."""
    return (
        isinstance(value, Tensor)
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and (value.dtype.is_floating_point or value.dtype == torch.int64)
    )


def fit(path: Path, name: str, named: Named, kind: Kind) -> Fitted:
    """The tensors as groups `backbone` and `head`.

    Misfit unless each tensor of backbone `name` is there with its shape, and no other; UserError for values that
    cannot be.
    """
    fillings = {key: filling for key, filling in kind.fillings(named.tensors, name).items() if key not in named.tensors}
    state = named.tensors | {key: filling.tensor for key, filling in fillings.items()}
    sobel = "sobel.0.weight" in state
    first = "sobel.0.weight" if sobel else first_weight(name)
    channels = inputs(state.get(first), find(name).channels)
    backbone = empty(name, channels, sobel).state_dict()
    wanted = backbone | blank(kind.heads(state, find(name).embedding_dim))
    counters = count_none([key for key in wanted if key not in state])
    fillings |= counters
    state |= {key: filling.tensor for key, filling in counters.items()}
    faults = mismatches({key: tensor.shape for key, tensor in wanted.items()}, state)
    if faults:
        raise Misfit("; ".join(faults))
    check_values(path, name, state, fillings, channels if sobel else 0)
    fitted = {key: state[key].detach().to(wanted[key].dtype).contiguous().clone() for key in wanted}
    head = {key: tensor for key, tensor in fitted.items() if key not in backbone}
    groups = {"backbone": {key: fitted[key] for key in backbone}, "head": head}
    notes = [f"{COUNTER} set to 0, which the file lacks"] if counters else []
    return Fitted(named, groups, channels, sobel, draw_map(named, groups, fillings), notes)


def blank(shapes: Shapes) -> dict[str, Tensor]:
    """Tensors of those names and shapes on the meta device: counters in int64, all else in float32."""
    types = {key: torch.int64 if key.endswith(COUNTER) else torch.float32 for key in shapes}
    return {key: torch.empty(shape, dtype=types[key], device="meta") for key, shape in shapes.items()}


def first_weight(name: str) -> str:
    """The name of the weight of a backbone's first convolution."""
    modules = empty(name).named_modules()
    return next((f"{path}.weight" for path, module in modules if isinstance(module, nn.Conv2d)), "")


def inputs(weight: Tensor | None, default: int) -> int:
    """The input channels of a convolution's weight; the default where there is none, which is told later."""
    return weight.shape[1] if weight is not None and weight.ndim == 4 else default


def count_none(missing: Iterable[str]) -> dict[str, Filling]:
    """Batch norm's counters among the missing tensors, at zero."""
    return {key: Filling(torch.zeros((), dtype=torch.int64), "0") for key in missing if key.endswith(COUNTER)}


def check_values(path: Path, name: str, state: Mapping[str, Tensor], filled: Mapping[str, Any], sobel: int) -> None:
    """UserError for values that cannot be. sobel: the image channels that a Sobel filter takes, 0 where none is."""
    odd = [key for key, tensor in state.items() if key not in filled and not torch.isfinite(tensor).all()]
    faults = [f"not finite: {shorten(odd)}"] if odd else []
    faults += other_sobel(state, sobel) if sobel else []
    if faults:
        raise UserError(f"{path.name} is no usable {name}: {'; '.join(faults)}", str(path), READABLE)


def other_sobel(state: Mapping[str, Tensor], channels: int) -> list[str]:
    """The tensors of a Sobel filter that are not the constants that ours has."""
    ours = {f"sobel.{key}": tensor for key, tensor in constants(channels).items()}
    return [f"{key} is not ours" for key, tensor in ours.items() if not torch.allclose(state[key].float(), tensor)]


def draw_map(named: Named, groups: Groups, fillings: Mapping[str, Filling]) -> list[Line]:
    """A line for each tensor of the file, then for each that was filled in."""
    places = {key: f"{group}/{key}" for group, tensors in groups.items() for key in tensors}
    lines = [Line(named.origins[key], places[key], tuple(tensor.shape)) for key, tensor in named.tensors.items()]
    added = [
        Line(ABSENT, f"{places[key]}, filled in: {filling.what}", tuple(filling.tensor.shape))
        for key, filling in fillings.items()
    ]
    return [*lines, *named.left, *added]
