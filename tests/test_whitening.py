"""Whitening against numpy's covariance, a direct SVD and faiss, and what it does where variance is missing."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from results.errors import RunFailed
from zoo.clustering import whitening
from zoo.clustering.whitening import Covariance, fit_whitening, l2_normalise

PRODUCTS = [torch.float32, torch.float64]
EXAMPLES = settings(max_examples=50)


def rows(n: int, width: int, seed: int = 0, offset: float = 0.0) -> np.ndarray:
    """Correlated rows (n, width) float32 of falling variance, about `offset`."""
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(n, width)) / np.arange(1, width + 1) @ generator.normal(size=(width, width))
    return (mixed + offset).astype(np.float32)


def full(upper: torch.Tensor) -> np.ndarray:
    return (upper.triu() + upper.triu(1).T).numpy()


def population_covariance(z: torch.Tensor) -> np.ndarray:
    return np.atleast_2d(np.cov(z.double().numpy(), rowvar=False, bias=True))


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_covariance_is_numpys(products, offset, monkeypatch):
    monkeypatch.setattr(whitening, "PANEL", 3)  # several panels, the last one narrower
    monkeypatch.setattr(whitening, "BLOCK", 16)
    x = rows(100, 8, offset=offset)
    mean, upper = Covariance(products).update(x).mean_and_upper()
    expected = np.cov(x.astype(np.float64), rowvar=False, bias=True)
    np.testing.assert_allclose(mean, x.mean(0, dtype=np.float64), rtol=1e-7, atol=1e-7)
    # float32 rounds an offset of 1000 to 6e-5, in the shifted rows too
    tolerance = {torch.float32: 1e-4 if offset else 1e-6, torch.float64: 1e-12}[products]
    np.testing.assert_allclose(full(upper), expected, atol=tolerance * expected.max(), rtol=0)


@EXAMPLES
@given(st.lists(st.integers(0, 20), min_size=2, max_size=8), st.integers(0, 100))
def test_streaming_equals_one_batch(sizes, seed):
    sizes = [*sizes, 2]
    x = torch.from_numpy(rows(sum(sizes), 5, seed, offset=3.0))
    streamed = Covariance()
    for block in x.split(sizes):
        streamed.update(block)
    for ours, theirs in zip(streamed.mean_and_upper(), Covariance().update(x).mean_and_upper()):
        torch.testing.assert_close(ours.triu() if ours.ndim == 2 else ours, theirs.triu() if ours.ndim == 2 else theirs)
    assert streamed.count == len(x)


@EXAMPLES
@given(st.integers(2, 60), st.integers(1, 12), st.integers(1, 14), st.integers(0, 1000))
def test_whitened_rows_have_the_identity_as_covariance(n, width, dim, seed):
    x = rows(n, width, seed, offset=2.0)
    z = fit_whitening(x, dim)(x)
    assert z.shape == (n, min(dim, n, width))
    assert z.dtype == torch.float32
    rank = min(n - 1, *z.shape)  # n centred rows span n - 1 directions: the last of n is silent
    expected = np.diag([1.0] * rank + [0.0] * (z.shape[1] - rank))
    np.testing.assert_allclose(population_covariance(z), expected, atol=5e-3)
    np.testing.assert_allclose(z.mean(0), 0, atol=5e-3)


def test_same_subspace_and_scale_as_a_direct_svd():
    x = rows(200, 30, offset=1.0)
    centred = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    u, s, v = np.linalg.svd(centred, full_matrices=False)
    whiten = fit_whitening(x, 7)
    directions = np.linalg.qr(whiten.components.double().T)[0]
    directions = directions.numpy()
    assert np.linalg.norm(directions - v[:7].T @ (v[:7] @ directions), ord=2) < 1e-6
    np.testing.assert_allclose(whiten(x).abs(), np.sqrt(200) * np.abs(u[:, :7]), atol=1e-4)
    np.testing.assert_allclose(whiten.components.norm(dim=1), np.sqrt(200) / s[:7], rtol=1e-5)


def test_equals_faiss_up_to_the_sign_and_the_root_of_n():
    faiss = pytest.importorskip("faiss")
    x = rows(300, 20)
    reference = faiss.PCAMatrix(20, 6, -0.5)
    reference.train(x)
    ours, theirs = l2_normalise(fit_whitening(x, 6)(x)), l2_normalise(torch.from_numpy(reference.apply(x)))
    np.testing.assert_allclose(ours.abs(), theirs.abs(), atol=1e-4)


def test_a_wide_covariance_in_float32_products_finds_the_same_directions(monkeypatch):
    x = rows(400, 40, offset=0.5)
    exact = fit_whitening(x, 10)
    monkeypatch.setattr(whitening, "WIDEST_DOUBLE", 39)
    covariance = Covariance().update(x)
    assert covariance.shift.dtype == torch.float32
    assert covariance.moments.dtype == torch.float64
    np.testing.assert_allclose(covariance.whitening(10)(x).abs(), exact(x).abs(), atol=1e-3)


def test_rows_sorted_by_class_are_whitened_as_well():
    far = np.concatenate([rows(50, 6, 1), rows(50, 6, 2, offset=500.0)])  # the shift is the first class's mean
    streamed = Covariance().update(far[:50]).update(far[50:]).whitening(3)
    np.testing.assert_allclose(population_covariance(streamed(far)), np.eye(3), atol=1e-3)


@pytest.mark.parametrize("products", PRODUCTS)
def test_directions_without_variance_are_silent(products):
    x = rows(50, 4)
    x = np.concatenate([x, x, np.full((50, 2), 0.1, np.float32)], axis=1)  # doubled columns, and two constant ones
    whiten = Covariance(products).update(x).whitening(10)
    z = whiten(x)
    np.testing.assert_allclose(population_covariance(z), np.diag([1.0] * 4 + [0.0] * 6), atol=1e-3)
    assert (whiten.components[4:] == 0).all()
    assert torch.isfinite(whiten(np.random.default_rng(1).normal(size=(5, 10)))).all()  # nor are new rows amplified


def test_fewer_rows_than_dimensions():
    x = rows(5, 300)
    whiten = fit_whitening(x)
    assert whiten.components.shape == (5, 300)
    np.testing.assert_allclose(population_covariance(whiten(x)), np.diag([1, 1, 1, 1, 0]), atol=1e-4)


@pytest.mark.parametrize(
    "x",
    [
        np.ones((1, 3), np.float32),
        np.zeros((10, 3), np.float32),
        np.full((10, 3), 0.1, np.float32),
        1 + 1e-7 * np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32),
    ],
    ids=["one row", "zeros", "equal rows", "equal but for rounding"],
)
@pytest.mark.parametrize("products", PRODUCTS)
def test_constant_features_are_a_failed_run(x, products):
    with pytest.raises(RunFailed, match=f"constant: {len(x)} equal rows"):
        Covariance(products).update(x).whitening()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_a_failed_run(bad):
    x = rows(10, 3)
    x[7, 1] = bad
    with pytest.raises(RunFailed, match="not finite"):
        fit_whitening(x)


def test_no_features_are_a_failed_run():
    with pytest.raises(RunFailed, match="no features"):
        Covariance().update(np.empty((0, 4))).whitening()


def test_memory_maps_arrays_and_tensors_give_the_same_bits(tmp_path):
    x = rows(60, 6)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of read-only memory
        outcomes = [fit_whitening(rows, 4)(rows) for rows in (x, torch.from_numpy(x), mapped)]
    assert all(torch.equal(outcomes[0], other) for other in outcomes[1:])


def test_long_inputs_are_whitened_in_blocks(monkeypatch):
    x = rows(50, 6)
    whiten = fit_whitening(x, 3)
    monkeypatch.setattr(whitening, "BLOCK", 7)
    torch.testing.assert_close(whiten(x), (torch.from_numpy(x) - whiten.mean) @ whiten.components.T)


def test_half_precision_features_are_taken():
    x = rows(80, 5)
    torch.testing.assert_close(
        fit_whitening(x.astype(np.float16), 2)(x).abs(), fit_whitening(x, 2)(x).abs(), atol=0.02, rtol=0
    )


def test_l2_normalised_rows_have_norm_one_and_zero_stays_zero():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [-1e-3, 0.0]])
    torch.testing.assert_close(l2_normalise(x), torch.tensor([[0.6, 0.8], [0.0, 0.0], [-1.0, 0.0]]))
    assert l2_normalise(torch.full((1, 2), 1e-20)).norm() < 1e-7  # too short to have a direction
