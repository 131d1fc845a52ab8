"""Every score against its definition, written out by loops or by averaging over all permutations."""

from __future__ import annotations

from itertools import combinations, permutations
from math import log, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.clustering.matching import contingency
from zoo.clustering.scores import acc, ami, ari, empty_clusters, entropy, nmi, purity, scores

LABELS = st.integers(0, 3)
PAIRS = st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=25)
FEW = st.lists(st.tuples(LABELS, LABELS), min_size=2, max_size=6)
EXAMPLES = settings(max_examples=50)


def columns(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    a, b = zip(*pairs)
    return np.array(a), np.array(b)


def label_entropy(a) -> float:
    shares = [list(a).count(i) / len(a) for i in set(a)]
    return sum(-p * log(p) for p in shares)


def mutual_information(a, b) -> float:
    n, pairs = len(a), list(zip(a, b))
    total = 0.0
    for i, j in set(pairs):
        joint = pairs.count((i, j)) / n
        total += joint * log(joint / (list(a).count(i) / n * list(b).count(j) / n))
    return total


def rand_index(a, b) -> float:
    pairs = list(combinations(range(len(a)), 2))
    return sum((a[i] == a[j]) == (b[i] == b[j]) for i, j in pairs) / len(pairs)


def adjusted(score, highest: float, a, b) -> float:
    """Adjustment for chance by its definition: the mean over every order of b is 0, `highest` is 1."""
    orders = [score(a, order) for order in permutations(b)]
    expected = sum(orders) / len(orders)
    return (score(a, b) - expected) / (highest - expected) if abs(highest - expected) > 1e-12 else 1.0


@EXAMPLES
@given(PAIRS)
def test_nmi_is_information_over_mean_entropy(pairs):
    a, b = columns(pairs)
    h, g, shared = label_entropy(a), label_entropy(b), mutual_information(a, b)
    both = 1.0 if h == g == 0 else 0.0
    assert nmi(a, b, "arithmetic") == pytest.approx(shared / ((h + g) / 2) if h * g else both, abs=1e-9)
    assert nmi(a, b, "geometric") == pytest.approx(shared / sqrt(h * g) if h * g else both, abs=1e-9)
    assert nmi(a, b, "geometric") >= nmi(a, b, "arithmetic") - 1e-9


@EXAMPLES
@given(FEW)
def test_ari_is_the_rand_index_adjusted_for_chance(pairs):
    a, b = columns(pairs)
    assert ari(a, b) == pytest.approx(adjusted(rand_index, 1.0, a, b), abs=1e-9)


@EXAMPLES
@given(FEW)
def test_ami_is_mutual_information_adjusted_for_chance(pairs):
    a, b = columns(pairs)
    highest = (label_entropy(a) + label_entropy(b)) / 2
    expected = adjusted(mutual_information, highest, a, b)
    if 0 in (label_entropy(a), label_entropy(b)):  # the convention: 1 if both are 0, else 0
        expected = float(label_entropy(a) == label_entropy(b))
    assert ami(a, b) == pytest.approx(expected, abs=1e-6)


@EXAMPLES
@given(PAIRS)
def test_acc_is_the_best_one_to_one_naming(pairs):
    a, b = columns(pairs)
    best = max(sum(naming[i] == j for i, j in pairs) for naming in permutations(range(4)))
    assert acc(contingency(a, b)) == pytest.approx(100 * best / len(pairs))


@EXAMPLES
@given(PAIRS)
def test_purity_is_the_majority_of_each_cluster(pairs):
    right = 0
    for cluster in range(4):
        classes = [label for i, label in pairs if i == cluster]
        right += max((classes.count(label) for label in classes), default=0)
    table = contingency(*columns(pairs))
    assert purity(table) == pytest.approx(100 * right / len(pairs))
    assert purity(table) >= acc(table) - 1e-9


@EXAMPLES
@given(PAIRS, st.permutations(range(4)), st.permutations(range(4)))
def test_no_score_depends_on_the_names_of_labels(pairs, naming, other):
    a, b = columns(pairs)
    renamed = scores(np.array(naming)[a], np.array(other)[b], k=4)
    assert renamed == pytest.approx(scores(a, b, k=4), abs=1e-9)


@EXAMPLES
@given(PAIRS)
def test_agreement_is_symmetric_and_perfect_with_itself(pairs):
    a, b = columns(pairs)
    for score in (ami, ari, lambda p, q: nmi(p, q, "arithmetic"), lambda p, q: nmi(p, q, "geometric")):
        assert score(a, b) == pytest.approx(score(b, a), abs=1e-9)
        assert score(a, a) == pytest.approx(1)
    assert acc(contingency(a, a)) == purity(contingency(a, a)) == 100


@EXAMPLES
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_entropy_is_in_nats_of_the_shares(labels):
    sizes = np.bincount(labels, minlength=8)
    assert entropy(sizes) == pytest.approx(label_entropy(labels))
    assert empty_clusters(sizes) == 8 - len(set(labels))


def test_entropy_of_even_and_of_one():
    assert entropy(np.full(10, 7)) == pytest.approx(log(10))
    assert str(entropy(np.array([5, 0]))) == "0.0"  # not -0.0


def test_more_clusters_than_classes_and_fewer():
    assignment, labels = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 0, 0, 1, 1])
    over = scores(assignment, labels)
    assert (over["acc"], over["purity"]) == (pytest.approx(100 * 4 / 6), 100)
    under = scores(labels, assignment)
    assert (under["acc"], under["purity"]) == (pytest.approx(100 * 4 / 6),) * 2


def test_k_counts_the_clusters_that_nobody_is_in():
    assignment = np.array([0, 3, 3])
    assert scores(assignment, assignment)["empty_clusters"] == 2
    assert scores(assignment, assignment, k=10)["empty_clusters"] == 8
    with pytest.raises(ValueError, match="do not fit"):
        scores(assignment, assignment, k=3)


def test_a_single_image_is_clustered_perfectly():
    found = scores(np.array([0]), np.array([5]))
    assert found == {
        **{"acc": 100, "purity": 100, "nmi_arithmetic": 1, "nmi_geometric": 1, "ami": 1, "ari": 1},
        **{"cluster_entropy": 0, "empty_clusters": 0},
    }


def test_scores_are_numbers_that_json_takes():
    found = scores(np.array([0, 1, 1]), np.array([0, 1, 0]))
    assert all(type(value) in (int, float) for value in found.values())


def test_labels_of_another_length_are_refused():
    with pytest.raises(ValueError, match="cannot be paired"):
        scores(np.array([0, 1]), np.array([0]))
