"""`python -m transfer.voc_detection --engine detectron2`: what it records and moves, that it continues, its scores."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn
from trainings import start
from vocs import generate_few, stopped, watch

from results.store import Store
from transfer import voc_detection
from transfer.engines import detectron2_detector, versions
from transfer.engines.detectron2_detector import Boxes, engine
from transfer.proposals import Search
from transfer.scores import detection_scores, detections, to_edges, truths
from transfer.voc_detection import VocDetection

SMALL = ("--sides", "32", "40", "--side", "32", "--longest", "54", "--anchors", "8", "16", "--candidates", "60")
FAST = ("--engine", "detectron2", "--iterations", "2", "--rois", "16", *SMALL)
GIVEN = ("--proposals", "selective-search")
PLAIN = ("--checkpoint", "random-alexnet32@0")


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return generate_few(tmp_path_factory.mktemp("minivoc"))


@pytest.fixture(autouse=True)
def _searched(monkeypatch):
    """Proposals in no time."""

    def tiles(image):
        height, width = image.shape[:2]
        return np.array(
            [(x, y, s, s) for s in (30, 60) for x in range(0, width - s, 20) for y in range(0, height - s, 20)]
        )

    monkeypatch.setattr(voc_detection, "selective_search", lambda: Search("tiles", tiles))


@pytest.fixture
def run(few, tmp_path):
    """Run the command; its exit code and the records."""

    def start_in(*words, folder=tmp_path):
        code = start(VocDetection, folder, *FAST, "--cache", str(folder / "cache"), *words, dataset=few)
        return code, Store(folder / "records").records()

    return start_in


@pytest.mark.parametrize("words", [(), GIVEN])
@pytest.mark.parametrize("sobel", ["", "-sobel"])
@pytest.mark.parametrize("trained", ["all", "fc6-8"])
def test_what_moves(trained, sobel, words, run, monkeypatch):
    """Never the filter nor statistics, and not the convolutions where fc6-8 alone learn."""
    made = watch(monkeypatch, detectron2_detector, "Detectron2Detector")
    assert run("--trained", trained, "--checkpoint", f"random-alexnet32{sobel}@0", *words, "--limit", "16")[0] == 0
    ((network, before),) = made
    norms = {name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for name, value in network.state_dict().items():
        fixed = "sobel" in name or (name.rpartition(".")[0] in norms and name.split(".")[-1].startswith(("run", "num")))
        frozen = trained == "fc6-8" and ".features." in name
        assert torch.equal(value, before[name]) == (fixed or frozen), name


def test_the_record_names_the_engine(run):
    code, (record,) = run(*PLAIN)
    assert code == 0
    assert (record.details["engine"], record.details["versions"]) == ("detectron2", versions("detectron2"))
    assert "engine detectron2" in record.protocol
    assert len(record.details["loss"]) == 2


@pytest.mark.parametrize(("place", "calls"), [("loss_of", 2), ("found_in", 9)])
@pytest.mark.parametrize("words", [(), GIVEN])
def test_a_run_that_was_stopped_continues_to_the_same_bits(place, calls, words, run, tmp_path):
    _, (whole,) = run("--save-every", "0", *PLAIN, *words)
    with stopped(voc_detection, place, calls):
        run(*PLAIN, *words, folder=tmp_path / "stopped")
    assert list((tmp_path / "stopped").rglob("state-*.pt"))
    code, (record,) = run(*PLAIN, *words, folder=tmp_path / "stopped")
    assert code == 0
    assert (record.metrics, record.details) == (whole.metrics, whole.details)


@pytest.mark.parametrize("words", [(*PLAIN, "--precision", "bf16"), ("--checkpoint", "random-resnet18@0")])
def test_other_precisions_and_networks(words, run):
    assert run(*words, "--iterations", "1", "--limit", "4") == (0, [])


@pytest.mark.parametrize("words", [(), GIVEN])
def test_a_loss_that_is_no_number_is_a_failed_run(words, run, capsys):
    assert run(*PLAIN, *words, "--lr", "1e38", "--warm-up", "0", "--iterations", "4") == (1, [])
    assert "is no number any more" in capsys.readouterr().err


def test_its_evaluators_ap50_of_each_class_is_ours(few, run):
    """Of what is found, and of objects moved a little; scores and corners are such as its text files can hold."""
    found, whole = [], VocDetection.find
    with patch.object(VocDetection, "find", lambda self, *given: found.extend(whole(self, *given)) or found):
        assert run(*PLAIN)[0] == 0
    true, random = truths(few.annotations("test"), few.classes), np.random.default_rng(0)
    near = np.clip(to_edges(true.corners) + random.normal(0, 4, true.corners.shape), 0, 119)
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    for image, (edges, labels, scores) in enumerate(found):
        mine = true.images == image
        drawn = random.random(mine.sum()) * max(scores, default=1)
        rows = ([edges, near[mine]], [labels, true.labels[mine]], [scores, drawn])
        found[image] = tuple(np.concatenate(pair) for pair in rows)
    ours = detections(found)
    scores = np.zeros(len(ours.scores))  # a class's, in their order
    for label in range(len(few.classes)):
        mine = np.flatnonzero(ours.labels == label)
        scores[mine[np.argsort(ours.scores[mine])]] = np.arange(1, len(mine) + 1) / 1000
    assert scores.max() < 1
    held = replace(ours, corners=ours.corners.round(1), scores=scores)
    _, details = detection_scores(held, true, few.classes)
    assert evaluated(few, held) == pytest.approx(details["AP50_voc07"], abs=1e-5)
    assert 5 < np.mean(list(details["AP50_voc07"].values())) < 95


def evaluated(kit, held) -> dict[str, float]:
    """The AP50 of each class by detectron2's evaluator."""
    name, per_class = f"equality_{id(held)}", {}
    engine.data.datasets.register_pascal_voc(name, str(kit.location), "test", 2007, kit.classes)
    evaluator = engine.evaluation.PascalVOCDetectionEvaluator(name)
    evaluator.reset()
    for number, image in enumerate(kit.ids("test")):
        mine = held.images == number
        instances = engine.structures.Instances(kit.annotations("test")[number].size)
        instances.pred_boxes = Boxes(torch.from_numpy(to_edges(held.corners[mine])))
        instances.scores, instances.pred_classes = (
            torch.from_numpy(held.scores[mine]),
            torch.from_numpy(held.labels[mine]),
        )
        evaluator.process([{"image_id": image}], [{"instances": instances}])
    module = engine.evaluation.pascal_voc_evaluation
    score = module.voc_eval

    def noted(*given, ovthresh, **options):
        result = score(*given, ovthresh=ovthresh, **options)
        if ovthresh == 0.5:
            per_class[given[3]] = 100 * result[2]
        return result

    with patch.object(module, "voc_eval", noted):
        evaluator.evaluate()
    return per_class
