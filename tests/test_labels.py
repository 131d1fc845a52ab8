"""Classes from what is written beside images."""

import numpy as np
import pytest

from results.errors import UserError
from zoo.datasets.labels import number_classes


def number(**texts):
    """number_classes of words, images being called `split 0`, `split 1`, …"""
    arrays = {split: np.array([word.encode() for word in words]) for split, words in texts.items()}
    return number_classes(arrays, lambda split, at: f"{split} {at}")


@pytest.mark.parametrize(
    ("words", "labels", "classes"),
    [
        (["b", "a", "b"], [1, 0, 1], ("a", "b")),
        (["10", "9", "10", "0"], [2, 1, 2, 0], ("0", "9", "10")),  # as numbers, not as texts
        (["007", "7", "1"], [1, 1, 0], ("1", "7")),
        (["B", "a", "été"], [0, 1, 2], ("B", "a", "été")),
    ],
)
def test_classes_are_sorted_and_numbered(words, labels, classes):
    found, names = number(train=words)
    assert found["train"].tolist() == labels
    assert found["train"].dtype == np.int64
    assert names == classes


def test_the_second_split_has_the_classes_of_the_first():
    found, names = number(train=["cat", "ant", "bee"], val=["cat", "bee", "cat"])
    assert found["val"].tolist() == [2, 1, 2]
    assert names == ("ant", "bee", "cat")


def test_without_any_labels_there_are_no_classes():
    assert number(train=["", ""], val=[""]) == ({"train": None, "val": None}, ())


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"train": ["3", "", "4"]}, "train 1 has no label, and others have one"),
        ({"train": ["3", "4"], "val": ["", "3"]}, "val 0 has no label"),
        ({"train": ["", ""], "val": ["3"]}, "train 0 has no label"),
        ({"train": ["3", "4", "cat"]}, "train 0 has the label '3', and train 2 has 'cat'"),
        ({"train": ["3", "-1"]}, "train 1 has the label '-1', and train 0 has '3'"),
        ({"train": ["3", "1.5"]}, "and train 1 has '1.5'|train 1 has the label '1.5'"),
        ({"train": ["3", "4"], "val": ["3", "5"]}, "val 1 has the label '5', which no image of train has"),
    ],
)
def test_labels_that_do_not_fit_are_refused(texts, message):
    with pytest.raises(UserError, match=message) as caught:
        number(**texts)
    assert caught.value.fix
