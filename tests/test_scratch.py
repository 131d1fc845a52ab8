"""Arrays on the disk: in files with and without a name."""

import errno

import numpy as np
import pytest

from zoo.scratch import create_array, discard, unnamed_array

SHAPE = (1000, 10)


def test_an_array_in_a_file(tmp_path):
    array = create_array(tmp_path / "x.f32", (5, 3))
    array[:] = np.arange(15).reshape(5, 3)
    array.flush()
    assert np.array_equal(np.fromfile(tmp_path / "x.f32", np.float32), np.arange(15))
    assert create_array(tmp_path / "x.f32", (2, 3)).shape == (2, 3)
    assert (tmp_path / "x.f32").stat().st_size == 24


def test_an_array_in_a_file_without_a_name(tmp_path):
    array, other = unnamed_array(tmp_path, (5, 3)), unnamed_array(tmp_path, (5, 3))
    array[:] = np.arange(15).reshape(5, 3)
    assert not any(tmp_path.iterdir())  # a process that is killed leaves nothing
    assert np.array_equal(array.ravel(), np.arange(15))
    assert not other.any()


def test_files_are_discarded_but_for_one(tmp_path):
    for name in ("x-1.f32", "x-2.f32", "y.f32"):
        (tmp_path / name).touch()
    discard(tmp_path, "x*.f32", tmp_path / "x-2.f32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-2.f32", "y.f32"]
    discard(tmp_path, "x*.f32")
    assert [path.name for path in tmp_path.iterdir()] == ["y.f32"]


@pytest.mark.parametrize(
    "make", [lambda folder: create_array(folder / "x.f32", SHAPE), lambda folder: unnamed_array(folder, SHAPE)]
)
def test_an_array_too_large_for_the_disk_is_an_error_at_once(make, tmp_path, monkeypatch):
    asked = []

    def full(handle, offset, length):
        asked.append((offset, length))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        make(tmp_path)
    assert asked == [(0, 40000)]
    assert not any(tmp_path.iterdir())


def test_an_array_where_space_cannot_be_reserved(tmp_path, monkeypatch):
    monkeypatch.delattr("os.posix_fallocate", raising=False)  # macOS
    assert create_array(tmp_path / "x.f32", (5, 3)).shape == (5, 3)
