"""The clustering table of MMDC, with its paper's numbers beside ours."""

from __future__ import annotations

from results.declarations.table import Column, Published, Row, Table

SHIRAN = (
    "G. Shiran, D. Weinshall: Multi-Modal Deep Clustering: Unsupervised Partitioning of Images, ICPR 2020 "
    "(arXiv:1912.02678)"
)
CLUSTERED = {  # data set: (header, backbone of MMDC)
    "mnist": ("MNIST", "small_vgg"),
    "cifar10": ("CIFAR-10", "resnet18"),
    "cifar100-20": ("CIFAR-100 (20)", "resnet18"),
    "stl10": ("STL-10", "resnet18"),
    "imagenet10": ("ImageNet-10", "resnet18"),
    "tiny-imagenet": ("Tiny-ImageNet", "resnet18"),
}
HEAD = {"assignment": "head", "images": "merged"}

CLUSTERING = Table(
    name="mmdc_table",
    title="MMDC: clustering of six data sets",
    tier="paper",
    task="probes.clustering",
    caption="Fractions; training and test images merged, and evaluated on the very same images.",
    columns=tuple(
        Column(
            header=header,
            metric=metric,
            dataset=dataset,
            protocol="clustering@1",
            images="merged",
            settings=HEAD,
            panel=panel,
            backbone=backbone,
            published={"dataset": dataset, "metric": panel.lower()},
            decimals=3,
            scale=scale,
        )
        for panel, metric, scale in (("NMI", "nmi_arithmetic", 1.0), ("ACC", "acc", 0.01))
        for dataset, (header, backbone) in CLUSTERED.items()
    ),
    rows=(Row("MMDC", "mmdc", standard_error=True),),
    seeds=(0,),
    published=Published(
        file="mmdc_table_clustering.csv",
        citation=f"{SHIRAN}, the table of clustering results",
        protocols=("clustering@1",),
        by="dataset",
        covers={dataset: dataset for dataset in CLUSTERED},
        label=("method", "statistic"),
        words={"value": "", "ste": "standard error"},
        images="merged",
    ),
    footnotes=(
        "MMDC's NMI is normalised by the arithmetic mean of the entropies, in its rows and in ours. Most of "
        "the earlier rows are likely to be geometric, scikit-learn's default before 0.22: the two are equal "
        "when both entropies are, and the geometric one is never the smaller. Our records hold both.",
        "DAC's STL-10 cells equal AE's, as shown in the source; kept as transcribed.",
    ),
)
