"""Segmentation of Pascal VOC that was stopped or killed: it continues, and ends like one that was not."""

import os
import random
import signal
import sys
from contextlib import ExitStack

import pytest
from deaths import EVERY, clock, dying, exit_code
from segmented import COUNTS, FAST, segment
from trainings import files, start
from vocs import generate_few, stopped

from results.files import TEMPORARY
from results.store import Store
from transfer import voc_segmentation
from transfer.voc_segmentation import VocSegmentation

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
    few = generate_few(place, COUNTS)  # it is there
    with clock(), ExitStack() as stack:
        if moment is not None:
            stack.enter_context(dying(moment, calls))
        words = (*FAST, *EVERY, "--save-pictures", "2", *more)
        sys.exit(start(VocSegmentation, folder, *words, dataset=few))


def ended(folder, place, *death):
    """The exit code of the command in a process of its own."""
    return exit_code(run_and_die, folder, place, *death)


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
