"""DeepCluster's sampler: every cluster equally often, whatever its size."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.clustering.sampling import uniform

assignments = st.lists(st.integers(0, 12), min_size=1, max_size=60).map(np.array)


def draw(assignment, length=None, seed=0):
    return uniform(assignment, len(assignment) if length is None else length, np.random.default_rng(seed))


@settings(max_examples=60)
@given(assignments, st.integers(1, 150), st.integers(0, 5))
def test_what_is_drawn(assignment, length, seed):
    ids = draw(assignment, length, seed)
    assert ids.shape == (length,)
    assert ids.min() >= 0
    assert ids.max() < len(assignment)
    clusters, sizes = np.unique(assignment, return_counts=True)
    share = length // len(clusters) + 1
    taken = [(assignment[ids] == cluster).sum() for cluster in clusters]
    assert max(taken) <= share
    assert sum(share - n for n in taken) == share * len(clusters) - length < len(clusters) + 1  # what the cut dropped
    for cluster, size in zip(clusters, sizes):
        if size > share:  # without replacement
            assert np.bincount(ids[assignment[ids] == cluster], minlength=1).max() <= 1


@settings(max_examples=20)
@given(assignments, st.integers(0, 5))
def test_the_same_draw_from_the_same_generator(assignment, seed):
    assert np.array_equal(draw(assignment, seed=seed), draw(assignment, seed=seed))


def test_clusters_of_any_size_are_drawn_equally_often():
    rng = np.random.default_rng(0)
    sizes = rng.lognormal(0, 1.5, 100)
    assignment = rng.choice(100, 20000, p=sizes / sizes.sum())
    sizes = np.bincount(assignment)
    sizes = sizes[sizes > 0]
    drawn = np.bincount(assignment[draw(assignment)])
    drawn = drawn[drawn > 0]
    assert sizes.std() / sizes.mean() > 1
    assert drawn.std() / drawn.mean() < 0.05
    assert len(drawn) == len(sizes)


def test_small_clusters_repeat_their_images_and_large_ones_do_not():
    assignment = np.array([0] * 90 + [1] * 10)
    ids = draw(assignment)
    small, large = ids[ids >= 90], ids[ids < 90]
    assert abs(len(small) - 50) <= 2
    assert len(np.unique(large)) == len(large)


def test_a_cluster_of_exactly_the_share_is_drawn_with_replacement():
    assignment = np.repeat([0, 1], [11, 9])  # N = 20: a share of 11
    repeated = [
        len(np.unique(ids[ids < 11])) < (ids < 11).sum() for ids in (draw(assignment, seed=s) for s in range(9))
    ]
    assert any(repeated)


def test_empty_clusters_are_passed_over():
    gaps, dense = np.array([3, 3, 3, 70, 70, 9]), np.array([0, 0, 0, 2, 2, 1])
    assert np.array_equal(draw(gaps), draw(dense))


def test_one_cluster_of_all_images():
    assert sorted(set(draw(np.zeros(50, dtype=np.int64), seed=3))) != list(range(50))  # with replacement: 51 of 50


def test_the_order_is_shuffled():
    assignment = np.repeat(np.arange(10), 100)
    changes = (np.diff(assignment[draw(assignment)]) != 0).mean()
    assert changes > 0.8  # sorted by cluster it would be 9 of 999


def test_another_generator_draws_another_order():
    assignment = np.repeat(np.arange(10), 10)
    assert not np.array_equal(draw(assignment, seed=0), draw(assignment, seed=1))
