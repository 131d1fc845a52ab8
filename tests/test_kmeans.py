"""k-means against a plain Lloyd and faiss's own, its repairs of empty clusters, and its refusals."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from results.errors import RunFailed, UserError
from zoo.clustering import kmeans as module
from zoo.clustering.kmeans import distinct_rows, draw_donor, kmeans, means, move_farthest, nearest, split_empty

# Few values, so that rows repeat, coincide with centroids and tie.
COARSE = arrays(np.float32, st.tuples(st.integers(1, 30), st.integers(1, 3)), elements=st.integers(-2, 2))
EXAMPLES = settings(max_examples=50)


def blobs(n: int = 300, d: int = 5, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(n, d)) + 4 * generator.integers(3, size=(n, 1))).astype(np.float32)


def count_distinct(x: np.ndarray) -> int:
    return len({tuple(row + 0.0) for row in x})


def lloyd(x: np.ndarray, centroids: np.ndarray, iterations: int) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """The definition, by loops in float64: centroids, the assignment to them, and the objective of each iteration."""
    x, centroids, objective = x.astype(np.float64), centroids.astype(np.float64), []
    for _ in range(iterations):
        distances = np.array([[np.sum((row - centre) ** 2) for centre in centroids] for row in x])
        objective.append(distances.min(1).sum())
        assignment = distances.argmin(1)
        centroids = np.array([x[assignment == j].mean(0) for j in range(len(centroids))])
    distances = np.array([[np.sum((row - centre) ** 2) for centre in centroids] for row in x])
    return centroids, distances.argmin(1), objective


def test_equals_a_plain_lloyd_from_the_same_start():
    x = blobs(150)
    start = x[[0, 50, 100, 149]]
    found = kmeans(x, 4, iterations=5, start=start)
    centroids, assignment, objective = lloyd(x, start, 5)
    assert found.empty_repaired == 0
    np.testing.assert_array_equal(found.assignment, assignment)
    np.testing.assert_allclose(found.centroids, centroids, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.objective, objective[: len(found.objective)], rtol=1e-4)
    np.testing.assert_allclose(objective[len(found.objective) :], found.objective[-1], rtol=1e-4)  # fixed point
    assert (found.centroids.dtype, found.assignment.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(start, x[[0, 50, 100, 149]])  # the caller's start is untouched


def test_equals_faiss_from_the_same_start():
    faiss = pytest.importorskip("faiss")
    x = blobs(400, 8)
    start = x[:6]
    theirs = faiss.Kmeans(8, 6, niter=7, min_points_per_centroid=1)
    theirs.train(x, init_centroids=start)
    np.testing.assert_allclose(kmeans(x, 6, iterations=7, start=start).centroids, theirs.centroids, atol=1e-4)


@EXAMPLES
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(0, 6))
def test_objective_never_rises_without_splits(seed, k, iterations):
    x = blobs(60, 3, seed)
    found = kmeans(x, k, iterations, seed)
    assert len(found.objective) <= iterations
    if not found.empty_repaired:
        assert (np.diff(found.objective) <= 1e-6 * np.square(x).sum()).all()


@EXAMPLES
@given(COARSE, st.data())
def test_no_cluster_is_ever_empty(x, data):
    k = data.draw(st.integers(1, count_distinct(x)))
    found = kmeans(x, k, data.draw(st.integers(0, 4)), data.draw(st.integers(0, 99)))
    assert found.assignment.shape == (len(x),)
    assert (np.bincount(found.assignment, minlength=k) > 0).all()
    assert len(found.centroids) == k
    assert np.isfinite(found.centroids).all()


@EXAMPLES
@given(COARSE, st.data())
def test_no_cluster_is_empty_from_the_worst_start(x, data):
    k = data.draw(st.integers(1, count_distinct(x)))
    start = np.full((k, x.shape[1]), data.draw(st.sampled_from([0.0, 1.0, 50.0])))  # all centroids at one place
    found = kmeans(x, k, data.draw(st.integers(0, 3)), start=start)
    assert (np.bincount(found.assignment, minlength=k) > 0).all()
    assert found.empty_repaired >= k - 1


@EXAMPLES
@given(COARSE, st.integers(0, 99))
def test_exactly_k_distinct_rows_are_k_clusters_of_equal_rows(x, seed):
    k = count_distinct(x)
    found = kmeans(x, k, seed=seed)
    np.testing.assert_array_equal(found.centroids[found.assignment], x)
    assert (np.bincount(found.assignment) > 0).all()
    with pytest.raises(UserError) as error:
        kmeans(x, k + 1, seed=seed)
    assert f"only {k} differ" in str(error.value) or f"of {len(x)} rows" in str(error.value)


def test_equal_rows_are_too_few_also_with_a_start():
    with pytest.raises(UserError, match="of which only 2 differ"):
        kmeans(np.array([[0.0], [1.0], [1.0], [-0.0]]), 3, start=np.zeros((3, 1)))


@pytest.mark.parametrize(("n", "k"), [(1, 1), (7, 1), (7, 7), (2, 2)])
def test_the_smallest_and_largest_k(n, k):
    x = blobs(n)
    found = kmeans(x, k)
    assert sorted(set(found.assignment)) == list(range(k))
    if k == 1:
        np.testing.assert_allclose(found.centroids[0], x.mean(0), rtol=1e-5)
    else:
        np.testing.assert_array_equal(found.centroids[found.assignment], x)


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_start():
    x = blobs(500, 6)
    one, again, other = kmeans(x, 20, seed=3), kmeans(torch.from_numpy(x), 20, seed=3), kmeans(x, 20, seed=4)
    np.testing.assert_array_equal(one.centroids, again.centroids)
    np.testing.assert_array_equal(one.assignment, again.assignment)
    assert one.objective == again.objective
    assert one.objective[0] != other.objective[0]


def test_assignment_is_to_the_nearest_centroid_and_ends_at_a_fixed_point():
    x = blobs(200)
    found = kmeans(x, 3, iterations=100)
    assert len(found.objective) < 100
    assert kmeans(x, 3, iterations=200).objective == found.objective
    np.testing.assert_array_equal(found.assignment, nearest(x, found.centroids))
    sizes = np.bincount(found.assignment)
    by_hand = np.array([x[found.assignment == j].sum(0, dtype=np.float64) / sizes[j] for j in range(3)])
    np.testing.assert_allclose(found.centroids, by_hand, rtol=1e-6)


def test_nearest_is_the_definition():
    x, centroids = blobs(50, 4, 1), blobs(7, 4, 2)
    expected = [min(range(7), key=lambda j: np.sum((row - centroids[j]) ** 2)) for row in x]
    np.testing.assert_array_equal(nearest(torch.from_numpy(x), centroids), expected)


def test_means_are_summed_in_float64(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 7)
    x = blobs(40, 3)
    x[:, 0] += 1e6
    assignment = np.arange(40) % 4
    centroids, sizes = means(x, assignment, 5)
    for j in range(4):
        np.testing.assert_array_equal(centroids[j], x[assignment == j].astype(np.float64).mean(0).astype(np.float32))
    np.testing.assert_array_equal(sizes, [10, 10, 10, 10, 0])
    np.testing.assert_array_equal(centroids[4], 0)


@EXAMPLES
@given(st.integers(0, 1000), st.integers(1, 40))
def test_start_rows_are_distinct_and_cover_the_repeated(seed, copies):
    x = np.repeat(np.arange(5, dtype=np.float32)[:, None], copies, axis=0)
    x[0] = -0.0  # equal to 0
    chosen = distinct_rows(x, 5, np.random.default_rng(seed))
    assert sorted(x[chosen, 0]) == [0, 1, 2, 3, 4]


def test_start_rows_are_uniformly_drawn():
    x = np.arange(10, dtype=np.float32)[:, None]
    generator = np.random.default_rng(0)
    drawn = np.concatenate([distinct_rows(x, 3, generator) for _ in range(2000)])
    np.testing.assert_allclose(np.bincount(drawn) / 2000, 0.3, atol=0.04)


def test_split_pulls_donor_and_copy_apart():
    centroids = np.array([[1, 2, 3], [9, 9, 9], [0, 0, 0]], dtype=np.float32)
    sizes = np.array([5.0, 1.0, 0.0])  # a cluster of one gives nothing: the donor must be the first
    assert split_empty(centroids, sizes, np.random.default_rng(0)) == 1
    up, down = 1 + 1 / 1024, 1 - 1 / 1024
    np.testing.assert_array_equal(centroids[2], np.float32([1 * up, 2 * down, 3 * up]))
    np.testing.assert_array_equal(centroids[0], np.float32([1 * down, 2 * up, 3 * down]))
    np.testing.assert_array_equal(centroids[1], [9, 9, 9])
    np.testing.assert_array_equal(sizes, [2.5, 1, 2.5])


def test_donors_are_drawn_as_by_a_walk_round_the_clusters():
    sizes = np.array([4.0, 0.0, 1.0, 9.0, 2.0])
    chance = [max(size - 1, 0) / (16 - 5) for size in sizes]
    walk = [chance[i] * np.prod([1 - p for p in chance[:i]]) for i in range(5)]
    generator = np.random.default_rng(0)
    drawn = np.bincount([draw_donor(sizes, generator) for _ in range(5000)], minlength=5) / 5000
    np.testing.assert_allclose(drawn, np.array(walk) / sum(walk), atol=0.03)
    assert drawn[1] == drawn[2] == 0


def test_moved_rows_are_the_farthest_with_their_duplicates():
    x = np.array([[0], [0], [0], [0], [5], [5], [1], [9], [8]], dtype=np.float32)
    centroids = np.array([[0], [9], [7], [7], [0]], dtype=np.float32)
    assignment = np.array([0, 0, 0, 0, 0, 0, 4, 1, 1])
    # The largest cluster gives both fives; then it holds equal rows only, and the next largest gives its 8.
    assert move_farthest(x, centroids, assignment) == 2
    np.testing.assert_array_equal(assignment, [0, 0, 0, 0, 2, 2, 4, 1, 3])
    np.testing.assert_array_equal(centroids[:, 0], [0, 9, 5, 8, 0])


@pytest.mark.parametrize("k", [0, -1, 11])
def test_k_out_of_range_is_a_user_error(k):
    with pytest.raises(UserError, match="of 10 rows") as error:
        kmeans(blobs(10), k)
    assert "from 1 to 10" in error.value.fix


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_a_failed_run(bad):
    x = blobs(40)
    x[17, 2] = bad
    with pytest.raises(RunFailed, match="not finite"):
        kmeans(x, 3)


@pytest.mark.parametrize("n", [5, 200])  # faiss computes few rows otherwise than many
def test_distances_that_overflow_are_a_failed_run(n):
    with pytest.raises(RunFailed, match="too large"):
        kmeans(blobs(n) * np.float32(1e30), 3)


@pytest.mark.parametrize("start", [np.zeros((2, 5)), np.zeros((3, 4)), np.zeros(15)])
def test_a_start_of_another_shape_is_refused(start):
    with pytest.raises(ValueError, match="shape"):
        kmeans(blobs(10), 3, start=start)


def test_rows_must_be_a_matrix():
    with pytest.raises(ValueError, match=r"expected rows \(N, d\)"):
        kmeans(np.zeros(5), 1)


def test_a_missing_faiss_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match="faiss is not installed") as error:
        kmeans(blobs(10), 3)
    assert r"pip install -e '.[cpu]'" in error.value.fix
