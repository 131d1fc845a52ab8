"""detectron2's model of a checkpoint: the same network as our detector, which sees, learns and finds the same."""

from __future__ import annotations

import pytest
import torch
from networks import lively, noise
from torch import nn
from torchvision.models.detection.image_list import ImageList

from results.errors import RunFailed, UserError
from transfer.detection.grid import MAP, Anchors, find_map, measure
from transfer.detection.model import Detector, layer_of, pooling_of
from transfer.engines.detectron2_detector import Boxes, Detectron2Detector, Instances, configure, engine, load
from transfer.finetuning import train
from zoo.backbones import allocate, build, empty

NETWORKS = [("alexnet32", False), ("alexnet32", True), ("resnet18", False), ("small_vgg", False)]


def detector(backbone, anchors=(), kind=Detectron2Detector, rois=8, precision="fp32"):
    return kind(backbone, 3, 0, anchors, 50, rois, precision)


def images(count=2, side=64, channels=3):
    """Of which the second is less high, and filled up."""
    x = noise(side, channels, count)
    x[1:, :, -10:] = 0
    return ImageList(x, [(side, side), (side - 10, side)][:count])


def given(count=2):
    """Boxes to be judged in each image."""
    return [torch.tensor([[4.0, 4, 40, 40], [6, 4, 38, 40], [0, 0, 30, 20], [20, 10, 50, 50]])] * count


def targets(count=2):
    return [{"boxes": torch.tensor([[5.0, 5, 40, 40]]), "labels": torch.tensor([2])}] * count


def share_judges(from_ours: Detector, to: Detectron2Detector) -> None:
    """Give detectron2's model the scores and moves of ours, which has the background first."""
    ours, theirs = from_ours.heads.box_predictor, to.model.roi_heads.box_predictor
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(theirs.cls_score, name).copy_(getattr(ours.cls_score, name).roll(-1, 0))
            getattr(theirs.bbox_pred, name).copy_(getattr(ours.bbox_pred, name)[4:])
        for one, other in zip(from_ours.new, to.model.roi_heads.box_head.new, strict=True):
            other.load_state_dict(one.state_dict())
        if from_ours.rpn is not None:
            head, proposing = from_ours.rpn.head, to.model.proposal_generator.rpn_head
            pairs = [(head.conv[0][0], proposing.conv), (head.cls_logits, proposing.objectness_logits)]
            for one, other in [*pairs, (head.bbox_pred, proposing.anchor_deltas)]:
                other.load_state_dict(one.state_dict())


@pytest.mark.parametrize(("name", "sobel"), NETWORKS)
def test_the_trunks_activations_are_the_plain_backbones(name, sobel):
    backbone = lively(name, sobel=sobel)
    network = detector(backbone).eval()
    x = noise(backbone.size, backbone.channels).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        seen, wanted = network.model.backbone(x)[MAP], backbone(x, (layer_of(backbone),))[layer_of(backbone)]
    assert wanted.std() > 0
    torch.testing.assert_close(seen, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "sobel"), NETWORKS[:3])
def test_what_sees_a_region_that_is_the_image_gives_the_checkpoints_descriptor(name, sobel):
    """fc6 and fc7, or res5."""
    backbone = lively(name, sobel=sobel)
    network, x = detector(backbone).eval(), noise(32)
    with torch.no_grad():
        whole = find_map(backbone, layer_of(backbone), x)
        pooled = whole if name == "resnet18" else backbone.features[-2:](whole)
        found, wanted = network.model.roi_heads.box_head(pooled), torch.relu(backbone.embed(x))
    assert wanted.std() > 0
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["alexnet", "alexnet32", "resnet18", "small_vgg"])
def test_regions_and_anchors_lie_where_ours_do(name):
    backbone = allocate(name)
    for value in backbone.state_dict().values():
        value.fill_(0)
    network, grid = detector(backbone, (16, 32)), measure(backbone, layer_of(backbone))
    found = {MAP: noise(12, grid.channels)}
    ours = pooling_of(backbone, grid)(found, given(), [])
    theirs = network.model.roi_heads.box_pooler([found[MAP]], [Boxes(boxes) for boxes in given()])
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    (around,) = network.model.proposal_generator.anchor_generator([found[MAP]])
    wanted = Anchors(grid, (16, 32))(ImageList(noise(64, n=1), [(64, 64)]), [found[MAP]])[0]
    cells = (t.reshape(144, 6, 4).flatten(1).sort(1)[0] for t in (around.tensor, wanted))  # in any order at a cell
    torch.testing.assert_close(*cells, rtol=0, atol=1)  # torchvision's are whole pixels


@pytest.mark.parametrize("name", ["alexnet32", "resnet18", "small_vgg"])
def test_it_learns_and_finds_what_ours_does(name):
    """Where all regions are learned from, nothing is drawn: the loss is ours, and so are the detections."""
    torch.manual_seed(0)
    backbone = lively(name)
    ours, theirs = (detector(backbone, kind=kind, rois=100).eval() for kind in (Detector, Detectron2Detector))
    predictor, lengths = ours.heads.box_predictor, []
    predictor.cls_score.register_forward_pre_hook(lambda layer, seen: lengths.append(seen[0].norm(dim=1).mean()))
    x, losses = images(channels=backbone.channels), []
    with torch.no_grad():
        ours(x, given())
        for layer in (predictor.cls_score, predictor.bbox_pred):
            nn.init.normal_(layer.weight, std=1 / lengths[0].item())
        share_judges(ours, theirs)
        for one, other in zip(ours(x, given()), theirs(x, given()), strict=True):
            order = [each["scores"].argsort(descending=True) for each in (one, other)]
            assert len(one["boxes"]) > 1
            for part in ("boxes", "scores", "labels"):
                torch.testing.assert_close(one[part][order[0]], other[part][order[1]], rtol=1e-4, atol=1e-4)
    for network in (ours, theirs):
        network.choose("all")
        train(network)
        for module in network.modules():
            module.training &= not isinstance(module, nn.Dropout)
        losses.append(network(x, given(), targets()))
        losses[-1].backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    wanted, found = (next(network.backbone.parameters()).grad for network in (ours, theirs))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item())


def test_its_proposals_are_ours():
    """With torchvision's anchors, whose sides are whole pixels. The loss is ours but for what it is divided by."""
    ours, theirs = (detector(lively("alexnet32"), (16,), kind).eval() for kind in (Detector, Detectron2Detector))
    share_judges(ours, theirs)
    proposing, x = theirs.model.proposal_generator, images(side=32)
    ours.rpn.anchor_generator.set_cell_anchors(torch.float32, torch.device("cpu"))
    next(iter(proposing.anchor_generator.cell_anchors)).copy_(ours.rpn.anchor_generator.cell_anchors[0])
    boxes = [{"boxes": torch.tensor([[5.0, 5, 20, 20]]), "labels": torch.tensor([2])}] * 2
    truth = [Instances(size, gt_boxes=Boxes(boxes[0]["boxes"])) for size in x.image_sizes]
    with torch.no_grad():
        maps = theirs.model.backbone(x.tensors)
        for one, other in zip(proposing(x, maps)[0], ours.rpn(x, maps)[0], strict=True):
            assert len(one) > 5
            torch.testing.assert_close(one.proposal_boxes.tensor, other, rtol=1e-4, atol=1e-4)
    train(ours)
    train(theirs)
    wanted = ours.rpn(x, maps, boxes)[1]
    with engine.utils.events.EventStorage():
        found = proposing(x, maps, truth)[1]
    ratios = [found[f"loss_rpn_{b}"] / wanted[f"loss_{a}"] for a, b in (("objectness", "cls"), ("rpn_box_reg", "loc"))]
    assert ratios[0].item() == pytest.approx(ratios[1].item(), rel=1e-4)
    assert 0.3 < ratios[0] < 192 / 256  # of an image's 192 anchors those are not drawn that are neither
    sum(wanted.values()).backward()
    sum(found.values()).backward()
    gradients = proposing.rpn_head.conv.weight.grad, ours.rpn.head.conv[0][0].weight.grad * ratios[0].detach()
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["alexnet32", "resnet18", "small_vgg"])
def test_every_tensor_of_the_checkpoint_is_there_once(name):
    backbone = lively(name, sobel=True)
    network = detector(backbone, (16,))
    trunk, head = network.backbone.state_dict(), network.model.roi_heads.box_head.state_dict()
    assert not set(trunk) & set(head)
    for key, value in backbone.state_dict().items():
        assert torch.equal((trunk | head)[key], value), key
    assert len(trunk | head) == len(backbone.state_dict()) + len(network.model.roi_heads.box_head.new.state_dict())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"features.0.weight": None}, "missing features.0.weight"),
        ({"classifier.1.bias": torch.zeros(3)}, r"classifier.1.bias is \(3,\), not \(512,\)"),
        ({"classifier.9.bias": torch.zeros(3)}, "unexpected classifier.9.bias"),
    ],
)
def test_tensors_that_do_not_fit_are_an_error(change, said):
    backbone = build("alexnet32")
    network = detector(backbone)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    tensors = {name: value for name, value in (backbone.state_dict() | change).items() if value is not None}
    with pytest.raises(UserError, match=f"does not fit detectron2's model: {said}"):
        load(network.model, {name: value + 1 for name, value in tensors.items()})
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "resnet50", "torchvision:squeezenet1_1"])
def test_a_step_at_full_size(name):
    backbone = allocate(name)
    generator = torch.Generator().manual_seed(0)
    for key, value in backbone.state_dict().items():
        if value.ndim > 1:
            value.uniform_(-0.02, 0.02, generator=generator)
        else:
            value.fill_(float("running_var" in key or key.endswith("weight")))
    network = detector(backbone, (32, 64), rois=4)
    network.choose("all")
    train(network)
    network(images(1, 120), [], targets(1)).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), key
    assert next(network.backbone.parameters()).grad.abs().max() > 0
    network.eval()
    with torch.no_grad():
        (found,) = network(images(1, 120), [])
    assert set(found) == {"boxes", "scores", "labels"}


def test_in_bf16_the_map_is_rounded_and_judged_exactly():
    backbone = lively("alexnet32")
    network = detector(backbone, precision="bf16").eval()
    with torch.no_grad():
        found, wanted = network.model.backbone(noise(32))[MAP], find_map(backbone, "conv5", noise(32))
        described = network.model.roi_heads.box_head(torch.rand(2, 64, 4, 4))
    assert (found.dtype, described.dtype) == (torch.float32, torch.float32)
    assert 0 < (found - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_the_configuration_has_our_settings():
    config = configure(build("alexnet32"), 3, (16, 32), 100, 8, "fp32").MODEL
    assert (config.RPN.PRE_NMS_TOPK_TRAIN, config.RPN.PRE_NMS_TOPK_TEST, config.RPN.POST_NMS_TOPK_TEST) == (
        100,
        50,
        300,
    )
    assert (config.ROI_HEADS.IOU_THRESHOLDS, config.ROI_HEADS.NMS_THRESH_TEST) == ([0.5], 0.3)
    assert [round(weight, 9) for weight in config.ROI_BOX_HEAD.BBOX_REG_WEIGHTS] == [10, 10, 5, 5]
    fast = configure(build("alexnet32"), 3, (), 100, 8, "fp32").MODEL
    assert (fast.ROI_HEADS.IOU_THRESHOLDS, fast.ROI_HEADS.IOU_LABELS) == ([0.1, 0.5], [-1, 0, 1])
    assert detector(build("alexnet32")).model.proposal_generator is None


def test_no_proposals_are_no_detections():
    network = detector(build("alexnet32")).eval()
    with torch.no_grad():
        both = network(images(), [torch.zeros(0, 4), given()[0]])
    assert len(both[0]["boxes"]) == 0


def test_a_network_that_gives_no_numbers_is_a_failed_run():
    network = detector(build("alexnet32"), (16,)).eval()
    network.model.proposal_generator.rpn_head.conv.bias.data.fill_(float("nan"))
    with pytest.raises(RunFailed, match="no number any more"):
        network(images(), [])


def test_maps_that_it_cannot_place_are_refused():
    with pytest.raises(UserError, match=r"no place for a map of stride 32 that begins at 37\.5 px"):
        Detectron2Detector.check(empty("torchvision:inception_v3"))
    with pytest.raises(UserError, match="has no maps to find objects in"):
        Detectron2Detector.check(empty("torchvision:vit_b_32"))
