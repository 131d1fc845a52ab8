"""Segmentation of Pascal VOC that was stopped or killed: it continues, and ends like one that was not."""

import multiprocessing
import os
import random
import signal
import sys
from contextlib import ExitStack
from unittest.mock import patch

import pytest
from segmented import COUNTS, FAST, segment
from trainings import files, start
from vocs import generate_few, stopped

from results.files import TEMPORARY
from results.store import Store
from transfer import voc_segmentation
from transfer.voc_segmentation import VocSegmentation

SLOW = ("sklearn.datasets", "faiss", "torch.fx.experimental.symbolic_shapes")  # else imported by every process again
MOMENTS = {
    "a step": "transfer.finetuning.descend",
    "an image": "transfer.voc_segmentation.confusion",
    "after a step": "zoo.state.State._after_step",
    "while saving": "results.files.sync",
    "a picture": "transfer.voc_segmentation.save_beside",
    "the record": "results.store.Store.write",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("minivoc")


@pytest.fixture(scope="module")
def few(place):
    return generate_few(place, COUNTS)


@pytest.fixture(scope="module")
def usual(few, tmp_path_factory):
    """The record of the bare settings."""
    _, (record,) = segment(tmp_path_factory.mktemp("usual"), few)
    return record


@pytest.mark.parametrize("calls", [1, 3, 5, 20])
def test_a_run_that_was_stopped_continues_to_the_same_bits(calls, few, tmp_path, usual):
    with stopped(voc_segmentation, "see", calls):
        segment(tmp_path, few)
    assert list(tmp_path.rglob("state-*.pt"))
    code, (record,) = segment(tmp_path, few)
    assert code == 0
    assert (record.metrics, record.details) == (usual.metrics, usual.details)
    assert not list(tmp_path.rglob("state-*.pt"))


def run_and_die(folder, place, moment=None, calls=0, *more):
    """Run the command in this process on the devkit in `place`, and kill it at that call of the function `moment`."""
    os.environ["OMP_NUM_THREADS"] = "1"
    left = [calls]

    def dying(function):
        def called(*values, **named):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return function(*values, **named)

        return called

    few = generate_few(place, COUNTS)  # it is there
    with ExitStack() as stack:
        if moment is not None:
            path, _, attribute = moment.rpartition(".")
            module, _, name = path.rpartition(".")
            owner = getattr(sys.modules[module], name) if name[0].isupper() else sys.modules[path]
            stack.enter_context(patch.object(owner, attribute, dying(getattr(owner, attribute))))
        words = (*FAST, "--save-every", "0.0005", "--save-pictures", "2", *more)
        sys.exit(start(VocSegmentation, folder, *words, dataset=few))


def ended(folder, place, *death):
    """The exit code of the command in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_kill_segmentation", *SLOW])
    process = context.Process(target=run_and_die, args=(folder, place, *death))
    process.start()
    process.join()
    return process.exitcode


def test_a_run_killed_at_random_points_ends_like_one_that_was_not(usual, place, tmp_path):
    rng = random.Random(0)
    for name, moment in MOMENTS.items():
        calls = 0 if name == "the record" else rng.randrange(2)
        assert ended(tmp_path, place, moment, calls) == -signal.SIGKILL, name
    assert list(tmp_path.rglob("state-*.pt"))
    assert ended(tmp_path, place) == 0
    (found,) = Store(tmp_path / "records").records()
    assert (found.metrics, found.details) == (usual.metrics, usual.details)
    left = [name for name in files(tmp_path / "runs") if not TEMPORARY.fullmatch(os.path.basename(name))]
    assert [os.path.dirname(name) for name in left] == [f"{found.key}/pictures"] * 2
