"""MNIST's format: where its files are looked for, what is refused, and their fingerprint."""

import os

import numpy as np
import pytest
from pictures import COUNTS, Tiny, elsewhere, idx_bytes, write_mnist  # noqa: F401

from results.errors import UserError
from zoo.datasets import idx
from zoo.datasets.dataset import Missing
from zoo.datasets.files import File


@pytest.mark.parametrize("compress", [True, False])
def test_idx_files_are_read_as_written(tmp_path, compress):
    dataset = Tiny(write_mnist(tmp_path, compress))
    dataset.preflight()
    draws = np.random.default_rng(0)
    for split, count in COUNTS.items():
        images = dataset.open(split)
        assert np.array_equal(images.pixels[:, 0].numpy(), draws.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        assert images.labels.tolist() == list(range(count))
        assert images.labels.dtype == np.int64


@pytest.mark.parametrize("place", ["mnist", ".", "MNIST/raw"])
@pytest.mark.parametrize("root", ["given", "env"])
def test_idx_files_are_found_wherever_they_lie(tmp_path, monkeypatch, root, place):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "env"))
    write_mnist(tmp_path / root / place)
    dataset = Tiny(tmp_path / "given")
    dataset.preflight()
    assert len(dataset.open("train")) == dataset.splits["train"]


@pytest.mark.parametrize("place", ["mnist", "MNIST/raw"])
def test_idx_files_are_found_in_the_clone(tmp_path, place):
    write_mnist(tmp_path / "clone" / "data" / place)
    dataset = Tiny(None)
    dataset.preflight()
    assert len(dataset.open("train")) == dataset.splits["train"]


def test_the_folder_that_was_given_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA", str(write_mnist(tmp_path / "env", seed=1)))
    given_here = Tiny(write_mnist(tmp_path / "given", seed=2))
    assert given_here.fingerprint() != Tiny(None).fingerprint()


BAD_LABEL = idx_bytes(np.array([0, 1, 10, 3, 4, 5], dtype=np.uint8))
IMAGES = np.zeros((6, 28, 28), dtype=np.uint8)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train_images_idx3_ubyte", idx_bytes(IMAGES)[:-1], "has 4719 bytes, where its header says 4720"),
        ("train_images_idx3_ubyte", idx_bytes(IMAGES) + b"x", "has 4721 bytes, where its header says 4720"),
        ("train_images_idx3_ubyte", idx_bytes(IMAGES)[:10], "has 10 bytes, where its header says"),
        ("train_images_idx3_ubyte", b"", "is not an idx file of 3 dimensions"),
        ("train_images_idx3_ubyte", b"<html>404</html>", "is not an idx file of 3 dimensions"),
        ("train_images_idx3_ubyte", idx_bytes(IMAGES[:5]), "holds 5 x 28 x 28 pixels, where 6 x 28 x 28"),
        ("train_images_idx3_ubyte", idx_bytes(IMAGES[:, :27]), "holds 6 x 27 x 28 pixels"),
        ("t10k_labels_idx1_ubyte", idx_bytes(IMAGES[:, 0, 0]), "holds 6 labels, where 4 are expected"),
        ("t10k_labels_idx1_ubyte", idx_bytes(IMAGES), "is not an idx file of 1 dimensions"),
        ("train_labels_idx1_ubyte", BAD_LABEL, r"has the label 10 \(of image 2\), where 0 to 9"),
    ],
)
def test_a_bad_idx_file_is_named(tmp_path, compress, name, content, message):
    write_mnist(tmp_path, compress, **{name: content})
    file = name.replace("_", "-") + (".gz" if compress else "")
    with pytest.raises(UserError, match=f"{file} {message}") as caught:
        Tiny(tmp_path).preflight()
    assert caught.value.looked == str(tmp_path / file)
    assert caught.value.fix == f"delete it and get it again: {Tiny.source}"
    assert not isinstance(caught.value, Missing)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"no gzip", lambda data: b""])
def test_a_damaged_gzip_file_is_named(tmp_path, damage):
    path = write_mnist(tmp_path) / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte.gz (cannot be read|is not an idx file)") as caught:
        Tiny(tmp_path).preflight()
    assert caught.value.fix.startswith("delete it and get it again: python -m zoo.datasets --download mnist")


def test_what_is_lacking_is_named(tmp_path):
    write_mnist(tmp_path, t10k_labels_idx1_ubyte=None, train_images_idx3_ubyte=None)
    with pytest.raises(UserError, match=r"incomplete: train-images\S+, t10k-labels\S+ not found"):
        Tiny(tmp_path).preflight()


def test_the_files_of_another_data_set_are_not_taken_for_this_one(tmp_path, monkeypatch):
    other = Tiny(write_mnist(tmp_path / "data", seed=1)).fingerprint()
    monkeypatch.setattr(idx, "PUBLISHED", {other: "fashion-mnist"})
    with pytest.raises(UserError, match="those of fashion-mnist"):
        Tiny(tmp_path / "data").preflight()
    write_mnist(tmp_path / "clone" / "data" / "mnist", seed=2)
    assert Tiny(tmp_path / "data").fingerprint() == Tiny(None).fingerprint() != other  # the next place is taken


def test_a_fingerprint_is_of_the_decompressed_bytes(tmp_path):
    plain, packed = (Tiny(write_mnist(tmp_path / str(c), c)).fingerprint() for c in (False, True))
    assert plain == packed
    assert plain != Tiny(write_mnist(tmp_path / "other", seed=1)).fingerprint()


def test_a_fingerprint_is_remembered_until_a_file_changes(tmp_path, monkeypatch):
    write_mnist(tmp_path / "data", compress=False)
    first = Tiny(tmp_path / "data").fingerprint()
    assert (tmp_path / "clone" / "cache").is_dir()
    read = []
    chunks = File.chunks
    monkeypatch.setattr(File, "chunks", lambda file: read.append(file.path.name) or chunks(file))
    assert Tiny(tmp_path / "data").fingerprint() == first
    assert read == []
    assert Tiny(tmp_path / "data").fingerprint(full=True) == first
    assert len(read) == 4
    path = tmp_path / "data" / "train-labels-idx1-ubyte"
    path.write_bytes(idx_bytes(np.zeros(6, dtype=np.uint8)))
    os.utime(path, (1, 1))
    assert Tiny(tmp_path / "data").fingerprint() != first


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "clone").write_text("a file where the folder would be")
    dataset = Tiny(write_mnist(tmp_path / "data"))
    assert dataset.fingerprint() == dataset.fingerprint()
