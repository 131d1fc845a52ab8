"""Short runs of the segmentation of a small devkit, for its tests."""

import torch
from trainings import start

from results.store import Store
from transfer.voc_segmentation import VocSegmentation
from zoo.evaluation import Evaluation

COUNTS = {"train": 24, "val": 25, "trainval": 49, "test": 24}
FAST = ("--iterations", "4", "--batch", "4", "--checkpoint", "random-alexnet32@0")


def segment(folder, kit, *words):
    """The exit code of the command on a devkit, and the records in `folder`."""
    code = start(VocSegmentation, folder, *FAST, *words, dataset=kit)
    return code, Store(folder / "records").records()


def bench_of(kit, checkpoint, backbone, limit=None):
    """What a backbone is fine-tuned in, as the checkpoint's."""
    return Evaluation(checkpoint, "", kit, backbone, torch.device("cpu"), workers=0, quiet=True, limit=limit)
