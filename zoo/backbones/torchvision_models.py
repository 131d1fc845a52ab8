"""Backbones `torchvision:NAME`: any classifier of torchvision.

Layer stageN is the last map of the N-th spatial resolution, taken where a block ends: a block is a module that
passes through at most two resolutions, and what is inside it does not count. The embedding is what the classifier's
last linear layer is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from itertools import accumulate
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from zoo.backbones.backbone import EMBEDDING
from zoo.backbones.library import Library, blank, check_name, declare, stages

PREFIX = "torchvision"
# Without the classifiers that help training, and the slow draws of older versions.
LEAN = {"aux_logits": False, "init_weights": False}
OPTIONS = {"googlenet": LEAN, "inception_v3": LEAN}


class Place(NamedTuple):
    """Where a map is: the module that gives it, its side in pixels, and whether it is (N, h, w, c)."""

    path: str
    side: int
    channels_last: bool


class Reached(Exception):
    """The deepest layer asked for is computed."""


class Torchvision(Library):
    """A network whose maps are caught as its modules give them."""

    places: ClassVar[dict[str, Place]]  # layer -> where it is

    @classmethod
    def construct(cls, inputs: int) -> nn.Module:
        from torchvision.models import get_model  # here: importing it takes a second

        net = get_model(cls.model, weights=None, **OPTIONS.get(cls.model, {}))
        remove_classifier(net)
        widen(net, inputs)
        return net

    def compute(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = {}
        wanted = [layer for layer in self.layers if layer in layers]
        last = None if EMBEDDING in layers else wanted[-1]

        def keep(layer: str) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
                whole = output.clone()  # what follows may change it in place
                maps[layer] = whole.permute(0, 3, 1, 2) if self.places[layer].channels_last else whole
                if layer == last:
                    raise Reached

            return self.net.get_submodule(self.places[layer].path).register_forward_hook(hook)

        hooks = [keep(layer) for layer in wanted]
        try:
            with suppress(Reached):
                maps[EMBEDDING] = self.net(x).flatten(1)
        finally:
            for hook in hooks:
                hook.remove()
        return maps


def names() -> list[str]:
    """The names of torchvision's classifiers."""
    from torchvision import models  # here: importing it takes a second

    return models.list_models(module=models)


@cache
def find(model: str) -> type[Torchvision]:
    """The backbone class of one of torchvision's classifiers. UserError if there is none of that name."""
    check_name(PREFIX, model, names(), "from torchvision import models; print(*models.list_models(module=models))")
    return declare(Torchvision, PREFIX, model, lambda net: describe(model, net))


def describe(model: str, net: nn.Module) -> dict[str, Any]:
    """A network's table: layers, and the size and normalisation of its first published weights."""
    from torchvision.models import get_model_weights

    usual = next(iter(get_model_weights(model))).transforms()
    crop, resize = usual.crop_size[0], usual.resize_size[0]
    size = getattr(net, "image_size", crop)  # a ViT is built for one size, perhaps not that of those weights
    places, dim = outline(net, blank(size))
    return {
        "layers": stages(len(places)),
        "places": dict(zip(stages(len(places)), places)),
        "embedding_dim": dim,
        "size": size,
        "resize": round(resize * size / crop),
        "mean": tuple(usual.mean),
        "std": tuple(usual.std),
    }


def remove_classifier(net: nn.Module) -> None:
    """Let the last linear layer, or convolution where there is none (SqueezeNet), pass on what it is given."""
    for kind in (nn.Linear, nn.Conv2d):
        paths = [path for path, module in net.named_modules() if isinstance(module, kind)]
        if paths:
            net.set_submodule(paths[-1], nn.Identity())
            return


def widen(net: nn.Module, inputs: int) -> None:
    """Give the first convolution `inputs` input channels; its weights are repeated or cut."""
    first = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    if first.in_channels != inputs:
        repeats = -(-inputs // first.in_channels)
        first.weight = nn.Parameter(first.weight.detach().repeat(1, repeats, 1, 1)[:, :inputs].clone())
        first.in_channels = inputs


def outline(net: nn.Module, x: Tensor) -> tuple[list[Place], int]:
    """Where the last map of each resolution is, from shallow to deep, and the embedding's dimension.

    Networks with one map alone (a ViT's patches) count as having none.
    """
    seen: dict[str, Place | None] = {}  # in the order in which modules end

    def note(path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            again = path in seen  # a module that is used twice has no one place
            seen.pop(path, None)
            seen[path] = None if again else locate(path, output)

        return hook

    hooks = [module.register_forward_hook(note(path)) for path, module in net.named_modules() if path]
    dim = net(x).flatten(1).shape[1]
    for hook in hooks:
        hook.remove()
    last = {place.side: place for place in block_ends([place for place in seen.values() if place])}
    return (list(last.values()) if len(last) > 1 else []), dim


def locate(path: str, output: Any) -> Place | None:
    """The place of a map of a square image; None for what is no map, or one pixel."""
    if isinstance(output, Tensor) and output.ndim == 4:
        _, a, b, c = output.shape
        if b == c > 1:
            return Place(path, b, False)
        if a == b > 1:
            return Place(path, b, True)
    return None


def block_ends(places: Sequence[Place]) -> list[Place]:
    """The places that lie in no block."""
    blocks = {place.path for place in places if is_block(place.path, places)}
    return [place for place in places if not blocks & set(parents(place.path))]


def is_block(path: str, places: Sequence[Place]) -> bool:
    """Whether the maps of a module and of what is inside it have at most two resolutions."""
    return len({place.side for place in places if f"{place.path}.".startswith(f"{path}.")}) <= 2


def parents(path: str) -> list[str]:
    """a and a.b, for a.b.c."""
    return list(accumulate(path.split(".")[:-1], lambda before, part: f"{before}.{part}"))
