"""CIFAR's records: which byte is the class, which are the pixels; labels and names that cannot be."""

import numpy as np
import pytest
from miniatures import MINIATURES
from pictures import elsewhere  # noqa: F401

from results.errors import UserError
from zoo.datasets import find
from zoo.datasets.cifar import Cifar10, Cifar100, Cifar100Coarse


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("cifar10", 30_730_000, 30_730_000),
        ("cifar100", 153_700_000, 30_740_000),
        ("cifar100-20", 153_700_000, 30_740_000),
    ],
)
def test_the_published_files_are_this_long(name, train, test):
    dataset, sizes = find(name), {"train": train, "test": test}
    for split, parts in dataset.parts.items():
        assert dataset.splits[split] // len(parts) * (dataset.labels + 3 * 32 * 32) == sizes[split]


def test_a_record_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(Cifar100, "splits", {"train": 1, "test": 1})
    record = bytes([7, 42]) + bytes(range(256)) * 12  # 3072 pixels
    for name in ("train.bin", "test.bin"):
        (tmp_path / name).write_bytes(record)
    for name, count in (("coarse", 20), ("fine", 100)):
        (tmp_path / f"{name}_label_names.txt").write_text("\n".join(f"{name} {n}" for n in range(count)))
    for kind, label, name in ((Cifar100, 42, "fine 42"), (Cifar100Coarse, 7, "coarse 7")):
        images = kind(tmp_path).open("train")
        assert images.labels.tolist() == [label]
        assert kind(tmp_path).classes[label] == name
        red, green, blue = images.pixels[0]
        assert red[0, :3].tolist() == [0, 1, 2]
        assert red[1, :2].tolist() == [32, 33]  # row by row
        assert green.flatten().tolist() == blue.flatten().tolist() == [*range(256)] * 4


def test_both_labels_of_cifar100_name_the_same_images(tmp_path, monkeypatch):
    fine = find("cifar100", MINIATURES["cifar100"](tmp_path, monkeypatch))
    coarse = find("cifar100-20", MINIATURES["cifar100-20"](tmp_path, monkeypatch))
    assert np.array_equal(fine.open("merged").pixels, coarse.open("merged").pixels)
    assert (len(fine.classes), len(coarse.classes)) == (100, 20)
    assert fine.fingerprint() != coarse.fingerprint()  # other labels are another data set


@pytest.mark.parametrize(
    ("name", "file", "at", "message"),
    [
        ("cifar10", "data_batch_3.bin", 0, r"data_batch_3.bin has the label 200 \(of image 2\), where 0 to 9"),
        ("cifar10", "test_batch.bin", 0, r"test_batch.bin has the label 200 \(of image 2\), where 0 to 9"),
        ("cifar100", "train.bin", 1, r"train.bin has the label 200 \(of image 2\), where 0 to 99"),
        ("cifar100-20", "test.bin", 0, r"test.bin has the label 200 \(of image 2\), where 0 to 19"),
    ],
)
def test_a_label_that_cannot_be_is_named(tmp_path, monkeypatch, name, file, at, message):
    dataset = find(name, MINIATURES[name](tmp_path, monkeypatch))
    (path,) = tmp_path.rglob(file)
    content = bytearray(path.read_bytes())
    content[2 * (dataset.labels + 3072) + at] = 200
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        dataset.preflight()
    assert caught.value.looked == str(path)
    assert caught.value.fix == f"delete it and get it again: {dataset.source}"


def test_files_of_the_other_version_are_named(tmp_path, monkeypatch):
    dataset = find("cifar10", MINIATURES["cifar10"](tmp_path, monkeypatch))
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin"
    path.write_bytes(b"\x80\x02}q\x01")  # a pickle, as in the version for Python
    with pytest.raises(UserError, match=r"data_batch_2.bin has 5 bytes, where 61460 are expected") as caught:
        dataset.preflight()
    assert "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz" in caught.value.fix


@pytest.mark.parametrize("text", ["airplane\nbird\n", "", "bird\n" * 10])
def test_names_that_are_not_ten_are_refused(tmp_path, monkeypatch, text):
    dataset = Cifar10(MINIATURES["cifar10"](tmp_path, monkeypatch))
    (tmp_path / "cifar-10-batches-bin" / "batches.meta.txt").write_text(text)
    with pytest.raises(
        UserError, match=r"batches.meta.txt has \d+ names in \d+ lines, where 10 are expected"
    ) as caught:
        dataset.preflight()
    assert caught.value.fix == f"delete it and get it again: {dataset.source}"
