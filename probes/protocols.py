"""How linear classifiers are trained: one entry a protocol (evaluation.md has the table)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from probes.heads import Schedule, cosine, inverse_sqrt
from results.errors import UserError

Pools = Mapping[str, tuple[int, int, int]]  # layer: kernel, stride, padding of an AvgPool

# To about 9 600 features at 224 px (deepcluster.md 2.1).
ALEXNET_POOLS = {"conv1": (6, 6, 3), "conv2": (4, 4, 0), "conv3": (3, 3, 1), "conv4": (3, 3, 1), "conv5": (2, 2, 0)}
VGG16_KERNELS = (18, 18, 14, 14, 9, 9, 9, 6, 6, 6, 3, 3, 3)  # of conv1 to conv13, each also the stride
VGG16_POOLS = {f"conv{n}": (kernel, kernel, 0) for n, kernel in enumerate(VGG16_KERNELS, 1)}


@dataclass(frozen=True)
class Protocol:
    """`rates`: the grid of learning rates; one is taken as it is, without a choice."""

    rates: tuple[float, ...]
    epochs: int
    decay: float
    schedule: Schedule = inverse_sqrt
    least_steps: int = 0
    zero_start: bool = False  # classifiers start from zero, else from torch's default
    backbone: str = ""  # the one that it is made for; "" any
    pools: Pools | None = None  # None: equal kernel and stride, to just below 10 000 features
    resized_crops: bool = False  # training crops of 8–100 % of the image, resized; else a square of the resized image
    published: Mapping[str, tuple[float, ...]] | None = None  # data set: the rate of each layer, in place of `rates`

    def grid(self, layers: Sequence[str], every: Sequence[str], dataset: str) -> dict[str, tuple[float, ...]]:
        """The rates that each layer is trained with; `every`: all conv layers of the backbone, in order.

        UserError for a data set or layer for which none is published.
        """
        if self.published is None:
            return dict.fromkeys(layers, self.rates)
        if dataset not in self.published:
            known = " and ".join(self.published)
            raise UserError(f"this protocol has learning rates for {known}, not {dataset}", fix="--protocol generic")
        rates = dict(zip(every, self.published[dataset], strict=True))
        unknown = [layer for layer in layers if layer not in rates]
        if unknown:
            raise UserError(f"this protocol has no learning rate for {unknown[0]}", fix="--protocol generic")
        return {layer: (rates[layer],) for layer in layers}


GRID = (0.1, 0.03, 0.01, 0.003)
PROTOCOLS = {
    "small": Protocol(
        (0.3, 0.1, 0.03, 0.01, 0.003, 0.001), 30, 1e-4, schedule=cosine, least_steps=2000, zero_start=True
    ),
    "deepcluster": Protocol(GRID, 90, 1e-4, backbone="alexnet", pools=ALEXNET_POOLS),
    "generic": Protocol(GRID, 90, 1e-4),
    # As published, nothing chosen: the program's defaults, its script for conv3 (with --crops 10), and the values that
    # DeeperCluster's README gives for each layer of VGG-16 (deepcluster.md 2.1).
    "deepcluster-published": Protocol((0.01,), 90, 1e-4, backbone="alexnet", pools=ALEXNET_POOLS),
    "deepcluster-script": Protocol((0.01,), 90, 1e-7, backbone="alexnet", pools=ALEXNET_POOLS),
    "deepercluster": Protocol(
        (),
        100,
        1e-5,
        backbone="vgg16",
        pools=VGG16_POOLS,
        resized_crops=True,
        published={
            "imagenet": (0.005, 0.01, 0.03, 0.03, 0.03, 0.03, 0.02, 0.03, 0.03, 0.03, 0.02, 0.02, 0.02),
            "places205": (0.003, 0.005, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.03, 0.01, 0.01, 0.02),
        },
    ),
}
