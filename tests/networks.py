"""Backbones for tests: with initial weights and moved statistics, made once; and images for them."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from zoo.backbones import Backbone, allocate, build

SMALL = ["alexnet32", "small_vgg"]


@cache
def built(name: str) -> Backbone:
    """A backbone with Sobel, in eval mode, whose running statistics are not the identity; made once."""
    return unsettle(build(name, sobel=True, seed=3), "running_mean", "running_var").eval()


def lively(name: str, **arguments: object) -> Backbone:
    """A backbone in eval mode whose batch norms are not the identity, so that mixed-up ones would show."""
    return unsettle(build(name, seed=3, **arguments), "running_mean", "running_var", "weight", "bias").eval()


@torch.no_grad()
def unsettle(model: Backbone, *parts: str) -> Backbone:
    """The backbone, these tensors of its batch norms moved: means and biases about 0, the others from 0.5 to 1.5."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        for part in parts if isinstance(module, nn.BatchNorm2d) else ():
            tensor = getattr(module, part)
            if part in ("running_mean", "bias"):
                tensor.normal_(0, 0.1, generator=generator)
            else:
                tensor.uniform_(0.5, 1.5, generator=generator)
    return model


def images(model: nn.Module, n: int = 2, device: str = "cpu") -> Tensor:
    """n random images at the backbone's default size; on the CPU no larger than the small ones of 64 px."""
    if device == "meta":
        return torch.empty(n, model.channels, model.size, model.size, device=device)
    return noise(min(model.size, 64), model.channels, n)


def noise(side: int, channels: int = 3, n: int = 2) -> Tensor:
    """n random images of that side, in channels of mean 0 and deviation 1."""
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(1))


def hear(backbone: Backbone) -> list[str]:
    """The paths of modules of a library's network in the order in which they end: a list that fills as it runs."""
    ran: list[str] = []
    for path, module in backbone.net.named_modules():
        module.register_forward_hook(lambda module, inputs, output, path=path: ran.append(path))
    return ran


def check_seed_decides(name: str) -> None:
    """Assert that a library's network of one seed has the same values always, and of another other ones."""
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 (that it stays as it is, is the test)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, other = build(name, sobel=True, seed=5), build(name, sobel=True, seed=6)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    torch.manual_seed(2)
    second = build(name, sobel=True, seed=5)
    tables = [dict([*one.named_parameters(), *one.named_buffers()]) for one in (first, second, other)]
    for key, tensor in tables[0].items():
        assert torch.isfinite(tensor).all(), key
        assert torch.equal(tensor, tables[1][key]), key
        constant = (tensor == tensor.flatten()[0]).all() or not tensor.is_floating_point() or "sobel" in key
        assert torch.equal(tensor, tables[2][key]) == bool(constant), key
    assert first.training


def check_tables_come_back(name: str) -> None:
    """Assert that `allocate` and a state dict give the whole network: buffers that no state dict holds are there."""
    first = build(name, seed=0).eval()
    again = allocate(**first.arguments).eval()
    again.load_state_dict(first.state_dict())
    buffers = dict(again.named_buffers())
    assert all(torch.equal(buffer, buffers[key]) for key, buffer in first.named_buffers())
    with torch.no_grad():
        assert torch.equal(first.embed(noise(first.size)), again.embed(noise(first.size)))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
