"""STL-10: column by column, labels from 1, and the images without labels, which are trained on where asked for."""

import os
import resource

import numpy as np
import pytest
import torch
from miniatures import MINIATURES
from pictures import elsewhere  # noqa: F401
from trainings import record, start

from results.errors import UserError
from zoo.datasets import find
from zoo.datasets.dataset import UNLABELLED
from zoo.datasets.files import File
from zoo.datasets.stl10 import Stl10
from zoo.run import Method, registry

PUBLISHED = dict(Stl10.splits)


@pytest.fixture
def data(tmp_path, monkeypatch):
    return MINIATURES["stl10"](tmp_path / "data", monkeypatch)


def test_the_published_files_are_this_long():
    assert [count * 3 * 96 * 96 for count in PUBLISHED.values()] == [138_240_000, 221_184_000, 2_764_800_000]


def test_images_are_stored_column_by_column(data):
    (path,) = data.rglob("train_X.bin")
    first = np.frombuffer(path.read_bytes(), np.uint8)[: 3 * 96 * 96].reshape(3, 96, 96)
    image = find("stl10", data).open("train").pixels[0]
    for channel, row, column in ((0, 0, 1), (1, 5, 0), (2, 90, 17)):
        assert image[channel, row, column] == first[channel, column, row]


@pytest.mark.parametrize("label", [0, 11])
def test_labels_are_1_to_10(data, label):
    (path,) = data.rglob("test_y.bin")
    content = bytearray(path.read_bytes())
    content[4] = label
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"test_y.bin has the label {label} \(of image 4\), where 1 to 10") as caught:
        find("stl10", data).preflight()
    assert caught.value.fix == f"delete it and get it again: {Stl10.source}"
    os.truncate(path, 3)
    with pytest.raises(UserError, match=r"test_y.bin has 3 bytes, where \d+ are expected") as caught:
        find("stl10", data).preflight()
    assert "python -m zoo.datasets --download stl10" in caught.value.fix


def test_images_without_labels_are_not_read_before_they_are_looked_at(data, monkeypatch):
    count = PUBLISHED[UNLABELLED]
    monkeypatch.setattr(Stl10, "splits", Stl10.splits | {UNLABELLED: count})
    (path,) = data.rglob("unlabeled_X.bin")
    os.truncate(path, count * 3 * 96 * 96)  # 2.7 GB, of which the disk holds the first megabyte
    read = []
    chunks = File.chunks
    monkeypatch.setattr(File, "chunks", lambda file: read.append(file.path.name) or chunks(file))
    dataset = find("stl10", data)
    dataset.preflight()
    dataset.fingerprint()
    assert sorted(set(read)) == ["class_names.txt", "test_X.bin", "test_y.bin", "train_X.bin", "train_y.bin"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    images = dataset.open(UNLABELLED, 10)
    assert (len(images), len(dataset.open(UNLABELLED))) == (10, 100_000)
    assert images.pixels[0].any()
    assert not images.pixels[1:].any()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_a_full_fingerprint_is_of_them_too(data):
    small, full = (find("stl10", data).fingerprint(full) for full in (False, True))
    (path,) = data.rglob("unlabeled_X.bin")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert find("stl10", data).fingerprint() == small
    assert find("stl10", data).fingerprint(full=True) not in (small, full)


def test_a_run_on_them_has_a_fingerprint_of_them_which_is_remembered(data, monkeypatch):
    whole = find("stl10", data).fingerprint()
    (path,) = data.rglob("unlabeled_X.bin")
    first = find("stl10", data).fingerprint_of(UNLABELLED)
    with monkeypatch.context() as patched:
        patched.setattr(File, "chunks", None)
        assert find("stl10", data).fingerprint_of(UNLABELLED) == first
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert find("stl10", data).fingerprint_of(UNLABELLED) != first
    assert [find("stl10", data).fingerprint_of(split) for split in ("train", "merged")] == [whole, whole]


def test_what_is_done_to_the_pixels_does_not_reach_the_file(data):
    dataset = find("stl10", data)
    kept = dataset.open("train").pixels.clone()
    dataset.open("train").pixels.zero_()
    assert torch.equal(dataset.open("train").pixels, kept)


def test_unlabelled_is_none_of_merged(data):
    dataset = find("stl10", data)
    assert dataset.merged == ("train", "test")
    assert len(dataset.open("merged")) == 60
    assert (dataset.training, dataset.evaluation) == ("train", "test")
    assert [Method(images=images).opens(dataset) for images in ("split", "merged")] == ["train", "merged"]


def test_a_method_learns_from_images_without_labels(data, tmp_path):
    kind = registry("pretrain")["pretrain.deepcluster"]
    words = ["--images", "unlabelled", "--epochs", "1", "--k", "4", "--batch", "16", "--pca", "8"]
    assert start(kind, tmp_path, *words, dataset=find("stl10", data)) == 0
    told = record(tmp_path)
    assert told.dataset["protocol"] == "unlabelled"
    assert told.dataset["splits"] == {UNLABELLED: 30}
    assert told.dataset["fingerprint"] == find("stl10", data).fingerprint_of(UNLABELLED)
    (path,) = data.rglob("unlabeled_X.bin")
    path.write_bytes(path.read_bytes()[::-1])
    assert start(kind, tmp_path, *words, dataset=find("stl10", data)) == 0
    assert len({*tmp_path.glob("runs/*")}) == 2  # another data set, another run
    assert sum(told.details["history"][0]["cluster_sizes"]) == 30
    assert "acc" not in told.metrics


def test_other_data_sets_have_none_to_learn_from(tmp_path, capsys):
    assert start(registry("pretrain")["pretrain.deepcluster"], tmp_path, "--images", "unlabelled", "--dry-run") == 2
    assert "digits has no unlabelled images\n  try: --images split" in capsys.readouterr().err
