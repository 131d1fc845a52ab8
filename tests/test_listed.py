"""Lists of images: the lines that are understood, those that are refused, and what a list's fingerprint is of."""

import os
import shutil

import numpy as np
import pytest
from pictures import write_folder, write_image

from results.errors import UserError
from zoo.datasets import find, listed
from zoo.datasets.collection import portable
from zoo.datasets.dataset import Missing
from zoo.datasets.listed import Listed, split_label

NAMES = ["a/1.jpg", "a/2.png", "b/3.jpg", "b/4.JPEG", "5.bmp"]


@pytest.fixture
def pets(tmp_path):
    """A folder with pictures to list."""
    return write_folder(tmp_path / "pets", NAMES)


def write_list(folder, *lines, name="train.txt", end="\n"):
    """A list with these lines."""
    (folder / name).write_bytes(end.join([*lines, ""]).encode())
    return folder / name


def held(images):
    """The names of images."""
    return [os.fsdecode(name) for name in images.names]


@pytest.mark.parametrize(
    ("line", "path", "label"),
    [
        ("a/1.jpg", "a/1.jpg", ""),
        ("a/1.jpg 3", "a/1.jpg", "3"),
        ("a/1.JPG\t3", "a/1.JPG", "3"),
        ("a/1.jpg,3", "a/1.jpg", "3"),
        ("a/1.jpg, 3 ", "a/1.jpg", "3"),
        ("a/1.jpg  3", "a/1.jpg", "3"),
        ("my cat.jpg", "my cat.jpg", ""),
        ("my cat.jpg 3", "my cat.jpg", "3"),
        ("my cat.jpg,big cat", "my cat.jpg", "big cat"),
        ("my, cat.jpg\tbig, cat", "my, cat.jpg", "big, cat"),
        ("one,two.jpg", "one,two.jpg", ""),
        ("one,two.jpg 7", "one,two.jpg", "7"),
        ("1.jpg of 2.jpg", "1.jpg of 2.jpg", ""),
        ("image without an ending", "image without an ending", ""),
        ("/data/1.jpeg n01440764", "/data/1.jpeg", "n01440764"),
        ("a/1.jpg\t", "a/1.jpg", ""),
    ],
)
def test_a_line_is_a_path_and_perhaps_a_label(line, path, label):
    assert split_label(line) == (path, label)


def test_a_list_of_places205s_form(pets):
    dataset = find(f"list:{write_list(pets, 'b/4.JPEG,1', 'a/1.jpg,0', 'b/3.jpg,1', 'a/2.png,0', name='t.csv')}")
    dataset.preflight()
    assert dataset.name == "list:t.csv"
    assert dataset.splits == {"train": 4}
    assert dataset.classes == ("0", "1")
    assert (dataset.size, dataset.labelled) == (10, True)
    train = dataset.open("train")
    assert held(train) == ["a/1.jpg", "a/2.png", "b/3.jpg", "b/4.JPEG"]  # the order of lines says nothing
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert train.path(3) == pets / "b/4.JPEG"
    with pytest.raises(UserError, match="no images to evaluate on") as caught:
        _ = dataset.evaluation
    assert "list:TRAIN,VAL" in caught.value.fix


def test_two_lists_are_two_splits(pets):
    train = write_list(pets, "a/1.jpg cat", "b/3.jpg dog", "5.bmp dog")
    val = write_list(pets / "b", "../a/2.png cat", "4.JPEG cat", name="val.txt")  # relative to another folder
    dataset = find(f"list:{train},{val}")
    dataset.preflight()
    assert (dataset.name, dataset.splits) == ("list:train.txt", {"train": 3, "val": 2})
    assert (dataset.training, dataset.evaluation) == ("train", "val")
    assert held(dataset.open("val")) == ["a/2.png", "b/4.JPEG"]
    assert dataset.open("val").labels.tolist() == [0, 0]
    merged = dataset.open("merged")
    assert merged.labels.tolist() == [1, 0, 1, 0, 0]
    assert [merged.path(n).is_file() for n in range(5)] == [True] * 5
    assert len(list(merged.materialise(8).pixels)) == 5


def test_a_list_without_labels_is_for_pretraining(pets):
    dataset = Listed(str(write_list(pets, "", *NAMES[::-1], "  ")))
    dataset.preflight()
    assert dataset.splits == {"train": 5}
    assert dataset.open("train").labels is None
    with pytest.raises(UserError, match="have no classes"):
        dataset.check_labelled()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lists_of_other_systems(pets, end):
    path = write_list(pets, "\ufeffa/1.jpg 0", "./b//3.jpg 1", str(pets / "5.bmp") + " 1", end=end)
    assert held(Listed(str(path)).open("train")) == ["5.bmp", "a/1.jpg", "b/3.jpg"]


def test_an_image_has_one_name_however_it_is_spelled(pets):
    twice = write_list(pets, "a/1.jpg 0", f"{pets / 'a' / '1.jpg'} 1")
    with pytest.raises(UserError, match="name the same image"):
        Listed(str(twice)).preflight()


def test_names_of_files_may_be_any_bytes(tmp_path):
    name = os.fsdecode(b"\xff\xe9 1.jpg")
    write_image(tmp_path / name)
    (tmp_path / "list").write_bytes(b"\xff\xe9 1.jpg 4\n")
    dataset = Listed(str(tmp_path / "list"))
    dataset.preflight()
    assert dataset.open("train").names.tolist() == [b"\xff\xe9 1.jpg"]
    assert dataset.classes == ("4",)


def test_long_lists_are_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(listed, "CHUNK", 3)
    names = [f"{'x' * (n % 4)}{n}.jpg" for n in range(11)]
    for name in names:
        (tmp_path / name).write_bytes(b"x" * len(name))
    dataset = Listed(str(write_list(tmp_path, *(f"{name} {n % 2}" for n, name in enumerate(names)))))
    images = dataset.open("train")
    assert held(images) == sorted(names)
    assert images.labels.tolist() == [names.index(name) % 2 for name in sorted(names)]
    assert [images.place(n).size for n in range(11)] == [len(name) for name in sorted(names)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a/1.jpg 0", "", "a/9.jpg 1"], r"line 3 of train.txt: cannot read the image 9\.jpg: No such file"),
        (["a/1.jpg", "b"], "line 2 of train.txt: b is not a file"),
        (["a/1.jpg", "b/3.jpg 0"], "line 1 of train.txt has no label, and others have one"),
        (["path,label", "a/1.jpg,0"], "line 1 of train.txt: cannot read the image path,label"),
        (["a/1.jpg 0", "b/3.jpg 1", "./a/1.jpg 0"], r"lines 1 and 3 of train.txt name the same image, a/1\.jpg"),
        (["a/1.jpg 0", "b/3.jpg x"], "line 1 of train.txt has the label '0', and line 2 of train.txt has 'x'"),
        (["a/1.jpg 0", "b/3.jpg -1"], "line 2 of train.txt has the label '-1'"),
        (["", " "], "there are no images in train.txt"),
        (["a/1.jpg\0"], "train.txt is no list"),
    ],
)
def test_a_list_that_is_wrong_is_refused(pets, lines, message):
    path = write_list(pets, *lines)
    with pytest.raises(UserError, match=message) as caught:
        Listed(str(path)).preflight()
    assert not isinstance(caught.value, Missing)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["b/3.jpg 0", "a/1.jpg 0"], r"line 2 of val.txt names an image of the other list, a/1\.jpg"),
        (["a/2.png 0", "b/3.jpg 2"], "line 2 of val.txt has the label '2', which no image of train has"),
        (["a/2.png"], "line 1 of val.txt has no label"),
    ],
)
def test_a_second_list_that_does_not_fit_is_refused(pets, lines, message):
    train, val = write_list(pets, "a/1.jpg 0", "5.bmp 1"), write_list(pets, *lines, name="val.txt")
    with pytest.raises(UserError, match=message):
        Listed(f"{train},{val}").preflight()


def test_a_list_that_is_not_there_is_missing(tmp_path):
    with pytest.raises(Missing, match=r"no list train\.txt"):
        Listed(str(tmp_path / "train.txt")).preflight()
    with pytest.raises(UserError, match="cannot read the list"):
        Listed(str(tmp_path)).preflight()


@pytest.mark.parametrize("spelled", ["a,b,c", "a,", ",a"])
def test_there_are_one_or_two_lists(spelled):
    with pytest.raises(UserError, match="neither one list nor two"):
        find(f"list:{spelled}")


def test_a_corrupt_image_is_named(pets):
    (pets / "a/1.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cannot read the image 1\.jpg: it is no image of a known format") as caught:
        Listed(str(write_list(pets, "a/1.jpg 0", "a/2.png 1"))).preflight()
    assert caught.value.looked == str(pets / "a/1.jpg")


def fingerprints(folder, *lines, name="train.txt"):
    """Of a list with these lines: by sizes, and by bytes."""
    dataset = Listed(str(write_list(folder, *lines, name=name)))
    return dataset.fingerprint(), dataset.fingerprint(full=True)


def test_a_lists_fingerprint_is_of_paths_sizes_and_labels(pets, tmp_path):
    first = fingerprints(pets, "a/1.jpg 0", "b/3.jpg 1")
    assert first[0] != first[1]
    assert fingerprints(pets, "b/3.jpg\t1", "", "./a/1.jpg,0", name="other.csv") == first
    shutil.copytree(pets, tmp_path / "moved")
    assert fingerprints(tmp_path / "moved", "a/1.jpg 0", "b/3.jpg 1") == first
    others = [["a/1.jpg 0"], ["a/1.jpg 1", "b/3.jpg 0"], ["a/1.jpg", "b/3.jpg"], ["a/1.jpg 0", "b/3.jpg 2"]]
    assert len({first[0], *(fingerprints(pets, *lines)[0] for lines in others)}) == 5
    image = pets / "a/1.jpg"
    image.write_bytes(image.read_bytes()[:-1] + b"!")
    changed = fingerprints(pets, "a/1.jpg 0", "b/3.jpg 1")
    assert (changed[0] == first[0], changed[1] == first[1]) == (True, False)
    image.write_bytes(image.read_bytes() + b"!")
    assert fingerprints(pets, "a/1.jpg 0", "b/3.jpg 1")[0] != first[0]


def test_which_images_are_evaluated_on_is_part_of_the_fingerprint(pets):
    one = write_list(pets, "a/1.jpg 0", "b/3.jpg 0", name="one")
    two = write_list(pets, "a/2.png 0", name="two")
    both = write_list(pets, "a/1.jpg 0", "b/3.jpg 0", "a/2.png 0", name="both")
    assert len({Listed(spelled).fingerprint() for spelled in (f"{one},{two}", f"{two},{one}", str(both))}) == 3


def test_absolute_paths_have_the_same_fingerprint_elsewhere(pets, tmp_path):
    places = [pets, shutil.copytree(pets, tmp_path / "far/away/copy")]
    lists = tmp_path / "lists"
    lists.mkdir()
    found = {fingerprints(lists, f"{place}/a/1.jpg 0", f"{place}/b/3.jpg 1") for place in places}
    assert len(found) == 1
    assert fingerprints(lists, f"{pets}/a/1.jpg 0", f"{pets}/a/2.png 1") not in found


def test_portable_names_lose_the_folder_that_absolute_ones_share():
    found = list(portable(np.array([b"/a/b/1.jpg", b"/a/c/2.jpg", b"x/3.jpg"])))
    assert found == [b"/b/1.jpg", b"/c/2.jpg", b"x/3.jpg"]
    assert list(portable(np.array([b"/a/b.jpg"]))) == [b"/b.jpg"]
    assert list(portable(np.array([b"/1.jpg", b"/a/2.jpg"]))) == [b"/1.jpg", b"/a/2.jpg"]
    assert list(portable(np.array([b"a.jpg"]))) == [b"a.jpg"]


def test_the_order_of_lines_does_not_change_what_is_seen(pets):
    one = Listed(str(write_list(pets, *NAMES))).open("train").materialise(8).pixels
    two = Listed(str(write_list(pets, *NAMES[::-1]))).open("train").materialise(8).pixels
    assert np.array_equal(one, two)
