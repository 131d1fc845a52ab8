"""Kill -9 at random points of every phase of a probe: started again, it ends as if nothing had happened, to the bit."""

import os
import random
import signal
import sys
from contextlib import ExitStack

import pytest
from deaths import EVERY, clock, dying, exit_code
from toys import photographs
from trainings import Tiny, files, start

from results.files import TEMPORARY
from results.store import Store

BATCH = 16
SAVED = ("--checkpoint", "random-small_vgg@0", *EVERY)
TASKS = {
    "small": ("probes.linear", "--layer", "all", "--epochs", "4"),
    "online": ("probes.linear", "--layer", "all", "--epochs", "2", "--protocol", "generic", "--crops", "10"),
    "knn": ("probes.knn", "--layer", "all", "--k", "3", "10", "--save-every", "0"),
    "clustering": ("probes.clustering", "--layer", "conv3", "--images", "split", "--save-every", "0"),
}

# Where a kill can come: a function that is called within each phase, or while something is written.
FEATURES = {"features": "probes.features.Growing.put", "end of the features": "probes.features.sync"}
PROBING = {
    "choosing": "probes.heads.Heads.step",
    "chosen": "probes.linear.choose",
    "training": "probes.heads.Heads.step",
    "measuring": "probes.heads.Heads.logits",
    "measured": "probes.linear.report",
}
MOMENTS = {
    "small": FEATURES | PROBING,
    "online": PROBING,
    "knn": FEATURES | {"votes": "probes.knn.nearest_neighbours"},
    "clustering": FEATURES | {"k-means": "zoo.clustering.kmeans.search"},
}
EVERYWHERE = {
    "a step": "zoo.state.State._after_step",
    "before saving": "zoo.state.held",
    "while saving": "results.files.sync",
    "after saving": "zoo.state.states",
    "the record": "results.store.Store.write",
    "after the record": "zoo.unfinished.Unfinished.recorded",
    "the end": "zoo.unfinished.Unfinished.end",
}
KILLS = {"small": 14, "online": 12, "knn": 8, "clustering": 8}


class Few(Tiny):
    """Enough for some batches."""

    splits = {"train": 80, "test": 48}  # noqa: RUF012


def run(task, folder, words, moment=None, calls=0, number=signal.SIGKILL, dataset=None):
    """Run the command in this process, and send it a signal at the given call of the function `moment`."""
    from probes import features, linear
    from zoo.run import registry

    os.environ["OMP_NUM_THREADS"] = "1"
    linear.BATCH = features.BATCH = BATCH
    name, *settings = TASKS[task]
    with clock(), ExitStack() as stack:
        if moment is not None:
            stack.enter_context(dying(moment, calls, number))
        places = ("--cache", str(folder / "cache"))
        sys.exit(start(registry("probes")[name], folder, *SAVED, *settings, *places, *words, dataset=dataset))


def ended(task, folder, words=(), *death, **more):
    """The exit code of the command in a process of its own."""
    return exit_code(run, task, folder, words, *death, **more)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """What each task is run on: digits, or a folder of photographs."""
    from zoo.datasets.folder import Folder

    folder = Folder(photographs(tmp_path_factory.mktemp("photographs"), train=18, val=4, side=40))
    few = Few()
    few.preflight()
    few.fingerprint()  # read here: processes are given what it holds
    return {task: folder if task == "online" else few for task in TASKS}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, images):
    """The folder of a run that nothing stopped."""
    found = {}

    def once(task):
        if task not in found:
            found[task] = tmp_path_factory.mktemp(task.replace(" ", "-"))
            assert ended(task, found[task], dataset=images[task]) == 0
        return found[task]

    return once


@pytest.mark.parametrize("task", TASKS)
def test_a_probe_killed_at_random_points_ends_like_one_that_was_not(task, tmp_path, images, whole):
    rng, kills, found = random.Random(task), [], 0
    moments = {**MOMENTS[task], **EVERYWHERE}
    plan = [name for name in moments for _ in range(-(-KILLS[task] // len(moments)))]
    for name in plan:
        code = ended(task, tmp_path, (), moments[name], rng.randrange(4), dataset=images[task])
        assert code in (0, -signal.SIGKILL), name
        if code == 0:  # it had come further than that: from the start again
            assert same(tmp_path, whole(task))
            forget(tmp_path)
            code = ended(task, tmp_path, (), moments[name], 0, dataset=images[task])
        kills += [name] if code else []
        found += any(tmp_path.rglob("state-*.pt"))
    assert found >= 4  # kills that left a state
    assert len(kills) >= KILLS[task], kills
    assert set(kills) == set(moments)
    assert ended(task, tmp_path, dataset=images[task]) == 0
    assert same(tmp_path, whole(task))


def forget(folder):
    """Remove all that a run left."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()


def numbers(folder):
    """What the records say, but for when and how long."""
    records = Store(folder / "records").records()
    return {record.key: (record.settings, record.metrics, record.details) for record in records}


def same(stopped, whole):
    """Whether two runs found the same and left the same files, but for a record that was torn while it was written."""
    torn = [name for name in files(stopped) if TEMPORARY.fullmatch(os.path.basename(name))]
    assert all(name.startswith("records/") for name in torn)
    assert [name for name in files(stopped) if name not in torn] == files(whole)
    return numbers(stopped) == numbers(whole) != {}


@pytest.mark.parametrize(
    ("task", "moment", "calls"),
    [
        ("small", "probes.features.Growing.put", 3),
        ("small", "probes.heads.Heads.step", 5),  # in a thread, beside the main one
        ("small", "probes.heads.Heads.step", 50),
        ("online", "probes.heads.Heads.step", 5),
        ("online", "probes.heads.Heads.logits", 20),
        ("knn", "probes.knn.nearest_neighbours", 1),
        ("clustering", "zoo.clustering.kmeans.search", 5),
    ],
)
def test_sigterm_saves_and_the_same_command_continues(task, moment, calls, tmp_path, images, whole):
    every = ("--save-every", "1000")  # nothing is saved by the clock
    asked = dict(number=signal.SIGTERM, dataset=images[task])
    assert ended(task, tmp_path, every, moment, calls, **asked) == 143
    if task != "clustering":  # which saves the features alone, and those are whole
        assert any(name.startswith("runs") and "state-" in name for name in files(tmp_path))
    assert ended(task, tmp_path, (), dataset=images[task]) == 0
    assert same(tmp_path, whole(task))


@pytest.mark.parametrize("task", ["small", "online"])
def test_a_damaged_state_is_passed_over(task, tmp_path, images, whole):
    assert ended(task, tmp_path, (), "probes.linear.report", dataset=images[task]) == -signal.SIGKILL
    newest = max(tmp_path.rglob("state-*.pt"), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-100])
    assert ended(task, tmp_path, dataset=images[task]) == 0
    assert same(tmp_path, whole(task))


def test_other_layers_do_not_meet(tmp_path, images, whole):
    """Nor do a pass over all layers and one over some of them."""
    few = dict(dataset=images["small"])
    for layer in ("all", "conv2", "conv4"):
        assert ended("small", tmp_path, ("--layer", layer), "probes.linear.report", **few) == -signal.SIGKILL
    assert ended("small", tmp_path, ("--layer", "conv2"), **few) == 0
    assert len(numbers(tmp_path)) == 1
    assert ended("small", tmp_path, **few) == 0
    assert ended("small", tmp_path, ("--layer", "conv4", "--force"), **few) == 0
    assert same(tmp_path, whole("small"))
