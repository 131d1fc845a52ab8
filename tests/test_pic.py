"""Power iteration clustering against its definition by loops in 60 digits, and on graphs that tie or have no edges."""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal, localcontext

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from results.errors import RunFailed, UserError
from zoo.clustering import pic as module
from zoo.clustering.graph import nearest_neighbours
from zoo.clustering.pic import adopt_singletons, climb, follow, number, pic, power_iteration, weigh
from zoo.clustering.scores import ari

EXAMPLES = settings(max_examples=60)
Graph = tuple[np.ndarray, np.ndarray]


def random_graph(seed: int, n: int, neighbours: int, scale: float) -> Graph:
    """Any n nodes' neighbours and distances: neither mutual nor from points."""
    generator = np.random.default_rng(seed)
    others = [generator.permutation(np.delete(np.arange(n), i))[:neighbours] for i in range(n)]
    indices = np.array(others, dtype=np.int64).reshape(n, min(neighbours, n - 1))
    return indices, np.sort(generator.random(indices.shape) * scale).astype(np.float32)


def point_graph(seed: int, n: int, neighbours: int, scale: float) -> Graph:
    """The nearest neighbours of n points in a square."""
    points = np.random.default_rng(seed).random((n, 2)) * scale**0.5
    return nearest_neighbours(points, neighbours)


def weigh_by_loops(indices: np.ndarray, distances: np.ndarray, sigma: float) -> dict[int, dict[int, Decimal]]:
    """W = A + Aᵀ by loops, without the edges that weigh 0."""
    weights: dict[int, dict[int, Decimal]] = defaultdict(lambda: defaultdict(Decimal))
    for i, (row, apart) in enumerate(zip(indices.tolist(), distances.tolist())):
        for j, distance in zip(row, apart):
            weight = Decimal(float(np.exp(-distance / sigma**2)))
            weights[i][j] += weight
            weights[j][i] += weight
    return weights


def powers(weights: dict[int, dict[int, Decimal]], n: int, alpha: float, iterations: int) -> list[Decimal]:
    """v of deepcluster.md 1.9, to the letter."""
    exact = Decimal(alpha)
    v = [1 / Decimal(n)] * n
    for _ in range(iterations):
        v = [exact * sum(w * v[j] for j, w in weights[i].items()) + (1 - exact) / n for i in range(n)]
        total = sum(v)
        v = [value / total for value in v]
    return v


def by_loops(
    indices: np.ndarray, distances: np.ndarray, sigma: float = 0.2, alpha: float = 0.001, iterations: int = 200
) -> list[int]:
    """Deepcluster.md 1.9 in plain Python, in 60 digits: what exact arithmetic gives unless two nodes are alike."""
    n = len(indices)
    with localcontext(prec=60):
        weights = weigh_by_loops(indices, distances, sigma)
        v = powers(weights, n, alpha, iterations)
        pointers = []
        for i in range(n):
            best, pointer = Decimal("1e-55") * v[i], i
            for j, w in sorted(weights[i].items()):
                if w * (v[j] - v[i]) > best:
                    best, pointer = w * (v[j] - v[i]), j
            pointers.append(pointer)
    ends = []
    for i in range(n):
        while pointers[i] != i:
            i = pointers[i]
        ends.append(i)
    joined = list(ends)
    for i in range(n):
        if ends.count(ends[i]) == 1:
            for j in indices[i].tolist():
                if ends.count(ends[j]) > 1:
                    joined[i] = ends[j]
                    break
    return renumber(joined)


def renumber(labels: list[int]) -> list[int]:
    seen: dict[int, int] = {}
    return [seen.setdefault(label, len(seen)) for label in labels]


@EXAMPLES
@given(
    st.sampled_from([random_graph, point_graph]),
    st.integers(0, 10**6),
    st.integers(1, 14),
    st.integers(1, 5),
    st.sampled_from([0.01, 0.1, 0.5, 1.0]),
)
def test_equals_the_definition(draw, seed, n, neighbours, scale):
    indices, distances = draw(seed, n, neighbours, scale)
    found = pic(indices, distances)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, by_loops(indices, distances))


@EXAMPLES
@given(st.integers(0, 10**6), st.sampled_from([0.05, 0.4]), st.sampled_from([0.0, 0.01, 0.5]), st.integers(0, 3))
def test_equals_the_definition_for_other_settings(seed, sigma, alpha, iterations):
    indices, distances = random_graph(seed, 10, 3, sigma**2 * 5)
    expected = by_loops(indices, distances, sigma, alpha, iterations)
    np.testing.assert_array_equal(pic(indices, distances, sigma, alpha, iterations), expected)


@pytest.mark.parametrize("seed", range(20))
def test_points_far_apart_are_clustered_as_exactly_as_near_ones(seed):
    indices, distances = random_graph(seed, 30, 2, 0.6)
    distances += np.float32(1.4)  # weights from 1e-15 to 1e-22: alpha times these, added to 1, is lost
    assert 1 + 0.001 * 2 * np.exp(-distances.min() / 0.04) == 1
    found = pic(indices, distances)
    assert len(set(found)) < 15
    np.testing.assert_array_equal(found, by_loops(indices, distances))


@pytest.mark.parametrize("seed", range(5))
def test_power_iteration_is_the_definition(seed):
    indices, distances = random_graph(seed, 20, 5, 0.2)
    height = power_iteration(weigh(indices, distances, 0.2), 0.1, 30)
    with localcontext(prec=60):
        expected = powers(weigh_by_loops(indices, distances, 0.2), 20, 0.1, 30)
    np.testing.assert_allclose((1 + height) / (1 + height).sum(), np.array(expected, float), rtol=1e-14)


def test_weights_are_symmetric_to_the_bit():
    indices, distances = random_graph(0, 200, 5, 0.5)
    weights = weigh(indices, distances, 0.2).toarray()
    np.testing.assert_array_equal(weights, weights.T)
    by_hand = np.zeros((200, 200))
    for i in range(200):
        for j, distance in zip(indices[i], distances[i].astype(np.float64)):
            by_hand[i, j] += np.exp(-distance / 0.2**2)
            by_hand[j, i] += np.exp(-distance / 0.2**2)
    np.testing.assert_allclose(weights, by_hand, rtol=1e-14)


def test_the_best_neighbour_wins_and_not_the_last():
    """The released program's fault until 2019: the last neighbour that was higher won."""
    weights = np.zeros((4, 4))
    for i, j, weight in ((0, 1, 1.0), (0, 2, 0.1), (0, 3, 0.0)):
        weights[i, j] = weights[j, i] = weight
    pointers = climb(scipy.sparse.csr_array(weights), np.array([0.0, 0.5, 0.6, 9.0]))
    np.testing.assert_array_equal(pointers, [1, 1, 2, 3])  # 1 × 0.5 beats 0.1 × 0.6; the 9 is no neighbour


def test_of_equal_ascents_the_lowest_node_is_chosen():
    weights = 1 - np.eye(4)
    np.testing.assert_array_equal(climb(scipy.sparse.csr_array(weights), np.array([1.0, 2, 2, 2])), [1, 1, 2, 3])


def test_blocks_give_the_same_as_one_block(monkeypatch):
    graph = random_graph(1, 500, 5, 0.3)
    whole = pic(*graph)
    monkeypatch.setattr(module, "BLOCK", 7)
    np.testing.assert_array_equal(pic(*graph), whole)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_equal_points_that_are_all_neighbours_have_no_ascent(n):
    graph = nearest_neighbours(np.ones((n, 3)))
    np.testing.assert_array_equal(pic(*graph), np.arange(n))  # all alike: each points to itself, and none has company


@pytest.mark.parametrize("n", [7, 50, 1000])
def test_constant_features_are_clustered_round_those_that_the_search_found(n):
    indices, distances = nearest_neighbours(np.full((n, 4), 0.3))
    assert (distances == 0).all()
    found = pic(indices, distances)
    assert len(found) == n
    assert set(found) == set(range(found.max() + 1))
    assert found.max() < 7  # the few that are everyone's neighbours


def test_a_pair_of_equals_joins_the_cluster_beside_it():
    points = np.array([[0.0], [0.1], [0.22], [5.0], [5.0]])
    np.testing.assert_array_equal(pic(*nearest_neighbours(points, 3)), [0, 0, 0, 0, 0])
    np.testing.assert_array_equal(pic(*nearest_neighbours(points, 1)), [0, 0, 0, 1, 2])  # it has only itself


@pytest.mark.parametrize("distance", [100.0, 1e30, np.inf])
def test_without_weights_every_node_is_a_cluster(distance):
    indices, distances = random_graph(0, 20, 5, 1.0)
    np.testing.assert_array_equal(pic(indices, np.full_like(distances, distance)), np.arange(20))


def test_far_blobs_do_not_mix():
    generator = np.random.default_rng(0)
    blob = np.arange(400) % 2
    points = generator.normal(size=(400, 4)) * 0.1 + blob[:, None] * 50
    found = pic(*nearest_neighbours(points))
    assert 2 <= len(set(found)) < 200
    assert not set(found[blob == 0]) & set(found[blob == 1])


@pytest.mark.parametrize("seed", range(10))
def test_nodes_in_another_order_make_the_same_clusters(seed):
    indices, distances = random_graph(seed, 300, 5, 0.3)
    order = np.random.default_rng(seed).permutation(300)  # new node i is the old order[i]
    place = np.argsort(order)
    permuted = pic(place[indices[order]], distances[order])
    found = pic(indices, distances)
    assert ari(permuted, found[order]) == 1
    np.testing.assert_array_equal(permuted, renumber(found[order].tolist()))


def test_nodes_that_are_alike_tie_in_whatever_order_they_are_summed():
    """Stars of 12 whose rays weigh what they may: the two centres are alike but for the order of their neighbours."""
    apart = np.random.default_rng(3).random(12).astype(np.float32) * 0.1
    rays, other = np.arange(12), np.random.default_rng(4).permutation(12)
    indices = np.concatenate([[25], [24], rays * 0 + 24, rays * 0 + 25])[:, None]
    indices = np.roll(indices, -2, axis=0)  # nodes 0–11 round 24, nodes 12–23 round 25, and 24 and 25 a pair
    distances = np.concatenate([apart, apart[other], [0.01, 0.01]]).astype(np.float32)[:, None]
    height = power_iteration(weigh(indices, distances, 0.2), 0.001, 200)
    assert height[24] != height[25]  # by rounding, or this tests nothing
    np.testing.assert_allclose(height[24], height[25], rtol=1e-14)
    np.testing.assert_array_equal(pic(indices, distances), np.repeat([0, 1, 0, 1], [12, 12, 1, 1]))


def test_pointers_are_followed_to_their_end():
    chain = np.append(np.arange(1, 1000), 999)
    np.testing.assert_array_equal(follow(chain), np.full(1000, 999))
    np.testing.assert_array_equal(follow(np.array([2, 1, 3, 3, 1])), [3, 1, 3, 3, 1])


def test_singletons_join_the_nearest_neighbour_that_is_none():
    peaks = np.array([0, 0, 2, 3, 4, 5, 5])
    indices = np.array([[2, 3], [2, 3], [3, 6], [6, 0], [2, 3], [2, 3], [2, 3]])
    # 2: its nearest is alone, the next is not; 3: the nearer of two; 4: both are alone, though they will join others.
    np.testing.assert_array_equal(adopt_singletons(peaks, indices), [0, 0, 5, 5, 4, 5, 5])


def test_clusters_are_numbered_as_they_first_occur():
    np.testing.assert_array_equal(number(np.array([3, 5, 3, 3, 0, 5])), [0, 1, 0, 0, 2, 1])


@pytest.mark.parametrize(
    "wrong", [dict(sigma=0), dict(sigma=-1), dict(sigma=np.nan), dict(alpha=1), dict(alpha=-0.1), dict(alpha=np.nan)]
)
def test_settings_out_of_range_are_a_user_error(wrong):
    with pytest.raises(UserError, match="was asked with sigma") as error:
        pic(*random_graph(0, 5, 2, 1.0), **wrong)
    assert "a sigma above 0 and an alpha from 0 to below 1" in error.value.fix


def test_distances_that_are_nan_are_a_failed_run():
    indices, distances = random_graph(0, 5, 2, 1.0)
    distances[3, 1] = np.nan
    with pytest.raises(RunFailed, match="NaN"):
        pic(indices, distances)


@pytest.mark.parametrize(
    ("indices", "distances", "message"),
    [
        (np.zeros((3, 2), int), np.zeros((3, 1)), "are not"),
        (np.zeros(3, int), np.zeros(3), "are not"),
        (np.zeros((0, 5), int), np.zeros((0, 5)), "are not"),
        (np.full((3, 1), 3), np.zeros((3, 1)), "from 3 to 3 are not among 3 nodes"),
        (np.full((3, 1), -1), np.zeros((3, 1)), "from -1 to -1"),
    ],
)
def test_what_is_no_graph_is_refused(indices, distances, message):
    with pytest.raises(ValueError, match=message):
        pic(indices, distances)
