"""Fast and Faster R-CNN on each kind of backbone: what of a checkpoint is in them, what regions see, what learns."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from results.errors import UserError
from transfer.detection import model
from transfer.detection.grid import MAP, find_map
from transfer.detection.model import TARGET_STD, Detector, region_loss
from transfer.finetuning import train
from zoo.backbones import allocate, build

LAYERS = {"alexnet": "conv5", "alexnet32": "conv5", "vgg16": "conv13", "small_vgg": "conv4", "resnet18": "res4"}
BINS = {"alexnet": 6, "alexnet32": 4, "vgg16": 7, "small_vgg": 7, "resnet18": 5, "resnet50": 14}
WIDTHS = {"alexnet": 4096, "alexnet32": 512, "vgg16": 4096, "small_vgg": 1024, "resnet18": 512, "resnet50": 2048}


def detector(backbone, anchors=(16, 32), classes=3, candidates=50, rois=8, seed=0):
    return Detector(backbone, classes, seed, anchors, candidates, rois)


def images(count=2, side=64, channels=3, seed=0):
    x = torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))
    return ImageList(x, [(side, side), (side - 10, side)][:count])


def given(count=2):
    """Boxes to be judged in each image."""
    return [torch.tensor([[4.0, 4, 40, 40], [0, 0, 30, 20], [20, 10, 50, 50]])] * count


def targets(count=2):
    return [{"boxes": torch.tensor([[5.0, 5, 40, 40]]), "labels": torch.tensor([2])}] * count


@pytest.fixture
def small():
    return build("alexnet32")


@pytest.mark.parametrize("name", ["alexnet32", "small_vgg", "resnet18"])
@pytest.mark.parametrize("sobel", [False, True])
def test_the_trunks_activations_are_the_plain_backbones(name, sobel):
    """Of an image of the checkpoint's own size, and with fc6 and fc7 (or res5) where the regions are judged."""
    backbone = build(name, sobel=sobel).eval()
    network = detector(backbone).eval()
    x = images(1, backbone.size, backbone.channels).tensors
    seen = []
    network.heads.box_roi_pool.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0][MAP]))
    network(ImageList(x, [(backbone.size,) * 2]), [])
    layer = backbone.layers[-2 if name == "resnet18" else -1]
    wanted = backbone(x, (layer,))[layer]
    assert wanted.std() > 0
    torch.testing.assert_close(seen[0], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sobel", [False, True])
def test_what_judges_a_region_that_is_the_image_gives_the_checkpoints_descriptor(sobel):
    for name in ("alexnet32", "resnet18"):
        backbone = build(name, sobel=sobel).eval()
        network = detector(backbone).eval()
        x = images(1, 32).tensors
        whole = find_map(backbone, network.layer, x)
        pooled = whole if name == "resnet18" else backbone.features[-2:](whole)
        wanted = torch.relu(backbone.embed(x))
        torch.testing.assert_close(network.describe(pooled), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BINS)
def test_every_tensor_of_the_checkpoint_is_in_the_detector(name):
    backbone = allocate(name)
    for parameter in backbone.state_dict().values():
        parameter.fill_(0.5)
    network = detector(backbone)
    kept = network.state_dict()
    for key, value in backbone.state_dict().items():
        assert torch.equal(kept[f"backbone.{key}"], value), key
    assert network.heads.box_roi_pool.bins == BINS[name]
    assert network.heads.box_predictor.cls_score.in_features == WIDTHS[name]
    assert len(network.new) == (3 if name == "small_vgg" else 0)
    assert len({id(parameter) for parameter in network.parameters()}) == len(list(network.parameters()))
    assert len(kept) == len(dict(network.named_parameters())) + len(dict(network.named_buffers()))  # each is there once


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "resnet50"])
def test_a_step_at_full_size(name):
    backbone = allocate(name)
    generator = torch.Generator().manual_seed(0)
    for key, value in backbone.state_dict().items():
        if value.ndim > 1:
            value.uniform_(-0.02, 0.02, generator=generator)
        else:
            value.fill_(float("running_var" in key or key.endswith("weight")))
    network = detector(backbone, anchors=(), rois=4)
    network.choose("all")
    train(network)
    loss = network(images(1, 120), given(1), targets(1))
    loss.backward()
    assert torch.isfinite(loss)
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
    trunk = "conv1" if name == "resnet50" else "features.0"
    assert network.backbone.get_submodule(trunk).weight.grad.abs().max() > 0
    network.eval()
    (found,) = network(images(1, 120), given(1))
    assert set(found) == {"boxes", "scores", "labels"}


@pytest.mark.parametrize("name", ["small_vgg", "resnet18", "torchvision:mobilenet_v3_small"])
@pytest.mark.parametrize("anchors", [(), (16, 32)])
def test_other_networks_learn_and_find(name, anchors):
    network = detector(build(name), anchors)
    network.choose("all")
    train(network)
    x = images(2, channels=network.backbone.channels)
    loss = network(x, given(), targets())
    assert loss.shape == ()
    loss.backward()
    assert network.heads.box_predictor.bbox_pred.weight.grad.abs().max() > 0
    network.eval()
    found = network(x, given())
    assert len(found) == 2
    assert all(one["labels"].min() >= 1 for one in found if len(one["labels"]))


def test_a_network_without_maps_is_refused():
    with pytest.raises(UserError, match="has no maps to find objects in"):
        detector(build("torchvision:vit_b_32"))


def test_new_layers_are_drawn_from_the_seed(small):
    torch.manual_seed(1)
    one = detector(small)
    torch.manual_seed(2)
    same, other = detector(small), detector(small, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), same.state_dict().values(), strict=True))
    predictor = one.heads.box_predictor
    assert not torch.equal(predictor.cls_score.weight, other.heads.box_predictor.cls_score.weight)
    assert predictor.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert predictor.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert one.rpn.head.cls_logits.weight.std().item() == pytest.approx(0.01, rel=0.2)
    assert not predictor.cls_score.bias.any()


@pytest.mark.parametrize("anchors", [(), (16,)])
def test_what_learns(anchors):
    network = detector(build("alexnet32", sobel=True), anchors)
    network.choose("fc6-8")
    learned = {name.split(".")[0] for name, one in network.named_parameters() if one.requires_grad}
    assert learned == {"backbone", "heads"} | ({"rpn"} if anchors else set())
    parts = {name.split(".")[1] for name, one in network.backbone.named_parameters() if one.requires_grad}
    assert parts == {"1", "4"}  # fc6 and fc7
    network.choose("all")
    assert [name for name, one in network.named_parameters() if not one.requires_grad] == [
        "backbone.sobel.0.weight",
        "backbone.sobel.0.bias",
        "backbone.sobel.1.weight",
        "backbone.sobel.1.bias",
    ]


def test_batch_norm_keeps_its_statistics_while_dropout_is_on():
    for name in ("alexnet32", "resnet18"):
        network = detector(build(name))
        train(network)
        modes = {
            kind: {m.training for m in network.modules() if isinstance(m, kind)}
            for kind in (nn.BatchNorm2d, nn.Dropout)
        }
        assert modes == {nn.BatchNorm2d: {False}, nn.Dropout: {True} if name == "alexnet32" else set()}
        assert network.rpn.training


def test_the_loss_by_hand():
    scores = torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    moves = torch.arange(36.0).reshape(3, 12) / 10
    labels = torch.tensor([1, 0, 2])
    wanted = torch.zeros(3, 4)
    wanted[0] = torch.tensor([0.4, 0.0, 2.6, 0.7])  # away from .4 .5 .6 .7 by 0, .5, 2, 0
    wanted[2] = torch.tensor([3.2, 3.3, 3.4, 3.5])
    entropy = [np.log(np.exp(row).sum()) - row[label] for row, label in zip(scores.numpy(), labels)]
    assert region_loss(scores, moves, labels, wanted).item() == pytest.approx(np.mean(entropy) + (0.125 + 1.5) / 3)


@pytest.mark.parametrize(("anchors", "least"), [((), 0.1), ((16,), 0.0)])
def test_background_overlaps_an_object_a_little_where_regions_are_given(anchors, least, small):
    """In Fast R-CNN; in Faster R-CNN any that is no object."""
    heads = detector(small, anchors).heads
    truth = torch.tensor([[0.0, 0, 20, 20], [40, 40, 60, 60]])
    regions = torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 10], [0, 0, 20, 9], [10, 10, 30, 30], [18, 18, 30, 30]])
    overlap = box_iou(truth, regions).amax(0).tolist()
    assert overlap == pytest.approx([1, 0.5, 0.45, 1 / 7, 4 / 540], abs=1e-6)
    (own,), (labels,) = heads.assign_targets_to_proposals([regions], [truth], [torch.tensor([3, 1])])
    assert labels.tolist() == [3, 3, 0, 0, -1 if least else 0]
    assert own[:2].tolist() == [0, 0]


def test_regions_that_are_learned_from(small):
    """A quarter are objects, the objects themselves among them; moves are divided by their deviation."""
    heads = detector(small, (), rois=8).heads
    objects = {"boxes": torch.tensor([[10.0, 10, 30, 30]]), "labels": torch.tensor([1])}
    near = torch.tensor([[10.0, 10, 30, 28]]).repeat(20, 1)
    aside = torch.tensor([[10.0, 10, 30, 18]]).repeat(20, 1)
    (regions,), _, (labels,), (moves,) = heads.select_training_samples([torch.cat([near, aside])], [objects])
    assert (len(regions), int((labels == 1).sum()), int((labels == 0).sum())) == (8, 2, 6)
    found = [move.tolist() for move, region in zip(moves, regions) if region[3] == 28]
    wanted = np.array([0, 1 / 18, 0, np.log(20 / 18)]) / TARGET_STD
    assert all(one == pytest.approx(wanted, abs=1e-5) for one in found)
    (regions,), _, (labels,), _ = heads.select_training_samples([torch.zeros(0, 4)], [objects])
    assert (regions.tolist(), labels.tolist()) == ([[10, 10, 30, 30]], [1])


def test_no_proposals_are_no_detections(small):
    network = detector(small, ()).eval()
    with torch.no_grad():
        nothing = network(images(1), [torch.zeros(0, 4)])
        both = network(images(2), [torch.zeros(0, 4), given()[0]])
    assert [len(one["boxes"]) for one in nothing] == [0]
    assert len(both[0]["boxes"]) == 0


def test_detections_are_moved_regions_of_the_best_classes(small):
    """A predictor that ignores what it sees: class 2 is sure, and its boxes lie a tenth of their width to the right."""
    network = detector(small, ()).eval()
    predictor = network.heads.box_predictor
    with torch.no_grad():
        for layer in (predictor.cls_score, predictor.bbox_pred):
            layer.weight.zero_()
        predictor.cls_score.bias.copy_(torch.tensor([0.0, 0.0, 10.0, 0.0]))
        predictor.bbox_pred.bias[8] = 1.0  # dx of class 2, in deviations of .1
        (found,) = network(images(1), [torch.tensor([[10.0, 10, 30, 30], [11, 10, 31, 30], [40, 40, 60, 60]])])
    assert found["labels"].tolist() == [2, 2]
    assert found["boxes"].tolist()[0] in ([12, 10, 32, 30], [13, 10, 33, 30])
    assert found["boxes"].tolist()[1] == pytest.approx([42, 40, 62, 60])
    assert found["scores"].tolist() == pytest.approx([1 / (1 + 3 * np.exp(-10))] * 2)


def test_in_bf16_the_new_layers_stay_exact(small):
    network = Detector(small, 3, 0, (16,), 50, 8, "bf16").eval()
    exact = deepcopy(network)
    exact.precision = "fp32"
    given_map = []
    network.rpn.head.register_forward_hook(
        lambda module, inputs, output: given_map.append((inputs[0][0], output[0][0]))
    )
    with torch.no_grad():
        network(images(1), [])
        found, scores = given_map[0]
        wanted = find_map(small.eval(), "conv5", images(1).tensors)
    assert (found.dtype, scores.dtype) == (torch.float32, torch.float32)
    assert 0 < (found - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_the_proposal_network_is_py_faster_rcnns(small):
    rpn = detector(small, candidates=100).rpn
    assert (rpn.proposal_matcher.high_threshold, rpn.proposal_matcher.low_threshold) == (0.7, 0.3)
    assert (rpn._pre_nms_top_n, rpn._post_nms_top_n["testing"]) == ({"training": 100, "testing": 50}, 300)
    assert model.KEPT == {"training": 2000, "testing": 300}
