"""The graph of nearest neighbours against sorted distances, with points that repeat, and its refusals."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from results.errors import RunFailed, UserError
from zoo.clustering import graph
from zoo.clustering.graph import drop_own, measure, nearest_neighbours

COARSE = arrays(np.float32, st.tuples(st.integers(1, 30), st.integers(1, 3)), elements=st.integers(-2, 2))
EXAMPLES = settings(max_examples=50)


def points(n: int = 60, d: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def by_loops(x: np.ndarray, neighbours: int) -> tuple[list[list[int]], list[list[float]]]:
    """The definition: of each point, all others sorted by squared distance, then by id."""
    indices, distances = [], []
    for i, row in enumerate(x.astype(np.float64)):
        others = sorted((np.sum((row - other) ** 2), j) for j, other in enumerate(x) if j != i)[:neighbours]
        indices.append([j for _, j in others])
        distances.append([distance for distance, _ in others])
    return indices, distances


@pytest.mark.parametrize(("n", "neighbours"), [(60, 5), (60, 1), (10, 9), (300, 3)])
def test_equals_the_definition(n, neighbours):
    x = points(n)
    indices, distances = nearest_neighbours(x, neighbours)
    expected, apart = by_loops(x, neighbours)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(distances, apart, rtol=1e-5)
    assert (indices.dtype, distances.dtype) == (np.int64, np.float32)


@EXAMPLES
@given(COARSE, st.integers(1, 6))
def test_points_that_repeat_are_each_others_neighbours_and_not_their_own(x, neighbours):
    indices, distances = nearest_neighbours(x, neighbours)
    assert indices.shape == distances.shape == (len(x), min(neighbours, len(x) - 1))
    assert not (indices == np.arange(len(x))[:, None]).any()
    assert all(len(set(row)) == len(row) for row in indices.tolist())
    np.testing.assert_array_equal(distances, np.reshape(by_loops(x, neighbours)[1], distances.shape))  # whole numbers
    np.testing.assert_array_equal(distances, np.square(x[indices] - x[:, None]).sum(2))


@pytest.mark.parametrize("offset", [0, 1000])
def test_equal_points_are_exactly_0_apart(offset):
    x = np.tile(points(1) + np.float32(offset), (40, 1))
    indices, distances = nearest_neighbours(x)
    assert not (indices == np.arange(40)[:, None]).any()
    np.testing.assert_array_equal(distances, np.zeros((40, 5)))


def test_distances_do_not_suffer_from_an_offset():
    x = points(100, 4) + np.float32(300)
    indices, distances = nearest_neighbours(x)
    apart = np.square(x[indices].astype(np.float64) - x[:, None]).sum(2)
    np.testing.assert_allclose(distances, apart, rtol=1e-5)
    assert (np.diff(distances) >= 0).all()


def test_a_point_alone_has_no_neighbours():
    indices, distances = nearest_neighbours(points(1))
    assert indices.shape == distances.shape == (1, 0)


def test_few_points_have_all_others_as_neighbours():
    indices, distances = nearest_neighbours(np.array([[0.0], [1.0], [3.0]]))
    np.testing.assert_array_equal(indices, [[1, 2], [0, 2], [1, 0]])
    np.testing.assert_array_equal(distances, [[1, 9], [1, 4], [4, 9]])


def test_blocks_and_tensors_give_the_same_as_one_block(monkeypatch):
    x = points(150)
    whole = nearest_neighbours(x)
    monkeypatch.setattr(graph, "BLOCK", 7)  # faiss computes few rows otherwise than many
    for ours, theirs in zip(nearest_neighbours(torch.from_numpy(x)), whole):
        np.testing.assert_array_equal(ours, theirs)


def test_points_are_searched_where_they_lie_as_in_an_index(monkeypatch):
    import faiss  # after torch, so that one thread setting rules both

    class Copying:  # as a GPU's
        def __init__(self, width):
            self.index = faiss.IndexFlatL2(width)

        def __getattr__(self, name):
            return getattr(self.index, name)

    x, added, add = points(9000, 16), [], faiss.IndexFlatL2.add
    monkeypatch.setattr(faiss.IndexFlatL2, "add", lambda index, rows: added.append(len(rows)) or add(index, rows))
    in_place = nearest_neighbours(x)
    assert not added
    monkeypatch.setattr(graph, "flat_index", lambda width, device: Copying(width))
    for ours, theirs in zip(in_place, nearest_neighbours(x)):
        np.testing.assert_array_equal(ours, theirs)
    assert added == [9000]


def test_the_own_id_is_dropped_wherever_it_stands():
    found = np.array([[4, 7, 9], [5, 1, 2], [8, 6, 3], [1, 2, 3]])
    np.testing.assert_array_equal(drop_own(found, np.array([4, 1, 3, 6])), [[7, 9], [5, 2], [8, 6], [1, 2]])


def test_neighbours_are_sorted_by_distance_then_by_id():
    x = np.float32([[0], [2], [-1], [-2], [1]])
    indices, distances = measure(x, np.array([0, 4]), np.array([[3, 1, 4, 2], [3, 2, 1, 0]]))
    np.testing.assert_array_equal(indices, [[2, 4, 1, 3], [0, 1, 2, 3]])
    np.testing.assert_array_equal(distances, [[1, 1, 4, 4], [1, 1, 4, 9]])


@pytest.mark.parametrize(("n", "neighbours"), [(5, 0), (5, -1), (0, 5)])
def test_no_neighbours_or_no_points_are_a_user_error(n, neighbours):
    with pytest.raises(UserError, match=f"{neighbours} nearest neighbours were asked for each of {n} points") as error:
        nearest_neighbours(points(n), neighbours)
    assert "at least 1 point" in error.value.fix


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_points_that_are_not_finite_are_a_failed_run(bad):
    x = points()
    x[17, 2] = bad
    with pytest.raises(RunFailed, match="not finite"):
        nearest_neighbours(x)


@pytest.mark.parametrize("n", [5, 200])
def test_distances_that_overflow_are_a_failed_run(n):
    with pytest.raises(RunFailed, match="too large"):
        nearest_neighbours(points(n) * np.float32(1e30))


def test_points_must_be_a_matrix():
    with pytest.raises(ValueError, match=r"expected rows \(N, d\)"):
        nearest_neighbours(np.zeros(5))


def test_a_missing_faiss_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match="faiss is not installed"):
        nearest_neighbours(points())
