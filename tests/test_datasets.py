"""What every data set has, the digits, and the command that lists them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from miniatures import STL10
from pictures import PACKAGED, SPLIT, Tiny, elsewhere, write_folder, write_mnist  # noqa: F401
from PIL import Image

from results.errors import UserError
from zoo.datasets import DATASETS, __main__, find
from zoo.datasets.dataset import Dataset, Missing, spaced
from zoo.datasets.digits import Digits
from zoo.datasets.stl10 import Stl10

EMBEDDED = ("digits", "minivoc")  # here without a file of their own


@pytest.mark.parametrize("name", DATASETS)
def test_a_data_set_says_what_it_is_before_it_is_there(name):
    dataset = find(name)
    assert isinstance(dataset, Dataset)
    assert dataset.name == name
    assert len(dataset.mean) == len(dataset.std) == dataset.channels
    assert all(0 < value < 1 for value in dataset.mean + dataset.std)
    assert isinstance(dataset.flips, bool)
    assert dataset.licence
    assert dataset.source


def test_digits_have_no_mirror_images_and_garments_have():
    assert [find(name).flips for name in ("digits", "mnist", "fashion-mnist")] == [False, False, True]


@pytest.mark.parametrize("name", [name for name in DATASETS if name not in EMBEDDED])
def test_a_data_set_that_is_absent_says_where_and_how(name, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "env"))
    dataset = find(name, tmp_path / "given")
    made_of = {"cifar100-20": "cifar100", "imagenet10": "imagenet", "minivoc-fashion": "fashion-mnist"}
    folder = (made_of | {f"voc{year}": f"VOCdevkit/VOC{year}" for year in (2007, 2012)}).get(name, name)
    with pytest.raises(Missing, match=f"{name} is not here") as caught:
        dataset.preflight()
    places = caught.value.looked.split(", ")
    for root in ("given", "env", "clone/data"):
        assert str(tmp_path / root / folder) in places
    named = name in ("imagenet", "imagenet10", "places205", "places365", "tiny-imagenet", "voc2007", "voc2012")
    assert (str(tmp_path / "given") in places) != named  # any folder of classes could be taken for these
    assert "--data-dir DIR" in caught.value.fix


def test_a_distributions_package_is_looked_for(tmp_path, monkeypatch):
    assert [str(place) for place in PACKAGED] == ["/usr/share/datasets/fashion-mnist"]  # Debian's
    monkeypatch.setattr(Tiny, "packaged", (write_mnist(tmp_path / "usr"),))
    Tiny(None).preflight()


@pytest.mark.parametrize(("name", "hint"), [("minst", "mnist"), ("fashionmnist", "fashion-mnist"), ("digit", "digits")])
def test_an_unknown_name_is_met_with_the_nearest(name, hint):
    with pytest.raises(UserError, match=f"did you mean '{hint}'") as caught:
        find(name)
    assert "folder:PATH" in caught.value.fix


@pytest.mark.parametrize("name", ["folder:", "list:", "shards:"])
def test_what_is_spelled_wants_a_place(name):
    with pytest.raises(UserError, match=f"'{name}' does not say where the images are") as caught:
        find(name)
    assert caught.value.fix == "folder:PATH, list:FILE or shards:PATTERN"


# Splits and limits.


@given(st.integers(1, 2000), st.integers(1, 2500))
def test_a_limit_spaces_ids_evenly(total, limit):
    ids = spaced(total, limit)
    count = min(total, limit)
    assert ids.tolist() == [i * total // count for i in range(count)]
    assert ids.dtype == np.int64
    assert len(set(ids.tolist())) == count
    assert 0 <= ids.min() <= ids.max() < total
    steps = np.diff(ids)
    assert len(steps) == 0 or steps.max() - steps.min() <= 1


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_must_leave_something(limit):
    with pytest.raises(UserError, match="leaves none"):
        find("digits").open("train", limit)


def test_merged_is_all_splits_in_order():
    digits = find("digits")
    train, test, merged = (digits.open(split) for split in ("train", "test", "merged"))
    assert torch.equal(merged.pixels, torch.cat([train.pixels, test.pixels]))
    assert np.array_equal(merged.labels, np.concatenate([train.labels, test.labels]))
    few = digits.open("merged", 100)
    assert torch.equal(few.pixels, merged.pixels[torch.from_numpy(spaced(1797, 100))])
    assert np.array_equal(few.labels, merged.labels[spaced(1797, 100)])


def test_merged_can_be_fewer_splits(monkeypatch):
    monkeypatch.setattr(Digits, "merged", ("train",), raising=False)
    digits = Digits()
    assert digits.members("merged") == digits.members("train") == ("train",)
    assert torch.equal(digits.open("merged").pixels, digits.open("train").pixels)


def test_an_unknown_split_is_an_error():
    with pytest.raises(UserError, match=r"no split 'tests' \(did you mean 'test'\?\)") as caught:
        find("digits").open("tests")
    assert caught.value.fix == "one of train, test, merged"


# Digits.


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    digits, found = Digits(), load_digits()
    digits.preflight()
    assert (digits.training, digits.evaluation, digits.labelled) == ("train", "test", True)
    for split, ids in (("train", [i for i in range(1797) if i % 5 != 4]), ("test", list(range(4, 1797, 5)))):
        images = digits.open(split)
        assert len(images) == digits.splits[split] == len(ids)
        assert images.pixels.shape == (len(ids), 1, digits.size, digits.size)
        assert images.pixels.dtype == torch.uint8
        assert images.labels.dtype == np.int64
        assert np.array_equal(images.labels, found.target[ids])
        for number in (0, 100, len(ids) - 1):
            levels = np.array([[round(v * 255 / 16) for v in row] for row in found.images[ids[number]].tolist()])
            image = Image.fromarray(levels.astype(np.uint8)).resize((32, 32), Image.Resampling.BILINEAR)
            assert np.array_equal(images.pixels[number, 0].numpy(), np.asarray(image))


def test_the_mean_and_deviation_of_digits_are_those_of_the_training_pixels():
    pixels = Digits().open("train").pixels.double() / 255
    assert round(pixels.mean().item(), 4) == Digits.mean[0]
    assert round(pixels.std().item(), 4) == Digits.std[0]


def test_the_fingerprint_of_digits_is_the_same_everywhere():
    expected = "9c02eb5eedf97ff85a818ecf8fc291e24e5a842c7ceea6923596d559da5b9890"
    assert Digits().fingerprint() == Digits().fingerprint(full=True) == expected


@pytest.mark.parametrize("width", [80, 120])
def test_the_command_lists_what_is_here_and_what_is_not(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    assert __main__.main([]) == 0
    table, licences, absent = (part.splitlines() for part in capsys.readouterr().out.split("\n\n"))
    rows = [line.split()[:2] for line in table[2:]]
    assert rows == [[name, "yes" if name in EMBEDDED else "no"] for name in DATASETS]
    assert "train 1438, test 359" in table[2]
    assert Digits().fingerprint()[:12] in table[2]
    assert licences[0] == "licences"
    assert licences[1].split() == ["digits", *Digits.licence.split()]
    assert max(map(len, [*table, *licences, *absent])) <= max(width, 85)
    assert absent[0] == "how to get those that are not here"
    words = [word for line in absent[1:] for word in line.split()]
    assert words == [word for name in DATASETS if name not in EMBEDDED for word in (name, *find(name).source.split())]


def test_the_longest_row_of_the_table_fits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Stl10, "preflight", lambda self: None)
    monkeypatch.setattr(Stl10, "classes", STL10)
    monkeypatch.setattr(Stl10, "fingerprint", lambda self: "0" * 64)
    assert __main__.main(["stl10"]) == 0
    table = capsys.readouterr().out.splitlines()[:3]
    assert "train 5000, test 8000, unlabelled 100000" in table[2]
    assert max(map(len, table)) <= 100


@pytest.mark.parametrize(
    ("words", "happened", "fix"),
    [
        (["--out", "x"], "--out says where --verify lists corrupt images", "--verify NAME --out x"),
        (["mnist", "--out", "x"], "and there is no --verify", "--verify mnist --out x"),
        (["mnist", "--verify", "list:x"], "--verify takes one data set, and mnist stands beside it", "--verify list:x"),
    ],
)
def test_the_command_passes_nothing_over(words, happened, fix, capsys):
    assert __main__.main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert happened in said.err
    assert said.err.endswith(f"\n  try: python -m zoo.datasets {fix}\n")


def test_the_command_describes_a_folder(tmp_path, capsys):
    write_folder(tmp_path / "pets", SPLIT)
    assert __main__.main([f"folder:{tmp_path / 'pets'}", f"folder:{tmp_path / 'none'}"]) == 2
    said = capsys.readouterr()
    assert f"error: there is no folder none\n  looked in: {tmp_path / 'none'}\n" in said.err
    assert "how to get" not in said.out  # the error says it
    here, absent = said.out.splitlines()[2:4]
    assert here.split()[:2] == ["folder:pets", "yes"]
    assert "train 3, val 2" in here
    assert absent.split()[:2] == ["folder:none", "no"]


def test_the_command_says_what_is_damaged(tmp_path, capsys):
    write_mnist(tmp_path / "mnist")
    assert __main__.main(["mnist", "--data-dir", str(tmp_path)]) == 2
    streams = capsys.readouterr()
    assert streams.out.splitlines()[2].split()[:2] == ["mnist", "damaged"]
    assert "error: train-images-idx3-ubyte.gz holds 6 x 28 x 28 pixels, where 60000" in streams.err


@pytest.mark.parametrize("arguments", [["mnits"], ["--download", "digits"], ["--download", "minst"]])
def test_the_command_refuses_unknown_names(arguments, capsys):
    assert __main__.main(arguments) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("error: there is no")


def test_download_is_torchvisions(tmp_path, monkeypatch, capsys):
    class Fake:
        def __init__(self, root, download):
            assert download
            write_mnist(tmp_path / root / "MNIST" / "raw", compress=False)

    monkeypatch.setattr("torchvision.datasets.MNIST", Fake)
    monkeypatch.setitem(DATASETS, "mnist", Tiny)
    assert __main__.main(["--download", "mnist", "--data-dir", str(tmp_path / "new"), "mnist"]) == 0
    assert "train 6, test 4" in capsys.readouterr().out


def test_a_download_that_fails_says_so(tmp_path, monkeypatch, capsys):
    def fail(root, download):
        raise RuntimeError("Error downloading train-images")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", fail)
    assert __main__.main(["--download", "fashion-mnist", "--data-dir", str(tmp_path)]) == 2
    assert "error: fashion-mnist could not be fetched: Error downloading" in capsys.readouterr().err
