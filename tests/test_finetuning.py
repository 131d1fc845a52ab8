"""Fine-tuning: which files are looked at before anything is learned, and by whom."""

from threading import Lock
from unittest.mock import patch

import numpy as np
import pytest
from segmented import bench_of
from torch import nn
from vocs import generate_few

from results.errors import UserError
from transfer.finetuning import Finetuning
from transfer.masked import MaskedImages, Whole
from transfer.voc_segmentation import VocSegmentation
from zoo import processes
from zoo.checkpoint import resolve
from zoo.datasets.images import FileImages


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return generate_few(tmp_path_factory.mktemp("minivoc"))


@pytest.fixture
def tuning(few):
    """A fine-tuning of nothing much."""
    bench = bench_of(few, resolve("random-alexnet32@0"), nn.Linear(1, 1))
    return Finetuning(VocSegmentation(), bench, nn.Linear(1, 1), bench.state("x"))


class Watched(FileImages):
    """Images that keep the numbers of those that are seen; one of them may be broken."""

    def __init__(self, broken=None):
        super().__init__(None, [str(number) for number in range(20)], None)
        self.seen, self.broken, self.lock = [], broken, Lock()

    def see(self, number, view, draws):
        """See FileImages.see."""
        with self.lock:
            self.seen.append(number)
        if number == self.broken:
            raise UserError(f"cannot read {number}")


@pytest.mark.parametrize("workers", [0, 3])
def test_every_image_that_is_asked_for_is_seen_once(tuning, workers):
    tuning.bench.workers = workers
    learned, evaluated = Watched(), Watched()
    tuning.check_files((learned, np.arange(20), Whole()), (evaluated, np.array([3, 5, 8]), Whole()))
    assert (sorted(learned.seen), sorted(evaluated.seen)) == ([*range(20)], [3, 5, 8])


@pytest.mark.parametrize("workers", [0, 3])
def test_one_that_is_broken_ends_it(tuning, workers):
    tuning.bench.workers = workers
    with pytest.raises(UserError, match="cannot read 8"):
        tuning.check_files((Watched(), np.arange(20), Whole()), (Watched(broken=8), np.array([3, 5, 8]), Whole()))


def test_masks_are_read_with_their_images(tuning, few):
    masks = []
    with patch("transfer.masked.read_mask", lambda path, size, classes: masks.append(path) or np.zeros(size, np.uint8)):
        tuning.check_files((MaskedImages(few, "val"), tuning.rows("val"), Whole()))
    assert masks == few.masks("val")


def test_a_run_that_continues_in_its_training_has_seen_them(tuning):
    images = Watched()
    with patch.object(tuning.state, "done", lambda name: int(name == "training")):
        tuning.check_files((images, np.arange(20), Whole()))
    assert images.seen == []


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_them(tuning, count):
    each = [Watched() for _ in range(count)]
    for rank, images in enumerate(each):
        with (
            patch.object(processes, "count", lambda: count),
            patch.object(processes, "rank", lambda rank=rank: rank),
            patch.object(processes, "meet", lambda: None),
        ):
            tuning.check_files((images, np.arange(20), Whole()))
    assert sorted(number for images in each for number in images.seen) == [*range(20)]
