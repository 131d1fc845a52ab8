"""Probes of two processes, started by torchrun: they find what one process finds, and are recorded once."""

import os
import shutil
import signal
import subprocess
import sys
from itertools import chain

import numpy as np
import pytest
from probed import TASKS
from test_processes import ENVIRONMENT, torchrun
from toys import photographs

from results.files import ROOT
from results.store import Store

PROBED = ROOT / "tests" / "probed.py"


def records(folder):
    return {record.key: record for record in Store(folder / "records").records()}


def found(folder):
    """What the records say, but for when, how long and where."""
    return {key: (record.settings, record.metrics, record.details) for key, record in records(folder).items()}


@pytest.fixture(scope="module")
def photographed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    photographs(folder / "photographs", train=9, val=3, side=40)
    return folder


@pytest.fixture(scope="module")
def folders(photographed, tmp_path_factory):
    """The folders of all tasks run by one process, and by two."""
    made = {}
    for number in (1, 2):
        made[number] = tmp_path_factory.mktemp(f"by-{number}")
        shutil.copytree(photographed, made[number], dirs_exist_ok=True)
        words = (PROBED, made[number], ",".join(TASKS))
        done = torchrun(*words) if number == 2 else subprocess.run([sys.executable, *map(str, words)], env=ENVIRONMENT)
        assert done.returncode == 0, getattr(done, "stderr", "")
        made[f"said {number}"] = getattr(done, "stdout", "")
    return made


def probed(folder):
    """The records of probes."""
    return {key: record for key, record in records(folder).items() if record.task.startswith("probes.")}


def tuned(folder):
    """The records of fine-tuning, by task and checkpoint."""
    found = [record for record in records(folder).values() if record.task.startswith("transfer.")]
    return {(record.task.partition("_")[2], record.checkpoint_name): record for record in found}


def test_two_processes_find_what_one_finds(folders):
    one, two = probed(folders[1]), probed(folders[2])
    assert one.keys() == two.keys()
    assert {record.task for record in one.values()} == {"probes.linear", "probes.knn", "probes.clustering"}
    for key, record in one.items():
        assert record.settings == two[key].settings
        for name, value in record.metrics.items():
            images = record.dataset["splits"]["test" if "test" in record.dataset["splits"] else "val"]
            # Within one image of the test split; clusters' scores as exactly as floats of another order of sums allow.
            most = 1e-6 if record.task == "probes.clustering" else 100.01 / images
            assert abs(value - two[key].metrics[name]) <= most, (record.protocol, name)


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_fine_tuning_takes_the_same_steps(task, folders):
    """Where nothing is dropped out."""
    one, two = (tuned(folders[number])[task, "random-small_vgg@0"] for number in (1, 2))
    assert two.details["loss"] == pytest.approx(one.details["loss"], rel=1e-4)
    for name, value in one.metrics.items():
        assert two.metrics[name] == pytest.approx(value, abs=1.0), name


def test_fine_tuning_in_two_processes_is_another_run(folders):
    """Each process draws for its own images what is dropped, and which regions are learned from."""
    one, two = (tuned(folders[number]) for number in (1, 2))
    assert one.keys() == two.keys()
    assert len(one) == 4
    for name, record in two.items():
        assert (record.key != one[name].key, record.protocol) == (True, one[name].protocol)
        assert (record.settings["processes"], "processes" in one[name].settings) == (2, False)
        assert record.metrics.keys() == one[name].metrics.keys()
        assert np.isfinite(record.details["loss"]).all()
        assert record.details["frozen"].startswith("verified: ")
    dropped = "segmentation", "random-alexnet32@0"
    assert two[dropped].details["loss"][1] != pytest.approx(one[dropped].details["loss"][1], rel=1e-6)


def test_features_are_those_of_one_process(folders):
    one, two = (sorted(folders[number].glob("cache/features/*.npy")) for number in (1, 2))
    assert [path.name for path in one] == [path.name for path in two] != []
    for ours, theirs in zip(one, two):
        np.testing.assert_allclose(np.load(ours), np.load(theirs), rtol=1e-4, atol=1e-5)


def test_neighbours_are_those_of_one_process(folders):
    calls = sorted(folders[1].glob("neighbours-*-0.npz"))
    assert len(calls) == 4 * 3  # layers, batches of queries
    for path in calls:
        one = np.load(path)
        parts = [np.load(folders[2] / path.name.replace("-0.npz", f"-{rank}.npz")) for rank in range(2)]
        two = {name: np.concatenate([part[name] for part in parts])[: len(one[name])] for name in one}
        np.testing.assert_allclose(two["similarity"], one["similarity"], atol=1e-5)
        fall = -np.diff(one["similarity"], prepend=2, append=-2)
        apart = (fall[:, :-1] > 1e-5) & (fall[:, 1:] > 1e-5)  # others may change places
        apart[:, -1] = False  # with one that is not among them, too
        assert apart.mean() > 0.8
        np.testing.assert_array_equal(two["nearest"][apart], one["nearest"][apart])


def test_records_and_tables_are_made_once_and_say_how_many_processes_there_were(folders):
    assert folders["said 2"].count("record\n") == len(TASKS)  # one table a task
    for record in records(folders[2]).values():
        assert record.environment["processes"] == 2
        assert record.command.startswith("torchrun --nproc-per-node 2 -m ")
    assert not [path for path in folders[2].rglob("*") if "state-" in path.name or ".pending" in path.name]
    assert list((folders[2] / "runs").iterdir()) == []


def test_each_epoch_sees_the_crops_that_one_process_sees(folders):
    """They depend on an image's place in the order alone."""
    wanted = [record for record in records(folders[1]).values() if record.protocol.startswith("generic")]
    for record in wanted:
        theirs = records(folders[2])[record.key].details["top1_by_epoch"]
        assert np.abs(np.array(theirs) - record.details["top1_by_epoch"]).max() < 100.01 / 6


@pytest.mark.parametrize(
    ("task", "number", "rank", "place", "calls"),
    [
        ("online", signal.SIGKILL, 1, "probes.heads.Heads.step", 7),
        ("files", signal.SIGTERM, 0, "probes.heads.Heads.logits", 9),
        ("small", signal.SIGKILL, 0, "probes.features.Growing.put", 8),
    ],
)
def test_what_was_killed_continues_to_the_same_bits(task, number, rank, place, calls, folders, photographed, tmp_path):
    shutil.copytree(photographed, tmp_path, dirs_exist_ok=True)
    done = torchrun(PROBED, tmp_path, task, int(number), rank, place, calls)
    assert done.returncode == 1, done.stderr
    assert list(tmp_path.glob("runs/*/*/state-*.pt"))
    done = torchrun(PROBED, tmp_path, task)
    assert done.returncode == 0, done.stderr
    assert "continuing" not in done.stderr  # --quiet
    ours = found(tmp_path)
    assert ours
    assert ours.items() <= found(folders[2]).items()
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_probe_continues_in_another_number_of_processes(folders, tmp_path):
    done = torchrun(PROBED, tmp_path, "online", int(signal.SIGKILL), 1, "probes.heads.Heads.step", 9)
    assert done.returncode == 1, done.stderr
    one = subprocess.run([sys.executable, str(PROBED), str(tmp_path), "online"], env=ENVIRONMENT)
    assert one.returncode == 0
    (key,) = found(tmp_path)
    assert records(tmp_path)[key].environment["processes"] == 1
    assert os.listdir(tmp_path / "runs") == []


@pytest.mark.parametrize("total", [1, 2, 3, 7])
def test_portions_hold_everything(total, monkeypatch):
    from zoo import processes

    monkeypatch.setattr(processes, "count", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        parts.append(list(range(total))[processes.portion(total)])
    assert all(parts)
    assert list(chain.from_iterable(parts))[:total] == list(range(total))
