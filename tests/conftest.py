"""What all tests share: the same examples of a property, and nothing that a data set remembers lies in the clone."""

import importlib
import math
import os
import sys

import pytest
from hypothesis import HealthCheck, settings

# The same examples everywhere, however slow they are; pytest --hypothesis-profile default looks for others.
settings.register_profile("steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

# Nor does it matter where they run: on a CPU, in one process unless a test starts more, in the repository at hand.
os.environ |= {"CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120"}
for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):
    os.environ.pop(name, None)


@pytest.fixture
def states_of_epochs(monkeypatch):
    """However slow the machine, no state is saved within an epoch."""
    monkeypatch.setattr("zoo.state.WORTH", math.inf)


@pytest.fixture(autouse=True)
def _same_draws():
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def memory(tmp_path_factory):
    """A folder that stands for the clone."""
    return tmp_path_factory.mktemp("memory")


@pytest.fixture(autouse=True)
def _remembered_elsewhere(memory, monkeypatch):
    if "zoo.datasets" in sys.modules:  # not imported: then the test has no data set either
        for name in ("zoo.datasets.changes", "zoo.datasets.tar", "zoo.voc.minivoc"):
            monkeypatch.setattr(importlib.import_module(name), "ROOT", memory)
