"""Every data set, written in its official format with a few images: read back to the byte, and what is wrong named."""

import os
import shutil

import numpy as np
import pytest
from miniatures import MINIATURES, SKETCHES, expected
from pictures import elsewhere  # noqa: F401

from results.errors import UserError
from zoo.datasets import DATASETS, find
from zoo.datasets.dataset import UNLABELLED, Missing
from zoo.datasets.files import FileDataset
from zoo.datasets.folder import Folder
from zoo.pretraining import trained_splits
from zoo.run import Method
from zoo.views import Stretch

WRITTEN = list(SKETCHES)
FILED = [name for name in WRITTEN if issubclass(DATASETS[name], FileDataset)]
FOLDERS = [name for name in WRITTEN if issubclass(DATASETS[name], Folder)]
ALONE = ("tiny-imagenet", "imagenet10")  # `merged` is their training split alone: mmdc.md 1.9
UNREAD = ("words.txt", "_boxes.txt", "test_0.JPEG", "other.JPEG")  # part of what is published, and of no use


@pytest.fixture
def mini(request, tmp_path, monkeypatch):
    """The miniature of the data set that the test is parametrised with."""
    return find(request.param, MINIATURES[request.param](tmp_path / "data", monkeypatch))


def every(names):
    return pytest.mark.parametrize("mini", names, indirect=True)


def written(dataset, root):
    """The files that the data set is made of, sorted."""
    found = [path for place in root.iterdir() if place.name != "clone" for path in place.rglob("*") if path.is_file()]
    found = [path for path in found if not str(path).endswith(UNREAD)]
    names = getattr(dataset, "files", None)  # of two label files, CIFAR-100 has the one
    return sorted(path for path in found if path.name in names) if names else sorted(found)


def seen(images, side):
    """All pixels (N, C, side, side): images of that side are left as they are."""
    return np.concatenate([batch for _, batch in images.batches(np.arange(len(images)), 16, Stretch(side), seed=0)])


def said(dataset):
    """The error of a preflight, as the person sees it."""
    with pytest.raises(UserError) as caught:
        dataset.preflight()
    assert not isinstance(caught.value, Missing)
    return str(caught.value)


def test_every_data_set_has_a_miniature():
    assert set(MINIATURES) == set(DATASETS)


@every(list(DATASETS))
def test_it_is_whole(mini):
    mini.preflight()
    assert len(set(mini.classes)) == len(mini.classes) > 1
    assert mini.training in ("train", "trainval")
    assert mini.evaluation in ("test", "val")


@every(WRITTEN)
def test_pixels_and_labels_are_those_that_were_written(mini):
    sketch = SKETCHES[mini.name]
    assert mini.splits == sketch.counts
    if mini.name != "fashion-mnist":
        assert mini.classes == sketch.classes
    for split in mini.splits:
        images, (wanted, labels) = mini.open(split), expected(mini.name, split)
        assert np.array_equal(seen(images, wanted.shape[-1]), wanted)
        if labels is None:
            assert images.labels is None
        else:
            assert images.labels.tolist() == labels.tolist()
            assert images.labels.dtype == np.int64


@every(list(DATASETS))
def test_its_images_have_the_size_and_the_channels_it_says(mini):
    (_, batch), *_ = mini.open(mini.training, 2).batches(np.arange(2), 2, Stretch(mini.size), seed=0)
    assert batch.shape == (2, mini.channels, mini.size, mini.size)


@every(WRITTEN)
def test_merged_joins_what_the_paper_clusters(mini):
    labelled = [split for split in mini.splits if split != UNLABELLED]
    assert list(mini.merged) == (labelled[:1] if mini.name in ALONE else labelled)
    images, parts = mini.open("merged"), [expected(mini.name, split) for split in mini.merged]
    assert np.array_equal(seen(images, parts[0][0].shape[-1]), np.concatenate([part[0] for part in parts]))
    assert images.labels.tolist() == [label for part in parts for label in part[1]]
    assert trained_splits(Method(images="merged"), mini) == {split: mini.splits[split] for split in mini.merged}
    few = mini.open("merged", 5)
    assert len(few) == len(few.labels) == 5
    assert type(few) is type(images)


@every(WRITTEN)
def test_images_without_labels_are_opened_where_there_are_some(mini):
    method = Method(images="unlabelled")
    if mini.name == "stl10":
        assert method.opens(mini) == UNLABELLED
        assert len(mini.open(method.opens(mini))) == 30
    else:
        with pytest.raises(UserError, match=f"{mini.name} has no unlabelled images") as caught:
            method.opens(mini)
        assert caught.value.fix == "--images split"


@every(WRITTEN)
def test_a_fingerprint_is_of_every_byte(mini, tmp_path):
    first = mini.fingerprint(full=True)
    paths = written(mini, tmp_path / "data")
    for path in paths[:8] + paths[-8:]:
        content = path.read_bytes()
        path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        assert fingerprint_or_error(find(mini.name, tmp_path / "data")) != first, path
        path.write_bytes(content)
    assert find(mini.name, tmp_path / "data").fingerprint(full=True) == first


def fingerprint_or_error(dataset):
    """The latter where a class is not called as its folder."""
    try:
        return dataset.fingerprint(full=True)
    except UserError as error:
        return str(error)


@every(FILED)
def test_a_fingerprint_of_few_files_is_of_their_bytes_always(mini, tmp_path):
    first = mini.fingerprint()
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    assert find(mini.name, tmp_path / "copy").fingerprint() == first
    path = next(path for path in written(mini, tmp_path / "data") if "train" in path.name or "batch_1" in path.name)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, (1, 1))
    assert find(mini.name, tmp_path / "data").fingerprint() != first


def test_no_two_data_sets_have_one_fingerprint(tmp_path, monkeypatch):
    found = [find(name, MINIATURES[name](tmp_path / name, monkeypatch)).fingerprint() for name in DATASETS]
    assert len(set(found)) == len(DATASETS)


@every(FILED)
def test_a_file_that_is_not_there_is_named(mini, tmp_path):
    for path in written(mini, tmp_path / "data"):
        path.rename(tmp_path / "away")
        told = said(find(mini.name, tmp_path / "data"))
        assert f"{mini.name} is incomplete: {path.name} not found" in told
        assert str(path.parent) in told
        (tmp_path / "away").rename(path)


@every(FILED)
def test_a_file_that_is_cut_short_is_named(mini, tmp_path):
    for path in written(mini, tmp_path / "data"):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        told = said(find(mini.name, tmp_path / "data"))
        assert told.startswith(path.name)
        assert str(path) in told
        path.write_bytes(content)


@every(FOLDERS)
def test_an_image_too_few_is_counted(mini, tmp_path):
    path = next(path for path in written(mini, tmp_path / "data") if "train" in path.parts)
    path.unlink()
    counts = mini.counts
    dataset = find(mini.name, tmp_path / "data")
    wanted = ", ".join(f"{n} {k}" for k, n in counts.items())
    held = wanted.replace(f"{counts['train']} train", f"{counts['train'] - 1} train")
    assert f"this is not all of {mini.name}: {held}, not {wanted}" in said(dataset)
    for look in (dataset.fingerprint, lambda: dataset.open("train")):  # none goes round it
        with pytest.raises(UserError, match="this is not all of"):
            look()


@every(FOLDERS)
def test_a_first_image_that_is_none_is_named(mini, tmp_path):
    path = next(path for path in written(mini, tmp_path / "data") if "train" in path.parts)
    path.write_bytes(b"no image")
    assert f"cannot read the image {path.name}" in said(find(mini.name, tmp_path / "data"))


@every(FOLDERS)
def test_a_class_that_is_not_there_is_named(mini, tmp_path):
    train = next(path for path in (tmp_path / "data").rglob("train"))
    shutil.rmtree(train / mini.classes[-1])
    told = said(find(mini.name, tmp_path / "data"))
    assert mini.classes[-1] in told
