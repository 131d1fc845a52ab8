"""DeepCluster's released cluster assignments: pickles of Python 2, read without running anything."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from releases import Python2Pickler

from results.errors import UserError
from zoo.checkpoint import main
from zoo.released import assignments

PAIRS = [("n01440764/n01440764_10026.JPEG", 3), ("n01440764/a, b.JPEG", 9), ("n01443537/caf\xe9.JPEG", 3)]


def released_file(place: Path, held: object = PAIRS, protocol: int = 2) -> Path:
    path = place / "alexnet_cluster_assignment.pickle"
    with path.open("wb") as file:
        pickle.dump(held, file, protocol)
    return path


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_assignments_are_read(protocol: int, tmp_path: Path) -> None:
    assert assignments.read(released_file(tmp_path, protocol=protocol)) == PAIRS


def test_assignments_as_python_2_pickled_them(tmp_path: Path) -> None:
    path = tmp_path / "vgg16_cluster_assignment.pickle"
    with path.open("wb") as file:
        Python2Pickler(file, 2).dump([("train/a.JPEG", 7)])
    assert b"U\x0ctrain/a.JPEG" in path.read_bytes()
    assert assignments.read(path) == [("train/a.JPEG", 7)]


def test_bytes_of_latin_1_are_text(tmp_path: Path) -> None:
    path = tmp_path / "x.pickle"
    path.write_bytes(b"\x80\x02]U\x04caf\xe9K\x01\x86a.")
    assert assignments.read(path) == [("caf\xe9", 1)]


def test_the_command_prints_and_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    table = tmp_path / "new" / "clusters.csv"
    assert main(["assignments", str(released_file(tmp_path)), "--out", str(table)]) == 0
    said = capsys.readouterr().out
    assert "images        3\n" in said
    assert "clusters      2 that are not empty, numbered up to 9" in said
    assert "sizes         1 / 1.25 / 1.5 / 1.75 / 2 (least" in said
    assert table.read_text(encoding="utf-8") == (
        'path,cluster\nn01440764/n01440764_10026.JPEG,3\n"n01440764/a, b.JPEG",9\nn01443537/caf\xe9.JPEG,3\n'
    )


class Call:
    """A pickle that makes a folder when it is opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_file_is_refused_and_not_run(protocol: int, tmp_path: Path) -> None:
    path = released_file(tmp_path, [*PAIRS, Call(tmp_path / "marker")], protocol)
    with pytest.raises(UserError, match=r"is refused: it calls posix\.mkdir"):
        assignments.read(path)
    assert not (tmp_path / "marker").exists()
    with path.open("rb") as file:  # the trap is a real one
        pickle.load(file)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("held", [OrderedDict(), np.zeros(2), [("a", np.int64(1))], Path("x"), {1}])
def test_no_other_type_is_made(held: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is refused: it calls|holds no list"):
        assignments.read(released_file(tmp_path, held))


@pytest.mark.parametrize("held", [None, [], {"a": 1}, "text"])
def test_what_is_no_list_is_an_error(held: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no list of assignments"):
        assignments.read(released_file(tmp_path, held))


@pytest.mark.parametrize("entry", [("a",), ("a", 1, 2), (1, "a"), ("a", "b"), ("a", 1.5), ("a", True), ("a", -1), 3])
def test_an_entry_that_is_no_pair_is_named(entry: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"entry 3 of .* is no \(path, cluster\)"):
        assignments.read(released_file(tmp_path, [*PAIRS, entry]))


def test_a_truncated_file_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = released_file(tmp_path)
    data = path.read_bytes()
    for length in (0, 1, 10, len(data) - 1):
        path.write_bytes(data[:length])
        assert main(["assignments", str(path), "--out", str(tmp_path / "x.csv")]) == 2
        assert "is damaged, or no pickle" in capsys.readouterr().err
    assert not (tmp_path / "x.csv").exists()


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file none\.pickle"):
        assignments.read(tmp_path / "none.pickle")
