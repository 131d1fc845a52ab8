"""What all tests share: nothing that a data set remembers is written into the clone."""

import importlib
import sys

import pytest


@pytest.fixture(scope="session")
def memory(tmp_path_factory):
    """A folder that stands for the clone."""
    return tmp_path_factory.mktemp("memory")


@pytest.fixture(autouse=True)
def _remembered_elsewhere(memory, monkeypatch):
    if "zoo.datasets" in sys.modules:  # not imported: then the test has no data set either
        for name in ("zoo.datasets.changes", "zoo.datasets.tar", "zoo.voc.minivoc"):
            monkeypatch.setattr(importlib.import_module(name), "ROOT", memory)
