"""The tables of the digits tier: every method and control on scikit-learn's digits."""

from __future__ import annotations

from dataclasses import replace

from results.declarations.layers import CONVS, SMALL_VGG, per_layer
from results.declarations.table import Column, Pretraining, Row, Table, trained

# Settings and recipes are those of the methods' presets, so that a run with other settings is no part of these tables.
# A test compares them: who changes a preset changes them here, and runs `make records`.
FINGERPRINT = "9c02eb5eedf97ff85a818ecf8fc291e24e5a842c7ceea6923596d559da5b9890"
DEEPCLUSTER = Pretraining(
    task="pretrain.deepcluster",
    version=2,
    dataset="digits",
    fingerprint=FINGERPRINT,
    channels=3,
    settings=dict(
        backbone="alexnet32", sobel=False, images="split", precision="fp32", k=50, epochs=40, batch=64, lr=0.05,
        momentum=0.9, weight_decay=1e-5, area=(0.4, 1.0), pca=256, iterations=20,
    ),
)  # fmt: skip
MMDC = Pretraining(
    task="pretrain.mmdc",
    version=1,
    dataset="digits",
    fingerprint=FINGERPRINT,
    channels=1,
    settings=dict(
        backbone="small_vgg", sobel=False, images="merged", precision="fp32", k=0, epochs=60, batch=64, lr=0.05,
        drop=0.1, drop_at=48, momentum=0.9, weight_decay=5e-4, refine_at=24, side=0, crops=(28, 24, 20), degrees=25.0,
        flip=False, jitter=False, rotation=False, means="one_hot", dim=0, sigma=0.0,
    ),
)  # fmt: skip
ALEXNET32 = (
    trained("DeepCluster, alexnet32", DEEPCLUSTER, layers=CONVS),
    Row("supervised, alexnet32", "supervised", "alexnet32", "digits", layers=CONVS, recipe="9cfc627c1e03"),
    Row("random, alexnet32", "random", "alexnet32", layers=CONVS, recipe="229034fa0564"),
)
SMALL = (
    trained("MMDC, small_vgg", MMDC, layers=SMALL_VGG),
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
        replace(SMALL[0], label="MMDC, small_vgg head", settings={"assignment": "head"}, layers=()),
        *deepest(SMALL[1:], assignment="kmeans"),
    ),
    footnotes=("NMI is normalised by the arithmetic mean of the entropies.",),
)
