"""Classification of Pascal VOC: what learns and what does not, the loss, the record, and runs that are continued."""

from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from trainings import start
from vocs import generate_few, moved, stopped, watch

from results.store import Store
from transfer import finetuning, voc_classification
from transfer.finetuning import Finetuning, train
from transfer.voc_classification import Classifier, VocClassification, multilabel_loss
from zoo.backbones import build
from zoo.checkpoint import resolve
from zoo.datasets.decoding import read_rgb
from zoo.run import parse
from zoo.seeds import numpy_generator
from zoo.steps import descend
from zoo.views import ResizedCrop
from zoo.voc.average_precision import classification_scores

FAST = ("--iterations", "6", "--batch", "4", "--checkpoint", "random-alexnet32@0")


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return generate_few(tmp_path_factory.mktemp("minivoc"))


@pytest.fixture
def run(few, tmp_path):
    """Run the command; its exit code and the records."""

    def start_in(*words, folder=tmp_path):
        code = start(VocClassification, folder, *FAST, *words, dataset=few)
        return code, Store(folder / "records").records()

    return start_in


@pytest.fixture
def models(monkeypatch):
    """The networks that were made, each with what it held at first."""
    return watch(monkeypatch, voc_classification, "Classifier")


def test_the_record(run):
    code, (record,) = run()
    assert code == 0
    assert set(record.metrics) == {"mAP_voc07", "mAP_area", "mAP_step"}
    assert all(0 < value < 100 for value in record.metrics.values())
    assert record.protocol == "deepcluster@1, iterations 6, batch 4"
    assert record.dataset["name"] == "minivoc"
    assert len(record.details["AP_voc07"]) == 10
    assert np.mean(list(record.details["AP_area"].values())) == pytest.approx(record.metrics["mAP_area"])
    assert len(record.details["loss"]) == 6
    assert record.details["frozen"] == "verified: 15 of 41 tensors unchanged"  # statistics of five batch norms


@pytest.mark.parametrize("words", [(), ("--seeds", "1"), ("--images", "train-val"), ("--trained", "fc6-8")])
def test_each_setting_gives_another_number(words, run):
    _, (usual,) = run()
    code, records = run(*words)
    assert code == 0
    others = [record for record in records if record.key != usual.key]
    assert len(others) == bool(words)
    assert all(record.metrics != usual.metrics for record in others)


def test_bf16_gives_another_number(run):
    _, (usual,) = run()
    _, records = run("--precision", "bf16")
    (other,) = [record for record in records if record.key != usual.key]
    assert other.metrics != usual.metrics
    assert other.details["loss"] == pytest.approx(usual.details["loss"], rel=0.05)


@pytest.mark.parametrize("images", ["train-val", "trainval-test"])
def test_an_images_scores_are_the_sums_over_ten_crops_of_it(images, run, few):
    """The outputs are each crop's mean colour here, and the crops the largest squares: the same colour ten times."""

    def colours(network, pixels, bench):
        sizes.append(len(pixels))
        return pixels.float().mean((2, 3)).repeat(1, 4)[:, :10] * network.top.weight.new_ones(1).requires_grad_()

    sizes, found = [], {}
    whole = VocClassification.score

    def kept(self, *given):
        found["scores"], presence = whole(self, *given)
        return found["scores"], presence

    with patch.object(voc_classification, "compute", colours), patch.object(VocClassification, "score", kept):
        assert run("--images", images, "--area", "1", "1", "--iterations", "1")[0] == 0
    evaluated = images.split("-")[1]
    assert sizes[1] == 240  # ten crops of 24 images
    for number, scores in enumerate(found["scores"]):
        pixels = np.asarray(read_rgb(few.read(evaluated).place(number)), np.float32)
        side = min(pixels.shape[:2])
        top, left = ((length - side) // 2 for length in pixels.shape[:2])
        middle = pixels[top : top + side, left : left + side].mean((0, 1))
        np.testing.assert_allclose(scores[:3] / 10, middle, atol=1.5)


def test_the_loss_is_that_of_what_each_image_shows(run, few):
    """The first step's, whose outputs are put in the place of the network's: a number for each image by its pixels."""
    seen = {}

    def known(network, pixels, bench):
        values = pixels.float().mean((1, 2, 3))[:, None] / 100 + torch.arange(10)
        seen.setdefault("pixels", pixels)
        return values * network.top.weight.new_ones(1).requires_grad_()

    with patch.object(voc_classification, "compute", known):
        _, (record,) = run("--area", "1", "1", "--iterations", "1")
    images, order = few.read("trainval"), numpy_generator(0, "order", 0).permutation(48)[:4]
    view, draws = ResizedCrop(32, (1.0, 1.0), (1.0, 1.0), few.flips), torch.Generator().manual_seed(0)
    own = torch.stack([images.see(int(number), view, draws) for number in order]).float().mean((1, 2, 3))
    torch.testing.assert_close(seen["pixels"].float().mean((1, 2, 3)), own, rtol=0, atol=1e-3)  # perhaps mirrored
    values = own[:, None] / 100 + torch.arange(10)
    presence = torch.from_numpy(few.presence("trainval")[order])
    each = F.binary_cross_entropy_with_logits(values, (presence == 1).float(), reduction="none")
    assert record.details["loss"] == [pytest.approx(float(each[presence != 0].sum()) / 4, abs=1e-4)]


def test_gradients_are_clipped_as_published(run):
    clips = []

    def noted(*given, clip):
        clips.append(clip)
        return descend(*given, clip=clip)

    with patch.object(finetuning, "descend", noted):
        assert run()[0] == 0
    assert clips == [10.0] * 6


def test_the_number_is_that_of_the_scores(run, few):
    found = {}

    def kept(self, *given):
        found["scores"] = whole(self, *given)
        return found["scores"]

    whole = VocClassification.score
    with patch.object(VocClassification, "score", kept):
        _, (record,) = run("--images", "train-val")
    scores, presence = found["scores"]
    assert scores.shape == (24, 10)
    assert (presence == few.presence("val")).all()
    assert classification_scores(scores, presence, few.classes)[0] == record.metrics


@pytest.mark.parametrize(
    ("words", "learns"),
    [
        (("--trained", "all"), lambda name: "running" not in name and "tracked" not in name),
        (("--trained", "fc6-8"), lambda name: name.startswith(("backbone.classifier", "top"))),
        (("--trained", "fc6-8", "--train-bn"), lambda name: name.startswith(("backbone.classifier", "top", "norm"))),
    ],
)
@pytest.mark.parametrize("checkpoint", ["random-alexnet32@0", "random-alexnet32-sobel@0"])
def test_what_learns(words, learns, checkpoint, run, models):
    assert run("--checkpoint", checkpoint, *words)[0] == 0
    ((network, before),) = models
    norms = {name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    wanted = set()
    for name in before:
        owner, _, kind = name.rpartition(".")
        spelled = f"norm.{kind}" if owner in norms and kind in ("weight", "bias") and words[1] == "fc6-8" else name
        if "sobel" not in name and learns(spelled):
            wanted.add(name)
    assert moved(network, before) == wanted


def test_the_convolutions_are_the_checkpoints_and_the_linear_layers_new():
    backbone = resolve("reference").build_backbone()
    network, again, other = (Classifier(backbone, 10, seed) for seed in (0, 0, 1))
    for name, value in backbone.state_dict().items():
        same = torch.equal(network.backbone.state_dict()[name], value)
        assert same == (not name.startswith("classifier")), name
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values()))
    assert not torch.equal(network.top.weight, other.top.weight)
    assert [layer.bias.unique().tolist() for layer in network.linear()] == [[pytest.approx(0.1)]] * 3
    x = torch.randn(2, backbone.channels, 32, 32)
    network.eval()
    wanted = network.top(torch.relu(network.backbone.embed(x)))
    assert torch.equal(network(x), wanted)


def test_linear_layers_inside_a_network_are_the_checkpoints_and_frozen_with_its_convolutions():
    backbone = build("torchvision:convnext_tiny")
    assert any(isinstance(module, nn.Linear) for module in backbone.modules())
    network = Classifier(backbone, 3, 0)
    held = network.backbone.state_dict()
    assert all(torch.equal(held[name], value) for name, value in backbone.state_dict().items())
    network.choose("fc6-8", train_bn=False)
    assert {name for name, value in network.named_parameters() if value.requires_grad} == {"top.weight", "top.bias"}


def test_batch_norm_keeps_its_statistics_while_dropout_is_on():
    network = Classifier(resolve("random-alexnet32@0").build_backbone(), 3, 0)
    train(network)
    modes = {type(module): module.training for module in network.modules()}
    assert modes[nn.Dropout]
    assert not modes[nn.BatchNorm2d]


def test_the_loss_by_hand():
    outputs = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
    presence = torch.tensor([[1, -1, 0], [0, 1, -1]])
    sigmoid = 1 / (1 + np.exp(-outputs.numpy()))
    each = [np.log(sigmoid[0, 0]), np.log(1 - sigmoid[0, 1]), np.log(sigmoid[1, 1]), np.log(1 - sigmoid[1, 2])]
    assert multilabel_loss(outputs, presence).item() == pytest.approx(-sum(each) / 2)


def test_the_rate_is_halved():
    task = VocClassification(lr=0.008, halve_every=10, warm_up=0)
    assert [task.rate(step) for step in (0, 9, 10, 25)] == [0.008, 0.008, 0.004, 0.002]
    grown = replace(task, warm_up=4)
    assert [grown.rate(step) for step in (0, 1, 3, 4)] == [0.002, 0.004, 0.008, 0.008]


def test_all_images_pass_before_one_comes_again(few):
    tuning = object.__new__(Finetuning)
    tuning.task = VocClassification(iterations=5, batch=4, seed=3)
    order = Finetuning.order(tuning, 7)
    assert len(order) == 20
    assert sorted(order[:7]) == sorted(order[7:14]) == list(range(7))
    assert (order[:7] == numpy_generator(3, "order", 0).permutation(7)).all()


@pytest.mark.parametrize("calls", [1, 4, 7])
def test_a_run_that_was_stopped_continues_to_the_same_bits(calls, run, tmp_path):
    _, (whole,) = run("--save-every", "0")
    with stopped(voc_classification, "compute", calls):
        run(folder=tmp_path / "stopped")
    assert list((tmp_path / "stopped").rglob("state-*.pt"))
    code, (record,) = run(folder=tmp_path / "stopped")
    assert code == 0
    assert (record.metrics, record.details) == (whole.metrics, whole.details)
    assert not list((tmp_path / "stopped").rglob("state-*.pt"))


@pytest.mark.parametrize("backbone", ["resnet18", "small_vgg"])
def test_other_networks(backbone, run):
    code, records = run("--checkpoint", f"random-{backbone}@0", "--iterations", "1", "--batch", "2", "--limit", "2")
    assert code == 0
    assert records == []


def test_another_data_set_is_refused(tmp_path, capsys):
    assert start(VocClassification, tmp_path, *FAST) == 2
    said = capsys.readouterr().err
    assert "transfer.voc_classification fine-tunes on a devkit of Pascal VOC, and digits is none" in said
    assert "try: --dataset minivoc (or voc2007, voc2012, minivoc-fashion)\n" in said


def test_images_that_show_nothing_that_counts_are_refused_before_any_step(run, few, capsys, monkeypatch):
    """In a smoke run; of all images the lists are refused where no image shows a class."""
    monkeypatch.setattr(Finetuning, "descend", None)
    monkeypatch.setattr(type(few), "presence", lambda self, split: np.zeros((len(self.ids(split)), 10), np.int8))
    assert run("--limit", "4") == (2, [])
    assert "no image shows an object that counts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--iterations", "0"), "--iterations 0 cannot be"),
        (("--lr", "nan"), "--lr nan cannot be"),
        (("--halve-every", "0"), "--halve-every 0 cannot be"),
        (("--area", "10", "50"), "--area 10 50 cannot be"),
        (("--area", "0.5", "0.4"), "--area 0.5 0.4 cannot be"),
        (("--area", "nan", "1"), "--area nan 1 cannot be"),
        (("--trained", "all", "--train-bn"), "--trained all trains the scales and biases of batch norm anyway"),
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


def test_what_moves_although_it_is_frozen_is_said(run, capsys):
    def moving(self):
        self.model.backbone.features[1].running_mean += 1
        return whole(self)

    whole = Finetuning.conclude
    with patch.object(Finetuning, "conclude", moving):
        assert run()[0] == 1
    assert "what is frozen changed during the fine-tuning" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["voc2007", "voc2012"])
def test_the_presets_are_the_published_values_for_the_layers_that_are_trained(name):
    above, everything, bare = (
        parse(VocClassification, ["--dataset", name, *words])[0]
        for words in (("--trained", "fc6-8"), ("--trained=all",), ())
    )
    assert everything == bare
    for voc in (above, everything):
        assert (voc.batch, voc.area, voc.weight_decay, voc.momentum) == (16, (0.1, 0.5), 1e-6, 0.9)
        assert voc.splits == (("trainval", "test") if name == "voc2007" else ("train", "val"))
        assert voc.protocol_id(SimpleNamespace(name=name)) == "deepcluster@1"
    assert [above.rate(step) for step in (0, 4999, 5000)] == [0.003, 0.003, 0.0015]
    assert [everything.rate(step) for step in (0, 19_999, 20_000)] == [0.001, 0.001, 0.0005]
    assert (above.iterations, everything.iterations) == (80_000, 150_000)
    other = replace(above, train_bn=True, lr=0.01)
    assert other.protocol_id(SimpleNamespace(name=name)) == "deepcluster@1, lr 0.01, train_bn True"
