"""Corrupt images are found and listed, and left out of the runs that are told to."""

import os
import re
import signal

import pytest
from pictures import SPLIT, elsewhere, write_folder  # noqa: F401
from shardfiles import picture_bytes, write_shard

from pretrain.supervised import Supervised
from results.errors import UserError
from results.files import digest
from zoo.datasets import __main__, find
from zoo.datasets.folder import ImageNet
from zoo.datasets.verify import exclude
from zoo.run import command, guarded


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """A folder of five pictures in two splits, two of them corrupt; it lies in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "pets", SPLIT)
    (tmp_path / "pets/train/cat/2.JPG").write_bytes(b"404 not found\n")
    (tmp_path / "pets/val/dog/5.bmp").write_bytes((tmp_path / "pets/val/dog/5.bmp").read_bytes()[:100])
    return tmp_path / "pets"


def names(dataset, split="train"):
    """The names of a split's images."""
    return [os.fsdecode(name) for name in dataset.open(split).names]


# Corrupt images are listed


def test_corrupt_images_are_counted_and_listed(pets, tmp_path, capsys):
    assert __main__.main(["--verify", "folder:pets"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == ["folder:pets  train  3 images, 1 corrupt", "folder:pets  val  2 images, 1 corrupt"]
    assert "--exclude folder-pets-corrupt.txt" in out[2]
    lines = (tmp_path / "folder-pets-corrupt.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["train/cat/2.JPG", "val/dog/5.bmp"]
    assert lines[0].split("\t")[1] == "it is no image of a known format"
    assert "truncated" in lines[1].split("\t")[1]


def test_the_list_can_be_put_elsewhere(pets, tmp_path):
    assert __main__.main(["--verify", "folder:pets", "--out", "lists/bad.txt"]) == 1
    assert len((tmp_path / "lists/bad.txt").read_text().splitlines()) == 2
    assert not (tmp_path / "folder-pets-corrupt.txt").exists()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            "file/bad.txt",
            r"error: cannot write file: .*\n  looked in: \.\n  try: a file stands where a folder is ",
        ),
        ("pets", r"error: cannot write the list: pets is not a file\n  try: --out pets/corrupt\.txt\n"),
        ("pipe", r"error: cannot write the list: pipe is not a file\n  try: --out corrupt\.txt\n"),
        ("", r"error: cannot write the list: \. is not a file\n  try: --out corrupt\.txt\n"),
    ],
)
def test_a_list_that_cannot_be_written_is_refused_before_anything_is_decoded(place, message, pets, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    os.mkfifo(tmp_path / "pipe")
    assert __main__.main(["--verify", "folder:pets", "--out", place]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.match(message, said.err)


def test_without_corrupt_images_there_is_no_list(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "pets", SPLIT)
    assert __main__.main(["--verify", "folder:pets"]) == 0
    assert "val  2 images, 0 corrupt" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["pets"]


@pytest.mark.parametrize("name", ["digits", "folder:none", "list:none.txt", "shards:none.tar", "pets"])
def test_what_cannot_be_verified(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert __main__.main(["--verify", name]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert "digits are not files" in said.err or "there is no" in said.err


# The list leaves them out again


def write_three(folder, kind):
    """Three pictures of one class, the second corrupt, as a data set of that kind; its name and the pictures' names."""
    images = [(f"{number}.jpg", picture_bytes(folder, seed=number)) for number in range(3)]
    images[1] = ("1.jpg", b"no image")
    (folder / "picture.jpg").unlink()
    if kind == "shards":
        write_shard(folder / "x.tar", images)
        return f"shards:{folder}/x.tar", [f"x.tar:{number}" for number in range(3)]
    for name, content in images:
        (folder / name).write_bytes(content)
    (folder / "all.lst").write_text("0.jpg\n1.jpg\n2.jpg\n")
    return f"list:{folder}/all.lst" if kind == "list" else f"folder:{folder}", [name for name, _ in images]


@pytest.mark.parametrize("kind", ["folder", "list", "shards"])
def test_what_verify_lists_can_be_left_out(kind, tmp_path):
    name, images = write_three(tmp_path, kind)
    out = tmp_path.parent / f"{tmp_path.name}.txt"
    assert __main__.main(["--verify", name, "--out", str(out)]) == 1
    whole, rest = find(name), find(name)
    exclude(rest, out)
    assert (rest.name, rest.splits) == (whole.name, {"train": 2})
    assert names(rest) == [images[0], images[2]]
    assert len(rest.open("train").materialise(8).pixels) == 2
    assert rest.fingerprint() not in (whole.fingerprint(), digest([]))
    out.write_text(f"{images[1]}\n")  # a reason is not needed
    again = find(name)
    exclude(again, out)
    assert again.fingerprint() == rest.fingerprint()


def test_labels_follow_the_images(pets, tmp_path):
    (tmp_path / "bad").write_text("train/cat/1.jpg\tgrey\nval/cat/4.jpeg\n\n")
    dataset = find("folder:pets")
    exclude(dataset, tmp_path / "bad")
    assert dataset.splits == {"train": 2, "val": 1}
    assert dataset.open("merged").labels.tolist() == [0, 1, 1]
    assert dataset.classes == ("cat", "dog")


def test_an_empty_list_leaves_all(pets, tmp_path):
    (tmp_path / "bad").write_text("\n")
    dataset = find("folder:pets")
    exclude(dataset, tmp_path / "bad")
    assert dataset.fingerprint() == find("folder:pets").fingerprint()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("train/cat/9.jpg\n", r"the image train/cat/9\.jpg to be left out is not in folder:pets\n"),
        ("train/cat/1.jpg\nb.jpg\nc.jpg\n", r"b\.jpg to be left out is not in folder:pets \(nor are 1 more\)"),
        ("val/cat/4.jpeg\nval/dog/5.bmp\n", "no image of val is left in folder:pets"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(pets, tmp_path, lines, message):
    (tmp_path / "bad").write_text(lines)
    dataset = find("folder:pets")
    exclude(dataset, tmp_path / "bad")
    for look in (dataset.preflight, dataset.fingerprint, lambda: dataset.open("train")):
        with pytest.raises(UserError, match=message) as caught:
            look()
    assert caught.value.fix


def test_only_files_can_be_left_out(tmp_path):
    with pytest.raises(UserError, match="images of digits are not files"):
        exclude(find("digits"), tmp_path / "bad")


@pytest.mark.parametrize("kind", ["absent", "folder", "bytes"])
def test_a_list_that_cannot_be_read_is_met_with_how_to_make_one(kind, tmp_path):
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    if kind == "bytes":
        path.write_bytes(b"a\0b")
    with pytest.raises(
        UserError, match=r"cannot read the list (absent: No such|folder: Is a)|bytes is no list"
    ) as caught:
        exclude(find("folder:x"), path)
    assert caught.value.looked == str(path)
    assert caught.value.fix.startswith(f"python -m zoo.datasets --verify NAME --out {path} writes such a list")


def test_a_published_data_set_is_counted_whole(tmp_path):
    class TinyNet(ImageNet):
        counts = {"classes": 2, "train": 3, "val": 2}  # noqa: RUF012

    write_folder(tmp_path / "imagenet", SPLIT)
    (tmp_path / "bad").write_text("train/dog/3.png\n")
    dataset = TinyNet(tmp_path)
    exclude(dataset, tmp_path / "bad")
    dataset.preflight()
    assert dataset.splits == {"train": 2, "val": 2}


def test_a_run_without_some_images_is_another_run(pets, tmp_path, capsys):
    places = ["--store", "records", "--runs", "runs", "--threads", "1", "--dataset", "folder:pets", "--dry-run"]
    (tmp_path / "bad").write_text("train/cat/2.JPG\nval/dog/5.bmp\n")
    write_folder(tmp_path, ["pets/val/dog/6.bmp"])

    def run(*more):
        code = guarded(lambda: command(Supervised, [*places, *more]))
        return code, capsys.readouterr()

    before = signal.getsignal(signal.SIGTERM)
    try:
        code, said = run()
        assert (code, said.out) == (2, "")
        assert "cannot read the image 5.bmp" in said.err
        code, said = run("--exclude", "bad")
        assert (code, said.err) == (0, "")
        (tmp_path / "bad").write_text("train/cat/2.JPG\nval/dog/5.bmp\ntrain/cat/1.jpg\n")
        write_folder(tmp_path, ["pets/train/cat/7.jpg"])
        code, other = run("--exclude", "bad")
        assert code == 0
        assert other.out.split()[1] != said.out.split()[1]  # the key
    finally:
        signal.signal(signal.SIGTERM, before)
