"""A collection that grew or lost images since it was last used is noticed, and said."""

import json
import os
import shutil

import pytest
from pictures import SPLIT, write_folder, write_image
from shardfiles import write_shards

from pretrain.supervised import Supervised
from zoo.datasets import changes, find
from zoo.datasets.changes import place, say_changes
from zoo.datasets.verify import exclude
from zoo.run import command

OTHER = ": its records and caches are of the other content\n"


@pytest.fixture
def said(capsys):
    """What is said of a data set by that name."""

    def say(name):
        say_changes(find(name))
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    return say


def test_a_folder_that_changed(tmp_path, said):
    name = f"folder:{write_folder(tmp_path / 'pets', SPLIT)}"
    assert said(name) == said(name) == ""
    for number in range(3):
        write_image(tmp_path / f"pets/train/dog/9{number}.jpg")
    assert said(name) == f"folder:pets has 3 images more than when it was last used{OTHER}"
    assert said(name) == ""
    (tmp_path / "pets/val/cat/4.jpeg").rename(tmp_path / "pets/val/cat/renamed.jpeg")
    assert said(name) == f"folder:pets has as many images as when it was last used, but not the same{OTHER}"
    (tmp_path / "pets/train/cat/1.jpg").unlink()
    assert said(name) == f"folder:pets has 1 image fewer than when it was last used{OTHER}"


def test_a_list_and_shards_that_changed(tmp_path, said):
    write_folder(tmp_path, ["1.jpg", "2.jpg"])
    (tmp_path / "all.txt").write_text("1.jpg\n")
    write_shards(tmp_path, count=2)
    names = [f"list:{tmp_path}/all.txt", f"shards:{tmp_path}/data-*.tar"]
    assert [said(name) for name in names] == ["", ""]
    (tmp_path / "all.txt").write_text("1.jpg\n2.jpg\n")
    (tmp_path / "data-01.tar").unlink()
    assert said(names[0]) == f"list:all.txt has 1 image more than when it was last used{OTHER}"
    assert said(names[1]) == f"shards:data has 4 images fewer than when it was last used{OTHER}"


def test_each_location_is_remembered_by_itself(tmp_path, said, monkeypatch):
    write_folder(tmp_path / "a/pets", SPLIT)
    write_folder(tmp_path / "b/pets", SPLIT[:2])
    monkeypatch.chdir(tmp_path / "a")
    assert said("folder:pets") == said(f"folder:{tmp_path}/b/pets") == ""
    write_image(tmp_path / "a/pets/val/dog/6.jpg")
    assert said(f"folder:{tmp_path}/b/pets") == ""
    assert "1 image more" in said(f"folder:{tmp_path}/a/pets")


def test_leaving_images_out_is_no_change(tmp_path, said, capsys):
    name = f"folder:{write_folder(tmp_path / 'pets', SPLIT)}"
    assert said(name) == ""
    (tmp_path / "bad").write_text("train/cat/1.jpg\n")
    for _ in range(2):
        dataset = find(name)
        exclude(dataset, tmp_path / "bad")
        say_changes(dataset)
    assert said(name) == capsys.readouterr().err == ""


def test_what_is_wrong_is_left_to_the_preflight(tmp_path, said):
    assert said(f"folder:{tmp_path}/none") == said(f"shards:{tmp_path}/none.tar") == said("digits") == ""


@pytest.mark.parametrize("content", ["", "[]", '{"fingerprint": "x"}', '{"images": "3", "fingerprint": "x"}'])
def test_a_damaged_memory_is_none(tmp_path, said, content):
    name = f"folder:{write_folder(tmp_path / 'pets', SPLIT)}"
    assert said(name) == ""
    memo = place(find(name))
    assert json.loads(memo.read_text())["images"] == 5
    memo.write_text(content)
    assert said(name) == ""
    assert json.loads(memo.read_text())["images"] == 5


def test_a_memory_that_cannot_be_kept_is_done_without(tmp_path, said, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(changes, "ROOT", tmp_path / "file")
    assert said(f"folder:{write_folder(tmp_path / 'pets', SPLIT)}") == ""


def test_a_command_says_it(tmp_path, capsys):
    pets = write_folder(tmp_path / "pets", SPLIT)
    words = ["--dataset", f"folder:{pets}", "--store", str(tmp_path / "s"), "--runs", str(tmp_path / "r")]
    words += ["--threads", "1", "--quiet", "--limit", "4", "--epochs", "1", "--backbone", "alexnet32"]
    command(Supervised, words)
    assert capsys.readouterr().err == ""
    write_image(pets / "train/cat/9.jpg")
    for more in (["--dry-run"], ["--dry-run"], []):  # a dry run is no use of it
        command(Supervised, [*words, *more])
        assert capsys.readouterr().err == f"folder:pets has 1 image more than when it was last used{OTHER}"
    command(Supervised, words)
    assert capsys.readouterr().err == ""


def test_a_folder_is_looked_through_once(tmp_path, monkeypatch):
    dataset = find(f"folder:{write_folder(tmp_path / 'pets', SPLIT)}")
    say_changes(dataset)
    fingerprint = dataset.fingerprint()
    shutil.rmtree(tmp_path / "pets")
    monkeypatch.setattr(os, "scandir", None)
    assert (dataset.fingerprint(), dataset.splits) == (fingerprint, {"train": 3, "val": 2})
