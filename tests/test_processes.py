"""Two processes, started by torchrun: what they compute together is what one computes."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from processed import DUPLICATES, IMAGES, ORDER, POINTS, START, VIEW, build_linear

from results.files import ROOT
from zoo import processes
from zoo.checkpoint import Checkpoint
from zoo.clustering.kmeans import kmeans
from zoo.clustering.partition import CLUSTERINGS
from zoo.clustering.whitening import fit_whitening
from zoo.steps import batch_sizes, own_sizes

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}


def torchrun(*words, number=2):
    """The finished process of torchrun with that many processes on these words."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number), *words]
    return subprocess.run(list(map(str, line)), cwd=ROOT, capture_output=True, text=True, env=ENVIRONMENT, timeout=900)


TOGETHER = """
import sys
import numpy as np
import torch
from zoo import processes
from zoo.checkpoint import Checkpoint
from zoo.clustering.kmeans import kmeans
from zoo.clustering.partition import by_gmm, by_kmeans, by_pic
from zoo.clustering.whitening import fit_whitening
from zoo.steps import batch_sizes, descend
from processed import DUPLICATES, IMAGES, ORDER, POINTS, START, VIEW, build_linear

out = sys.argv[1]
torch.set_num_threads(1)
with processes.joined():
    own = processes.share(len(POINTS))
    whitening = fit_whitening(POINTS[own], 8)
    found = kmeans(POINTS[own], 6, 20, start=START)
    drawn = kmeans(POINTS[own], 6, 20, seed=3)
    doubles = DUPLICATES[processes.share(len(DUPLICATES))]
    repaired = kmeans(doubles, 5, 10, seed=1)
    by = {name: make(torch.from_numpy(POINTS[own]), 6, 5, 0, torch.device("cpu"))
          for name, make in (("kmeans", by_kmeans), ("pic", by_pic), ("gmm", by_gmm))}
    seen = {kind: list(open_images(out).batches(ORDER, batch_sizes(len(ORDER), 8, 2), VIEW, 5, part=processes.share))
            for kind, open_images in IMAGES.items()}
    model = build_linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for rows in np.array_split(np.arange(301), 7):
        part = rows[processes.share(len(rows))]
        x = torch.from_numpy(POINTS[part])
        descend(model(x).square().mean() * len(part) / len(rows), optimizer)
    values = dict(
        weights=model.weight.detach(),
        **{f"{kind}_ids": np.concatenate([ids for ids, _ in batches]) for kind, batches in seen.items()},
        **{f"{kind}_pixels": torch.cat([pixels for _, pixels in batches]) for kind, batches in seen.items()},
        **{f"{kind}_sizes": [len(ids) for ids, _ in batches] for kind, batches in seen.items()},
        mean=whitening.mean, components=whitening.components,
        centroids=found.centroids, objective=found.objective,
        assignment=processes.gathered(torch.from_numpy(found.assignment)),
        drawn=processes.gathered(torch.from_numpy(drawn.assignment)),
        repaired=processes.gathered(torch.from_numpy(repaired.assignment)),
        **{name: one.assignment for name, one in by.items()},
        pic_centres=by["pic"].centres,
        sum=processes.summed(torch.tensor([1.0, processes.rank()])),
        largest=processes.largest(processes.rank(), -processes.rank()),
        each=processes.told_each(processes.rank()),
        told=processes.told(processes.rank() + 7),
        uneven=processes.gathered(torch.full((processes.rank() + 1, 2), float(processes.rank()))),
    )
    np.savez(f"{out}/{processes.rank()}.npz", **{name: np.asarray(value) for name, value in values.items()})
    print("only the first speaks")
"""


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes found, each."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "together.py").write_text(TOGETHER)
    done = torchrun(folder / "together.py", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("only the first speaks") == 1
    return [np.load(folder / f"{rank}.npz") for rank in range(2)]


def test_what_is_told_is_the_same_in_both(together):
    first, second = together
    for name in set(first.files) - {f"{kind}_{what}" for kind in IMAGES for what in ("ids", "pixels", "sizes")}:
        assert np.array_equal(first[name], second[name]), name


def test_messages(together):
    found = together[1]
    assert found["sum"].tolist() == [2, 1]
    assert found["largest"].tolist() == [1, 0]
    assert found["each"].tolist() == [0, 1]
    assert found["told"] == 7
    assert found["uneven"].tolist() == [[0, 0], [1, 1], [1, 1]]


def test_whitening_is_that_of_one_process(together):
    wanted, found = fit_whitening(POINTS, 8), together[0]
    assert np.allclose(found["mean"], wanted.mean, atol=1e-5)
    signs = np.sign((found["components"] * wanted.components.numpy()).sum(1, keepdims=True))
    assert np.allclose(found["components"] * signs, wanted.components, atol=1e-4)


def test_k_means_is_that_of_one_process(together):
    wanted, found = kmeans(POINTS, 6, 20, start=START), together[0]
    assert np.array_equal(found["assignment"], wanted.assignment)
    assert np.allclose(found["centroids"], wanted.centroids, atol=1e-5)
    assert np.allclose(found["objective"], wanted.objective, rtol=1e-6)
    assert np.array_equal(found["drawn"], kmeans(POINTS, 6, 20, seed=3).assignment)
    assert np.array_equal(found["repaired"], kmeans(DUPLICATES, 5, 10, seed=1).assignment)
    assert len(set(found["repaired"])) == 5


def test_gradients_are_those_of_the_whole_batch(together):
    model = build_linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for rows in np.array_split(np.arange(301), 7):
        optimizer.zero_grad()
        model(torch.from_numpy(POINTS[rows])).square().mean().backward()
        optimizer.step()
    assert np.allclose(together[0]["weights"], model.weight.detach(), rtol=1e-4)
    assert not torch.allclose(model.weight, build_linear().weight, rtol=0.1)


@pytest.mark.parametrize("kind", IMAGES)
def test_no_image_is_dropped_or_doubled_and_all_are_seen_as_by_one_process(together, kind, tmp_path):
    both = [found[f"{kind}_ids"] for found in together]
    assert sorted(np.concatenate(both)) == sorted(ORDER)
    assert all(found[f"{kind}_sizes"].min() > 0 for found in together)
    (pixels,) = (
        [seen for _, seen in IMAGES[kind](tmp_path).batches(ORDER, [len(ORDER)], VIEW, 5)]
        if kind == "files"
        else [None]
    )
    if pixels is not None:  # draws of files go by their position in the order, of arrays by the batch
        place = {image: at for at, image in enumerate(ORDER)}
        for found in together:
            rows = [place[image] for image in found["files_ids"]]
            assert np.array_equal(found["files_pixels"], pixels[rows])
        return
    whole = list(IMAGES[kind](tmp_path).batches(ORDER, batch_sizes(len(ORDER), 8, 2), VIEW, 5))
    for number, (ids, pixels) in enumerate(whole):
        joined = [found[f"{kind}_pixels"][np.isin(found[f"{kind}_ids"], ids)] for found in together]
        assert np.array_equal(np.concatenate(joined), pixels), number


@pytest.mark.parametrize("name", ["kmeans", "pic", "gmm"])
def test_clusterings_are_those_of_one_process(together, name):
    wanted = CLUSTERINGS[name](torch.from_numpy(POINTS), 6, 5, 0, torch.device("cpu"))
    assert np.array_equal(together[0][name], wanted.assignment)
    if name == "pic":
        assert np.allclose(together[0]["pic_centres"], wanted.centres, atol=1e-5)


def test_one_process_is_told_what_it_says():
    assert (processes.count(), processes.rank(), processes.launcher()) == (1, 0, ["python"])
    values = np.arange(3.0)
    assert processes.summed(values) is values
    assert processes.largest(3, 4) == [3, 4]
    assert processes.told_each("x") == ["x"]
    assert processes.share(5) == slice(0, 5)


@pytest.mark.parametrize(
    ("count", "local", "words"),
    [(2, 2, "--nproc-per-node 2"), (16, 8, "--nnodes 2 --nproc-per-node 8"), (2, 1, "--nnodes 2 --nproc-per-node 1")],
)
def test_what_starts_as_many_processes_on_as_many_hosts(count, local, words, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: count)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    assert processes.launcher() == ["torchrun", *words.split()]


@pytest.mark.parametrize(
    ("count", "batch", "parts", "sizes"),
    [
        (10, 4, 1, [4, 4, 2]),
        (8, 4, 2, [4, 4]),
        (9, 4, 2, [4, 5]),  # one image left is not enough for two processes
        (10, 4, 2, [4, 4, 2]),
        (3, 4, 2, [3]),
        (9, 4, 1, [4, 4, 1]),
    ],
)
def test_every_process_gets_an_image_of_every_batch(count, batch, parts, sizes):
    assert batch_sizes(count, batch, parts) == sizes
    assert sum(sizes) == count
    assert own_sizes(count, batch) == batch_sizes(count, batch, 1)


METHODS = {
    "deepcluster": ("--k", "8", "--sampler", "none"),
    "mmdc": ("--rotation", "--refine-at", "1", "--sigma", "0.1", "--means", "random", "--dim", "6"),
    "supervised": ("--backbone", "small_vgg"),
}


@pytest.fixture(scope="module", params=METHODS)
def trained(request, tmp_path_factory):
    """(method, folder) of a run by two processes."""
    folder = tmp_path_factory.mktemp(request.param)
    words = ["--epochs", "2", "--batch", "64", "--threads", "1", *METHODS[request.param]]
    places = ["--store", folder / "records", "--runs", folder / "runs"]
    done = torchrun("-m", f"pretrain.{request.param}", *words, *places)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("checkpoint  ") == 1
    return request.param, folder


def test_a_run_of_two_processes_is_recorded_once_and_says_so(trained):
    method, folder = trained
    (path,) = folder.glob("records/*/*/*.json")
    told = json.loads(path.read_text())
    assert told["settings"]["processes"] == 2
    assert told["command"].startswith(f"torchrun --nproc-per-node 2 -m pretrain.{method} ")
    assert all(np.isfinite(entry["loss"]) for entry in told["details"]["history"])
    assert sum(told["details"]["history"][-1]["cluster_sizes"]) == told["details"]["images"]
    names = sorted(entry.name for entry in next(folder.glob("runs/*")).iterdir())
    assert sorted(name.rpartition(".")[2] for name in names) == ["jsonl", "safetensors"]


KILLED = """
import os, signal, sys
from zoo import processes
from zoo.run import main, registry
from zoo.state import State

calls = []
def dies(self, after=State._after_step):
    calls.append(0)
    if len(calls) == int(sys.argv[2]) and processes.rank() == 1:
        os.kill(os.getpid(), int(sys.argv[1]))
    after(self)
State._after_step = dies
main(registry("pretrain")[sys.argv[3]], sys.argv[4:])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_processes_that_are_killed_continue_to_the_same_bits(number, tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    words = ["--backbone", "small_vgg", "--epochs", "2", "--batch", "64", "--limit", "300", "--save-every", "0"]
    found = {}
    for name in ("whole", "killed"):
        places = ["--runs", tmp_path / name, "--threads", "1"]
        if name == "killed":
            done = torchrun(tmp_path / "killed.py", int(number), 8, "pretrain.supervised", *words, *places)
            assert done.returncode == 1
            assert list(tmp_path.glob("killed/*/process-1/state-*.pt"))
        done = torchrun("-m", "pretrain.supervised", *words, *places)
        assert done.returncode == 0, done.stderr
        (path,) = tmp_path.glob(f"{name}/*/*.safetensors")
        found[name] = Checkpoint.load(path).sha256
        assert not list(tmp_path.glob(f"{name}/*/process-1"))
    assert found["killed"] == found["whole"]


def test_a_batch_that_cannot_be_shared_is_said(tmp_path):
    done = torchrun("-m", "pretrain.supervised", "--batch", "33", "--runs", tmp_path)
    assert done.returncode == 1
    assert "batches of 33 of 1438 images cannot be shared evenly by 2 processes" in done.stderr
    assert "try: --batch 32" in done.stderr


def test_two_processes_learn(trained):
    method, folder = trained
    (path,) = folder.glob("records/*/*/*.json")
    losses = [entry["loss"] for entry in json.loads(path.read_text())["details"]["history"]]
    if method != "deepcluster":  # whose clusters are new each epoch
        assert losses[-1] < losses[0]
