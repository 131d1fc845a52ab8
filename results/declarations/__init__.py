"""Every table of the suite as plain data: what stands in it, and what its cells expect of a record.

Adding a table is adding an entry to TABLES. Nothing is imported from the tasks: a test compares the versions.
"""

from __future__ import annotations

from results.declarations import ablations, deepcluster, digits, fashion_mnist, minivoc, mmdc
from results.declarations.table import Column, Published, Row, Table

__all__ = ["BACKBONES", "DATASETS", "TABLES", "TIERS", "Column", "Published", "Row", "Table"]

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        digits.LINEAR,
        digits.KNN,
        digits.CLUSTERING,
        fashion_mnist.LINEAR,
        minivoc.CLASSIFICATION,
        minivoc.DETECTION,
        minivoc.SEGMENTATION,
        minivoc.SVM,
        minivoc.ENGINES,
        mmdc.CLUSTERING,
        deepcluster.TABLE1,
        deepcluster.TABLE2,
        deepcluster.TABLE3,
        deepcluster.TABLE4,
        *(grid.table for grid in ablations.GRIDS),
    )
}
TIERS = tuple(dict.fromkeys(table.tier for table in TABLES.values()))

# What this version can pretrain and probe on; a gap that needs another one has no command yet.
DATASETS = (
    *("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "cifar100-20", "stl10", "tiny-imagenet"),
    *("imagenet10", "imagenet", "places205", "places365", "voc2007", "voc2012", "minivoc", "minivoc-fashion"),
)
BACKBONES = ("alexnet", "alexnet32", "small_vgg", "vgg16", "resnet18", "resnet34", "resnet50")
