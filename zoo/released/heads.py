"""The heads that released models have on their embedding: what tensors, of which shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from zoo.released.fitting import COUNTER, Shapes

ROTATIONS = 4  # outputs of a rotation head


def linear_heads(state: Mapping[str, Tensor], dim: int, names: Sequence[str]) -> Shapes:
    """Linear layers on an embedding of `dim`.

    The first of the names is always there, with as many outputs as its bias; others, where they are, tell rotations.
    """
    top, *others = names
    bias = state.get(f"{top}.bias")
    outputs = {top: 1 if bias is None else bias.numel()}
    outputs |= {name: ROTATIONS for name in others if any(key.startswith(f"{name}.") for key in state)}
    return {key: shape for name, k in outputs.items() for key, shape in linear(name, dim, k).items()}


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    """The tensors of a linear layer with bias."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def batch_norm(name: str, width: int) -> Shapes:
    """The tensors of a batch norm."""
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{part}": (width,) for part in vectors}, f"{name}.{COUNTER}": ()}


def projection_heads(state: Mapping[str, Tensor], dim: int) -> Shapes:
    """SwAV's projection, one layer or two with batch norm and ReLU between, then prototypes without bias."""
    projection, dim = project(state, dim)
    prototypes = [key for key in state if key.startswith("prototypes.") and key.endswith(".weight")]
    return projection | {key: (outputs(state, key), dim) for key in prototypes}


def project(state: Mapping[str, Tensor], dim: int) -> tuple[Shapes, int]:
    """The tensors of SwAV's projection, and the dimension of what it gives."""
    if not any(key.startswith("projection_head.") for key in state):
        return {}, dim
    if "projection_head.weight" in state:
        out = outputs(state, "projection_head.weight")
        return linear("projection_head", dim, out), out
    hidden, out = outputs(state, "projection_head.0.weight"), outputs(state, "projection_head.3.weight")
    first, second = linear("projection_head.0", dim, hidden), linear("projection_head.3", hidden, out)
    return first | batch_norm("projection_head.1", hidden) | second, out


def outputs(state: Mapping[str, Tensor], key: str) -> int:
    """The outputs of a linear layer's weight; 1 where there is none, which is told later."""
    return len(state[key]) if key in state and state[key].ndim else 1
