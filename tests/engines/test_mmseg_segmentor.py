"""mmsegmentation's FCN on a checkpoint's trunk: what it holds and computes, what learns, its scores, continued runs."""

from __future__ import annotations

import math
import signal
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import noise
from PIL import Image
from segmented import COUNTS, bench_of, segment
from test_fcn import close, lively
from test_kill_segmentation import ended
from torch import Tensor, nn
from vocs import generate_few, moved, watch

from results.errors import UserError
from transfer import voc_segmentation
from transfer.engines import load_mmseg, mmseg_segmentor, versions
from transfer.engines.mmseg_segmentor import MmsegFcn, extend
from transfer.fcn import Fcn
from transfer.finetuning import Finetuning, train
from transfer.voc_segmentation import VocSegmentation
from zoo import processes
from zoo.backbones import allocate, empty
from zoo.checkpoint import resolve
from zoo.voc.masks import BORDER

MMSEG = ("--engine", "mmseg")
NETWORKS = [("alexnet32", False), ("alexnet32", True), ("resnet18", False), ("small_vgg", False), ("small_vgg", True)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("minivoc")


@pytest.fixture(scope="module")
def few(place):
    return generate_few(place, COUNTS)


@pytest.fixture
def run(few, tmp_path):
    """Run the command with the engine; its exit code and the records."""
    return partial(segment, tmp_path, few, *MMSEG)


@pytest.fixture(scope="module")
def usual(few, tmp_path_factory):
    """The record of the engine's bare settings."""
    _, (record,) = segment(tmp_path_factory.mktemp("usual"), few, *MMSEG)
    return record


@pytest.fixture
def models(monkeypatch):
    """The networks that were made, each with what it held at first."""
    return watch(monkeypatch, mmseg_segmentor, "MmsegFcn")


def mmseg(name: str, sobel: bool = False, classes: int = 3, seed: int = 0) -> tuple[nn.Module, MmsegFcn]:
    """A backbone, and the network on it, both in eval mode."""
    backbone = lively(name, sobel=sobel)
    return backbone, MmsegFcn(backbone, classes, seed).eval()


# What it holds


def test_it_is_mmsegmentations_model() -> None:
    _, network = mmseg("resnet18")
    model = network.model
    parts = [model, model.decode_head, model.data_preprocessor, model.decode_head.loss_decode]
    assert all(type(part).__module__.startswith("mmseg.models.") for part in parts)
    names = ["EncoderDecoder", "FCNHead", "SegDataPreProcessor", "CrossEntropyLoss"]
    assert [type(part).__name__ for part in parts] == names


@pytest.mark.parametrize(("name", "sobel"), NETWORKS)
def test_every_tensor_of_the_checkpoint_is_in_the_model(name: str, sobel: bool) -> None:
    backbone, network = mmseg(name, sobel)
    held = network.state_dict()
    for key, value in backbone.state_dict().items():
        assert torch.equal(held[f"model.backbone.net.{key}"].reshape(value.shape), value), key
    others = [key for key in held if not key.startswith("model.backbone.net.")]
    assert all(key.startswith("model.decode_head.") for key in others)
    assert len(held) == len(backbone.state_dict()) + len(others)


@pytest.mark.parametrize(
    ("layer", "other", "wanted"),
    [
        ("features.0", nn.Identity(), "missing features.0.weight, features.0.bias"),
        ("features.0", nn.Conv2d(3, 7, 3), r"features.0.weight is \(7, 3, 3, 3\), not "),
        ("classifier.0", nn.Conv2d(1, 1, 1), "unexpected classifier.0.weight, classifier.0.bias"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(layer: str, other: nn.Module, wanted: str) -> None:
    backbone = allocate("alexnet32")
    backbone.set_submodule(layer, other)
    with pytest.raises(UserError, match=f"alexnet32 does not fit its trunk in mmsegmentation's model: {wanted}"):
        MmsegFcn(backbone, 3, 0)


def tensors_of_head(network: MmsegFcn) -> list[Tensor]:
    """As ours has them, in order: of the 3x3 convolution and its norm, if there is one, then of the scores."""
    head = network.model.decode_head
    return [*head.convs.state_dict().values(), *head.conv_seg.state_dict().values()]


@pytest.mark.parametrize("name", ["alexnet32", "resnet18"])
def test_new_layers_start_from_the_same_values_as_ours(name: str) -> None:
    for seed in (0, 1):
        backbone, network = mmseg(name, classes=5, seed=seed)
        ours = Fcn(backbone, 5, seed).head.state_dict().values()
        theirs = tensors_of_head(network)
        assert len(ours) == len(theirs)
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs))


# What it computes


@torch.no_grad()
@pytest.mark.parametrize(("name", "sobel"), NETWORKS)
def test_the_trunk_in_the_model_gives_what_the_backbone_gives(name: str, sobel: bool) -> None:
    """At every fourth cell of a dilated ResNet; the convolutions where linear layers follow."""
    backbone, network = mmseg(name, sobel)
    x, deepest = noise(64 if name == "resnet18" else 32, backbone.channels), backbone.layers[-1]
    wanted = backbone(x, (deepest,))[deepest]
    if name == "resnet18":
        (found,) = network.model.extract_feat(x)
        assert close(found[..., ::4, ::4], wanted)
        return
    kept: list[Tensor] = []
    network.model.backbone.net.features.register_forward_hook(lambda module, given, found: kept.append(found))
    network.model.extract_feat(x)
    assert close(kept[0], backbone.features(backbone.prepare(x)))
    assert close(network.model.backbone.net(x, (deepest,))[deepest], wanted)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "sobel", "middle"), [("alexnet32", False, 2), ("alexnet32", True, 2), ("alexnet", True, 3)]
)
def test_fc7_as_a_convolution_is_that_of_the_backbone_at_its_own_size(name: str, sobel: bool, middle: int) -> None:
    backbone, network = mmseg(name, sobel)
    x = noise(backbone.size, n=1)
    (cells,) = network.model.extract_feat(x)
    assert close(cells[:, :, middle, middle], torch.relu(backbone.embed(x)))


def with_scores(name: str) -> MmsegFcn:
    """A network whose layer of scores is not zero any more."""
    _, network = mmseg(name)
    nn.init.normal_(network.model.decode_head.conv_seg.weight, std=0.1, generator=torch.Generator().manual_seed(2))
    return network


@torch.no_grad()
def test_scores_of_images_that_cells_do_not_fit_are_those_of_their_part_of_a_larger_image() -> None:
    network = with_scores("resnet18")
    x = noise(32)[:, :, :30, :25]
    filled = F.pad(x, (0, 3, 0, 2))  # to whole cells of 4 pixels
    cells = network.model.decode_head(network.model.extract_feat(filled))
    pixels = F.interpolate(cells, (32, 28), mode="bilinear", align_corners=False)[:, :, :30, :25]
    wanted = F.interpolate(pixels, (61, 50), mode="bilinear", align_corners=False)
    assert close(network.scores(x, (61, 50)), wanted)


@torch.no_grad()
def test_an_image_too_small_for_the_network_is_scored_like_any_other() -> None:
    assert with_scores("alexnet").scores(noise(64)[:, :, :30, :62], (60, 124)).shape == (2, 3, 60, 124)


def test_the_loss_is_the_mean_over_pixels_that_count() -> None:
    network = with_scores("alexnet32")
    x = noise(32)
    masks = torch.randint(0, 3, (2, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    masks[0, :40] = BORDER
    cells = network.model.decode_head(network.model.extract_feat(x))
    scores = F.interpolate(cells, (64, 64), mode="bilinear", align_corners=False)
    wanted = F.cross_entropy(scores, masks.long(), ignore_index=BORDER)
    assert network.loss(x, masks).item() == pytest.approx(wanted.item(), rel=1e-6)
    assert network.loss(x, torch.full_like(masks, BORDER)).item() == 0


def test_the_loss_of_processes_is_that_of_all_their_pixels() -> None:
    network = with_scores("alexnet32")
    x, masks = noise(32), torch.randint(0, 3, (2, 32, 32), generator=torch.Generator().manual_seed(0))
    masks[0, :20] = BORDER
    whole, counted = network.loss(x, masks), (masks != BORDER).sum()
    with patch.object(processes, "count", lambda: 2), patch.object(processes, "summed", lambda values: counted):
        halves = [network.loss(x[[n]], masks[[n]]) for n in range(2)]
    assert (sum(halves) / 2).item() == pytest.approx(whole.item(), rel=1e-5)


def test_masks_are_extended_as_images_are() -> None:
    masks = torch.ones(1, 61, 50, dtype=torch.uint8)
    found = extend(masks, (1, 3, 30, 25), (1, 3, 32, 28))
    assert found.shape == (1, 65, 56)
    assert torch.equal(found[:, :61, :50], masks)
    assert (found == BORDER).sum() == 65 * 56 - 61 * 50


# Runs


def test_the_record(usual) -> None:
    assert usual.protocol == "deepcluster@1, iterations 4, batch 4, engine mmseg"
    assert usual.settings["engine"] == usual.details["engine"] == "mmseg"
    assert usual.details["versions"] == versions("mmseg")
    assert usual.details["versions"]["mmsegmentation"] == "1.2.2"
    assert usual.details["loss"][0] == pytest.approx(math.log(11), abs=1e-4)  # all scores are 0 before the first step
    assert usual.details["frozen"] == "verified: 15 of 41 tensors unchanged"  # statistics of five batch norms


@pytest.mark.parametrize("trained", ["fc6-8", "all"])
@pytest.mark.parametrize("checkpoint", ["random-alexnet32@0", "random-alexnet32-sobel@0", "random-resnet18@0"])
def test_what_learns(trained: str, checkpoint: str, run, models) -> None:
    words = ("--checkpoint", checkpoint, "--trained", trained, "--iterations", "2", "--limit", "16")
    small = ("--batch", "2", "--scale", "0.25") if "resnet" in checkpoint else ()
    assert run(*words, *small) == (0, [])
    ((network, before),) = models
    above = ("model.decode_head.", "model.backbone.net.classifier.")
    wanted = {
        name
        for name in before
        if not any(part in name for part in ("running", "tracked", "sobel"))
        and (trained == "all" or name.startswith(above))
    }
    assert moved(network, before) == wanted


def test_dropout_is_on_and_batch_norm_is_not() -> None:
    _, network = mmseg("resnet18")
    train(network)
    modes = {type(module): module.training for module in network.modules()}
    assert modes[nn.Dropout2d]
    assert not modes[nn.BatchNorm2d]


@pytest.mark.parametrize("name", ["alexnet", "vgg16"])
def test_a_step_at_full_size(name: str, few) -> None:
    task = VocSegmentation(engine="mmseg", iterations=1, batch=1, lr=1e-3, crop=224, scale=1.0)
    backbone = lively(name, sobel=True)
    bench = bench_of(few, resolve("random-alexnet32-sobel@0"), backbone, limit=1)  # for its preprocessing
    network = MmsegFcn(backbone, 11, 0)
    network.choose("all")
    tuning = Finetuning(task, bench, network, bench.state("x"))
    task.learn(tuning, network)
    assert tuning.losses == [pytest.approx(math.log(11), abs=1e-4)]
    assert network.model.decode_head.conv_seg.bias.any()
    assert task.measure(tuning, network).sum() == (np.array(Image.open(few.masks("test")[0])) != BORDER).sum()
    assert "unchanged" in tuning.conclude()["frozen"]


def test_bf16_gives_another_number(run, usual) -> None:
    code, (record,) = run("--precision", "bf16")
    assert code == 0
    assert record.key != usual.key
    assert record.details["loss"] != usual.details["loss"]
    assert record.details["loss"] == pytest.approx(usual.details["loss"], rel=0.05)


def test_scores_are_those_of_mmsegmentations_metric(few, tmp_path) -> None:
    """On the predictions of a network that has learned a little."""
    metric = load_mmseg().evaluation.IoUMetric(iou_metrics=["mIoU"])
    names = ("background", *few.classes)
    metric.dataset_meta = {"classes": names}
    before = voc_segmentation.compute

    def watched(network, pixels, bench, scale) -> Tensor:
        scores = before(network, pixels, bench, scale)
        metric.process({}, [{"pred_sem_seg": {"data": scores.argmax(1)}, "gt_sem_seg": {"data": masks.pop(0)}}])
        return scores

    masks = [torch.from_numpy(np.array(Image.open(path)))[None].long() for path in few.masks("test")]
    with patch.object(voc_segmentation, "compute", watched):
        code, (record,) = segment(tmp_path, few, *MMSEG, "--lr", "0.1", "--iterations", "8")
    assert (code, masks) == (0, [])
    wanted = metric.evaluate(COUNTS["test"])
    assert record.metrics["mIoU"] == pytest.approx(wanted["mIoU"], abs=0.01)  # it rounds to two decimals
    assert record.metrics["pixel_acc"] == pytest.approx(wanted["aAcc"], abs=0.01)


def test_a_run_that_was_killed_continues_to_the_same_bits(place, few, tmp_path, usual) -> None:
    for moment, calls in (("transfer.finetuning.descend", 2), ("transfer.voc_segmentation.confusion", 3)):
        assert ended(tmp_path, place, moment, calls, *MMSEG) == -signal.SIGKILL
        assert list(tmp_path.rglob("state-*.pt"))
    code, (record,) = segment(tmp_path, few, *MMSEG)
    assert code == 0
    assert (record.metrics, record.details) == (usual.metrics, usual.details)
    assert not list(tmp_path.rglob("state-*.pt"))


def test_a_network_without_maps_is_refused() -> None:
    with pytest.raises(UserError, match="has no maps to score pixels from"):
        MmsegFcn(empty("torchvision:vit_b_32"), 3, 0)
