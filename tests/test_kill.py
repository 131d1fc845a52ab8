"""Kill -9 at random points of every phase: started again, a run ends as if nothing had happened, to the bit."""

import multiprocessing
import os
import random
import signal
import sys
from contextlib import ExitStack
from importlib import import_module
from unittest.mock import patch

import pytest
from trainings import checkpoint, files, log, record, start, untimed

METHODS = {
    "deepcluster": ("--k", "8", "--sobel"),
    "mmdc": ("--rotation", "--refine-at", "1", "--jitter", "--sigma", "0.1"),
    "supervised": ("--backbone", "small_vgg"),
}
COMMON = ("--epochs", "2", "--batch", "16", "--save-every", "0.0005")  # minutes: a state every few steps

# Where a kill can come: a function that is called within each phase, or while a state is written.
MOMENTS = {
    "deepcluster": {
        "features": "zoo.training.Training.array",
        "clustering": "zoo.clustering.kmeans.search",
        "training": "zoo.clustering.partition.Partition.cross_entropy",
    },
    "mmdc": {
        "evaluation": "zoo.processes.gathered",  # at the end of the pass before the first epoch, or of an epoch's own
        "assignment": "zoo.clustering.targets.Targets.assign",
        "refinement": "zoo.clustering.targets.relabel",
        "training": "zoo.training.descend",
    },
    "supervised": {"training": "torch.nn.functional.cross_entropy"},
}
EVERYWHERE = {
    "a step": "zoo.state.State._after_step",
    "before saving": "zoo.state.held",
    "while saving": "results.files.sync",
    "after saving": "zoo.state.states",
    "the log": "zoo.training.write_text",
}
KILLS = 10


def context():
    """Processes that are forked from one where everything is imported and nothing has run."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["test_kill", "pretrain.deepcluster", "pretrain.mmdc", "pretrain.supervised"])
    return found


def run(method, folder, words, moment=None, calls=0):
    """Run the command in this process, and kill it at the given call of the function `moment`."""
    from zoo.run import registry

    os.environ["OMP_NUM_THREADS"] = "1"
    left = [calls]

    def dying(function):
        def called(*values, **more):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return function(*values, **more)

        return called

    with ExitStack() as stack:
        if moment is not None:
            place, _, name = moment.rpartition(".")
            owner = owner_of(place)
            stack.enter_context(patch.object(owner, name, dying(getattr(owner, name))))
        sys.exit(start(registry("pretrain")[f"pretrain.{method}"], folder, *COMMON, *words))


def owner_of(place):
    """The module or class of that name."""
    module, _, name = place.rpartition(".")
    return getattr(import_module(module), name) if name[0].isupper() else import_module(place)


def ended(method, folder, words, *death):
    """The exit code of the command in a process of its own."""
    process = context().Process(target=run, args=(method, folder, words, *death))
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_at_random_points_ends_like_one_that_was_not(method, tmp_path):
    words = METHODS[method]
    assert ended(method, tmp_path / "whole", words) == 0
    rng, kills = random.Random(0), []
    moments = {**MOMENTS[method], **EVERYWHERE}
    plan = [name for name in moments for _ in range(-(-KILLS // len(moments)))]
    for name in plan:
        code = ended(method, tmp_path / "killed", words, moments[name], rng.randrange(3))
        assert code in (0, -signal.SIGKILL), name
        kills += [name] if code else []
        if code == 0:  # it had come further than that: from the start again
            assert same(tmp_path / "killed", tmp_path / "whole")
            assert ended(method, tmp_path / "killed", (*words, "--force"), moments[name], 0) == -signal.SIGKILL, name
            kills += [name]
    assert len(kills) >= KILLS, kills
    assert set(kills) == set(moments)
    assert ended(method, tmp_path / "killed", words) == 0
    assert same(tmp_path / "killed", tmp_path / "whole")


def same(killed, whole):
    """Whether two runs have the same weights, clusters and history, and left the same files."""
    a, b = checkpoint(killed), checkpoint(whole)
    assert files(killed) == files(whole)
    assert untimed(log(killed)) == untimed(log(whole)) == untimed(record(killed).details["history"])
    return a.sha256 == b.sha256 and a.key == b.key
