"""EM against scikit-learn's and a plain one in float64, its shares, its floor, its repairs and its refusals."""

from __future__ import annotations

import sys
from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.mixture import GaussianMixture

from results.errors import RunFailed, UserError
from zoo.clustering import gmm as module
from zoo.clustering.gmm import FLOOR, Components, Mixture, gmm, posterior, split_lost
from zoo.clustering.kmeans import kmeans
from zoo.clustering.scores import ari

COARSE = arrays(np.float32, st.tuples(st.integers(1, 30), st.integers(1, 3)), elements=st.integers(-2, 2))
EXAMPLES = settings(max_examples=50)
BLOBS = 4


def blobs(n: int = 400, d: int = 5, seed: int = 0, gap: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, d) of four Gaussians of different width, `gap` apart in each dimension, and which is whose."""
    generator = np.random.default_rng(seed)
    blob = np.arange(n) % BLOBS
    x = generator.normal(size=(n, d)) * (0.5 + 0.25 * blob[:, None]) + gap * blob[:, None]
    return x.astype(np.float32), blob


def count_distinct(x: np.ndarray) -> int:
    return len({tuple(row + 0.0) for row in x})


def densities(x: np.ndarray, mixture: Components) -> np.ndarray:
    """Log(weight × density), (N, k), by loops in float64."""
    weights, means, variances = (np.asarray(part, np.float64) for part in astuple(mixture)[:3])
    joint = np.empty((len(x), len(weights)))
    for i, row in enumerate(x.astype(np.float64)):
        for j in range(len(weights)):
            exponents = np.log(2 * np.pi * variances[j]) + (row - means[j]) ** 2 / variances[j]
            joint[i, j] = np.log(weights[j]) - exponents.sum() / 2
    return joint


def floor_of(x: np.ndarray) -> float:
    return FLOOR * x.var(0, dtype=np.float64).mean()


def rounding(x: np.ndarray) -> float:
    """What float32 may err by in the log-likelihood: 1e-7, twice, of the terms, which reach 1 / FLOOR a number."""
    return 2e-7 * x.size / FLOOR


@pytest.mark.parametrize("iterations", [1, 10])
def test_equals_scikit_learn_from_the_same_start(iterations):
    x, _ = blobs(500, gap=1.5)
    start = x[:6]
    ours = gmm(x, 6, iterations, start=start)
    before = gmm(x, 6, 0, start=start)
    theirs = GaussianMixture(
        6,
        covariance_type="diag",
        tol=0,
        reg_covar=0,
        max_iter=iterations,
        weights_init=np.full(6, 1 / 6),
        means_init=before.means.astype(np.float64),
        precisions_init=1 / before.variances.astype(np.float64),
    )
    with pytest.warns(UserWarning, match="did not converge"):
        theirs.fit(x.astype(np.float64))
    assert ours.empty_repaired == 0
    assert ours.variances.min() > floor_of(x)  # theirs has none
    np.testing.assert_allclose(ours.weights, theirs.weights_, rtol=1e-4)
    np.testing.assert_allclose(ours.means, theirs.means_, atol=1e-4)
    np.testing.assert_allclose(ours.variances, theirs.covariances_, rtol=1e-3)
    np.testing.assert_allclose(ours.log_likelihood[-1] / len(x), theirs.lower_bound_, rtol=1e-5)
    assert len(ours.log_likelihood) == iterations
    shares = np.sort(theirs.predict_proba(x), 1)[:, ::-1][:, :5]
    np.testing.assert_allclose(ours.shares, shares / shares.sum(1, keepdims=True), atol=1e-3)


def test_an_iteration_is_the_definition():
    x, _ = blobs(80, 3, gap=1.0)
    before, after = gmm(x, 4, 0, seed=1), gmm(x, 4, 1, seed=1)
    joint = densities(x, before)
    evidence = np.log(np.exp(joint).sum(1))
    shares = np.exp(joint - evidence[:, None])
    sizes = shares.sum(0)
    means = shares.T @ x / sizes[:, None]
    variances = np.array([shares[:, j] @ (x - means[j]) ** 2 / sizes[j] for j in range(4)])
    assert after.log_likelihood == pytest.approx([evidence.sum()], rel=1e-6)
    np.testing.assert_allclose(after.weights, sizes / 80, rtol=1e-5)
    np.testing.assert_allclose(after.means, means, atol=1e-5)
    np.testing.assert_allclose(after.variances, np.maximum(variances, floor_of(x)), rtol=1e-4)


def test_starts_from_k_means_with_the_variances_that_it_leaves():
    x, _ = blobs()
    found = gmm(x, BLOBS, 0, seed=5)
    clusters = kmeans(x, BLOBS, module.START_ITERATIONS, seed=5)
    np.testing.assert_array_equal(found.means, clusters.centroids)
    left = np.square(x - clusters.centroids[clusters.assignment]).sum() / np.square(x - x.mean(0)).sum()
    np.testing.assert_allclose(found.variances, np.tile(x.var(0) * left, (BLOBS, 1)), rtol=1e-4)
    np.testing.assert_array_equal(found.weights, np.full(BLOBS, 0.25))
    assert found.log_likelihood == []


@EXAMPLES
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(0, 12), st.floats(0, 6))
def test_the_likelihood_never_falls_without_repairs(seed, k, iterations, gap):
    x, _ = blobs(60, 3, seed, gap)
    found = gmm(x, k, iterations, seed)
    assert len(found.log_likelihood) == iterations
    if not found.empty_repaired:
        assert (np.diff(found.log_likelihood) >= -rounding(x)).all()


@EXAMPLES
@given(COARSE, st.data())
def test_the_likelihood_never_falls_where_rows_repeat_and_variances_stand_at_the_floor(x, data):
    k = data.draw(st.integers(1, count_distinct(x)))
    found = gmm(x, k, 8, data.draw(st.integers(0, 99)))
    assert np.isfinite(found.means).all()
    assert (found.variances > 0).all()
    assert (found.variances >= np.float32(floor_of(x)) * np.float32(1 - 1e-6)).all()
    if not found.empty_repaired:
        assert (np.diff(found.log_likelihood) >= -rounding(x)).all()


@EXAMPLES
@given(COARSE, st.data())
def test_shares_fall_add_up_to_1_and_are_the_posterior(x, data):
    k, top = data.draw(st.integers(1, count_distinct(x))), data.draw(st.integers(1, 7))
    found = gmm(x, k, data.draw(st.integers(0, 4)), data.draw(st.integers(0, 99)), top=top)
    assert found.clusters.shape == found.shares.shape == (len(x), min(top, k))
    assert all(len(set(row)) == len(row) for row in found.clusters.tolist())
    assert found.clusters.min() >= 0
    assert found.clusters.max() < k
    assert (np.diff(found.shares) <= 0).all()
    np.testing.assert_allclose(found.shares.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(found.assignment, found.clusters[:, 0])
    joint = np.take_along_axis(densities(x, found), found.clusters, 1)
    expected = np.exp(joint - joint.max(1, keepdims=True))
    np.testing.assert_allclose(found.shares, expected / expected.sum(1, keepdims=True), atol=2e-3)
    types = found.weights, found.means, found.variances, found.shares, found.clusters, found.assignment
    assert [part.dtype for part in types] == [np.float32] * 4 + [np.int64] * 2


def test_new_points_are_assigned_by_the_components_alone():
    x, _ = blobs()
    found = gmm(x, BLOBS, 5)
    for parts in (
        found,
        Components(*(torch.from_numpy(part) for part in (found.weights, found.means, found.variances))),
    ):
        clusters, shares = posterior(torch.from_numpy(x), parts)
        np.testing.assert_array_equal(clusters, found.clusters)
        np.testing.assert_array_equal(shares, found.shares)
    new, _ = blobs(seed=1)
    np.testing.assert_array_equal(posterior(new, found, top=1)[0][:, 0], densities(new, found).argmax(1))


def test_a_component_without_weight_takes_no_share():
    components = Components(np.float32([0, 1]), np.float32([[0], [5]]), np.ones((2, 1), np.float32))
    clusters, shares = posterior(np.float32([[0.0], [5.0]]), components)
    np.testing.assert_array_equal(clusters, [[1, 0], [1, 0]])
    np.testing.assert_array_equal(shares, [[1, 0], [1, 0]])


@pytest.mark.parametrize("seed", range(3))
def test_recovers_blobs_that_are_apart(seed):
    x, blob = blobs(2000, seed=seed)
    start = x[:BLOBS]  # one of each
    found = gmm(x, BLOBS, 20, seed, start=start)
    assert ari(found.assignment, blob) > 0.999
    np.testing.assert_allclose(found.weights, 0.25, atol=1e-3)
    np.testing.assert_allclose(found.means, 4.0 * np.arange(BLOBS)[:, None] * np.ones(5), atol=0.2)
    np.testing.assert_allclose(
        found.variances, np.square(0.5 + 0.25 * np.arange(BLOBS))[:, None] * np.ones(5), rtol=0.2
    )


def test_one_component_is_the_mean_and_the_variance():
    x, _ = blobs()
    found = gmm(x, 1, 2)
    np.testing.assert_allclose(found.means[0], x.mean(0, dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(found.variances[0], x.var(0, dtype=np.float64), rtol=1e-4)
    np.testing.assert_array_equal(found.clusters, np.zeros((400, 1)))
    np.testing.assert_array_equal(found.shares, np.ones((400, 1)))


def test_as_many_components_as_rows_have_one_each():
    x, _ = blobs(30)
    found = gmm(x, 30, 3)
    assert sorted(found.assignment) == list(range(30))
    np.testing.assert_allclose(found.means[found.assignment], x, atol=1e-3)  # near ones share a little
    np.testing.assert_allclose(found.variances, floor_of(x), rtol=1e-4)


@pytest.mark.parametrize("row", [0.0, 0.1, 1000.0])
@pytest.mark.parametrize("n", [1, 9])
def test_equal_rows_are_one_component(row, n):
    found = gmm(np.full((n, 3), row), 1, 3)
    np.testing.assert_array_equal(found.means, np.full((1, 3), row, np.float32))
    assert (found.variances > 0).all()
    assert np.isfinite(found.log_likelihood).all()
    with pytest.raises(UserError, match=r"of which only 1 differ|of 1 rows"):
        gmm(np.full((n, 3), row), 2)


def test_rows_that_repeat_are_a_component_each():
    x = np.repeat(np.float32([[0, 0], [0, 1], [3, 3]]), [50, 20, 30], axis=0)
    found = gmm(x, 3, 10)
    np.testing.assert_allclose(found.means[found.assignment], x, atol=1e-4)
    np.testing.assert_allclose(np.sort(found.weights), [0.2, 0.3, 0.5], rtol=1e-4)
    with pytest.raises(UserError, match="of which only 3 differ"):
        gmm(x, 4, start=np.arange(8).reshape(4, 2))


def test_a_constant_dimension_changes_no_share():
    x, _ = blobs(gap=1.0)
    beside = np.concatenate([x, np.full((len(x), 1), 7, np.float32)], axis=1)
    plain, found = gmm(x, 3, 5), gmm(beside, 3, 5)
    np.testing.assert_allclose(found.means[:, -1], 7)
    np.testing.assert_allclose(found.variances[:, -1], floor_of(beside), rtol=1e-5)
    np.testing.assert_array_equal(found.assignment, plain.assignment)
    np.testing.assert_allclose(found.shares, plain.shares, atol=1e-3)


def test_an_offset_changes_no_share():
    x, _ = blobs(gap=1.0)
    moved = x + np.float32(64)  # float32 keeps 17 binary digits after the point
    x = moved - np.float32(64)
    plain, found = gmm(x, 3, 5, start=x[:3]), gmm(moved, 3, 5, start=moved[:3])
    np.testing.assert_allclose(found.means - 64, plain.means, atol=1e-3)
    np.testing.assert_allclose(found.variances, plain.variances, rtol=1e-3)
    np.testing.assert_allclose(found.shares, plain.shares, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_scale_of_the_rows_changes_no_share(scale):
    x, _ = blobs(gap=1.0)
    plain, found = gmm(x, 3, 5), gmm(x * np.float32(scale), 3, 5)
    np.testing.assert_allclose(found.means / scale, plain.means, atol=1e-3)
    np.testing.assert_allclose(found.shares, plain.shares, atol=1e-3)
    difference = found.log_likelihood[-1] - plain.log_likelihood[-1]
    assert difference == pytest.approx(-x.size * np.log(scale), rel=1e-4)


def test_blocks_give_the_same_as_one_block(monkeypatch):
    x, _ = blobs(gap=1.0)
    whole = gmm(x, 3, 5)
    monkeypatch.setattr(module, "BLOCK", 7)
    found = gmm(x, 3, 5)
    np.testing.assert_allclose(found.means, whole.means, atol=1e-4)
    np.testing.assert_allclose(found.shares, whole.shares, atol=1e-3)
    np.testing.assert_allclose(found.log_likelihood, whole.log_likelihood, rtol=1e-6)
    np.testing.assert_array_equal(found.assignment, whole.assignment)


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_start():
    x, _ = blobs()
    far = np.concatenate([x[:5], np.full((3, 5), 1e4)])  # so that the repairs draw too
    for start in (None, far):
        one, again, other = (
            gmm(rows, 8, 4, seed, start=start) for rows, seed in ((x, 3), (torch.from_numpy(x), 3), (x, 4))
        )
        for ours, theirs in zip(astuple(one), astuple(again)):
            np.testing.assert_array_equal(ours, theirs)
        assert (one.means != other.means).any()


@pytest.mark.parametrize("lost", [1, 3, 7])
def test_components_that_lose_all_weight_are_given_rows(lost):
    x, _ = blobs()
    start = np.concatenate([x[: 8 - lost], np.full((lost, 5), 1e4)]).astype(np.float32)
    before = start.copy()
    found = gmm(x, 8, 10, start=start)
    assert found.empty_repaired >= lost
    assert (found.weights > 1e-3).all()
    assert np.abs(found.means).max() < 100
    np.testing.assert_array_equal(start, before)  # the caller's start is untouched


def test_a_lost_component_is_half_of_its_donor():
    means = np.float32([[1, 2, 3, 4], [9, 9, 9, 9], [0, 0, 0, 0]])
    variances = np.float32([[4, 4, 16, 16], [1, 1, 1, 1], [5, 5, 5, 5]])
    sizes = np.array([5.0, 1.0, 1e-4])  # a component of one row gives nothing: the donor must be the first
    assert split_lost(means, variances, sizes, np.random.default_rng(0)) == 1
    np.testing.assert_array_equal(
        means, [[0, 3, 1, 6], [9, 9, 9, 9], [2, 1, 5, 2]]
    )  # half a deviation each: 4 dimensions
    np.testing.assert_array_equal(variances, [[4, 4, 16, 16], [1, 1, 1, 1], [4, 4, 16, 16]])
    np.testing.assert_array_equal(sizes, [2.5, 1, 2.5])


def test_halves_of_a_component_at_0_part():
    """k-means' own pull, in proportion to the mean, would leave them equal for ever."""
    generator = np.random.default_rng(0)
    x = (generator.normal(size=(400, 2)) * 0.1 + np.where(np.arange(400) % 2, 1, -1)[:, None]).astype(np.float32)
    x -= x.mean(0)
    found = gmm(x, 2, 20, start=[[0, 0], [1e4, 1e4]] * np.ones((2, 1), np.float32))
    assert found.empty_repaired >= 1
    assert ari(found.assignment, np.arange(400) % 2) == 1


@pytest.mark.parametrize("k", [0, -1, 11])
@pytest.mark.parametrize("started", [False, True])
def test_k_out_of_range_is_a_user_error(k, started):
    x, _ = blobs(10)
    with pytest.raises(UserError, match="of 10 rows") as error:
        gmm(x, k, start=x if started else None)
    assert "from 1 to 10" in error.value.fix


@pytest.mark.parametrize("top", [0, -1])
def test_no_components_of_a_row_are_a_user_error(top):
    x, _ = blobs(10)
    found = gmm(x, 3, 1)
    for work in (lambda: gmm(x, 3, top=top), lambda: posterior(x, found, top)):
        with pytest.raises(UserError, match=f"the {top} likeliest components") as error:
            work()
        assert "at least 1" in error.value.fix


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_a_failed_run(bad):
    x, _ = blobs(40)
    found = gmm(x, 3, 1)
    x[17, 2] = bad
    with pytest.raises(RunFailed, match="not finite"):
        gmm(x, 3)
    with pytest.raises(RunFailed, match="not finite"):
        posterior(x, found)


@pytest.mark.parametrize("n", [8, 200])
def test_features_that_overflow_are_a_failed_run(n):
    x, _ = blobs(n)
    found = gmm(x, 3, 1)
    for work in (lambda: gmm(x * np.float32(1e30), 3), lambda: posterior(x * np.float32(1e30), found)):
        with pytest.raises(RunFailed, match="too large"):
            work()


@pytest.mark.parametrize("start", [np.zeros((2, 5)), np.zeros((3, 4)), np.zeros(15)])
def test_a_start_of_another_shape_is_refused(start):
    with pytest.raises(ValueError, match="shape"):
        gmm(blobs(10)[0], 3, start=start)


@pytest.mark.parametrize("width", [1, 4])
def test_points_of_another_width_are_refused(width):
    found = gmm(blobs(20)[0], 3, 1)
    with pytest.raises(ValueError, match=f"rows of {width} numbers do not fit components of 5"):
        posterior(np.zeros((7, width)), found)


def test_no_new_points_have_no_shares():
    found = gmm(blobs(20)[0], 3, 1)
    assert isinstance(found, Mixture)
    assert [part.shape for part in posterior(np.empty((0, 5)), found)] == [(0, 3), (0, 3)]


def test_a_missing_faiss_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match="faiss is not installed"):
        gmm(blobs(10)[0], 3)
