"""The tables of the digits tier: every method and control on scikit-learn's digits."""

from __future__ import annotations

from dataclasses import replace

from results.declarations.layers import CONVS, SMALL_VGG, per_layer
from results.declarations.table import Column, Row, Table

# The recipes are those of the methods' presets, so that a run with other settings is no part of these tables. A test
# compares them: who changes a preset changes them here, and runs `make records`.
ALEXNET32 = (
    Row("DeepCluster, alexnet32", "deepcluster", "alexnet32", "digits", layers=CONVS, recipe="e654c61db169"),
    Row("supervised, alexnet32", "supervised", "alexnet32", "digits", layers=CONVS, recipe="9cfc627c1e03"),
    Row("random, alexnet32", "random", "alexnet32", layers=CONVS, recipe="229034fa0564"),
)
MMDC = Row("MMDC, small_vgg", "mmdc", "small_vgg", "digits", layers=SMALL_VGG, recipe="a6343969c79b")
SMALL = (
    MMDC,
    Row("supervised, small_vgg", "supervised", "small_vgg", "digits", layers=SMALL_VGG, recipe="e7def9ec0cca"),
    Row("random, small_vgg", "random", "small_vgg", layers=SMALL_VGG, recipe="6c649ea7e456"),
)
SEEN = "MMDC was pretrained, as in its paper, on training and test images together, without their labels."


def deepest(rows: tuple[Row, ...], **settings: str) -> tuple[Row, ...]:
    """The same rows at their deepest conv layer, named in the label."""
    return tuple(
        replace(
            row,
            label=f"{row.label} {row.layers[-1]}",
            settings={"layer": row.layers[-1], **settings},
            layers=(),
        )
        for row in rows
    )


LINEAR = Table(
    name="digits_linear",
    title="Digits: a linear probe of each conv layer",
    tier="digits",
    task="probes.linear",
    caption="Top-1 accuracy in percent on the 359 test images, protocol small@1.",
    columns=tuple(per_layer("digits", "small@1")),
    rows=ALEXNET32 + SMALL,
    footnotes=("small_vgg has no conv5.", SEEN),
)

KNN = Table(
    name="digits_knn",
    title="Digits: nearest neighbours at the deepest conv layer",
    tier="digits",
    task="probes.knn",
    caption="Top-1 accuracy in percent: a vote weighted by exp(cosine similarity / 0.07) among k neighbours.",
    columns=tuple(
        Column(f"k = {k}", metric=f"top1_k{k}", dataset="digits", protocol="knn@1") for k in (10, 20, 100, 200)
    ),
    rows=deepest(ALEXNET32 + SMALL),
    footnotes=(SEEN,),
)


def clustering(header: str, metric: str, decimals: int) -> Column:
    """A column of digits_clustering."""
    return Column(
        header,
        metric=metric,
        dataset="digits",
        protocol="clustering@1",
        images="merged",
        settings={"images": "merged"},
        decimals=decimals,
    )


CLUSTERING = Table(
    name="digits_clustering",
    title="Digits: clustering",
    tier="digits",
    task="probes.clustering",
    caption=(
        "Training and test images merged. k-means on the deepest conv layer's features; for MMDC its head's "
        "own assignment too."
    ),
    columns=(
        clustering("NMI", "nmi_arithmetic", 3),
        clustering("AMI", "ami", 3),
        clustering("ARI", "ari", 3),
        clustering("ACC, %", "acc", 1),
        clustering("purity, %", "purity", 1),
    ),
    rows=(
        *deepest(ALEXNET32 + SMALL[:1], assignment="kmeans"),
        replace(MMDC, label="MMDC, small_vgg head", settings={"assignment": "head"}, layers=()),
        *deepest(SMALL[1:], assignment="kmeans"),
    ),
    footnotes=("NMI is normalised by the arithmetic mean of the entropies.",),
)
