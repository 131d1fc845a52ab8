"""What all tests share: the same examples of a property, and nothing that a data set remembers lies in the clone."""

import importlib
import sys

import pytest
from hypothesis import HealthCheck, settings

# The same examples everywhere, however slow they are; pytest --hypothesis-profile default looks for others.
settings.register_profile("steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture(scope="session")
def memory(tmp_path_factory):
    """A folder that stands for the clone."""
    return tmp_path_factory.mktemp("memory")


@pytest.fixture(autouse=True)
def _remembered_elsewhere(memory, monkeypatch):
    if "zoo.datasets" in sys.modules:  # not imported: then the test has no data set either
        for name in ("zoo.datasets.changes", "zoo.datasets.tar", "zoo.voc.minivoc"):
            monkeypatch.setattr(importlib.import_module(name), "ROOT", memory)
