"""Each form of average precision against its definition, written out by loops; ties, masks and bad input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from results.errors import RunFailed, UserError
from zoo.voc.average_precision import FORMS, ap_area, ap_step, ap_voc07, check_present, classification_scores, curve

# few distinct scores, so that many are equal
ENTRIES = st.lists(st.tuples(st.integers(0, 12), st.booleans(), st.booleans()), min_size=1, max_size=40)


def columns(entries) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores, relevant, counted = zip(*entries)
    assume(any(r and c for r, c in zip(relevant, counted)))
    return np.array(scores) / 8, np.array(relevant), np.array(counted)


def points(scores, relevant, counted) -> list[tuple[float, float]]:
    """(recall, precision) going down the list, negatives first among equal scores, and equal entries at once."""
    kept = sorted((-score, r) for score, r, c in zip(scores, relevant, counted) if c)
    positives, drawn = sum(r for _, r in kept), []
    for entry in sorted(set(kept)):
        above = [r for score, r in kept if (score, r) <= entry]
        drawn.append((sum(above) / positives, sum(above) / len(above)))
    return drawn


def eleven_points(drawn) -> float:
    total = 0.0
    for i in range(11):
        total += max((precision for recall, precision in drawn if recall >= i * 0.1), default=0.0)
    return total / 11


def area_under(drawn, beyond: bool) -> float:
    """Each step of recall times the precision there, or the best precision there or `beyond`."""
    total, before = 0.0, 0.0
    for place, (recall, precision) in enumerate(drawn):
        total += (recall - before) * (max(p for _, p in drawn[place:]) if beyond else precision)
        before = recall
    return total


@given(ENTRIES)
def test_every_form_is_its_definition(entries):
    scores, relevant, counted = columns(entries)
    drawn = points(scores, relevant, counted)
    recall, precision = curve(scores, relevant, counted)
    np.testing.assert_allclose(np.stack([recall, precision], axis=1), drawn)
    assert ap_voc07(recall, precision) == pytest.approx(eleven_points(drawn))
    assert ap_area(recall, precision) == pytest.approx(area_under(drawn, beyond=True))
    assert ap_step(recall, precision) == pytest.approx(area_under(drawn, beyond=False))


@given(ENTRIES)
def test_step_is_scikit_learns_with_pessimistic_ties(entries):
    scores, relevant, counted = columns(entries)
    lowered = scores - 1e-5 * relevant  # DeepCluster's evaluation: equal scores are not equal any more
    expected = average_precision_score(relevant[counted], lowered[counted])
    assert ap_step(*curve(scores, relevant, counted)) == pytest.approx(expected)
    if len(set(scores[counted])) == counted.sum():
        assert expected == pytest.approx(average_precision_score(relevant[counted], scores[counted]))


@given(ENTRIES, st.randoms(use_true_random=False))
def test_the_order_of_entries_does_not_matter(entries, random):
    shuffled = random.sample(entries, len(entries))
    one, other = (curve(*columns(order)) for order in (entries, shuffled))
    for form in FORMS.values():
        assert form(*one) == form(*other)


@given(ENTRIES, st.floats(-5, 5), st.floats(0.1, 10))
def test_only_the_order_of_scores_counts(entries, shift, scale):
    scores, relevant, counted = columns(entries)
    for form in FORMS.values():
        assert form(*curve(scores * scale + shift, relevant, counted)) == pytest.approx(
            form(*curve(scores, relevant, counted))
        )


@given(ENTRIES)
def test_forms_are_fractions_and_the_envelope_is_above_the_steps(entries):
    recall, precision = curve(*columns(entries))
    assert 0 < ap_step(recall, precision) <= ap_area(recall, precision) + 1e-12
    assert all(0 < form(recall, precision) <= 1 + 1e-12 for form in FORMS.values())


@given(ENTRIES)
def test_ties_have_the_least_value_of_vocs_forms_that_breaking_them_gives(entries):
    scores, relevant, counted = columns(entries)
    broken = scores + 1e-4 * np.random.default_rng(0).random(len(scores))
    for form in (ap_voc07, ap_area):
        assert form(*curve(scores, relevant, counted)) <= form(*curve(broken, relevant, counted)) + 1e-12


def test_equal_scores_worked_out_by_hand():
    recall, precision = curve(np.ones(3), np.array([True, False, True]))
    assert recall.tolist() == [0, 1]
    assert precision.tolist() == pytest.approx([0, 2 / 3])
    assert [form(recall, precision) for form in FORMS.values()] == pytest.approx([2 / 3] * 3)


@given(ENTRIES)
def test_what_is_not_counted_is_as_if_it_were_not_there(entries):
    scores, relevant, counted = columns(entries)
    one, other = curve(scores, relevant, counted), curve(scores[counted], relevant[counted])
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


def test_a_list_worked_out_by_hand():
    # right, wrong, right, wrong, wrong, right: recall 1/3 1/3 2/3 2/3 2/3 1, precision 1 1/2 2/3 1/2 2/5 1/2
    recall, precision = curve(np.array([6.0, 5, 4, 3, 2, 1]), np.array([1, 0, 1, 0, 0, 1], bool))
    assert recall.tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 1])
    assert precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2, 2 / 5, 1 / 2])
    # recalls 0 .1 .2 .3 have 1; .4 .5 .6 have 2/3; .7 .8 .9 1 have 1/2
    assert ap_voc07(recall, precision) == pytest.approx((4 + 3 * 2 / 3 + 4 / 2) / 11)
    assert [ap_area(recall, precision), ap_step(recall, precision)] == pytest.approx([(1 + 2 / 3 + 1 / 2) / 3] * 2)


def test_the_envelope_lifts_what_a_later_point_surpasses():
    recall, precision = curve(np.array([3.0, 2, 1]), np.array([False, True, True]))
    assert ap_step(recall, precision) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert [ap_area(recall, precision), ap_voc07(recall, precision)] == pytest.approx([2 / 3] * 2)


def test_a_recall_of_exactly_three_tenths_is_short_of_the_devkits():
    recall, precision = curve(np.array([3.0, 2, 1]), np.ones(3, bool), positives=10)
    assert recall[-1] == 0.3
    assert ap_voc07(recall, precision) == pytest.approx(3 / 11)  # 0, .1, .2; not .30000000000000004


def test_positives_that_nothing_found_lower_recall():
    assert ap_area(*curve(np.array([1.0]), np.array([True]), positives=4)) == 0.25
    nothing = curve(np.zeros(0), np.zeros(0, bool), positives=4)
    assert [form(*nothing) for form in FORMS.values()] == [0, 0, 0]


@pytest.mark.parametrize(
    ("scores", "relevant", "counted", "said"),
    [
        (np.ones(2), np.ones(3, bool), None, "do not fit"),
        (np.ones((2, 1)), np.ones((2, 1), bool), None, "do not fit"),
        (np.ones(2), np.ones(2, bool), np.ones(1, bool), "do not fit"),
        (np.ones(2), np.array([1, -1]), None, "masks"),
        (np.ones(2), np.ones(2, bool), np.ones(2, int), "masks"),
        (np.ones(2), np.zeros(2, bool), None, "without positives"),
        (np.ones(2), np.ones(2, bool), np.zeros(2, bool), "without positives"),
    ],
)
def test_what_does_not_fit_is_refused(scores, relevant, counted, said):
    with pytest.raises(ValueError, match=said):
        curve(scores, relevant, counted)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_of_a_run_that_diverged_are_refused(bad):
    with pytest.raises(RunFailed, match="not all finite"):
        curve(np.array([1.0, bad]), np.ones(2, bool))


PRESENCE = np.array([[1, -1], [-1, 1], [0, 1], [-1, -1]], np.int8)
SCORES = np.array([[0.5, 0.1], [0.6, 0.2], [0.9, 0.4], [0.1, 0.3]])


def test_classification_scores_each_class_in_each_form():
    metrics, details = classification_scores(SCORES, PRESENCE, ("cat", "dog"))
    cat, dog = (curve(SCORES[rows, c], PRESENCE[rows, c] == 1) for c, rows in ((0, [0, 1, 3]), (1, [0, 1, 2, 3])))
    for form, ap in FORMS.items():
        expected = {"cat": 100 * ap(*cat), "dog": 100 * ap(*dog)}
        assert details[f"AP_{form}"] == pytest.approx(expected)
        assert metrics[f"mAP_{form}"] == pytest.approx(sum(expected.values()) / 2)
    assert details["AP_step"] == pytest.approx({"cat": 50, "dog": 100 * (1 + 2 / 3) / 2})
    assert all(type(value) is float for value in metrics.values())


@given(st.integers(0, 2**32 - 1))
def test_difficult_images_do_not_count_in_classification(seed):
    random = np.random.default_rng(seed)
    presence = random.integers(-1, 2, (12, 3))
    assume((presence == 1).any(0).all())
    scores = random.random((12, 3))
    moved = np.where(presence == 0, random.random((12, 3)), scores)
    assert classification_scores(scores, presence, "abc") == classification_scores(moved, presence, "abc")


def test_a_class_that_no_image_has_is_named():
    with pytest.raises(UserError, match=r"no image shows a dog that counts") as caught:
        classification_scores(SCORES[:1], PRESENCE[:1], ("cat", "dog"))
    assert "--limit" in caught.value.fix
    with pytest.raises(UserError, match=r"a b that counts.*\n.*; c too"):
        check_present(np.array([3, 0, 0]), "abc")


def test_presence_is_as_in_vocs_lists():
    with pytest.raises(ValueError, match="1, -1 or 0"):
        classification_scores(SCORES, PRESENCE == 1, ("cat", "dog"))
    with pytest.raises(ValueError, match="1, -1 or 0"):
        classification_scores(SCORES, np.where(PRESENCE == 0, 255, PRESENCE.astype(int)), ("cat", "dog"))
    with pytest.raises(ValueError, match="not of 3 classes"):
        classification_scores(SCORES, PRESENCE, ("cat", "dog", "cow"))
    with pytest.raises(ValueError, match="not of 2 classes"):
        classification_scores(SCORES[:2], PRESENCE, ("cat", "dog"))
