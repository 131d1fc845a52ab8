"""Tar shards: what is read from them, in any order by any number of readers, and what is refused."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from pictures import write_image
from shardfiles import picture_bytes, write_shard, write_shards

from results.errors import UserError
from results.files import ROOT
from zoo.datasets import find, tar
from zoo.datasets.dataset import Missing
from zoo.datasets.shards import Shards, expand, plain_name, split_patterns
from zoo.seeds import numpy_generator
from zoo.views import Centre, ResizedCrop


@pytest.fixture
def pets(tmp_path):
    """A folder of three shards with twelve pictures of two classes."""
    write_shards(tmp_path / "pets")
    return tmp_path / "pets"


def held(images):
    """The names of images."""
    return [os.fsdecode(name) for name in images.names]


# What is read


def test_shards_of_labelled_images(pets):
    dataset = find(f"shards:{pets}/data-{{00..02}}.tar")
    dataset.preflight()
    assert (dataset.name, dataset.splits, dataset.classes) == ("shards:data", {"train": 12}, ("0", "1"))
    assert (dataset.size, dataset.labelled) == (10, True)
    images = dataset.open("train")
    assert held(images) == [f"data-{n // 4:02}.tar:{n:06}" for n in range(12)]
    assert images.labels.tolist() == [n % 2 for n in range(12)]
    for number in range(12):
        assert images.place(number).read() == picture_bytes(pets, seed=number, size=(12 + number % 5, 10))
    with pytest.raises(UserError, match="no images to evaluate on"):
        _ = dataset.evaluation


def test_two_patterns_are_two_splits(pets):
    write_shards(pets / "val", count=1, start=100, stem="held")
    dataset = find(f"shards:{pets}/data-*.tar,{pets}/val/held-{{00,00}}.tar")
    dataset.preflight()
    assert dataset.splits == {"train": 12, "val": 4}
    assert held(dataset.open("val"))[0] == "val/held-00.tar:000100"
    merged = dataset.open("merged")
    assert merged.labels.tolist() == [n % 2 for n in range(12)] + [0, 1, 0, 1]
    assert merged.place(15).read() == picture_bytes(pets, seed=103, size=(15, 10))
    assert len(dataset.open("merged", limit=5)) == 5


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_and_field(tmp_path, form):
    images = {ending: picture_bytes(tmp_path, ending) for ending in ("jpg", "png", "webp")}
    long = "folder/" * 12 + "a picture with a long name"
    members = [
        ("__index__", b"webdataset's own"),
        ("./deep/0.json", json.dumps({"label": "dog", "width": 12}).encode()),
        ("./deep/0.PNG", images["png"]),
        (f"{long}.cls", b"cat\n"),
        (f"{long}.jpeg", images["jpg"]),
        (f"{long}.caption.txt", b"a picture"),
        ("._0.jpg", b"of macOS"),
        ("1.json", json.dumps({"cls": "cat"}).encode()),
        ("1.webp", images["webp"]),
        ("1.seg.png", b"no image of its own"),
    ]
    images_found = Shards(str(write_shard(tmp_path / "x.tar", members, form))).open("train")
    assert held(images_found) == ["x.tar:1", "x.tar:deep/0", f"x.tar:{long}"]
    assert images_found.labels.tolist() == [0, 1, 0]
    assert [images_found.place(n).read() for n in range(3)] == [images["webp"], images["png"], images["jpg"]]


def test_shards_of_the_tar_program(tmp_path):
    for number in range(3):
        write_image(tmp_path / "in" / f"{number}.jpg", seed=number)
    subprocess.run(["tar", "-cf", tmp_path / "x.tar", "-C", tmp_path / "in", "."], check=True)
    images = Shards(str(tmp_path / "x.tar")).open("train")
    assert held(images) == ["x.tar:0", "x.tar:1", "x.tar:2"]
    assert images.labels is None
    assert [images.place(n).read() for n in range(3)] == [(tmp_path / f"in/{n}.jpg").read_bytes() for n in range(3)]


def test_labels_may_be_numbers_in_json(tmp_path):
    image = picture_bytes(tmp_path)
    said = [{"label": 7}, {"cls": 10}, {"label": None, "cls": 7}, {"label": None}]
    members = [(f"{number}.json", json.dumps(one).encode()) for number, one in enumerate(said)]
    members += [(f"{number}.jpg", image) for number in range(4)]
    dataset = Shards(str(write_shard(tmp_path / "x.tar", members[:3] + members[4:7])))
    assert (dataset.classes, dataset.open("train").labels.tolist()) == (("7", "10"), [0, 1, 0])
    with pytest.raises(UserError, match=r"y\.tar:3 has no label, and others have one"):
        Shards(str(write_shard(tmp_path / "y.tar", members))).preflight()


@pytest.mark.parametrize("labels", [b"[1, 2]", b"{}", b'{"width": 3}'])
def test_json_without_a_label_is_no_label(tmp_path, labels):
    dataset = Shards(str(write_shard(tmp_path / "x.tar", [("0.jpg", picture_bytes(tmp_path)), ("0.json", labels)])))
    dataset.preflight()
    assert dataset.open("train").labels is None


# Any order, by any number of readers


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_every_image_comes_once_a_pass(pets, workers):
    images = Shards(f"{pets}/data-*.tar").open("train")
    for epoch in range(2):
        order = numpy_generator(epoch, "order").permutation(12)
        batches = list(images.batches(order, 5, Centre(10, 10), seed=0, workers=workers))
        assert np.array_equal(np.concatenate([ids for ids, _ in batches]), order)
        seen = {hashlib.sha256(pixels.contiguous().numpy()).hexdigest() for _, batch in batches for pixels in batch}
        assert len(seen) == 12  # the pictures differ


@pytest.mark.parametrize("view", [Centre(10, 8), ResizedCrop(8)], ids=repr)
def test_shards_and_files_are_the_same(pets, tmp_path, view):
    for shard in sorted(pets.glob("*.tar")):
        with tarfile.open(shard) as opened:
            opened.extractall(tmp_path / "files", filter="data")
    files = find(f"folder:{tmp_path / 'files'}").open("train")
    shards = Shards(f"{pets}/data-*.tar").open("train")
    order = np.array([11, 0, 0, 7, 3])  # what a sampler may ask for
    for (_, one), (_, two) in zip(files.batches(order, 2, view, 5), shards.batches(order, 2, view, 5, workers=3)):
        assert torch.equal(one, two)
    some = shards.subset(np.array([7, 2]))
    assert held(some) == ["data-01.tar:000007", "data-00.tar:000002"]
    assert some.labels.tolist() == [1, 0]


READ_HALF = """
import pathlib, sys, numpy as np
from zoo.datasets import tar
from zoo.datasets.shards import Shards
from zoo.seeds import numpy_generator
from zoo.views import Centre
pattern, half, out = sys.argv[1:]
tar.ROOT = pathlib.Path(out).parent  # both look through the shards, and remember that in one place
images = Shards(pattern).open("train")
order = numpy_generator(3, "order").permutation(len(images))[int(half) :: 2]
found = list(images.batches(order, 2, Centre(10, 10), seed=0, workers=2))
np.savez(out, ids=np.concatenate([ids for ids, _ in found]), pixels=np.concatenate([x.numpy() for _, x in found]))
"""


def test_two_processes_read_the_halves_of_one_order(pets, tmp_path):
    pattern = f"{pets}/data-{{00..02}}.tar"
    words = [sys.executable, "-c", READ_HALF, pattern]
    readers = [subprocess.Popen([*words, str(n), str(tmp_path / f"{n}.npz")], cwd=ROOT) for n in range(2)]
    assert [reader.wait() for reader in readers] == [0, 0]
    halves = [np.load(tmp_path / f"{n}.npz") for n in range(2)]
    ids = np.concatenate([half["ids"] for half in halves])
    assert sorted(ids.tolist()) == list(range(12))
    images = Shards(pattern).open("train")
    (_, whole), *_ = images.batches(np.arange(12), 12, Centre(10, 10), seed=0)
    assert np.array_equal(np.concatenate([half["pixels"] for half in halves]), whole[torch.from_numpy(ids)])
    for half in halves:
        half.close()


def test_an_index_holds_no_image(pets):
    images = Shards(f"{pets}/data-*.tar").open("train")
    assert images.paths.dtype.names == ("path", "size", "offset", "key")
    assert images.paths.itemsize == len("data-00.tar") + 8 + 8 + len("000000")


# The index is remembered


def test_a_shard_is_looked_through_once(pets, monkeypatch):
    read, seen = tar.read_index, []
    monkeypatch.setattr(tar, "read_index", lambda shard: seen.append(shard.name) or read(shard))
    first = Shards(f"{pets}/data-*.tar").open("train")
    assert seen == ["data-00.tar", "data-01.tar", "data-02.tar"]
    again = Shards(f"{pets}/data-*.tar").open("train")
    assert len(seen) == 3
    assert np.array_equal(again.paths, first.paths)
    assert np.array_equal(again.labels, first.labels)
    os.utime(pets / "data-01.tar", ns=(1, 1))
    assert np.array_equal(Shards(f"{pets}/data-*.tar").open("train").paths, first.paths)
    assert seen[3:] == ["data-01.tar"]


@pytest.mark.parametrize("damage", [b"", b"no array", None])
def test_a_damaged_index_is_made_again(pets, memory, damage):
    before = set(memory.rglob("*.npy"))
    expected = Shards(f"{pets}/data-*.tar").fingerprint()
    made = set(memory.rglob("*.npy")) - before
    assert len(made) == 3
    for path in made:
        path.write_bytes(damage if damage is not None else path.read_bytes()[:-9])
    assert Shards(f"{pets}/data-*.tar").fingerprint() == expected


def test_an_index_that_cannot_be_kept_is_done_without(pets, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(tar, "ROOT", tmp_path / "file")
    assert Shards(f"{pets}/data-*.tar").splits == {"train": 12}


# Fingerprints


def test_shards_have_one_fingerprint_however_they_are_spelled(pets, tmp_path):
    first = Shards(f"{pets}/data-{{00..02}}.tar")
    copied = Shards(f"{shutil.copytree(pets, tmp_path / 'copy')}/data-*.tar")
    assert first.fingerprint() == copied.fingerprint()
    assert first.fingerprint(full=True) == copied.fingerprint(full=True) != first.fingerprint()
    assert Shards(f"{pets}/data-{{00..01}}.tar").fingerprint() != first.fingerprint()
    split = Shards(f"{pets}/data-{{00..01}}.tar,{pets}/data-02.tar")
    assert split.fingerprint() != first.fingerprint()


def test_a_fingerprint_is_of_labels_and_bytes_too(tmp_path):
    image = picture_bytes(tmp_path)
    variants = [[("0.jpg", image), ("1.jpg", image)], [("0.jpg", image), ("1.jpg", image[:-1] + b"!")]]
    variants.append([*variants[0], ("0.cls", b"0"), ("1.cls", b"1")])
    variants.append([*variants[0], ("0.cls", b"1"), ("1.cls", b"0")])
    dataset = [Shards(str(write_shard(tmp_path / f"{n}" / "x.tar", v))) for n, v in enumerate(variants)]
    assert dataset[0].fingerprint() == dataset[1].fingerprint()
    assert dataset[0].fingerprint(full=True) != dataset[1].fingerprint(full=True)
    assert len({found.fingerprint() for found in dataset}) == 3


# What is refused


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0.jpg", "1.cls"], r"x\.tar:1 has no image among its members \.cls"),
        (["0.jpg", "0.png"], r"x\.tar:0 has 2 images among its members \.jpg, \.png"),
        (["0.jpg", "1.jpg", "0.jpg"], r"x\.tar:0 has two members \.jpg"),
        (["a/0.jpg", "README"], r"x\.tar:README has no image"),
        (["photo.v2.jpg"], r"x\.tar:photo has no image among its members \.v2\.jpg"),
        ([], "there are no images in x.tar"),
        (["0.jpg", "0.cls", "1.jpg"], r"x\.tar:1 has no label, and others have one"),
    ],
)
def test_a_shard_laid_out_otherwise_is_refused(tmp_path, names, message):
    path = write_shard(tmp_path / "x.tar", [(name, b"0") for name in names])
    with pytest.raises(UserError, match=message):
        Shards(str(path)).preflight()


@pytest.mark.parametrize(
    ("field", "content", "message"),
    [
        ("cls", b"", "it is empty"),
        ("cls", b"\xff\xfe", "decode"),
        ("json", b'{"label": 1', "delimiter"),
        ("json", b'{"label": 1.5}', "1.5 is neither a whole number nor a name"),
        ("json", b'{"cls": true}', "True is neither"),
        ("json", b'{"cls": [1]}', "neither"),
    ],
)
def test_a_label_that_cannot_be_read_is_named(tmp_path, field, content, message):
    path = write_shard(tmp_path / "x.tar", [("0.jpg", b"0"), (f"0.{field}", content)])
    with pytest.raises(UserError, match=rf"the label of x\.tar:0 cannot be read: .*{message}") as caught:
        Shards(str(path)).preflight()
    assert caught.value.looked == str(path)
    assert caught.value.fix == 'a number or a name in KEY.cls, or in KEY.json under "label"'


def test_a_link_is_no_image(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as made:
        link = tarfile.TarInfo("0.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "elsewhere.jpg"
        made.addfile(link)
    with pytest.raises(UserError, match=r"x\.tar:0 has a member that is no plain file, 0\.jpg") as caught:
        Shards(str(tmp_path / "x.tar")).preflight()
    assert "--dereference" in caught.value.fix


def pieces(path):
    """Where each member of a tar file begins, and where the last ends."""
    with tarfile.open(path) as opened:
        found = opened.getmembers()
        return [member.offset for member in found] + [opened.offset]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (lambda starts: starts[3] + 100, "after 000005.jpg"),  # in a header
        (lambda starts: starts[3], "after 000005.jpg"),  # between two members
        (lambda starts: starts[2] + 600, "at 000005.jpg: unexpected end of data"),  # in an image
        (lambda starts: starts[-1], "after 000007.cls"),  # only the end mark is gone
        (lambda starts: 0, "at its beginning: empty file"),
        (lambda starts: 300, "at its beginning: truncated header"),
    ],
)
def test_a_shard_that_is_cut_off_is_named(pets, where, message):
    path = pets / "data-01.tar"
    os.truncate(path, where(pieces(path)))
    with pytest.raises(UserError, match=rf"data-01\.tar is cut off or damaged {message}") as caught:
        Shards(f"{pets}/data-*.tar").preflight()
    assert caught.value.looked == str(path)


def test_a_damaged_header_loses_no_image_in_silence(pets):
    path = pets / "data-01.tar"
    content = bytearray(path.read_bytes())
    content[pieces(path)[2] + 10] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"data-01\.tar is cut off or damaged after 000004\.cls"):
        Shards(f"{pets}/data-*.tar").preflight()


def test_tar_files_in_one_are_refused(pets):
    both = pets / "both.tar"
    both.write_bytes((pets / "data-00.tar").read_bytes() + (pets / "data-01.tar").read_bytes())
    with pytest.raises(UserError, match=r"after 000003\.cls, or more than one tar file"):
        Shards(str(both)).preflight()


@pytest.mark.parametrize(("mode", "command"), [("w:gz", "gunzip"), ("w:bz2", "bunzip2"), ("w:xz", "unxz")])
def test_a_compressed_shard_is_refused(tmp_path, mode, command):
    with tarfile.open(tmp_path / "x.tar", mode) as made:
        made.addfile(tarfile.TarInfo("0.jpg"))
    with pytest.raises(UserError, match=r"x\.tar is compressed") as caught:
        Shards(str(tmp_path / "x.tar")).preflight()
    assert caught.value.fix.startswith(f"{command} {tmp_path / 'x.tar'}")


def test_a_file_that_is_no_tar_is_refused(tmp_path):
    write_image(tmp_path / "x.jpg", size=(40, 40))
    with pytest.raises(UserError, match=r"x\.jpg is cut off or damaged at its beginning"):
        Shards(str(tmp_path / "x.jpg")).preflight()


def test_shards_that_are_not_there(pets):
    with pytest.raises(Missing, match=r"no shard none-\*\.tar"):
        Shards(f"{pets}/none-*.tar").preflight()
    with pytest.raises(UserError, match=r"no shard data-03\.tar") as caught:
        Shards(f"{pets}/data-{{00..03}}.tar").preflight()
    assert not isinstance(caught.value, Missing)  # the others are
    with pytest.raises(UserError, match=r"data-02\.tar is a shard of both patterns"):
        Shards(f"{pets}/data-*.tar,{pets}/data-02.tar").preflight()
    with pytest.raises(UserError, match="no numbers"):
        Shards(f"{pets}/data-{{02..00}}.tar").preflight()


@pytest.mark.parametrize("spelled", ["a.tar,b.tar,c.tar", "a.tar,", ","])
def test_there_are_one_or_two_patterns(spelled):
    with pytest.raises(UserError, match="neither one pattern nor two"):
        find(f"shards:{spelled}")


def test_a_corrupt_image_is_named_by_shard_and_key(tmp_path):
    members = [("0.jpg", picture_bytes(tmp_path, size=(64, 64))[:-600]), ("1.jpg", b"")]
    images = Shards(str(write_shard(tmp_path / "x.tar", members))).open("train")
    for number, why in enumerate(["image file is truncated", "it is no image of a known format"]):
        with pytest.raises(UserError, match=rf"cannot read the image x\.tar:{number}: {why}") as caught:
            next(images.batches(np.array([number]), 1, Centre(8, 8), seed=0, workers=1))
        assert caught.value.looked == f"{tmp_path / 'x.tar'}:{number}"


# How patterns are spelled


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("x.tar", ["x.tar"]),
        ("{8..10}.tar", ["8.tar", "9.tar", "10.tar"]),
        ("{008..010}.tar", ["008.tar", "009.tar", "010.tar"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
    ],
)
def test_braces(pattern, paths):
    assert expand(pattern) == paths


def test_a_comma_outside_braces_parts_two_patterns():
    assert split_patterns("a-{x,y}.tar,b-{0..3}.tar") == ["a-{x,y}.tar", "b-{0..3}.tar"]
    assert split_patterns("a-{x,y}.tar") == ["a-{x,y}.tar"]


@pytest.mark.parametrize(
    ("pattern", "name"),
    [("/d/data-{00..99}.tar", "data"), ("/d/train_*.tar", "train"), ("/d/{0..9}.tar", "d"), ("/d/cc12m.tar", "cc12m")],
)
def test_names_have_no_wildcards(pattern, name):
    assert plain_name(pattern) == name
    assert Shards(pattern).name == f"shards:{name}"
