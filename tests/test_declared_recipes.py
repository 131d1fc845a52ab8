"""The recipes that tables declare are those that the methods' presets give now."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from results.declarations import TABLES, digits
from results.declarations.table import Pretraining, Row
from results.record import cell_key
from zoo.checkpoint import recipe, resolve
from zoo.datasets import find
from zoo.pretraining import ingredients
from zoo.run import registry, settings_of


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
    changed = wanted.training.changed if wanted.training else {}
    preset = {**kind.presets.get(wanted.dataset, {}), "backbone": wanted.backbone, "sobel": wanted.sobel, **changed}
    assert recipe(**ingredients(kind(**preset), find(wanted.dataset))) == wanted.recipe


@pytest.mark.parametrize("training", [digits.DEEPCLUSTER, digits.MMDC], ids=lambda training: training.method)
def test_a_declared_training_is_the_presets_to_the_key(training: Pretraining) -> None:
    kind = registry("pretrain")[training.task]
    dataset = find(training.dataset)
    run = kind(**kind.presets.get(training.dataset, {}), seed=2)
    assert (training.version, training.fingerprint) == (kind.version, dataset.fingerprint())
    assert training.key(2) == cell_key(kind.name, kind.version, settings_of(run), None, dataset.fingerprint())
    assert not training.changed


def test_a_cell_that_is_the_presets_own_changes_nothing() -> None:
    for table in TABLES.values():
        usual = {"pretrain.deepcluster": digits.DEEPCLUSTER, "pretrain.mmdc": digits.MMDC}
        for row in table.rows:
            if row.training:
                kind = registry("pretrain")[row.training.task]
                assert all(getattr(kind(), name) != value for name, value in row.training.changed.items()), row.label
                assert row.training == usual[row.training.task].but(row.training.changed)
