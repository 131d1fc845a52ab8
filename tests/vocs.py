"""A small generated devkit, for the tests of what is fine-tuned on one."""

from unittest.mock import patch

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
