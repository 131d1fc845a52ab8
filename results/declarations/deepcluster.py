"""Tables 1 to 4 of DeepCluster, with its paper's numbers beside ours."""

from __future__ import annotations

from results.declarations.layers import per_layer
from results.declarations.table import Column, Published, Row, Table

CARON = (
    "M. Caron, P. Bojanowski, A. Joulin, M. Douze: Deep Clustering for Unsupervised Learning of Visual "
    "Features, ECCV 2018 (arXiv:1807.05520v2)"
)
MARKS = "\\* and † are the paper's own marks on a row or a cell."
FROZEN = (
    "DeepCluster's classification FC6-8: table 2 gives 70.4 and table 3 gives 72.0. The first froze the "
    "batch-norm scaling, the second did not (the authors' own erratum). Both stand as published, and ours are made "
    "alike: --train-bn in table 3."
)


TABLE1 = Table(
    name="deepcluster_table1",
    title="DeepCluster, table 1: linear classification from AlexNet's conv layers",
    tier="paper",
    task="probes.linear",
    caption="Top-1 accuracy in percent, one centre crop.",
    columns=(
        *per_layer("imagenet", "deepcluster@1", "ImageNet", {"protocol": "deepcluster", "crops": 1}),
        *per_layer("places205", "deepcluster@1", "Places", {"protocol": "deepcluster", "crops": 1}, "places"),
    ),
    rows=(
        Row("ImageNet labels", "supervised", "alexnet", "imagenet"),
        Row("Random, Sobel", "random", "alexnet", sobel=True),
        Row("DeepCluster", "deepcluster", "alexnet", "imagenet", sobel=True),
    ),
    seeds=(0,),
    published=Published(
        file="deepcluster_table1_linear.csv",
        citation=f"{CARON}, table 1",
        protocols=("deepcluster@1",),
        by="dataset",
        covers={"imagenet": "imagenet", "places": "places205"},
        value="top1",
    ),
    footnotes=(
        "Version 2 of the paper measured its DeepCluster row with one centre crop, and so do we here.",
        "The paper reports the best epoch on the evaluated split, we the last one (both are in our records).",
        "The weights that the authors released fill our DeepCluster row without a training: "
        "`python -m zoo.checkpoint import FILE --name deepcluster-alexnet-sobel-imagenet`.",
    ),
)


def voc(task: str, metric: str, dataset: str, trained: str, **more: bool) -> Column:
    """A column of Pascal VOC; `trained` are the layers that are: fc6-8 or all. more: settings that are not usual."""
    return Column(
        header=f"{task[:3]}. {trained}",
        metric=metric,
        dataset=dataset,
        protocol=", ".join(["deepcluster@1", *(f"{name} {value}" for name, value in more.items())]),
        settings={"trained": trained, **more},
        task=f"transfer.voc_{task}",
        published={"task": task, "trained": trained},
    )


VOC = tuple(
    voc(task, metric, dataset, trained)
    for task, metric, dataset in (
        ("classification", "mAP_step", "voc2007"),
        ("detection", "AP50_voc07", "voc2007"),
        ("segmentation", "mIoU", "voc2012"),
    )
    for trained in ("fc6-8", "all")
)
TRAIN_BN = voc("classification", "mAP_step", "voc2007", "fc6-8", train_bn=True)  # as the paper has table 3: see FROZEN
VOC_CAPTION = (
    "In percent: mAP of classification (cla.; the area under the steps, as in the released program) and of detection "
    "(det.; 11-point) on VOC07, mIoU of segmentation (seg.) on VOC12; trained are the layers above the convolutions "
    "(fc6-8), or all."
)
SBD = "The paper's networks of segmentation learned from SBD's images too, ours from VOC's."
VOC_SETS = {"classification": "voc2007", "detection": "voc2007", "segmentation": "voc2012"}

TABLE2 = Table(
    name="deepcluster_table2",
    title="DeepCluster, table 2: Pascal VOC with AlexNet",
    tier="paper",
    task="transfer.voc_classification",
    caption=VOC_CAPTION,
    columns=VOC,
    rows=(
        Row("ImageNet labels", "supervised", "alexnet", "imagenet"),
        Row("Random", "random", "alexnet"),
        Row("Random, Sobel", "random", "alexnet", sobel=True),
        Row("DeepCluster", "deepcluster", "alexnet", "imagenet", sobel=True),
    ),
    seeds=(0,),
    published=Published(
        file="deepcluster_table2_voc.csv",
        citation=f"{CARON}, table 2",
        protocols=("deepcluster@1",),
        by="task",
        covers=VOC_SETS,
    ),
    footnotes=(MARKS, FROZEN, SBD),
)

TABLE3 = Table(
    name="deepcluster_table3",
    title="DeepCluster, table 3: ImageNet against YFCC100M as training set",
    tier="paper",
    task="transfer.voc_classification",
    caption=VOC_CAPTION,
    columns=(TRAIN_BN, *VOC[1:]),
    rows=(Row("DeepCluster, ImageNet", "deepcluster", "alexnet", "imagenet", sobel=True),),
    seeds=(0,),
    published=Published(
        file="deepcluster_table3_training_set.csv",
        citation=f"{CARON}, table 3",
        protocols=("deepcluster@1", TRAIN_BN.protocol),
        by="task",
        covers=VOC_SETS,
        label=("method", "training_set"),
    ),
    footnotes=(MARKS, FROZEN, SBD),
)

TABLE4 = Table(
    name="deepcluster_table4",
    title="DeepCluster, table 4: AlexNet against VGG-16",
    tier="paper",
    task="transfer.voc_detection",
    caption="VOC07 detection mAP in percent, everything fine-tuned.",
    columns=tuple(
        Column(
            header=header,
            metric="AP50_voc07",
            dataset="voc2007",
            protocol="deepcluster@1",
            settings={"trained": "all"},
            backbone=backbone,
            published={"architecture": backbone},
        )
        for header, backbone in (("AlexNet", "alexnet"), ("VGG-16", "vgg16"))
    ),
    rows=(Row("DeepCluster", "deepcluster", "", "imagenet", sobel=True),),
    seeds=(0,),
    published=Published(
        file="deepcluster_table4_architecture.csv",
        citation=f"{CARON}, table 4",
        protocols=("deepcluster@1",),
        by="architecture",
        covers={"alexnet": "voc2007", "vgg16": "voc2007"},
        value="voc07_detection_map",
    ),
)
