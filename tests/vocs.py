"""A small generated devkit, and watched runs, for the tests of what is fine-tuned on one."""

import signal
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from deaths import dying

from zoo.voc import minivoc
from zoo.voc.minivoc import MiniVoc

FEW = {"train": 24, "val": 24, "trainval": 48, "test": 24}


def generate_few(folder, counts=FEW):
    """minivoc in fewer images, generated in `folder`: enough that each set shows every class."""
    with patch.object(minivoc, "ROOT", folder), patch.dict(minivoc.COUNTS, counts):
        found = type("FewVoc", (MiniVoc,), {"counts": {"Main": dict(counts), "Segmentation": dict(counts)}})(None)
        _ = found.folder
        found.prepare()
        found.fingerprint()
        _ = found.location
        return found


def watch(monkeypatch, module, name):
    """The networks that a module makes of its class `name`, each with what it held at first: a list that fills."""
    made = []

    class Kept(getattr(module, name)):
        def __init__(self, *given):
            super().__init__(*given)
            made.append((self, {name: value.clone() for name, value in self.state_dict().items()}))

    monkeypatch.setattr(module, name, Kept)
    return made


def moved(network, before):
    """The tensors that have changed."""
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


@contextmanager
def stopped(owner, name, calls):
    """SIGTERM comes at that call of a function in the block, which must end by it."""
    moment = f"{owner.__name__}.{name}"
    with dying(moment, calls - 1, signal.SIGTERM), pytest.raises(SystemExit) as ended:
        yield
    assert ended.value.code == 143
