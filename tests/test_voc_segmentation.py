"""Segmentation of Pascal VOC: the record, what learns, the confusion, pictures, and what cannot be."""

import sys
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from segmented import COUNTS, FAST, bench_of, segment
from test_fcn import lively
from trainings import start
from vocs import generate_few, moved, watch

from transfer import finetuning, voc_segmentation
from transfer.engines import loading
from transfer.fcn import Fcn
from transfer.finetuning import Finetuning, Transfer
from transfer.scores import segmentation_scores
from transfer.voc_segmentation import VocSegmentation, mean_colour
from zoo import processes
from zoo.checkpoint import resolve
from zoo.preprocessing import Preprocessing
from zoo.voc.masks import BORDER, palette


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return generate_few(tmp_path_factory.mktemp("minivoc"), COUNTS)


@pytest.fixture
def run(few, tmp_path):
    """Run the command; its exit code and the records."""
    return partial(segment, tmp_path, few)


@pytest.fixture(scope="module")
def usual(few, tmp_path_factory):
    """The record of the bare settings."""
    _, (record,) = segment(tmp_path_factory.mktemp("usual"), few)
    return record


@pytest.fixture
def models(monkeypatch):
    """The networks that were made, each with what it held at first."""
    return watch(monkeypatch, voc_segmentation, "Fcn")


def confusion_by_hand(kit, split, predict):
    """The confusion by loops over masks; predict: the found class of each pixel of image `number`."""
    table = np.zeros((11, 11), int)
    for number, path in enumerate(kit.masks(split)):
        mask = np.array(Image.open(path))
        for true, found in zip(mask.flatten().tolist(), predict(number, mask).flatten().tolist()):
            if true != BORDER:
                table[true, found] += 1
    return table


def test_the_record(usual, few):
    record = usual
    assert set(record.metrics) == {"mIoU", "pixel_acc", "mean_acc"}
    assert record.protocol == "deepcluster@1, iterations 4, batch 4"
    assert record.details["engine"] == "torchvision"
    assert {"background", *few.classes} == {*record.details["IoU"], *record.details["absent"]}
    assert np.mean(list(record.details["IoU"].values())) == pytest.approx(record.metrics["mIoU"])
    assert len(record.details["loss"]) == 4
    assert record.details["loss"][0] == pytest.approx(np.log(11), abs=1e-4)  # all scores are 0 before the first step
    assert record.details["frozen"] == "verified: 15 of 41 tensors unchanged"  # statistics of five batch norms


@pytest.mark.parametrize(
    "words",
    [
        *(("--seeds", "1"), ("--images", "train-val"), ("--trained", "fc6-8")),
        *(("--crop", "100"), ("--scale", "1"), ("--precision", "bf16")),
    ],
)
def test_each_setting_gives_another_number(words, run, usual):
    code, (record,) = run(*words)
    assert code == 0
    assert record.key != usual.key
    assert record.details["loss"] != usual.details["loss"]


def test_the_number_is_that_of_every_image_at_its_own_size(run, few):
    """The network is replaced by what knows the masks, but takes one class for another."""
    shown = []

    def knowing(network, pixels, bench, scale):
        mask = torch.from_numpy(np.array(Image.open(few.masks("val")[len(shown)])))
        shown.append(tuple(pixels.shape))
        return torch.nn.functional.one_hot(mistaken(mask.long()), 11).permute(2, 0, 1)[None].float()

    def mistaken(mask):
        return torch.where((mask == 3) | (mask == BORDER), 5, mask)

    with patch.object(voc_segmentation, "compute", knowing):
        _, (record,) = run("--images", "train-val")
    table = confusion_by_hand(few, "val", lambda number, mask: mistaken(torch.from_numpy(mask)).numpy())
    assert record.metrics == segmentation_scores(table, ("background", *few.classes))[0]
    assert record.metrics["mIoU"] < 100
    assert shown == [(1, 3, *np.array(Image.open(path)).shape) for path in few.masks("val")]
    assert len(set(shown)) > 1


def measured(few, rank=0, count=1):
    """The confusion that one of several processes has of its own images, and how many it saw."""
    task = VocSegmentation(images="train-val")
    checkpoint = resolve("random-alexnet32@0")
    backbone = checkpoint.build_backbone()
    bench = bench_of(few, checkpoint, backbone)
    with (
        patch.object(processes, "count", lambda: count),
        patch.object(processes, "rank", lambda: rank),
        patch.object(processes, "summed", lambda values: values),
        patch.object(processes, "largest", lambda *values: list(values)),
        patch.object(processes, "told_each", lambda value: [value]),
    ):
        network = Fcn(backbone, 11, 0)
        torch.manual_seed(0)
        torch.nn.init.normal_(network.head[-1].weight)
        return task.measure(Finetuning(task, bench, network, bench.state("x")), network)


@pytest.mark.parametrize("count", [2, 4, 7])
def test_processes_count_every_image_once(few, count):
    """25 images: at the end some processes are given one that is another's (of 7, three of them)."""
    alone = measured(few)
    assert alone.sum() == sum((np.array(Image.open(path)) != BORDER).sum() for path in few.masks("val"))
    assert (alone > 0).sum() > 11
    assert (sum(measured(few, rank, count) for rank in range(count)) == alone).all()


@pytest.mark.parametrize("trained", ["all", "fc6-8"])
@pytest.mark.parametrize("checkpoint", ["random-alexnet32@0", "random-alexnet32-sobel@0", "random-resnet18@0"])
def test_what_learns(trained, checkpoint, run, models):
    words = ("--iterations", "2", "--batch", "2") if "resnet" in checkpoint else ()
    assert run("--checkpoint", checkpoint, "--trained", trained, *words)[0] == 0
    ((network, before),) = models
    wanted = {
        name
        for name in before
        if not any(part in name for part in ("running", "tracked", "sobel"))
        and (trained == "all" or name.startswith(("head.", "backbone.classifier.")))
    }
    assert moved(network, before) == wanted


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "resnet50"])
def test_a_step_of_a_network_of_full_size(name, few):
    task = VocSegmentation(iterations=1, batch=1, lr=1e-3, crop=96, scale=1.0)
    backbone = lively(name, sobel=True)
    bench = bench_of(few, resolve("random-alexnet32-sobel@0"), backbone, limit=1)  # for its preprocessing
    network = Fcn(backbone, 11, 0)
    network.choose("all")
    tuning = Finetuning(task, bench, network, bench.state("x"))
    task.learn(tuning, network)
    assert tuning.losses == [pytest.approx(np.log(11), abs=1e-4)]
    assert network.head[-1].bias.any()
    assert task.measure(tuning, network).sum() == (np.array(Image.open(few.masks("test")[0])) != BORDER).sum()
    assert "unchanged" in tuning.conclude()["frozen"]


def test_a_network_without_linear_layers(run):
    assert run("--checkpoint", "random-small_vgg@0", "--iterations", "1", "--limit", "2") == (0, [])


def test_around_images_is_the_mean_colour():
    assert mean_colour(Preprocessing(32, 32, 3, (0.1, 0.5, 0.9), (1,))) == (26, 128, 230)
    assert mean_colour(Preprocessing(32, 32, 1, (0.5,), (1,))) == (128, 128, 128)


def test_pictures_show_the_image_what_is_annotated_and_what_is_found(run, tmp_path, few, usual, capsys):
    code, (record,) = run("--save-pictures", "3")
    assert code == 0
    assert f"pictures    {tmp_path / 'runs' / record.key / 'pictures'}\n" in capsys.readouterr().out
    assert (record.key, record.metrics, record.details) == (usual.key, usual.metrics, usual.details)  # it is no setting
    pictures = sorted(tmp_path.glob("runs/*/pictures/*.png"))
    assert [path.stem for path in pictures] == [few.ids("test", "Segmentation")[number] for number in (0, 8, 16)]
    with Image.open(pictures[0]) as sheet:
        assert sheet.width > 3 * 480


def test_a_picture_has_the_colours_of_the_mask():
    seen = torch.zeros((4, 3, 5), dtype=torch.uint8)
    seen[3, 1] = 2
    seen[3, 2] = BORDER
    panels = voc_segmentation.show(seen, torch.full((3, 5), 4), ["zero", "one", "two", "three"])
    titles = [(panel.title, panel.key) for panel in panels]
    assert titles == [("image", ()), ("annotated", [(1, "one")]), ("found", [(3, "three")])]
    assert voc_segmentation.show(seen, torch.zeros((3, 5)), "ab")[2].title == "found: nothing"
    image, annotated, found = (np.asarray(panel.image) for panel in panels)
    assert not image.any()
    assert (annotated.reshape(3, -1, *annotated.shape[1:])[1] == (0.6 * palette()[2]).round()).all()
    assert not annotated.reshape(3, -1, *annotated.shape[1:])[0].any()
    assert (found == (0.6 * palette()[4]).round()).all()


def test_another_data_set_is_refused(tmp_path, capsys):
    assert start(VocSegmentation, tmp_path, *FAST) == 2
    said = capsys.readouterr().err
    assert "transfer.voc_segmentation fine-tunes on a devkit of Pascal VOC, and digits is none" in said


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--crop", "0"), "--crop 0 cannot be"),
        (("--scale", "0"), "--scale 0.0 cannot be"),
        (("--iterations", "0"), "--iterations 0 cannot be"),
        (("--save-pictures", "-1"), "--save-pictures -1 cannot be"),
        (("--scale", "inf"), "--scale inf cannot be"),
        (("--checkpoint", "random-torchvision:vit_b_32@0", "--dry-run"), "has no maps to score pixels from"),
    ],
)
def test_settings_that_cannot_be(words, wanted, run, capsys):
    assert run(*words) == (2, [])
    assert wanted in capsys.readouterr().err


def test_an_engine_that_is_not_installed_is_refused_before_any_work(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "transfer.engines.mmseg_segmentor", raising=False)
    loading.load_mmseg.cache_clear()
    assert run("--engine", "mmseg") == (2, [])
    said = capsys.readouterr().err
    assert "mmengine is not installed" in said
    assert "try: make engines" in said
    assert not list(tmp_path.rglob("*"))


def test_the_engine_is_part_of_the_protocol(few):
    assert VocSegmentation(engine="mmseg").protocol_id(few) == "deepcluster@1, engine mmseg"


def test_a_loss_that_is_no_number_is_a_failed_run(run, tmp_path, capsys):
    code, records = run("--lr", "1e30")
    assert (code, records) == (1, [])
    assert "the loss became" in capsys.readouterr().err
    assert list(tmp_path.glob("runs/*/error.txt"))


def test_weights_that_are_no_numbers_after_the_last_step_are_a_failed_run(run, capsys):
    def step(loss, optimizer, **more):
        before(loss, optimizer, **more)
        optimizer.param_groups[0]["params"][0].data.fill_(float("nan"))

    before = finetuning.descend
    with patch.object(finetuning, "descend", step):
        assert run("--iterations", "1") == (1, [])
    assert "left weights that are no numbers" in capsys.readouterr().err


def test_the_presets_are_the_solvers_values():
    voc = VocSegmentation(**VocSegmentation.presets["voc2012"])
    assert (voc.iterations, voc.batch, voc.lr, voc.momentum, voc.weight_decay) == (100_000, 20, 1e-4, 0.9, 5e-4)
    assert voc.splits == ("train", "val")
    assert VocSegmentation(**VocSegmentation.presets["voc2007"]).splits == ("trainval", "test")
    assert voc.rate(0) == voc.rate(99_999) == 1e-4
    assert issubclass(VocSegmentation, Transfer)
