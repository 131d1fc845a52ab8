"""Kill -9 at random points of every phase: started again, a run ends as if nothing had happened, to the bit."""

import os
import random
import signal
import sys
from contextlib import ExitStack

import pytest
from deaths import EVERY, clock, dying, exit_code
from trainings import checkpoint, files, log, record, start, untimed

METHODS = {
    "deepcluster": ("--k", "8", "--sobel"),
    "mmdc": ("--rotation", "--refine-at", "1", "--jitter", "--sigma", "0.1"),
    "supervised": ("--backbone", "small_vgg"),
}
COMMON = ("--epochs", "2", "--batch", "16", *EVERY)

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


def run(method, folder, words, moment=None, calls=0):
    """Run the command in this process, and kill it at the given call of the function `moment`."""
    from zoo.run import registry

    os.environ["OMP_NUM_THREADS"] = "1"
    with clock(), ExitStack() as stack:
        if moment is not None:
            stack.enter_context(dying(moment, calls))
        sys.exit(start(registry("pretrain")[f"pretrain.{method}"], folder, *COMMON, *words))


def ended(method, folder, words, *death):
    """The exit code of the command in a process of its own."""
    return exit_code(run, method, folder, words, *death)


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
