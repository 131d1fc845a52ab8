"""Arrays in files."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from zoo import arrays


def test_one_thread_reads_at_a_time(tmp_path, monkeypatch):
    path, load, reading, most = tmp_path / "array.npy", np.load, [], []
    np.save(path, np.arange(6).reshape(2, 3))

    def watched(*given, **more):
        reading.append(given)
        most.append(len(reading))
        time.sleep(0.001)  # others run
        reading.pop()
        return load(*given, **more)

    monkeypatch.setattr("numpy.load", watched)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(arrays.load, [path] * 50))
    assert all(np.array_equal(array, [[0, 1, 2], [3, 4, 5]]) for array in found)
    assert set(most) == {1}


def test_it_is_np_load(tmp_path):
    path = tmp_path / "array.npy"
    np.save(path, np.arange(6))
    assert isinstance(arrays.load(path, mmap_mode="r"), np.memmap)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match="EOF"):
        arrays.load(path)
    with pytest.raises(FileNotFoundError):
        arrays.load(tmp_path / "none.npy")
