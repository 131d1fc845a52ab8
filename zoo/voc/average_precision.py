"""Average precision in three forms. At the same scores they differ by points, so each is called by its name.

    voc07   mean of the best precision at or beyond the recalls 0, .1, … 1 (VOC2007, Everingham et al. 2010)
    area    area under the curve's monotone envelope (VOC2010 and later)
    step    area under the curve's steps (scikit-learn's, which DeepCluster's VOC07 classification reports)

Among equal scores the negatives come first, then the positives at once: the same value for every order of the images,
and DeepCluster's, which subtracts 1e-5 from the positives' scores (deepcluster.md 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from results.errors import RunFailed, UserError

Curve = tuple[np.ndarray, np.ndarray]  # recall, precision; each (n,)
# 3 · .1 is more than .3, so a recall of exactly .3 does not reach it; but that is what VOC's devkit compares with
RECALLS = np.arange(11) * 0.1


def curve(
    scores: np.ndarray, relevant: np.ndarray, counted: np.ndarray | None = None, positives: int | None = None
) -> Curve:
    """Recall and precision after each entry, from the highest score to the lowest; equal entries are one.

    scores: (N,). relevant: bool (N,). counted: bool (N,), False where an entry counts neither way; by default all do.
    positives: how many there are to be found, by default the relevant entries.
    ValueError if lengths differ, if a mask is no mask, or if there is nothing to be found; RunFailed if a score is not
    a finite number.
    """
    mask = np.ones(len(scores), bool) if counted is None else counted
    _check(scores, relevant, mask)
    scores, relevant = scores[mask], relevant[mask]
    total = int(relevant.sum()) if positives is None else positives
    if not total:
        raise ValueError("without positives there is no recall")
    order = np.lexsort((relevant, -scores))
    right, ends = np.cumsum(relevant[order]), _ends(scores[order], relevant[order])
    return right[ends] / total, right[ends] / (ends + 1)


def ap_voc07(recall: np.ndarray, precision: np.ndarray) -> float:
    """The 11-point form of a curve (n,): 0…1; a recall that is never reached has precision 0."""
    best = np.append(_envelope(precision), 0)
    return float(best[np.searchsorted(recall, RECALLS)].mean())


def ap_area(recall: np.ndarray, precision: np.ndarray) -> float:
    """The area under a curve's (n,) monotone envelope: 0…1."""
    return ap_step(recall, _envelope(precision))


def ap_step(recall: np.ndarray, precision: np.ndarray) -> float:
    """The area under the steps of a curve (n,): 0…1, at most ap_area; without ties scikit-learn's."""
    return float((np.diff(recall, prepend=0) * precision).sum())


FORMS = {"voc07": ap_voc07, "area": ap_area, "step": ap_step}


def classification_scores(
    scores: np.ndarray, presence: np.ndarray, classes: Sequence[str]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """mAP of classifying images, in the three forms, and beside it every class's AP; all in percent.

    scores: (N, C). presence: integers (N, C) as in VOC's lists: 1, -1, and 0 (difficult), which counts neither way.
    ({"mAP_voc07": …}, {"AP_voc07": {class: …}, …}). UserError naming a class that no image has.
    """
    if scores.shape != presence.shape or scores.shape[1:] != (len(classes),):
        raise ValueError(f"scores {scores.shape} and presence {presence.shape} are not of {len(classes)} classes")
    if presence.dtype == bool or not np.isin(presence, (-1, 0, 1)).all():
        raise ValueError("presence is 1, -1 or 0")
    check_present((presence == 1).sum(0), classes)
    curves = {name: curve(column, there == 1, there != 0) for name, column, there in zip(classes, scores.T, presence.T)}
    table = {form: {name: 100 * ap(*curves[name]) for name in classes} for form, ap in FORMS.items()}
    means = {f"mAP_{form}": float(np.mean(list(row.values()))) for form, row in table.items()}
    return means, {f"AP_{form}": row for form, row in table.items()}


def check_present(positives: np.ndarray, classes: Sequence[str]) -> None:
    """UserError naming the classes with no positive (C,): their average precision is not defined."""
    absent = [name for name, count in zip(classes, positives) if not count]
    if absent:
        raise UserError(
            f"no image shows a {absent[0]} that counts: its average precision is not defined",
            "the annotations of the images evaluated on" + (f"; {', '.join(absent[1:])} too" if absent[1:] else ""),
            "more images (a larger --limit, or none)",
        )


def _envelope(precision: np.ndarray) -> np.ndarray:
    """At each point the best precision there or beyond."""
    return np.maximum.accumulate(precision[::-1])[::-1]


def _ends(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Where each run of equal entries ends, in lists (n,) that are in order."""
    differs = (scores[1:] != scores[:-1]) | (relevant[1:] != relevant[:-1])
    return np.flatnonzero(np.append(differs, len(scores) > 0))  # an empty list has one value that is False


def _check(scores: np.ndarray, relevant: np.ndarray, counted: np.ndarray) -> None:
    if not scores.shape == relevant.shape == counted.shape or scores.ndim != 1:
        raise ValueError(f"{scores.shape} scores, {relevant.shape} labels and a mask {counted.shape} do not fit")
    if relevant.dtype != bool or counted.dtype != bool:
        raise ValueError("what is relevant and what counts are masks (bool)")  # VOC's -1 would be true
    if not np.isfinite(scores).all():
        raise RunFailed("the scores to rank by are not all finite numbers")
