"""The tables of the minivoc tier: fine-tuning on a generated devkit, with the digits' checkpoints and controls."""

from __future__ import annotations

from results.declarations.digits import DEEPCLUSTER, MMDC
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


def columns(protocol: str, metrics: dict[str, str]) -> tuple[Column, ...]:
    """Each metric's column, by its header, for the layers above the convolutions and for all."""
    return tuple(
        Column(f"{header}, {layers}", metric, "minivoc", protocol, settings={"trained": layers})
        for header, metric in metrics.items()
        for layers in ("fc6-8", "all")
    )


CLASSIFICATION = Table(
    name="minivoc_classification",
    title="minivoc: classification by fine-tuning",
    tier="minivoc",
    task="transfer.voc_classification",
    caption="Mean average precision in percent on the 160 test images: 11-point, and the area under the steps.",
    columns=columns("deepcluster@1", {"voc07": "mAP_voc07", "step": "mAP_step"}),
    rows=ROWS,
    footnotes=(PRETRAINED, "small_vgg has no linear layers of its own: fc6-8 is the classifier alone."),
)
