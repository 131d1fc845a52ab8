"""Detection on Pascal VOC: the record, what learns, runs that are continued, pictures, and what cannot be."""

import sys
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image
from torch import nn
from trainings import start
from vocs import generate_few, moved, stopped, watch

from results.errors import UserError
from results.store import Store
from transfer import voc_detection
from transfer.engines import loading
from transfer.pictures import save_beside
from transfer.proposals import Search
from transfer.scores import detection_scores, detections, truths
from transfer.voc_detection import VocDetection, score
from zoo.voc.annotation import Annotation, Box

SMALL = ("--sides", "32", "40", "--side", "32", "--longest", "54", "--anchors", "8", "16", "--candidates", "60")
FAST = ("--iterations", "4", "--rois", "16", *SMALL, "--checkpoint", "random-alexnet32@0")
GIVEN = ("--proposals", "selective-search")


def search_tiles(image):
    """Rectangles of three sizes all over an image."""
    height, width = image.shape[:2]
    return np.array(
        [(x, y, s, s) for s in (30, 45, 70) for x in range(0, width - s, 20) for y in range(0, height - s, 20)]
    )


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return generate_few(tmp_path_factory.mktemp("minivoc"))


@pytest.fixture(autouse=True)
def _searched(monkeypatch):
    """Proposals without OpenCV."""
    monkeypatch.setattr(voc_detection, "selective_search", lambda: Search("tiles", search_tiles))


@pytest.fixture
def run(few, tmp_path):
    """Run the command; its exit code and the records."""

    def start_in(*words, folder=tmp_path):
        places = ("--cache", str(folder / "cache"))
        code = start(VocDetection, folder, *FAST, *places, *words, dataset=few)
        return code, Store(folder / "records").records()

    return start_in


@pytest.fixture
def models(monkeypatch):
    """The networks that were made, each with what it held at first."""
    return watch(monkeypatch, voc_detection, "Detector")


@pytest.mark.parametrize("words", [(), GIVEN])
def test_the_record(words, run):
    code, (record,) = run(*words)
    assert code == 0
    forms = [f"{name}_{form}" for form in ("voc07", "area") for name in ("AP", "AP50", "AP75")]
    assert sorted(record.metrics) == sorted(forms)
    assert all(0 <= value <= 100 for value in record.metrics.values())
    proposed = "proposals selective-search, " if words else ""
    assert record.protocol.startswith(f"deepcluster@1, iterations 4, {proposed}sides (32, 40), side 32")
    assert len(record.details["AP50_voc07"]) == 10
    assert np.mean(list(record.details["AP50_area"].values())) == pytest.approx(record.metrics["AP50_area"])
    assert len(record.details["loss"]) == 4
    assert record.details["engine"] == "torchvision"
    assert record.details["regions"] == ("tiles" if words else "rpn")
    learned, _, total = record.details["learned_from"].split()[:3]
    assert int(learned) <= int(total) == 48
    assert record.details["frozen"] == f"verified: 15 of {43 if words else 49} tensors unchanged"


def test_numbers_that_were_recorded_are_shown_alike(run, capsys):
    """In the same order of columns."""
    shown = []
    for _ in range(2):
        run()
        shown.append(capsys.readouterr().out)
    assert shown[1] == shown[0] + "1 of 1 recorded before; --force runs them again\n"
    assert shown[0].index("AP50_area") < shown[0].index("AP_voc07")


@pytest.mark.parametrize("words", [("--seeds", "1"), ("--images", "train-val"), ("--trained", "fc6-8"), GIVEN])
def test_each_setting_gives_another_course(words, run):
    _, (usual,) = run()
    code, records = run(*words)
    assert code == 0
    (other,) = [record for record in records if record.key != usual.key]
    assert other.details["loss"] != usual.details["loss"]


@pytest.mark.parametrize("words", [(), GIVEN])
@pytest.mark.parametrize("trained", ["all", "fc6-8"])
def test_what_moves(trained, words, run, models):
    """Of a Sobel checkpoint: never the filter nor statistics, and not the convolutions where fc6-8 alone learn."""
    assert run("--trained", trained, "--checkpoint", "random-alexnet32-sobel@0", *words, "--limit", "8")[0] == 0
    ((network, before),) = models
    changed = moved(network, before)
    norms = {name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for name in before:
        fixed = "sobel" in name or (name.rpartition(".")[0] in norms and name.split(".")[-1].startswith(("run", "num")))
        frozen = trained == "fc6-8" and name.startswith("backbone.features")
        assert (name in changed) == (not fixed and not frozen), name


def test_the_number_is_that_of_what_was_found(run, few):
    found = {}

    def kept(self, *given):
        found["boxes"] = whole(self, *given)
        return found["boxes"]

    whole = VocDetection.find
    with patch.object(VocDetection, "find", kept):
        _, (record,) = run("--images", "train-val")
    wanted = truths(few.annotations("val"), few.classes)
    assert detection_scores(detections(found["boxes"]), wanted, few.classes)[0] == record.metrics
    for (edges, labels, scores), annotation in zip(found["boxes"], few.annotations("val"), strict=True):
        height, width = annotation.size
        assert len(edges) == len(labels) == len(scores) <= 100
        assert (edges >= 0).all()
        assert (edges <= np.array([width, height, width, height]) + 1e-3).all()
        assert (scores > 0.05).all()
        assert np.isin(labels, range(10)).all()


def test_what_is_learned_well_is_found(few, tmp_path):
    """Learned by heart from two images and evaluated on them: nearly all is found."""
    annotations, kit = few.annotations("test"), few
    rows = [number for number, one in enumerate(annotations) if len(one.boxes) == 2][:2]
    words = ("--iterations", "60", "--lr", "0.02", "--milestones", "50", "--rois", "64", *GIVEN, "--limit", "2")
    words += ("--sides", "64", "--side", "64", "--longest", "107", "--anchors", "16", "32", "--checkpoint", "reference")
    with (
        patch.object(VocDetection, "splits", ("test", "test")),
        patch("transfer.finetuning.Finetuning.rows", lambda self, split: np.array(rows)),
        patch.object(voc_detection, "search_of", None, create=True),
    ):
        printed = []
        with patch("zoo.evaluation.show", lambda records, options, limit: printed.extend(records)):
            assert start(VocDetection, tmp_path, *words, "--cache", str(tmp_path / "cache"), dataset=kit) == 0
    assert printed[0].metrics["AP50_voc07"] > 60


@pytest.mark.parametrize(("place", "calls"), [("loss_of", 1), ("loss_of", 3), ("found_in", 1), ("found_in", 15)])
@pytest.mark.parametrize("words", [(), GIVEN])
def test_a_run_that_was_stopped_continues_to_the_same_bits(place, calls, words, run, tmp_path):
    _, (whole,) = run("--save-every", "0", *words)
    with stopped(voc_detection, place, calls):
        run(*words, folder=tmp_path / "stopped")
    assert list((tmp_path / "stopped").rglob("state-*.pt"))
    code, (record,) = run(*words, folder=tmp_path / "stopped")
    assert code == 0
    assert (record.metrics, record.details) == (whole.metrics, whole.details)
    assert not list((tmp_path / "stopped").rglob("state-*.pt"))


@pytest.mark.parametrize("backbone", ["resnet18", "small_vgg"])
@pytest.mark.parametrize("words", [(), GIVEN])
def test_other_networks(backbone, words, run):
    few = ("--iterations", "1", "--limit", "2", "--precision", "bf16")
    code, records = run("--checkpoint", f"random-{backbone}@0", *few, *words)
    assert (code, records) == (0, [])


def test_pictures(run, tmp_path, monkeypatch, capsys):
    titles = []

    def keep(path, panels):
        titles.append(panels[0].title)
        save_beside(path, panels)

    monkeypatch.setattr(voc_detection, "save_beside", keep)
    for least in (0.06, 2):
        monkeypatch.setattr(voc_detection, "DRAWN", least)
        assert run("--limit", "4", "--save-pictures", "2")[0] == 0
    some, nothing = "found with a score of 0.06 or more", "found: nothing with a score of 2 or more"
    assert titles == [some, some, nothing, nothing]
    pictures = sorted(tmp_path.glob("runs/*/pictures/*.png"))
    assert len(pictures) == 2
    assert f"pictures    {pictures[0].parent}\n" in capsys.readouterr().out
    assert all(Image.open(path).size[0] > 2 * 480 for path in pictures)
    assert not list(tmp_path.rglob("state-*.pt"))


def box(name, corners, difficult=False):
    return Box(name, corners, difficult)


def test_some_images_are_scored_by_what_they_show():
    """A class of which all is difficult, or nothing there, does not count: its detections are passed over."""
    shown = [
        Annotation("1", (50, 50), (box("a", (1, 1, 20, 20)), box("b", (30, 30, 40, 40), difficult=True))),
        Annotation("2", (50, 50), (box("d", (11, 11, 30, 30)),)),
    ]
    edges = np.array([[0, 0, 20, 20], [29, 29, 40, 40], [0, 0, 5, 5]], float)
    found = [(edges, np.array([0, 1, 2]), np.array([0.9, 0.8, 0.7])), (edges[:1] + 10, np.array([3]), np.array([0.6]))]
    metrics, details = score(found, shown, "abcd", some=True)
    assert details["AP50_voc07"] == {"a": 100, "d": 100}
    assert metrics["AP50_area"] == 100
    with pytest.raises(UserError, match="no image shows a b that counts"):
        score(found, shown, "abcd", some=False)
    with pytest.raises(UserError, match="no image shows an object that counts"):
        score(found[:1], [replace(shown[0], boxes=shown[0].boxes[1:])], "abcd", some=True)


def test_the_rate_grows_and_falls():
    task = VocDetection(lr=0.01, warm_up=4, milestones=(10, 20))
    rates = [task.rate(step) for step in (0, 1, 3, 9, 10, 19, 20, 50)]
    assert rates == pytest.approx([0.0025, 0.005, 0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001])
    assert VocDetection(lr=0.01, warm_up=0, milestones=()).rate(0) == 0.01


def test_the_presets_are_the_literatures_values():
    voc = VocDetection(**VocDetection.presets["voc2007"])
    assert (voc.iterations, voc.batch, voc.rois, voc.weight_decay, voc.momentum) == (150_000, 2, 64, 5e-4, 0.9)
    assert [voc.rate(step) for step in (0, 49_999, 50_000, 100_000)] == pytest.approx([2e-3, 2e-3, 2e-4, 2e-5])
    assert (voc.sides, voc.side, voc.longest, voc.proposals) == ((400, 500, 600, 700), 600, 1000, "selective-search")
    assert voc.splits == ("trainval", "test")
    assert VocDetection(**VocDetection.presets["voc2012"]).splits == ("train", "val")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--iterations", "0"), "--iterations 0 cannot be"),
        (("--batch", "0"), "--batch 0 cannot be"),
        (("--sides", "0", "32"), "--sides 0 cannot be"),
        (("--anchors", "-1"), "--anchors -1 cannot be"),
        (("--milestones", "0"), "--milestones 0 cannot be"),
        (("--save-pictures", "-1"), "--save-pictures -1 cannot be"),
        (("--checkpoint", "random-torchvision:vit_b_32@0"), "has no maps to find objects in"),
    ],
)
def test_settings_that_cannot_be(words, wanted, run, capsys):
    assert run(*words) == (2, [])
    assert wanted in capsys.readouterr().err


def test_without_opencv_there_is_no_selective_search(run, monkeypatch, capsys):
    def missing():
        raise UserError("selective search needs OpenCV", fix="make engines")

    monkeypatch.setattr(voc_detection, "selective_search", missing)
    assert run(*GIVEN, "--dry-run") == (2, [])
    assert "selective search needs OpenCV" in capsys.readouterr().err


def test_without_detectron2_its_engine_is_refused_before_any_work(run, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    monkeypatch.setattr(loading, "load_detectron2", loading.load_detectron2.__wrapped__)  # past the cache
    monkeypatch.delitem(sys.modules, "transfer.engines.detectron2_detector", raising=False)
    for words in ((), ("--dry-run",)):
        assert run("--engine", "detectron2", *words) == (2, [])
        said = capsys.readouterr().err
        assert "detectron2 is not installed" in said
        assert "make engines" in said
    assert not list(tmp_path.rglob("state-*.pt"))


def test_another_engine_is_refused(run, capsys):
    with pytest.raises(SystemExit) as ended:
        run("--engine", "mmdet")
    assert ended.value.code == 2
    assert "mmdet" in capsys.readouterr().err


def test_another_data_set_is_refused(tmp_path, capsys):
    assert start(VocDetection, tmp_path, *FAST) == 2
    assert "transfer.voc_detection fine-tunes on a devkit of Pascal VOC, and digits is none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "wanted"), [(("4",), "the loss became"), (("1",), "what the network finds is no number")]
)
@pytest.mark.parametrize("proposed", [(), GIVEN])
def test_a_loss_that_is_no_number_is_a_failed_run(words, wanted, proposed, run, tmp_path, capsys):
    code, records = run("--lr", "1e38", "--warm-up", "0", *proposed, "--iterations", *words)
    assert (code, records) == (1, [])
    assert wanted in capsys.readouterr().err
    assert list(tmp_path.glob("runs/*/error.txt"))
