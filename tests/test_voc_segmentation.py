"""Segmentation of Pascal VOC: what learns, the loss, the confusion, pictures, and runs that are continued."""

import multiprocessing
import os
import random
import shutil
import signal
import sys
from contextlib import ExitStack
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from test_fcn import lively
from trainings import files, start
from vocs import generate_few

from results.files import TEMPORARY
from results.store import Store
from transfer import finetuning, voc_segmentation
from transfer.fcn import Fcn
from transfer.finetuning import Finetuning, Transfer
from transfer.masked import MaskedImages, Placed, Whole
from transfer.scores import segmentation_scores
from transfer.voc_segmentation import VocSegmentation, mean_colour, pixel_loss
from zoo import processes
from zoo.checkpoint import resolve
from zoo.evaluation import Evaluation
from zoo.preprocessing import Preprocessing
from zoo.seeds import generator
from zoo.voc.masks import BORDER, palette, read_mask, to_image

COUNTS = {"train": 24, "val": 25, "trainval": 49, "test": 24}
FAST = ("--iterations", "4", "--batch", "4", "--checkpoint", "random-alexnet32@0")
SLOW = ("sklearn.datasets", "faiss", "torch.fx.experimental.symbolic_shapes")  # else imported by every process again


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("minivoc")


@pytest.fixture(scope="module")
def few(place):
    return generate_few(place, COUNTS)


@pytest.fixture
def own(few, tmp_path):
    """A copy of the devkit, to be spoilt."""
    found = type(few)(None)
    found.__dict__.update(vars(few))
    found.folder = shutil.copytree(few.folder, tmp_path / "kit")
    found.location = found.folder / few.location.relative_to(few.folder)
    return found


@pytest.fixture
def run(few, tmp_path):
    """Run the command; its exit code and the records."""

    def start_in(*words, folder=tmp_path, dataset=few):
        code = start(VocSegmentation, folder, *FAST, *words, dataset=dataset)
        return code, Store(folder / "records").records()

    return start_in


@pytest.fixture(scope="module")
def usual(few, tmp_path_factory):
    """The record of the bare settings."""
    folder = tmp_path_factory.mktemp("usual")
    assert start(VocSegmentation, folder, *FAST, dataset=few) == 0
    (record,) = Store(folder / "records").records()
    return record


@pytest.fixture
def models(monkeypatch):
    """The networks that were made, each with what it held at first."""
    made = []

    class Kept(Fcn):
        def __init__(self, *given):
            super().__init__(*given)
            made.append((self, {name: value.clone() for name, value in self.state_dict().items()}))

    monkeypatch.setattr(voc_segmentation, "Fcn", Kept)
    return made


def moved(network, before):
    """The tensors that have changed."""
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


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
        if network.training or any(module.training for module in network.modules()):
            return whole(network, pixels, bench, scale)
        mask = torch.from_numpy(np.array(Image.open(few.masks("val")[len(shown)])))
        shown.append(tuple(pixels.shape))
        return torch.nn.functional.one_hot(mistaken(mask.long()), 11).permute(2, 0, 1)[None].float()

    def mistaken(mask):
        return torch.where((mask == 3) | (mask == BORDER), 5, mask)

    whole = voc_segmentation.compute
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


def bench_of(few, checkpoint, backbone, limit=None):
    return Evaluation(checkpoint, "", few, backbone, torch.device("cpu"), workers=0, quiet=True, limit=limit)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_count_every_image_once(few, count):
    """25 images: at the end some processes are given one that is another's."""
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


def test_batch_norm_keeps_its_statistics_while_dropout_is_on():
    network = Fcn(resolve("random-alexnet32@0").build_backbone(), 3, 0)
    network.learn()
    modes = {type(module): module.training for module in network.modules()}
    assert modes[torch.nn.Dropout]
    assert not modes[torch.nn.BatchNorm2d]


def test_the_loss_by_hand():
    scores = torch.tensor([[[[1.0, 0.5], [2.0, 0.0]], [[0.0, -1.0], [1.0, 3.0]]]])  # two classes, 2 x 2 pixels
    masks = torch.tensor([[[0, 1], [BORDER, 1]]], dtype=torch.uint8)
    each = [np.log(1 + np.exp(other - own)) for own, other in ((1, 0), (-1, 0.5), (3, 0))]
    assert pixel_loss(scores, masks).item() == pytest.approx(sum(each) / 3)


def test_the_loss_of_a_batch_in_which_no_pixel_counts_is_zero():
    scores = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = pixel_loss(scores, torch.full((2, 4, 4), BORDER, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0
    assert not scores.grad.any()


def test_the_loss_of_processes_is_that_of_all_their_pixels():
    draws = torch.Generator().manual_seed(0)
    scores, masks = torch.randn(4, 3, 5, 5, generator=draws), torch.randint(0, 3, (4, 5, 5), generator=draws)
    masks[0, :4] = BORDER  # the first process has fewer pixels that count
    counted = (masks != BORDER).sum()
    whole = pixel_loss(scores, masks)
    with patch.object(processes, "count", lambda: 2), patch.object(processes, "summed", lambda values: counted):
        halves = [pixel_loss(scores[part], masks[part]) for part in (slice(0, 2), slice(2, 4))]
    assert (sum(halves) / 2).item() == pytest.approx(whole.item(), rel=1e-6)


def test_images_come_with_their_masks(few):
    images = MaskedImages(few, "val")
    assert len(images) == COUNTS["val"]
    for number, path in enumerate(few.masks("val")):
        seen = images.see(number, Whole(), generator(0))
        image = Image.open(images.path(number))
        assert seen.dtype == torch.uint8
        assert (seen[:3].permute(1, 2, 0).numpy() == np.array(image)).all()
        assert (seen[3].numpy() == read_mask(path, (image.height, image.width), 10)).all()


@pytest.mark.parametrize("side", [5, 12])
def test_squares_are_cut_out_of_images_or_hold_them(side):
    height, width = 7, 9
    image = torch.arange(height * width, dtype=torch.uint8).reshape(1, 1, height, width).expand(1, 4, -1, -1)
    view, corners = Placed(side, (201, 202, 203), flip=False), set()
    for seed in range(200):
        (seen,) = view.tensors(image, generator(seed))
        assert seen.shape == (4, side, side)
        inside = seen[3] != BORDER
        rows, columns = (inside.any(axis).nonzero().flatten() for axis in (1, 0))
        assert len(rows) == min(side, height)
        assert len(columns) == min(side, width)
        first = int(seen[3, rows[0], columns[0]])  # says which pixel of the image it is
        corners.add((int(rows[0]) - first // width, int(columns[0]) - first % width))
        part = image[0, 0, first // width :, first % width :][: len(rows), : len(columns)]
        for channel, level in zip(seen, (201, 202, 203, BORDER)):
            assert torch.equal(channel[inside].reshape(part.shape), part)
            assert (channel[~inside] == level).all()
    assert len(corners) == (1 + abs(side - height)) * (1 + abs(side - width))  # every place comes


def test_squares_are_mirrored_with_their_masks_half_the_time():
    image = torch.arange(9, dtype=torch.uint8).reshape(1, 1, 3, 3).expand(1, 4, -1, -1)
    seen = [Placed(3, (0, 0, 0), flip=True).tensors(image, generator(seed))[0] for seed in range(100)]
    mirrored = [torch.equal(one, image[0].flip(-1)) for one in seen]
    assert all(turned or torch.equal(one, image[0]) for turned, one in zip(mirrored, seen))
    assert 30 < sum(mirrored) < 70


def test_around_images_is_the_mean_colour():
    assert mean_colour(Preprocessing(32, 32, 3, (0.1, 0.5, 0.9), (1,))) == (26, 128, 230)
    assert mean_colour(Preprocessing(32, 32, 1, (0.5,), (1,))) == (128, 128, 128)


def test_pictures_show_the_image_what_is_annotated_and_what_is_found(run, tmp_path, few, usual):
    code, (record,) = run("--save-pictures", "3")
    assert code == 0
    assert (record.key, record.metrics, record.details) == (usual.key, usual.metrics, usual.details)  # it is no setting
    pictures = sorted(tmp_path.glob("runs/*/pictures/*.png"))
    assert [path.stem for path in pictures] == [few.ids("test", "Segmentation")[number] for number in (0, 8, 16)]
    with Image.open(pictures[0]) as sheet:
        assert sheet.width > 3 * 480


def test_a_picture_has_the_colours_of_the_mask():
    seen = torch.zeros((4, 3, 5), dtype=torch.uint8)
    seen[3, 1] = 2
    panels = voc_segmentation.show(seen, torch.full((3, 5), 4))
    assert [panel.title for panel in panels] == ["image", "annotated", "found"]
    image, annotated, found = (np.asarray(panel.image) for panel in panels)
    assert not image.any()
    assert (annotated.reshape(3, -1, *annotated.shape[1:])[1] == (0.6 * palette()[2]).round()).all()
    assert not annotated.reshape(3, -1, *annotated.shape[1:])[[0, 2]].any()
    assert (found == (0.6 * palette()[4]).round()).all()


def spoil(kit, split, change):
    """Change the last mask of a set; its path."""
    path = kit.masks(split)[-1]
    mask = change(np.array(Image.open(path)))
    to_image(mask).save(path)
    return path


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda mask: mask[:-1], "pixels, and its image"),
        (lambda mask: np.where(mask == 0, 11, mask).astype(np.uint8), "has the class 11, where 0 to 10 and 255"),
    ],
)
@pytest.mark.parametrize("split", ["trainval", "test"])
def test_a_mask_that_is_wrong_is_named(split, change, wanted, own, run, capsys):
    path = spoil(own, split, change)
    with patch.object(type(own), "check_contents", lambda self: None):  # which would find its size changed
        assert run("--iterations", "13", dataset=own) == (2, [])
    said = capsys.readouterr().err
    assert f"the mask {path.name}" in said
    assert wanted in said
    assert str(path) in said
    assert "it is generated again" in said


def test_an_image_without_a_pixel_that_counts_is_passed_over(own, run):
    for split in ("trainval", "test"):
        spoil(own, split, lambda mask: np.full_like(mask, BORDER))
    with patch.object(type(own), "check_contents", lambda self: None):
        code, (record,) = run("--batch", "1", "--iterations", "49", dataset=own)
    assert code == 0
    assert record.details["loss"].count(0) == 1


def test_masks_without_a_pixel_that_counts_have_no_number(own, run, capsys):
    for path in own.masks("test"):
        to_image(np.full_like(np.array(Image.open(path)), BORDER)).save(path)
    with patch.object(type(own), "check_contents", lambda self: None):
        assert run(dataset=own) == (2, [])
    assert "no pixel of the masks has a class" in capsys.readouterr().err


def test_a_class_that_is_in_no_mask_and_not_found_is_absent(own, run):
    for path in own.masks("test"):
        mask = np.array(Image.open(path))
        to_image(np.where(mask == 4, BORDER, mask).astype(np.uint8)).save(path)

    def never(network, pixels, bench, scale):
        scores = whole(network, pixels, bench, scale)
        return scores - 1e9 * (torch.arange(11) == 4)[:, None, None]

    whole = voc_segmentation.compute
    with patch.object(type(own), "check_contents", lambda self: None), patch.object(voc_segmentation, "compute", never):
        code, (record,) = run(dataset=own)
    assert code == 0
    assert record.details["absent"] == ["three"]
    assert len(record.details["IoU"]) == 10


def test_images_without_masks_are_refused(tmp_path, capsys):
    assert start(VocSegmentation, tmp_path, *FAST) == 2
    assert "transfer.voc_segmentation needs boxes or masks, and digits has none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--crop", "0"), "--crop 0 cannot be"),
        (("--scale", "0"), "--scale 0.0 cannot be"),
        (("--iterations", "0"), "--iterations 0 cannot be"),
        (("--save-pictures", "-1"), "--save-pictures -1 cannot be"),
        (("--checkpoint", "random-alexnet@0", "--crop", "20"), "alexnet takes images of at least 63 px"),
        (("--checkpoint", "random-torchvision:vit_b_32@0"), "has no maps to score pixels from"),
    ],
)
def test_settings_that_cannot_be(words, wanted, run, capsys):
    assert run(*words) == (2, [])
    assert wanted in capsys.readouterr().err


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


@pytest.mark.parametrize("calls", [1, 3, 5, 20])
def test_a_run_that_was_stopped_continues_to_the_same_bits(calls, run, tmp_path, usual):
    left, before = [calls], voc_segmentation.compute

    def stopping(*given):
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGTERM)
        return before(*given)

    with patch.object(voc_segmentation, "compute", stopping), pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 143
    assert list(tmp_path.rglob("state-*.pt"))
    code, (record,) = run()
    assert code == 0
    assert (record.metrics, record.details) == (usual.metrics, usual.details)
    assert not list(tmp_path.rglob("state-*.pt"))


MOMENTS = {
    "a step": "transfer.finetuning.descend",
    "an image": "transfer.voc_segmentation.confusion",
    "after a step": "zoo.state.State._after_step",
    "while saving": "results.files.sync",
    "a picture": "transfer.voc_segmentation.save_beside",
    "the record": "results.store.Store.write",
}


def run_and_die(folder, place, moment=None, calls=0):
    """Run the command in this process on the devkit in `place`, and kill it at that call of the function `moment`."""
    os.environ["OMP_NUM_THREADS"] = "1"
    left = [calls]

    def dying(function):
        def called(*values, **more):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return function(*values, **more)

        return called

    few = generate_few(place, COUNTS)  # it is there
    with ExitStack() as stack:
        if moment is not None:
            path, _, attribute = moment.rpartition(".")
            module, _, name = path.rpartition(".")
            owner = getattr(sys.modules[module], name) if name[0].isupper() else sys.modules[path]
            stack.enter_context(patch.object(owner, attribute, dying(getattr(owner, attribute))))
        words = (*FAST, "--save-every", "0.0005", "--save-pictures", "2")
        sys.exit(start(VocSegmentation, folder, *words, dataset=few))


def ended(folder, place, *death):
    """The exit code of the command in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_voc_segmentation", *SLOW])
    process = context.Process(target=run_and_die, args=(folder, place, *death))
    process.start()
    process.join()
    return process.exitcode


def test_a_run_killed_at_random_points_ends_like_one_that_was_not(usual, place, tmp_path):
    rng = random.Random(0)
    for name, moment in MOMENTS.items():
        calls = 0 if name == "the record" else rng.randrange(2)
        assert ended(tmp_path, place, moment, calls) == -signal.SIGKILL, name
    assert list(tmp_path.rglob("state-*.pt"))
    assert ended(tmp_path, place) == 0
    (found,) = Store(tmp_path / "records").records()
    assert (found.metrics, found.details) == (usual.metrics, usual.details)
    left = [name for name in files(tmp_path / "runs") if not TEMPORARY.fullmatch(os.path.basename(name))]
    assert [os.path.dirname(name) for name in left] == [f"{found.key}/pictures"] * 2
