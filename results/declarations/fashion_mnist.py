"""The table of the fashion-mnist tier: DeepCluster and its controls on 70 000 real images."""

from __future__ import annotations

from results.declarations.layers import CONVS, per_layer
from results.declarations.table import Row, Table

LINEAR = Table(
    name="fashion_linear",
    title="Fashion-MNIST: a linear probe of each conv layer",
    tier="fashion-mnist",
    task="probes.linear",
    caption="Top-1 accuracy in percent on the 10 000 test images, protocol small@1. All with Sobel input.",
    columns=tuple(per_layer("fashion-mnist", "small@1")),
    rows=(
        Row("DeepCluster, alexnet32", "deepcluster", "alexnet32", "fashion-mnist", sobel=True, layers=CONVS),
        Row("supervised, alexnet32", "supervised", "alexnet32", "fashion-mnist", sobel=True, layers=CONVS),
        Row("random, alexnet32", "random", "alexnet32", sobel=True, layers=CONVS),
    ),
    seeds=(0,),
)
