"""Pair counts by loops, and the matching against every permutation."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from zoo.clustering.matching import contingency, match, relabel

PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=30)
TABLES = arrays(np.int64, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.integers(0, 20))


def best_sum(table: np.ndarray) -> int:
    """The largest sum of one-to-one pairs, over all of them."""
    narrow = table if table.shape[0] <= table.shape[1] else table.T
    rows = range(narrow.shape[0])
    return max(sum(narrow[i, p[i]] for i in rows) for p in permutations(range(narrow.shape[1]), len(rows)))


@given(PAIRS)
def test_contingency_counts_pairs(pairs):
    a, b = (np.array(column) for column in zip(*pairs))
    table = contingency(a, b, 5, 7)
    assert table.shape == (5, 7)
    assert all(table[i, j] == pairs.count((i, j)) for i in range(5) for j in range(7))
    np.testing.assert_array_equal(contingency(a, b), table[: a.max() + 1, : b.max() + 1])
    np.testing.assert_array_equal(contingency(b, a), contingency(a, b).T)


@given(TABLES)
def test_match_is_the_best_of_all_permutations(table):
    rows, columns = match(table)
    assert len(rows) == len(set(rows)) == len(set(columns)) == min(table.shape)
    assert table[rows, columns].sum() == best_sum(table)


@given(st.permutations(range(6)), st.integers(0, 99))
def test_relabel_undoes_a_permutation(order, seed):
    previous = np.concatenate([np.arange(6), np.random.default_rng(seed).integers(6, size=40)])
    permutation = relabel(np.array(order)[previous], previous, 6)
    np.testing.assert_array_equal(permutation[np.array(order)[previous]], previous)


@given(PAIRS)
def test_relabel_is_a_permutation_of_best_agreement(pairs):
    new, previous = (np.array(column) for column in zip(*pairs))
    permutation = relabel(new, previous, 7)
    assert sorted(permutation) == list(range(7))
    assert (permutation[new] == previous).sum() == best_sum(contingency(new, previous))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([0, 1], [0], "cannot be paired"),
        ([], [], "row of whole numbers"),
        ([0.0, 1.0], [0, 1], "row of whole numbers"),
        ([[0, 1]], [[0, 1]], "row of whole numbers"),
        ([0, -1], [0, 1], "count from 0"),
        ([0, 3], [0, 1], "do not fit"),
        ([0, 1], [0, 3], "do not fit"),
    ],
)
def test_bad_labels_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        contingency(np.array(a), np.array(b), 3, 3)
