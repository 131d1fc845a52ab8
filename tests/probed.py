"""Runs probes on a few digits or photographs in however many processes torchrun starts: python probed.py FOLDER …

With a signal, a rank, a function and a count the process of that rank is sent the signal in that call of the function.
"""

import itertools
import sys
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import numpy as np
from deaths import EVERY, clock, dying
from trainings import Tiny, start
from vocs import generate_few

from probes import features, knn, linear
from zoo import processes
from zoo.datasets.folder import Folder
from zoo.run import registry

BATCH = 16
TASKS = {
    "small": ("probes.linear", "--layer", "all", "--epochs", "3"),
    "online": ("probes.linear", "--layer", "conv2", "--epochs", "2", "--protocol", "generic", "--crops", "10"),
    "files": ("probes.linear", "--layer", "conv2", "--epochs", "2", "--protocol", "generic"),
    "knn": ("probes.knn", "--layer", "all", "--k", "3", "10"),
    "voc": ("transfer.voc_classification", "--iterations", "4", "--batch", "6"),
    "boxes": ("transfer.voc_detection", "--iterations", "3", "--batch", "2", "--candidates", "40", "--rois", "8"),
    "masks": ("transfer.voc_segmentation", "--iterations", "4", "--batch", "6"),
    "dropped": ("transfer.voc_segmentation", "--iterations", "2", "--batch", "2", "--checkpoint", "random-alexnet32@0"),
    "clustering": ("probes.clustering", "--layer", "conv3", "--images", "split"),
}


class Odd(Tiny):
    """One image is left for the last batch of each split: too few for two processes."""

    splits = {"train": 5 * BATCH + 1, "test": 2 * BATCH + 1}  # noqa: RUF012


def run(folder, task, *words):
    """The exit code of a probe."""
    linear.BATCH = features.BATCH = BATCH
    name, *settings = TASKS[task]
    places = ("--checkpoint", "random-small_vgg@0", "--cache", str(folder / "cache"))
    if name.startswith("transfer."):
        dataset = generate_few(folder)
    else:
        dataset = Folder(folder / "photographs") if task == "files" else Odd()
    with patch.object(knn, "nearest_neighbours", noting(knn.nearest_neighbours, folder)):
        return start(registry("probes", "transfer")[name], folder, *places, *settings, *words, dataset=dataset)


def noting(search, folder):
    """A search for neighbours that keeps what each call of each process finds: neighbours-CALL-RANK.npz."""
    calls = itertools.count()

    def noted(*given):
        similarity, nearest = search(*given)
        path = folder / f"neighbours-{next(calls)}-{processes.rank()}.npz"
        np.savez(path, similarity=similarity, nearest=nearest)
        return similarity, nearest

    return noted


if __name__ == "__main__":
    place, tasks, *death = sys.argv[1:]
    with clock(), processes.joined(), ExitStack() as stack:
        if death and processes.rank() == int(death[1]):
            stack.enter_context(dying(death[2], int(death[3]), int(death[0])))
        code = max(run(Path(place), task, *EVERY) for task in tasks.split(","))
    sys.exit(code)
