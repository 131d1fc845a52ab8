"""The tables of the minivoc tier: fine-tuning on a generated devkit, with the digits' checkpoints and controls."""

from __future__ import annotations

from dataclasses import replace

from results.declarations.digits import DEEPCLUSTER, MMDC, SEEN
from results.declarations.layers import CONVS, SMALL_VGG, per_layer
from results.declarations.table import Column, Row, Table, trained

ROWS = (
    trained("DeepCluster, alexnet32", DEEPCLUSTER),
    Row("supervised, alexnet32", "supervised", "alexnet32", "digits", recipe="9cfc627c1e03"),
    Row("random, alexnet32", "random", "alexnet32", recipe="229034fa0564"),
    Row("random, alexnet32, Sobel", "random", "alexnet32", sobel=True),
    trained("MMDC, small_vgg", MMDC),
    Row("random, small_vgg", "random", "small_vgg", recipe="6c649ea7e456"),
)
PRETRAINED = "Pretrained on scikit-learn's digits; the scenes show digits of the same splits on photographs."
CHOSEN = (
    "Settings were chosen on train and val, by what a DeepCluster and a supervised checkpoint (and, but for detection, "
    "one of MMDC) reach there on average; these numbers are of trainval and test. (An earlier choice, by DeepCluster "
    "alone, had been tried on test before.)"
)


def columns(metrics: dict[str, str]) -> tuple[Column, ...]:
    """Each metric's column, by its header, for the layers above the convolutions and for all."""
    return tuple(
        Column(f"{header}, {layers}", metric, "minivoc", "deepcluster@1", settings={"trained": layers})
        for header, metric in metrics.items()
        for layers in ("fc6-8", "all")
    )


CLASSIFICATION = Table(
    name="minivoc_classification",
    title="minivoc: classification by fine-tuning",
    tier="minivoc",
    task="transfer.voc_classification",
    caption="Mean average precision in percent on the 300 test images: 11-point, and the area under the steps.",
    columns=columns({"voc07": "mAP_voc07", "step": "mAP_step"}),
    rows=ROWS,
    footnotes=(PRETRAINED, SEEN, CHOSEN, "small_vgg has no linear layers of its own: fc6-8 is the classifier alone."),
)

DETECTION = Table(
    name="minivoc_detection",
    title="minivoc: detection by fine-tuning",
    tier="minivoc",
    task="transfer.voc_detection",
    caption=(
        "Faster R-CNN of torchvision's parts. In percent on the 300 test images, 11-point: AP at an IoU of .5, and the "
        "mean over .5 to .95."
    ),
    columns=columns({"AP50": "AP50_voc07", "AP": "AP_voc07"}),
    rows=ROWS,
    footnotes=(PRETRAINED, SEEN, CHOSEN, "small_vgg has no linear layers of its own: two new ones see the regions."),
)

SEGMENTATION = Table(
    name="minivoc_segmentation",
    title="minivoc: segmentation by fine-tuning",
    tier="minivoc",
    task="transfer.voc_segmentation",
    caption=(
        "Fully convolutional networks of torchvision's parts. In percent on the 300 test images: mean IoU of ten "
        "classes and background, and accuracy over pixels."
    ),
    columns=columns({"mIoU": "mIoU", "pixels": "pixel_acc"}),
    rows=ROWS,
    footnotes=(PRETRAINED, SEEN, CHOSEN, "small_vgg is scored at its last map: fc6-8 is that layer alone."),
)


def by(engine: str, task: str, metric: str, usual: bool = False) -> Column:
    """A column of the comparison of engines; usual: that of the commands without --engine."""
    protocol = "deepcluster@1" if usual else f"deepcluster@1, engine {engine}"
    settings = {"trained": "all", "engine": engine}
    header = f"{metric.partition('_')[0]}, {engine}"
    return Column(header, metric, "minivoc", protocol, settings=settings, task=f"transfer.voc_{task}")


SVM = Table(
    name="minivoc_svm",
    title="minivoc: linear SVMs on each conv layer",
    tier="minivoc",
    task="probes.svm",
    caption="Mean average precision in percent on the 300 test images, 11-point, protocol voc07-svm@1.",
    columns=tuple(per_layer("minivoc", "voc07-svm@1", metric="mAP_voc07")),
    rows=tuple(replace(row, layers=SMALL_VGG if row.backbone == "small_vgg" else CONVS) for row in ROWS),
    footnotes=(
        PRETRAINED,
        SEEN,
        "small_vgg has no conv5.",
        "A class's cost was chosen by cross-validation on trainval.",
    ),
)

ENGINES = Table(
    name="minivoc_engines",
    title="minivoc: the same training by different engines",
    tier="minivoc",
    task="transfer.voc_detection",
    caption=(
        "In percent on the 300 test images: AP50 (11-point) of detection, mean IoU of segmentation; all layers trained."
    ),
    columns=(
        by("torchvision", "detection", "AP50_voc07", usual=True),
        by("detectron2", "detection", "AP50_voc07"),
        by("torchvision", "segmentation", "mIoU", usual=True),
        by("mmseg", "segmentation", "mIoU"),
    ),
    rows=ROWS[:1],
    footnotes=(
        "One network, one solver and the same images in the same order; regions, losses and what is drawn at random "
        "are each engine's own. All detections are scored by the same code, whose numbers are those of detectron2's "
        "evaluator.",
        "mmseg spreads a map's cells evenly over the image. alexnet32 has one more than fit, whose outermost then lie "
        "half a cell from where they are: spread so, torchvision's network loses as much (tried on train and val).",
    ),
)
