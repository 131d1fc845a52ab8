"""How well boxes and masks agree with VOC's annotations: AP of detections, IoU of segmentations. All in percent.

Boxes are matched as by VOC, which COCO's evaluators (torchmetrics, pycocotools) do not compute: a detection takes the
truth of its image and class that it overlaps most, even if that is matched already (then it is a false positive), and
one that takes a difficult truth counts neither way. Where detectron2's PascalVOCDetectionEvaluator gives another value
for the same detections, it is for its text files: it rounds scores to 3 decimals and corners to 1, and leaves the order
of equal scores to numpy's sort; here false positives come first among equal scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from results.errors import RunFailed, UserError
from zoo.voc.annotation import Annotation
from zoo.voc.average_precision import ap_area, ap_voc07, check_present, curve
from zoo.voc.masks import BORDER

FORMS = {"voc07": ap_voc07, "area": ap_area}
THRESHOLDS = np.arange(50, 100, 5) / 100
ORIGIN = np.array([1.0, 1.0, 0.0, 0.0])  # from edges to VOC's pixels, which are counted from 1 and inclusive


def to_edges(corners: np.ndarray) -> np.ndarray:
    """VOC's xmin, ymin, xmax, ymax (…, 4) as edges counted from 0, as networks have them: x1, y1, x2, y2, x2 - x1 wide.

    A whole image of 500x375 is 1, 1, 500, 375 in VOC's XML and 0, 0, 500, 375 in edges.
    """
    return np.asarray(corners, np.float64) - ORIGIN


def to_pixels(edges: np.ndarray) -> np.ndarray:
    """Edges (…, 4) as VOC's pixels, float64: the inverse of to_edges."""
    return np.asarray(edges, np.float64) + ORIGIN


@dataclass(frozen=True)
class Boxes:
    """Boxes in some images, one row each.

    count: of the images. images: the number of each box's image, int (n,). labels: its class, int (n,).
    corners: xmin, ymin, xmax, ymax as in VOC's XML: pixels counted from 1, inclusive, float64 (n, 4).
    ValueError if these do not fit each other, RunFailed if a corner is not a finite number.
    """

    count: int
    images: np.ndarray
    labels: np.ndarray
    corners: np.ndarray

    def __post_init__(self) -> None:
        rows = len(self.images)
        for name, column in vars(self).items():
            wanted = (rows, 4) if name == "corners" else (rows,)
            if name != "count" and column.shape != wanted:
                raise ValueError(f"{rows} boxes with {name} {column.shape}")
        if rows and not 0 <= self.images.min() <= self.images.max() < self.count:
            raise ValueError(f"boxes of other images than the {self.count} there are")
        if not np.isfinite(self.corners).all():
            raise RunFailed("the corners of the boxes are not all finite numbers")
        if (self.corners[:, :2] > self.corners[:, 2:] + 1).any():
            raise ValueError("a box ends before it begins")


@dataclass(frozen=True)
class Detections(Boxes):
    """Boxes found, with scores (n,)."""

    scores: np.ndarray


@dataclass(frozen=True)
class Truths(Boxes):
    """Boxes annotated; difficult: bool (n,)."""

    difficult: np.ndarray


def detections(found: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Detections:
    """What a detector found in each image, one after another: edges (n, 4), classes (n,) and scores (n,)."""
    edges = np.concatenate([np.zeros((0, 4)), *(np.reshape(one, (-1, 4)) for one, _, _ in found)])
    labels = np.concatenate([np.zeros(0, np.int64), *(one for _, one, _ in found)])
    scores = np.concatenate([np.zeros(0), *(one for _, _, one in found)])
    return Detections(len(found), _numbers([len(one) for _, one, _ in found]), labels, to_pixels(edges), scores)


def truths(annotations: Sequence[Annotation], classes: Sequence[str]) -> Truths:
    """What is annotated in each image."""
    boxes = [box for annotation in annotations for box in annotation.boxes]
    return Truths(
        len(annotations),
        _numbers([len(annotation.boxes) for annotation in annotations]),
        np.array([classes.index(box.name) for box in boxes], np.int64),
        np.array([box.corners for box in boxes], np.float64).reshape(-1, 4),
        np.array([box.difficult for box in boxes], bool),
    )


def _numbers(counts: Sequence[int]) -> np.ndarray:
    """0 as often as the first count says, then 1, …"""
    return np.repeat(np.arange(len(counts)), counts)


def detection_scores(
    found: Detections, true: Truths, classes: Sequence[str]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """AP at an IoU of .5 and .75 and the mean over .5, .55, … .95, in VOC's two forms; and each class's AP at .5.

    ({"AP_voc07": …, "AP50_voc07": …, "AP75_voc07": …, "AP_area": …, …}, {"AP50_voc07": {class: …}, "AP50_area": …}).
    UserError naming a class without a truth that counts; ValueError if the images or classes are not the same.
    """
    _check_same(found, true, classes)
    positives = np.bincount(true.labels[~true.difficult], minlength=len(classes))
    check_present(positives, classes)
    overlap, taken = nearest(found, true)
    # (thresholds, classes, forms)
    table = 100 * np.array([_judged(found, true, overlap, taken, limit, positives) for limit in THRESHOLDS])
    metrics: dict[str, float] = {}
    details: dict[str, dict[str, float]] = {}
    for number, form in enumerate(FORMS):
        mean = table[..., number].mean(1)
        metrics |= {f"AP_{form}": float(mean.mean()), f"AP50_{form}": float(mean[0]), f"AP75_{form}": float(mean[5])}
        details[f"AP50_{form}"] = dict(zip(classes, table[0, :, number].tolist()))
    return metrics, details


def nearest(found: Detections, true: Truths) -> tuple[np.ndarray, np.ndarray]:
    """For each detection the truth of its image and class that it overlaps most, and their IoU: (n,) and rows (n,).

    The first of equal ones; 0 and row 0 where there is none.
    """
    names = 1 + max(found.labels.max(initial=0), true.labels.max(initial=0))
    wanted, there = found.images * names + found.labels, true.images * names + true.labels
    order = np.argsort(there, kind="stable")
    first, end = (np.searchsorted(there[order], wanted, side) for side in ("left", "right"))
    # every detection with every truth that it may take: pairs, a detection's one after another
    left = np.repeat(np.arange(len(wanted)), end - first)
    nth = np.arange(len(left)) - np.repeat(np.cumsum(end - first) - (end - first), end - first)
    right = order[first[left] + nth]
    overlap = iou(found.corners[left], true.corners[right])
    ranked = np.lexsort((-overlap, left))  # stable
    rows, best = np.unique(left[ranked], return_index=True)
    most, taken = np.zeros(len(wanted)), np.zeros(len(wanted), np.int64)
    most[rows], taken[rows] = overlap[ranked][best], right[ranked][best]
    return most, taken


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union (n,) of boxes (n, 4) and boxes (n, 4), whose corners are inclusive pixels."""
    inner = np.concatenate([np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])], axis=1)
    shared = area(inner)
    return shared / (area(a) + area(b) - shared)


def area(corners: np.ndarray) -> np.ndarray:
    """Pixels (n,) in boxes (n, 4) whose corners are inclusive; 0 for what ends before it begins."""
    return np.maximum(corners[:, 2:] - corners[:, :2] + 1, 0).prod(1)


def judge(
    scores: np.ndarray, overlap: np.ndarray, taken: np.ndarray, difficult: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which detections are right (n,), and which count (n,), where each has `overlap` with the truth `taken`.

    More than `threshold`, as in the Python evaluators since py-faster-rcnn; VOC's MATLAB devkit takes what is equal.
    """
    matched = overlap > threshold
    hard = matched & difficult[taken]
    order = np.argsort(-scores, kind="stable")
    claims = order[(matched & ~hard)[order]]
    _, first = np.unique(taken[claims], return_index=True)
    right = np.zeros(len(scores), bool)
    right[claims[first]] = True
    return right, ~hard


def _judged(
    found: Detections, true: Truths, overlap: np.ndarray, taken: np.ndarray, threshold: float, positives: np.ndarray
) -> list[list[float]]:
    """AP of each class in each form, at one threshold of IoU."""
    right, counted = judge(found.scores, overlap, taken, true.difficult, threshold)
    rows = []
    for label, total in enumerate(positives):
        mine = found.labels == label
        drawn = curve(found.scores[mine], right[mine], counted[mine], int(total))
        rows.append([form(*drawn) for form in FORMS.values()])
    return rows


def _check_same(found: Detections, true: Truths, classes: Sequence[str]) -> None:
    if found.count != true.count:
        raise ValueError(f"detections in {found.count} images, truths in {true.count}")
    labels = np.concatenate([found.labels, true.labels])
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        raise ValueError(f"boxes of other classes than the {len(classes)} there are")


def confusion(predicted: Tensor, true: Tensor, classes: int) -> Tensor:
    """How many pixels are of the one class (row) and predicted as the other (column): int64 (C, C), to be summed.

    predicted, true: integers of one shape, on one device. Pixels that are truly 255 are not counted.
    ValueError for a label that is not of the C classes.
    """
    if predicted.shape != true.shape:
        raise ValueError(f"a prediction of {tuple(predicted.shape)} for a mask of {tuple(true.shape)}")
    counted = true != BORDER
    rows, columns = true[counted].long(), predicted[counted].long()
    for labels in (rows, columns):
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(f"labels {int(labels.min())} … {int(labels.max())} of {classes} classes")
    return torch.bincount(rows * classes + columns, minlength=classes**2).reshape(classes, classes)


def segmentation_scores(table: np.ndarray, classes: Sequence[str]) -> tuple[dict[str, float], dict]:
    """mIoU, pixel and mean class accuracy of a summed confusion (C, C); and each class's IoU, and the absent classes.

    As mmsegmentation's IoUMetric: mIoU is over the classes that are in a mask or predicted, mean accuracy over those
    in a mask. IoUMetric does not say which it left out: `absent` are those without an IoU.
    UserError if no pixel has a class.
    """
    right, true, union = table.diagonal(), table.sum(1), table.sum(0) + table.sum(1) - table.diagonal()
    check_counted(true.sum())
    ious = {name: 100 * float(right[i] / union[i]) for i, name in enumerate(classes) if union[i]}
    metrics = {
        "mIoU": float(np.mean(list(ious.values()))),
        "pixel_acc": 100 * float(right.sum() / true.sum()),
        "mean_acc": 100 * float((right[true > 0] / true[true > 0]).mean()),
    }
    return metrics, {"IoU": ious, "absent": [name for name in classes if name not in ious]}


def check_counted(pixels: int) -> None:
    """UserError if no pixel of the masks counts."""
    if not pixels:
        raise UserError("no pixel of the masks has a class", fix="more images (a larger --limit, or none)")
