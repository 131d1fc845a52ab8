"""Ablations: grids of trainings that each vary one setting of a method's preset, and a table for each grid.

`python -m pretrain.ablate` runs what a grid's table lacks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from results.declarations.digits import ALEXNET32, DEEPCLUSTER, MMDC, SMALL, deepest
from results.declarations.layers import CONVS, SMALL_VGG
from results.declarations.table import Column, Figure, Pretraining, Row, Table, trained

TIER = "ablations"
KS = (10, 20, 50, 100, 200, 500)
REASSIGN, STOP = (2, 5, 10), (5, 20)
RANDOM = {"alexnet32": ALEXNET32[-1], "small_vgg": SMALL[-1]}
RANDOM_SOBEL = Row("random, Sobel, alexnet32", "random", "alexnet32", sobel=True, layers=CONVS, recipe="49358b11f5ca")
LAYERS = {"alexnet32": CONVS, "small_vgg": SMALL_VGG}
PREVIOUS = "nmi_previous"
CLUSTERS = {"NMI, labels": "nmi_arithmetic", "AMI, labels": "ami", "NMI, epoch before": PREVIOUS}
CURVES = {"nmi_arithmetic": "NMI with the labels", PREVIOUS: "NMI with the epoch before"}
PANELS = {
    "Clusters against labels": ("NMI, labels", "AMI, labels"),
    "Frozen features, top-1 in %": ("kNN 20, %", "kNN 200, %", "linear, %"),
}


@dataclass(frozen=True)
class Grid:
    """Trainings that differ from a preset in one setting; the preset's own is in every grid, and is run once."""

    name: str
    varies: str
    usual: Pretraining
    cells: dict[str, dict[str, Any]]  # label: the settings that are not the preset's
    at: dict[str, float] = field(default_factory=dict)  # label: where it stands on the figure's axis
    keeps: bool = False  # whether some epochs keep the clusters of the one before
    random: tuple[Row, ...] = ()  # untrained rows besides that of the backbone
    note: str = ""

    @property
    def table(self) -> Table:
        """The grid's table: its runs' clusters, and probes of the deepest conv layer of their checkpoints."""
        backbone = self.usual.settings["backbone"]
        layer = LAYERS[backbone][-1]
        cells = [
            trained(label if cell else f"{label} (preset)", self.usual.but(cell), at=self.at.get(label))
            for label, cell in self.cells.items()
        ]
        return Table(
            name=f"ablation_{self.name}",
            title=f"Ablation on the digits: {self.varies}",
            tier=TIER,
            task=self.usual.task,
            version=self.usual.version,
            columns=(*self.columns(), *probes(layer)),
            rows=(*cells, *deepest((RANDOM[backbone], *self.random))),
            caption=self.caption(layer),
            footnotes=tuple(filter(None, (self.note, "All settings but the one that is varied are the preset's."))),
            figure=Figure(
                curves={metric: title for metric, title in CURVES.items() if metric in self.clusters.values()},
                every=5 if self.usual.settings["epochs"] <= 40 else 10,
                axis="k" if self.at else "",
                panels=PANELS if self.at else {},
            ),
        )

    def caption(self, layer: str) -> str:
        """What the columns hold."""
        images = "training and test images" if self.usual.settings["images"] == "merged" else "training images"
        before = "" if self.keeps else ", and NMI (geometric) with those of the epoch before"
        return (
            f"NMI (arithmetic) and AMI of the last epoch's clusters of the {images} with the labels{before}. Top-1 of "
            f"probes of the frozen {layer} on the 359 test images: 20 or 200 nearest neighbours, and a linear "
            "classifier by protocol small@1."
        )

    @property
    def clusters(self) -> dict[str, str]:
        """What is told of the clusters of the last epoch: the metric under each header."""
        return {header: metric for header, metric in CLUSTERS.items() if not (self.keeps and metric == PREVIOUS)}

    def columns(self) -> list[Column]:
        """The columns that the pretraining runs record themselves."""
        return [
            Column(
                header,
                metric=metric,
                dataset=self.usual.dataset,
                protocol=f"{self.usual.method}@{self.usual.version}",
                images=self.usual.settings["images"],
                task=self.usual.task,
                decimals=3,
            )
            for header, metric in self.clusters.items()
        ]


def probes(layer: str) -> list[Column]:
    """The columns of the probes of a layer."""
    found = {
        "kNN 20, %": ("probes.knn", "top1_k20", "knn@1"),
        "kNN 200, %": ("probes.knn", "top1_k200", "knn@1"),
        "linear, %": ("probes.linear", "top1", "small@1"),
    }
    return [
        Column(header, metric, "digits", protocol, settings={"layer": layer}, task=task, version=1)
        for header, (task, metric, protocol) in found.items()
    ]


def numbered(setting: str, values: tuple[int, ...], usual: int) -> dict[str, dict[str, Any]]:
    """Cells of a setting's values, that of the preset among them."""
    return {f"{setting} = {value}": {} if value == usual else {setting: value} for value in values}


GRIDS = (
    Grid(
        "k",
        "DeepCluster's number of clusters",
        DEEPCLUSTER,
        numbered("k", KS, usual=50),
        at={f"k = {k}": k for k in KS},
        note="NMI grows with the number of clusters whatever they are; AMI is corrected for that.",
    ),
    Grid(
        "clustering",
        "what clusters DeepCluster's descriptors",
        DEEPCLUSTER,
        {"k-means": {}, "PIC": {"clustering": "pic"}, "Gaussian mixture": {"clustering": "gmm"}},
        note="PIC finds a number of clusters of its own.",
    ),
    Grid(
        "head",
        "DeepCluster's head after a new clustering",
        DEEPCLUSTER,
        {"reset": {}, "matched": {"head": "matched"}, "centroids": {"head": "centroids"}},
    ),
    Grid(
        "sampler",
        "how DeepCluster draws images from its clusters",
        DEEPCLUSTER,
        {
            "uniform over clusters": {},
            "legacy: by their size": {"sampler": "legacy"},
            "none: each image once": {"sampler": "none"},
        },
    ),
    Grid(
        "reassign",
        "how often, and until when, DeepCluster clusters anew",
        DEEPCLUSTER,
        {
            "every epoch": {},
            **{f"every {epochs} epochs": {"reassign": epochs} for epochs in REASSIGN},
            **{f"in the first {epochs} epochs": {"stop_reassign": epochs} for epochs in STOP},
        },
        keeps=True,
        note="The NMI with the epoch before is left out: it is 1 wherever an epoch keeps the clusters.",
    ),
    Grid(
        "sobel",
        "DeepCluster on image gradients",
        DEEPCLUSTER,
        {"grey values": {}, "Sobel": {"sobel": True}},
        random=(RANDOM_SOBEL,),
    ),
    Grid(
        "rotation",
        "MMDC's second task, telling rotations apart",
        MMDC,
        {"without rotation": {}, "with rotation": {"rotation": True}},
    ),
    Grid(
        "refinement",
        "MMDC's refinement, the second stage of its training",
        MMDC,
        {"from epoch 24 on": {}, "never": {"refine_at": MMDC.settings["epochs"]}},
    ),
)
