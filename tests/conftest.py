"""What all tests share: nothing that a data set remembers is written into the clone."""

import sys

import pytest


@pytest.fixture(scope="session")
def memory(tmp_path_factory):
    """A folder that stands for the clone."""
    return tmp_path_factory.mktemp("memory")


@pytest.fixture(autouse=True)
def _remembered_elsewhere(memory, monkeypatch):
    for name in ("changes", "tar"):
        module = sys.modules.get(f"zoo.datasets.{name}")  # not imported: then the test has no data set either
        if module is not None:
            monkeypatch.setattr(module, "ROOT", memory)
