"""The recipes that tables declare are those that the methods' presets give now."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from results.declarations import TABLES
from results.declarations.table import Row
from zoo.checkpoint import recipe, resolve
from zoo.datasets import find
from zoo.pretraining import ingredients
from zoo.run import registry


def declared() -> Iterator[Row]:
    """Every row that names a recipe."""
    return (row for table in TABLES.values() for row in table.rows if row.recipe)


def test_the_digits_tables_declare_recipes() -> None:
    assert {row.method for row in declared()} == {"deepcluster", "supervised", "mmdc", "random"}


@pytest.mark.parametrize("row", sorted(set(map(repr, declared()))))
def test_a_declared_recipe_is_the_presets(row: str) -> None:
    (wanted,) = {entry.recipe: entry for entry in declared() if repr(entry) == row}.values()
    if wanted.method == "random":
        sobel = "-sobel" if wanted.sobel else ""
        assert resolve(f"random-{wanted.backbone}{sobel}@0").recipe == wanted.recipe
        return
    kind = registry("pretrain")[f"pretrain.{wanted.method}"]
    preset = {**kind.presets.get(wanted.dataset, {}), "backbone": wanted.backbone, "sobel": wanted.sobel}
    assert recipe(**ingredients(kind(**preset), find(wanted.dataset))) == wanted.recipe
