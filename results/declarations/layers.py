"""The conv layers that tables have columns for."""

from __future__ import annotations

from typing import Any

from results.declarations.table import Column

CONVS = tuple(f"conv{number}" for number in range(1, 6))  # of the AlexNets
SMALL_VGG = CONVS[:4]


def per_layer(
    dataset: str,
    protocol: str,
    panel: str = "",
    settings: dict[str, Any] | None = None,
    published: str = "",
    metric: str = "top1",
) -> list[Column]:
    """A column for each of conv1 to conv5: a probe's metric. `published`: the paper's name of the data set."""
    return [
        Column(
            header=layer,
            metric=metric,
            dataset=dataset,
            protocol=protocol,
            settings={"layer": layer, **(settings or {})},
            panel=panel,
            published={"dataset": published or dataset, "layer": layer},
        )
        for layer in CONVS
    ]
