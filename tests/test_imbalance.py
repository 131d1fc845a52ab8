"""Subsets whose class sizes fall exponentially."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainings import SHORT, TINY, Unlabelled, record, start

from pretrain.deepcluster import DeepCluster
from zoo.datasets.imbalance import imbalanced


@given(st.integers(1, 12), st.integers(20, 60), st.floats(1, 20), st.integers(0, 99))
def test_sizes_fall_exponentially_from_the_smallest_class(classes, count, ratio, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), count))
    labels = np.concatenate([labels, np.full(15, classes - 1)])  # one class has more
    ids = imbalanced(labels, ratio, np.random.default_rng(seed))
    assert (np.diff(ids) > 0).all()
    sizes = np.sort(np.bincount(labels[ids], minlength=classes))[::-1]
    smallest = np.bincount(labels).min()
    wanted = [max(1, round(smallest * ratio ** (-r / max(1, classes - 1)))) for r in range(classes)]
    assert sizes.tolist() == wanted


def test_classes_and_images_are_drawn_from_the_seed():
    labels = np.repeat(np.arange(5), 40)
    first, again, *others = (imbalanced(labels, 10, np.random.default_rng(seed)).tolist() for seed in (0, 0, 1, 2, 3))
    assert first == again
    rarest = {int(np.bincount(labels[ids]).argmin()) for ids in (first, *others)}
    assert len(rarest) > 1
    assert imbalanced(labels, 1, np.random.default_rng(0)).tolist() == list(range(200))


def test_a_run_learns_from_the_subset(tmp_path):
    assert start(DeepCluster, tmp_path, *SHORT, "--k", "4", "--imbalance", "2") == 0
    found = record(tmp_path)
    labels = TINY.open("train").labels
    sizes = [max(1, round(np.bincount(labels).min() * 2 ** (-r / 9))) for r in range(10)]
    assert found.settings["imbalance"] == 2
    assert found.details["images"] == sum(sizes) == sum(found.details["history"][-1]["cluster_sizes"])


@pytest.mark.parametrize(
    ("dataset", "value", "told"),
    [
        (Unlabelled(), "3", "no classes"),
        (TINY, "0.5", "--imbalance 0.5 cannot be"),
        (TINY, "1000", "none of it would stay at an imbalance of 1000"),
    ],
)
def test_an_imbalance_that_cannot_be(tmp_path, capsys, dataset, value, told):
    assert start(DeepCluster, tmp_path, *SHORT, "--k", "4", "--imbalance", value, dataset=dataset) == 2
    assert told in capsys.readouterr().err
