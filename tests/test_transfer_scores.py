"""Detections and masks scored as by VOC: against the definition in loops, by hand, and against the two engines."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from results.errors import RunFailed, UserError
from transfer.scores import (
    FORMS,
    THRESHOLDS,
    Detections,
    Truths,
    confusion,
    detection_scores,
    detections,
    iou,
    judge,
    nearest,
    segmentation_scores,
    to_edges,
    to_pixels,
    truths,
)
from zoo.voc.annotation import Annotation, Box, format_annotation
from zoo.voc.average_precision import curve

EXAMPLES = settings(max_examples=40)
SEEDS = st.integers(0, 2**32 - 1)
CLASSES = ("cat", "dog", "cow")
needs_detectron2 = pytest.mark.skipif(find_spec("detectron2") is None, reason="needs make engines")
needs_mmseg = pytest.mark.skipif(find_spec("mmseg") is None, reason="needs make engines")


def random_boxes(random, count: int) -> np.ndarray:
    """Boxes in an image of 60x60, as VOC counts: whole numbers from 1."""
    starts = random.integers(1, 40, (count, 2))
    return np.concatenate([starts, starts + random.integers(3, 21, (count, 2))], axis=1).astype(float)


def random_truths(random, images: int) -> Truths:
    count = 4 * images + len(CLASSES)
    difficult = random.random(count) < 0.25
    difficult[: len(CLASSES)] = False  # of every class one that counts
    labels = np.concatenate([np.arange(len(CLASSES)), random.integers(0, len(CLASSES), count - len(CLASSES))])
    return Truths(images, random.integers(0, images, count), labels, random_boxes(random, count), difficult)


def random_detections(random, true: Truths, count: int) -> Detections:
    """Truths moved a little, some of them several times, and boxes of nothing; scores are multiples of 1/1000."""
    near = random.integers(0, len(true.images), count)
    moved = true.corners[near] + random.integers(-4, 5, (count, 4)) / 2
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2])
    false = random.random(count) < 0.2
    return Detections(
        true.count,
        np.where(false, random.integers(0, true.count, count), true.images[near]),
        np.where(random.random(count) < 0.1, random.integers(0, len(CLASSES), count), true.labels[near]),
        np.where(false[:, None], random_boxes(random, count), moved),
        random.permutation(1000)[:count] / 1000,
    )


def random_scene(seed: int, images: int = 4, count: int = 40) -> tuple[Detections, Truths]:
    random = np.random.default_rng(seed)
    true = random_truths(random, images)
    return random_detections(random, true, count), true


def take(boxes, rows):
    """Some rows of boxes, in that order."""
    columns = {name: value[rows] for name, value in vars(boxes).items() if name != "count"}
    return dataclasses.replace(boxes, **columns)


def overlap_by_pixels(a, b) -> float:
    """IoU of boxes whose corners are whole numbers, by counting pixels."""
    pixels = [
        {(x, y) for x in range(int(x1), int(x2) + 1) for y in range(int(y1), int(y2) + 1)} for x1, y1, x2, y2 in (a, b)
    ]
    return len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1])


def judged_by_loops(found: Detections, true: Truths, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Which detections are right and which count, going down the list of all."""
    right, counted, matched = np.zeros(len(found.scores), bool), np.ones(len(found.scores), bool), set()
    for d in sorted(range(len(found.scores)), key=lambda d: -found.scores[d]):
        best, most = None, threshold
        for t in range(len(true.images)):
            if (true.images[t], true.labels[t]) == (found.images[d], found.labels[d]):
                overlap = float(iou(found.corners[d : d + 1], true.corners[t : t + 1])[0])
                if overlap > most:
                    best, most = t, overlap
        if best is not None and true.difficult[best]:
            counted[d] = False
        elif best is not None and best not in matched:
            right[d] = True
            matched.add(best)
    return right, counted


def average_precision(found: Detections, true: Truths, label: int, threshold: float, form) -> float:
    right, counted = judged_by_loops(found, true, threshold)
    mine, positives = found.labels == label, int((~true.difficult & (true.labels == label)).sum())
    return 100 * form(*curve(found.scores[mine], right[mine], counted[mine], positives))


@EXAMPLES
@given(SEEDS)
def test_iou_counts_pixels(seed):
    random = np.random.default_rng(seed)
    a, b = random_boxes(random, 5), random_boxes(random, 5)
    assert iou(a, b).tolist() == pytest.approx([overlap_by_pixels(p, q) for p, q in zip(a, b)])
    np.testing.assert_array_equal(iou(a, b), iou(b, a))
    np.testing.assert_array_equal(iou(a, a), np.ones(5))


@EXAMPLES
@given(SEEDS, st.sampled_from(THRESHOLDS))
def test_detections_are_judged_as_by_going_down_the_list(seed, threshold):
    found, true = random_scene(seed)
    overlap, taken = nearest(found, true)
    right, counted = judge(found.scores, overlap, taken, true.difficult, threshold)
    expected = judged_by_loops(found, true, threshold)
    np.testing.assert_array_equal(right, expected[0])
    np.testing.assert_array_equal(counted, expected[1])


@settings(max_examples=5)
@given(SEEDS)
def test_scores_are_means_over_classes_and_thresholds(seed):
    found, true = random_scene(seed)
    metrics, details = detection_scores(found, true, CLASSES)
    assert len(metrics) == 6
    for name, form in FORMS.items():
        table = [[average_precision(found, true, c, t, form) for c in range(3)] for t in THRESHOLDS]
        assert metrics[f"AP50_{name}"] == pytest.approx(np.mean(table[0]))
        assert metrics[f"AP75_{name}"] == pytest.approx(np.mean(table[5]))
        assert metrics[f"AP_{name}"] == pytest.approx(np.mean(table))
        assert details[f"AP50_{name}"] == pytest.approx(dict(zip(CLASSES, table[0])))
    assert all(type(value) is float for value in [*metrics.values(), *details["AP50_area"].values()])


@EXAMPLES
@given(SEEDS, st.booleans())
def test_the_order_of_detections_does_not_matter(seed, ties):
    found, true = random_scene(seed)
    if ties:
        found = dataclasses.replace(found, scores=found.scores.round(1))
    random = np.random.default_rng(seed)
    shuffled = take(found, random.permutation(len(found.images)))
    assert detection_scores(shuffled, true, CLASSES) == detection_scores(found, true, CLASSES)


@EXAMPLES
@given(SEEDS)
def test_every_truth_found_exactly_is_a_hundred(seed):
    _, true = random_scene(seed)
    _, first = np.unique(np.column_stack([true.images, true.labels, true.corners]), axis=0, return_index=True)
    true = take(true, np.union1d(first, np.arange(3)))  # no box twice, but of every class one that counts
    scores = np.random.default_rng(seed).random(len(true.images))
    found = Detections(true.count, true.images, true.labels, true.corners, scores)
    metrics, _ = detection_scores(found, true, CLASSES)
    assert metrics == pytest.approx(dict.fromkeys(metrics, 100))


@EXAMPLES
@given(SEEDS)
def test_finding_the_same_again_lowers_precision(seed):
    found, true = random_scene(seed)
    again = take(found, np.tile(np.arange(len(found.images)), 2))
    # every right one is followed by one that is wrong
    for name, value in detection_scores(again, true, CLASSES)[0].items():
        assert value <= detection_scores(found, true, CLASSES)[0][name] + 1e-9


@EXAMPLES
@given(SEEDS)
def test_difficult_truths_never_count(seed):
    found, true = random_scene(seed)
    overlap, taken = nearest(found, true)
    right, counted = judge(found.scores, overlap, taken, true.difficult, 0.5)
    hard = (overlap > 0.5) & true.difficult[taken]
    np.testing.assert_array_equal(counted, ~hard)
    assert not right[hard].any()
    kept, _ = detection_scores(take(found, ~hard), true, CLASSES)
    metrics, _ = detection_scores(found, true, CLASSES)
    assert {name: metrics[name] for name in ("AP50_voc07", "AP50_area")} == {
        name: kept[name] for name in ("AP50_voc07", "AP50_area")
    }


@EXAMPLES
@given(SEEDS)
def test_with_all_truths_counting_a_stricter_threshold_is_never_better(seed):
    found, true = random_scene(seed)
    true = dataclasses.replace(true, difficult=np.zeros(len(true.images), bool))
    metrics, _ = detection_scores(found, true, CLASSES)
    for form in FORMS:
        assert metrics[f"AP50_{form}"] + 1e-9 >= metrics[f"AP_{form}"]
        assert metrics[f"AP50_{form}"] + 1e-9 >= metrics[f"AP75_{form}"]


def one_image(corners, scores, true, difficult=None) -> tuple[dict, Detections, Truths]:
    zeros = np.zeros(max(len(corners), len(true)), np.int64)
    truth = Truths(1, zeros[: len(true)], zeros[: len(true)], np.array(true, float), np.array(difficult))
    rows = zeros[: len(corners)]
    found = Detections(1, rows, rows, np.array(corners, float).reshape(-1, 4), np.array(scores))
    return detection_scores(found, truth, ("cat",))[0], found, truth


BOX, OTHER = (1, 1, 10, 10), (31, 31, 40, 40)


def test_a_matched_truth_is_not_left_for_the_next_best():
    # both detections overlap the first truth most; the second one also overlaps the other by more than half
    left, beside = (1, 1, 10, 10), (3, 1, 12, 10)
    metrics, *_ = one_image([left, (1, 1, 11, 10)], [0.9, 0.8], [left, beside], [False, False])
    assert metrics["AP50_area"] == pytest.approx(50)  # COCO's matching would give 100


def test_an_overlap_of_exactly_half_is_no_match():
    half = (1, 1, 10, 5)  # 50 of 100 pixels
    metrics, found, true = one_image([half], [0.9], [BOX], [False])
    assert nearest(found, true)[0].tolist() == [0.5]
    assert metrics["AP50_voc07"] == 0
    assert one_image([(1, 1, 10, 6)], [0.9], [BOX], [False])[0]["AP50_voc07"] == pytest.approx(100)


def test_finding_a_difficult_truth_twice_is_no_harm():
    metrics, *_ = one_image([OTHER, OTHER, BOX], [0.9, 0.8, 0.7], [BOX, OTHER], [False, True])
    assert metrics["AP50_area"] == pytest.approx(100)


def test_a_false_positive_before_a_right_one():
    metrics, *_ = one_image([OTHER, BOX], [0.9, 0.8], [BOX], [False])
    assert metrics["AP50_area"] == metrics["AP50_voc07"] == pytest.approx(50)


def test_a_second_detection_of_a_truth_is_a_false_positive():
    metrics, *_ = one_image([BOX, BOX, OTHER], [0.9, 0.8, 0.7], [BOX, OTHER], [False, False])
    assert metrics["AP50_area"] == pytest.approx(100 * (1 + 2 / 3) / 2)


def test_equal_scores_put_false_positives_first():
    metrics, *_ = one_image([BOX, OTHER], [0.8, 0.8], [BOX], [False])
    assert metrics["AP50_area"] == pytest.approx(50)


def test_no_detections_are_zero():
    metrics, *_ = one_image([], [], [BOX], [False])
    assert set(metrics.values()) == {0}


def test_a_class_or_an_image_of_its_own_matches_nothing():
    boxes = np.array([BOX, BOX], float)
    true = Truths(2, np.array([0, 1]), np.array([0, 1]), boxes, np.zeros(2, bool))
    found = Detections(2, np.array([0, 1]), np.array([1, 0]), boxes, np.ones(2))
    assert set(detection_scores(found, true, ("cat", "dog"))[0].values()) == {0}


def test_a_class_without_a_truth_that_counts_is_named():
    with pytest.raises(UserError, match="no image shows a cat that counts"):
        one_image([BOX], [0.9], [BOX], [True])


def annotation(name: str, *boxes: Box) -> Annotation:
    return Annotation(name, (60, 60), boxes)


def test_annotations_and_what_networks_find_meet_in_vocs_pixels():
    first = annotation("1", Box("dog", (1, 1, 30, 20)), Box("cat", (5, 5, 20, 40), difficult=True))
    true = truths([first, annotation("2"), annotation("3", Box("cat", (2, 3, 4, 5)))], CLASSES)
    assert true.count == 3
    assert true.images.tolist() == [0, 0, 2]
    assert true.labels.tolist() == [1, 0, 0]
    assert true.difficult.tolist() == [False, True, False]
    edges = np.array([[0, 0, 30, 20]], np.float32)
    nothing = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
    found = detections([(edges, np.array([1]), np.array([0.5], np.float32)), nothing, nothing])
    assert (found.count, found.images.tolist(), found.labels.tolist(), found.scores.tolist()) == (3, [0], [1], [0.5])
    assert found.corners.tolist() == [[1, 1, 30, 20]]
    assert nearest(found, true) == (pytest.approx([1]), pytest.approx([0]))


def test_edges_are_vocs_pixels_without_the_counting_from_one():
    corners = np.array([[1, 1, 500, 375], [8, 12, 352, 498]])
    assert to_edges(corners).tolist() == [[0, 0, 500, 375], [7, 11, 352, 498]]
    np.testing.assert_array_equal(to_pixels(to_edges(corners)), corners)


def test_nothing_found_in_no_image_is_no_detection():
    assert detections([]).corners.shape == (0, 4)
    assert truths([], CLASSES).corners.shape == (0, 4)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"labels": np.zeros(3, int)}, ValueError, "40 boxes with labels"),
        ({"corners": np.zeros((40, 5))}, ValueError, "40 boxes with corners"),
        ({"scores": np.zeros(39)}, ValueError, "40 boxes with scores"),
        ({"count": 3}, ValueError, "other images than the 3"),
        ({"images": np.full(40, -1)}, ValueError, "other images than the 4"),
        ({"corners": np.full((40, 4), np.nan)}, RunFailed, "not all finite"),
        ({"corners": np.tile([9.0, 9, 4, 4], (40, 1))}, ValueError, "ends before it begins"),
    ],
)
def test_boxes_that_are_none_are_refused(change, error, said):
    found, _ = random_scene(0)
    with pytest.raises(error, match=said):
        dataclasses.replace(found, **change)


def test_detections_of_other_images_or_classes_are_refused():
    found, true = random_scene(0)
    with pytest.raises(ValueError, match="detections in 5 images, truths in 4"):
        detection_scores(dataclasses.replace(found, count=5), true, CLASSES)
    with pytest.raises(ValueError, match="other classes than the 2"):
        detection_scores(found, true, CLASSES[:2])
    with pytest.raises(RunFailed, match="not all finite"):
        detection_scores(dataclasses.replace(found, scores=np.full(40, np.nan)), true, CLASSES)


def test_a_test_set_of_vocs_size():
    """Half a million detections, which would take hours if each were compared with each object."""
    random, images, classes = np.random.default_rng(0), 4952, [str(c) for c in range(20)]
    labels = random.integers(0, 20, 14976)
    true = Truths(images, random.integers(0, images, 14976), labels, random_boxes(random, 14976), labels < 0)
    rows = random.integers(0, 14976, 100 * images)
    corners = true.corners[rows] + random.integers(0, 3, (len(rows), 4))
    found = Detections(images, true.images[rows], labels[rows], corners, random.random(len(rows)))
    metrics, _ = detection_scores(found, true, classes)
    assert 0 < metrics["AP_area"] < metrics["AP50_area"]


def detectron2_scores(folder, found: Detections, true: Truths, year: int) -> dict[str, float]:
    """AP, AP50 and AP75 of detectron2's evaluator, from a devkit written to the folder."""
    from transfer.engines import load_detectron2

    engine = load_detectron2()
    names = [f"{number:06d}" for number in range(true.count)]
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "test.txt").write_text("\n".join(names) + "\n")
    for number, name in enumerate(names):
        rows = np.flatnonzero(true.images == number)
        boxes = [Box(CLASSES[true.labels[r]], tuple(true.corners[r]), bool(true.difficult[r])) for r in rows]
        text = format_annotation(annotation(name, *boxes), f"VOC{year}")
        (folder / "Annotations" / f"{name}.xml").write_text(text)
    called = f"equality_{year}_{folder.name}"
    engine.data.MetadataCatalog.get(called).set(dirname=str(folder), split="test", year=year, thing_classes=CLASSES)
    evaluator = engine.evaluation.PascalVOCDetectionEvaluator(called)
    evaluator.reset()
    for number, name in enumerate(names):
        mine = take(found, found.images == number)
        instances = engine.structures.Instances((60, 60))
        instances.pred_boxes = engine.structures.Boxes(torch.from_numpy(to_edges(mine.corners)).float())
        instances.scores = torch.from_numpy(mine.scores)
        instances.pred_classes = torch.from_numpy(mine.labels)
        evaluator.process([{"image_id": name}], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]


@needs_detectron2
@pytest.mark.parametrize(("year", "form"), [(2007, "voc07"), (2012, "area")])
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_are_detectron2s_of_the_same_detections(tmp_path, year, form, seed):
    # corners are halves and scores different thousandths: its text files hold them exactly
    found, true = random_scene(seed, images=20, count=300)
    expected = detectron2_scores(tmp_path, found, true, year)
    metrics, _ = detection_scores(found, true, CLASSES)
    assert {name: metrics[f"{name}_{form}"] for name in expected} == pytest.approx(expected, abs=1e-7)
    assert 10 < expected["AP50"] < 90


def random_masks(random, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    true = random.integers(0, classes, (2, 6, 7))
    predicted = np.where(random.random(true.shape) < 0.5, true, random.integers(0, classes, true.shape))
    true[random.random(true.shape) < 0.2] = 255
    return torch.from_numpy(predicted), torch.from_numpy(true.astype(np.uint8))


@EXAMPLES
@given(SEEDS)
def test_confusion_counts_pixels_and_adds_up(seed):
    predicted, true = random_masks(np.random.default_rng(seed), 4)
    expected = np.zeros((4, 4), np.int64)
    for t, p in zip(true.flatten().tolist(), predicted.flatten().tolist()):
        if t != 255:
            expected[t, p] += 1
    table = confusion(predicted, true, 4)
    np.testing.assert_array_equal(table, expected)
    np.testing.assert_array_equal(sum(confusion(p, t, 4) for p, t in zip(predicted, true)), expected)
    assert table.dtype == torch.int64


@EXAMPLES
@given(SEEDS)
def test_segmentation_scores_are_their_definitions(seed):
    predicted, true = random_masks(np.random.default_rng(seed), 4)
    counted = true != 255
    ious, accuracies = {}, []
    for c in range(5):  # the last class is in no mask and nowhere predicted
        both = ((true == c) & (predicted == c)).sum()
        either = (((true == c) | (predicted == c)) & counted).sum()
        if either:
            ious[str(c)] = 100 * float(both / either)
        if (true == c).any():
            accuracies.append(100 * float(both / (true == c).sum()))
    metrics, details = segmentation_scores(confusion(predicted, true, 5).numpy(), "01234")
    assert details["IoU"] == pytest.approx(ious)
    assert "4" in details["absent"]
    assert metrics == pytest.approx(
        {
            "mIoU": np.mean(list(ious.values())),
            "mean_acc": np.mean(accuracies),
            "pixel_acc": 100 * float(((true == predicted) & counted).sum() / counted.sum()),
        }
    )
    assert all(type(value) is float for value in [*metrics.values(), *details["IoU"].values()])


def test_a_segmentation_worked_out_by_hand():
    table = np.array([[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    table[0, 3] = 2  # predicted, in no mask: IoU 0; the third class is nowhere
    metrics, details = segmentation_scores(table, ("background", "cat", "dog", "cow"))
    assert details["IoU"] == pytest.approx({"background": 600 / 11, "cat": 50, "cow": 0})
    assert details["absent"] == ["dog"]
    assert metrics["mIoU"] == pytest.approx((600 / 11 + 50 + 0) / 3)
    assert metrics["pixel_acc"] == pytest.approx(900 / 14)
    assert metrics["mean_acc"] == pytest.approx((60 + 75) / 2)


@needs_mmseg
@pytest.mark.parametrize("seed", range(3))
def test_segmentation_scores_are_mmsegs(seed):
    from transfer.engines import load_mmseg

    metric = load_mmseg().evaluation.IoUMetric
    predicted, true = random_masks(np.random.default_rng(seed), 4)
    areas = metric.intersect_and_union(predicted, true.long(), 5, 255)
    expected = {name: 100 * np.nanmean(value) for name, value in metric.total_area_to_metrics(*areas).items()}
    metrics, _ = segmentation_scores(confusion(predicted, true, 5).numpy(), "01234")
    assert expected == pytest.approx({"aAcc": metrics["pixel_acc"], "IoU": metrics["mIoU"], "Acc": metrics["mean_acc"]})


def test_masks_that_do_not_fit_are_refused():
    mask = torch.zeros(2, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"a prediction of \(3, 2\) for a mask of \(2, 3\)"):
        confusion(mask.T, mask, 2)
    with pytest.raises(ValueError, match="labels 0 … 2 of 2 classes"):
        confusion(mask, torch.tensor([[0, 1, 2], [0, 1, 255]]), 2)
    with pytest.raises(ValueError, match="labels 255 … 255 of 2 classes"):
        confusion(torch.full_like(mask, 255), mask, 2)
    with pytest.raises(ValueError, match="labels -1 … 0 of 2 classes"):
        confusion(torch.tensor([[-1, 0, 0]]), mask[:1], 2)


def test_masks_of_borders_alone_are_refused():
    table = confusion(torch.zeros(4, 4, dtype=torch.int64), torch.full((4, 4), 255), 2)
    assert table.sum() == 0
    with pytest.raises(UserError, match="no pixel of the masks has a class"):
        segmentation_scores(table.numpy(), ("background", "cat"))
