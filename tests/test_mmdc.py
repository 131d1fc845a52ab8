"""MMDC: the parts of an epoch, the settings together, and what cannot be; test_mmdc_equivalence.py has mmdc.md 2.3."""

import itertools
import math
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import bench
from trainings import TINY, Tiny, Unlabelled, checkpoint, files, log, start, training, untimed

import pretrain.mmdc as module
from pretrain.mmdc import MMDC, FourRotations, evaluate, parameter_groups, unit_outputs
from probes import features
from probes.clustering import Clustering, assign_by_head
from zoo.clustering.targets import Targets
from zoo.seeds import generator
from zoo.steps import descend
from zoo.training import Training
from zoo.views import CropRotate

WORDS = ("--epochs", "2", "--batch", "32")
ROTATING = ("--rotation", "--means", "random", "--dim", "12", "--sigma", "0.1", "--refine-at", "2", "--epochs", "3")


def started(folder, dataset=TINY, **settings):
    method = MMDC(**{"epochs": 2, "batch": 24, **settings})
    return method, training(method, folder, dataset)


def network(folder, **settings):
    method, run = started(folder, **settings)
    return method, run, method.build_network(run, 10)


# The network and its optimiser


def test_sobel_filters_are_in_no_group(tmp_path):
    _, _, net = network(tmp_path, backbone="alexnet32", sobel=True)
    fixed = {id(p) for p in net["backbone"].sobel.parameters()}
    assert not fixed & {id(p) for group in parameter_groups(net, 0.1) for p in group["params"]}


def test_outputs_have_length_1_and_a_zero_stays_zero(tmp_path):
    _, run, net = network(tmp_path)
    x = torch.rand(5, 1, 32, 32)
    embedding = net["backbone"].embed(x)
    raw = torch.relu(embedding) @ net["top_layer"].weight.T + net["top_layer"].bias
    found = unit_outputs(net, x, run)
    assert torch.allclose(found, raw / raw.norm(dim=1, keepdim=True), atol=1e-5)
    nn.init.zeros_(net["top_layer"].weight)
    zeros = unit_outputs(net, x, run)
    assert not zeros.any()
    F.mse_loss(zeros, torch.eye(10)[:5]).backward()
    assert net["top_layer"].bias.grad.abs().max() <= 2 / 50 * 5  # not over the length, which is 0


def test_an_idle_head_decays_and_keeps_its_momentum():
    head, other = nn.Linear(3, 2), nn.Linear(3, 4)
    optimizer = torch.optim.SGD(parameter_groups(nn.ModuleList([head, other]), 0.1), lr=0.05, momentum=0.9)
    x = torch.rand(5, 3)
    descend(head(x).square().mean(), optimizer, zeros=True)  # other has no gradient yet: it is left alone
    before = other.weight.detach().clone()
    descend(head(x).square().mean(), optimizer, zeros=True)
    assert torch.equal(other.weight, before)
    descend(other(x).square().mean(), optimizer, zeros=True)
    weight, bias = other.weight.detach().clone(), other.bias.detach().clone()
    momentum, drift = (optimizer.state[p]["momentum_buffer"].clone() for p in (other.weight, other.bias))
    for _ in range(7):  # by hand: no gradient, but weight decay (of the matrix alone) and momentum
        momentum = 0.9 * momentum + 0.1 * weight
        weight = weight - 0.05 * momentum
        drift = 0.9 * drift
        bias = bias - 0.05 * drift
        descend(head(x).square().mean(), optimizer, zeros=True)
    assert torch.allclose(other.weight, weight, atol=1e-6)
    assert torch.allclose(other.bias, bias, atol=1e-6)
    assert not torch.equal(other.weight, before)


# Views


def test_four_rotations_one_image_after_the_other():
    pixels = torch.arange(2 * 16 * 16, dtype=torch.uint8).reshape(2, 1, 16, 16)
    found = FourRotations(CropRotate((16,), 16)).tensors(pixels, generator(0)).numpy()
    wanted = []
    for image in pixels[:, 0].numpy():
        turned = np.flipud(image.T)  # the released program's words for 0, 90, 180 and 270 degrees
        wanted += [image, turned, np.flipud(np.fliplr(image)), np.flipud(image).T]
    assert np.array_equal(found[:, 0], np.stack(wanted))
    for i in range(8):
        assert np.array_equal(found[i, 0], np.rot90(pixels[i // 4, 0].numpy(), i % 4))


def test_each_rotation_has_a_crop_of_its_own():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(20, 1, 1, 1)
    found = FourRotations(CropRotate((8,), 8)).tensors(pixels, generator(0))
    assert found.shape == (80, 1, 8, 8)
    upright = torch.stack([torch.rot90(crop, -(i % 4), (-2, -1)) for i, crop in enumerate(found)])
    assert len(torch.unique(upright[:4].flatten(1), dim=0)) > 1
    assert len(torch.unique(upright.flatten(1), dim=0)) > 30


def test_a_checkpoint_s_preprocessing_shows_what_was_evaluated(tmp_path):
    _, run = started(tmp_path)
    assert run.preprocessing.size == 32
    assert run.preprocessing.resize == round(32 * 32 / 28)
    assert (run.preprocessing.mean, run.preprocessing.std) == ((0.0,), (1.0,))


# Epochs


def test_the_targets_of_an_epoch_stay_the_same_multiset_until_refinement(tmp_path):
    held, phases = [], []
    learn, refine = MMDC.learn, Targets.refine

    def recorded(self, network, optimizer, centre, targets, run, epoch):
        before = targets[torch.arange(80)].clone()
        loss = learn(self, network, optimizer, centre, targets, run, epoch)
        held.append((before, targets[torch.arange(80)].clone()))
        return loss

    def refined(self, seed):
        phases.append(len(held))
        refine(self, seed)

    with patch.object(MMDC, "learn", recorded), patch.object(Targets, "refine", refined):
        words = ("--epochs", "4", "--refine-at", "2", "--batch", "32", "--sigma", "0.2", "--lr", "0.005")
        assert start(MMDC, tmp_path, *words) == 0
    first = sorted(held[0][0].tolist())
    for before, after in held[:2]:
        assert sorted(before.tolist()) == sorted(after.tolist()) == first
        assert not torch.equal(before, after)
    for before, after in held[2:]:  # fixed for the epoch, and means alone
        assert torch.equal(before, after)
        assert set(map(tuple, after.tolist())) <= set(map(tuple, torch.eye(10).tolist()))
    assert phases == [2, 3]


def test_refinement_sees_the_last_evaluation_which_is_a_new_pass_s(tmp_path):
    seen = []
    refine = Targets.refine

    def recorded(self, seed):
        network, centre, run = evaluated.call_args.args
        seen.append(torch.equal(self.outputs, evaluate(network, centre, run)))
        refine(self, seed)

    with patch.object(Targets, "refine", recorded), patch.object(module, "evaluate", wraps=evaluate) as evaluated:
        assert start(MMDC, tmp_path, *WORDS, "--refine-at", "1") == 0
    assert evaluated.call_count == 3  # before the first epoch, and after each
    assert seen == [True]


def test_the_learning_rate_drops_at_its_epoch(tmp_path):
    rates = []
    learn = MMDC.learn

    def recorded(self, network, optimizer, *values):
        rates.append({group["lr"] for group in optimizer.param_groups})
        return learn(self, network, optimizer, *values)

    with patch.object(MMDC, "learn", recorded):
        words = ("--epochs", "4", "--drop-at", "2", "--drop", "0.2", "--lr", "0.01", "--batch", "80")
        assert start(MMDC, tmp_path, *words) == 0
    assert rates == [{0.01}, {0.01}, {0.01 * 0.2}, {0.01 * 0.2}]


def test_the_rotation_pass_moves_the_idle_head_from_the_second_epoch_on(tmp_path):
    moved = []
    turn = MMDC.learn_rotations

    def recorded(self, network, optimizer, run, epoch):
        before = network["top_layer"].weight.detach().clone()
        loss = turn(self, network, optimizer, run, epoch)
        moved.append(not torch.equal(network["top_layer"].weight, before))
        return loss

    with patch.object(MMDC, "learn_rotations", recorded):
        assert start(MMDC, tmp_path, *WORDS, "--rotation") == 0
    assert moved == [False, True]  # at first it has no gradient at all, as under the released program's torch


def test_rotation_with_small_vgg(tmp_path):
    assert start(MMDC, tmp_path, *WORDS, "--rotation") == 0
    head = checkpoint(tmp_path).groups["head"]
    assert {name: tuple(tensor.shape) for name, tensor in head.items()} == {
        "top_layer.weight": (10, 1024),
        "top_layer.bias": (10,),
        "rotnet_head.weight": (4, 1024),
        "rotnet_head.bias": (4,),
    }
    for entry in log(tmp_path):
        assert entry["rotation_loss"] > 0
        assert set(entry["seconds"]) == {"rotation", "training", "evaluation"}


def test_without_rotation(tmp_path):
    assert start(MMDC, tmp_path, *WORDS, "--refine-at", "1") == 0
    made = checkpoint(tmp_path)
    assert set(made.groups["head"]) == {"top_layer.weight", "top_layer.bias"}
    assert torch.equal(made.groups["clustering"]["means"], torch.eye(10))
    first, second = log(tmp_path)
    assert first["rotation_loss"] is None
    assert set(first["seconds"]) == {"training", "evaluation"}
    assert set(second["seconds"]) == {"refinement", "training", "evaluation"}
    assert sum(first["cluster_sizes"]) == 80  # train and test together


def test_the_means_are_kept_when_they_are_random(tmp_path):
    assert start(MMDC, tmp_path, *WORDS, "--means", "random", "--dim", "13", "--k", "6", "--sigma", "0.1") == 0
    groups = checkpoint(tmp_path).groups
    assert groups["clustering"]["means"].shape == (6, 13)
    assert groups["head"]["top_layer.weight"].shape == (13, 1024)
    assert len(log(tmp_path)[0]["cluster_sizes"]) == 6


@pytest.mark.parametrize("words", [("--rotation",), ROTATING, ("--refine-at", "0"), ("--jitter", "--flip")])
def test_an_interrupted_run_ends_like_one_that_was_not(tmp_path, words):
    words = ("--epochs", "3", "--batch", "32", "--lr", "0.01", *words)
    assert start(MMDC, tmp_path / "whole", *words) == 0
    logged = Training.log

    def interrupted(self, epoch, *values, **more):
        if epoch == 1:
            raise KeyboardInterrupt
        logged(self, epoch, *values, **more)

    with patch.object(Training, "log", interrupted):
        assert start(MMDC, tmp_path / "torn", *words) == 130
    assert start(MMDC, tmp_path / "torn", *words) == 0
    assert checkpoint(tmp_path / "torn").sha256 == checkpoint(tmp_path / "whole").sha256
    assert untimed(log(tmp_path / "torn")) == untimed(log(tmp_path / "whole"))


def test_it_clusters_two_kinds_of_images(tmp_path):
    class Stripes(Tiny):
        """Horizontal or vertical stripes, with noise."""

        classes = ("across", "down")
        splits = {"train": 48, "test": 16}  # noqa: RUF012

        def read(self, split):
            images = super().read(split)
            rng = np.random.default_rng(0)
            images.labels = rng.integers(0, 2, len(images))
            stripes = np.where(np.arange(32) // 4 % 2, 200, 50) + np.zeros((32, 1))
            pixels = [stripes if label else stripes.T for label in images.labels]
            noise = rng.integers(0, 50, (len(images), 32, 32))
            images.pixels = torch.from_numpy((np.stack(pixels) + noise).astype(np.uint8))[:, None]
            return images

    words = ("--epochs", "6", "--batch", "8", "--lr", "0.01", "--refine-at", "5", "--degrees", "0")
    assert start(MMDC, tmp_path, *words, dataset=Stripes()) == 0
    assert log(tmp_path)[-1]["acc"] > 95


# Settings together


class Few(Tiny):
    """Twenty digits, in grey or, each channel another digit, in colours."""

    splits = {"train": 16, "test": 4}  # noqa: RUF012

    def __init__(self, channels):
        self.channels = channels
        self.mean, self.std = (0.3,) * channels, (0.3,) * channels

    def read(self, split):
        images = super().read(split)
        images.pixels = torch.cat([images.pixels.roll(shift, 0) for shift in range(self.channels)], 1)
        return images

    def fingerprint(self, full=False):
        return f"{super().fingerprint(full)} {self.channels}"


@dataclass(frozen=True)
class Combination:
    """Settings that meet in one run of three epochs, the last of which is refined."""

    backbone: str = "small_vgg"
    means: str = "one_hot"
    dim: int = 0
    sigma: float = 0.0
    rotation: bool = False
    sobel: bool = False
    colours: bool = False

    def __str__(self):
        asked = [name for name in ("sigma", "rotation", "sobel", "colours") if getattr(self, name)]
        return " ".join([self.backbone, self.means, *([str(self.dim)] if self.dim else []), *asked])

    def words(self):
        found = ["--epochs", "3", "--refine-at", "2", "--lr", ".001", "--backbone", self.backbone]
        found += ["--means", self.means, "--dim", str(self.dim), "--sigma", str(self.sigma)]
        found += (
            ["--batch", "5"] if self.backbone == "small_vgg" else ["--batch", "10", "--size", "16", "--crops", "24"]
        )
        found += ["--jitter", "--flip", "--degrees", "0"] if self.colours else []
        return found + [f"--{name}" for name in ("rotation", "sobel") if getattr(self, name)]


CRASHES = {  # in the released program: mmdc.md 2.1, by its numbers (1, resuming, and 8 and 9 have tests of their own)
    "2 Sobel in small_vgg": Combination(sobel=True),
    "2 Sobel in resnet18": Combination("resnet18", sobel=True, rotation=True, sigma=0.1, colours=True),
    "3 rotation with small_vgg": Combination(rotation=True, colours=True),
    "3 rotation of grey images": Combination(rotation=True),
    "4 grey images that are not MNIST": Combination("resnet18"),
    "5 dim is not k, and refinement": Combination(means="random", dim=13),
    "5 random means and refinement": Combination(means="random"),
    "5 sigma and refinement": Combination(sigma=0.1),
    "5 and 6 random means, sigma, dim is not k": Combination(means="random", dim=4, sigma=0.1),
}
TARGETS = (("one_hot", 0), ("random", 0), ("random", 13))
SWITCHES = itertools.product(TARGETS, (0.0, 0.1), (False, True), (False, True))
PAIRS = (  # for the slow backbone: any two settings meet in one of them, or among the crashes above
    Combination("resnet18", "random", sobel=True, colours=True),
    Combination("resnet18", "random", sigma=0.1, rotation=True),
    Combination("resnet18", "random", 13, rotation=True, colours=True),
    Combination("resnet18", "random", 13, sigma=0.1, sobel=True),
)
NAMED = {
    **{
        combination: str(combination)
        for (means, dim), sigma, *switches in SWITCHES
        for combination in [Combination("small_vgg", means, dim, sigma, *switches, sum(map(bool, switches)) == 1)]
    },
    **{combination: str(combination) for combination in PAIRS},
    **{combination: crash for crash, combination in CRASHES.items()},
}


@pytest.mark.parametrize("settings", NAMED, ids=NAMED.values())
def test_settings_together_give_a_checkpoint_that_assigns_as_the_last_epoch_did(tmp_path, settings):
    last, dataset = {}, Few(3 if settings.colours else 1)
    clusters = Targets.clusters

    def recorded(self):
        last["outputs"], last["clusters"] = self.outputs, clusters(self)
        return last["clusters"]

    with patch.object(Targets, "clusters", recorded):
        assert start(MMDC, tmp_path, *settings.words(), dataset=dataset) == 0
    made, history = checkpoint(tmp_path), log(tmp_path)
    assert all(math.isfinite(entry["loss"]) for entry in history)
    assert ["refinement" in entry["seconds"] for entry in history] == [False, False, True]
    assert [entry["rotation_loss"] is not None for entry in history] == [settings.rotation] * 3
    weight, bias = (made.groups["head"][f"top_layer.{name}"] for name in ("weight", "bias"))
    assert weight.shape[0] == (settings.dim or 10)
    assert made.groups["clustering"]["means"].shape == (10, settings.dim or 10)
    held = bench(tmp_path / "cache", dataset, made)
    rows = features.load(held, "merged", ["embedding"])["embedding"]
    outputs = F.normalize(F.linear(torch.from_numpy(np.array(rows)).relu(), weight, bias))
    assert torch.allclose(outputs, last["outputs"], atol=1e-4)
    assert assign_by_head(rows, made).tolist() == last["clusters"].tolist()
    parts = Clustering(assignment="head").parts(made, dataset)
    (found,) = parts[0].run(parts, held)
    assert found.metrics == {name: history[-1][name] for name in found.metrics}
    assert found.details["cluster_sizes"] == history[-1]["cluster_sizes"]


# Bad input


@pytest.mark.parametrize(
    ("words", "told", "fix"),
    [
        (["--k", "81"], "k = 81 clusters of 80 images", "--k 10"),
        (["--k", "1"], "k = 1 clusters of 80 images", "--k 10"),
        (["--k", "-3"], "--k -3 cannot be", "0 or more"),
        (["--k", "50", "--limit", "20"], "k = 50 clusters of 20 images", "--k 10"),
        (["--dim", "12"], "one-hot means have 10 dimensions, not 12", "--means random"),
        (["--crops", "33"], "crops of (33,) px cannot be cut from 32 px", "--crops 28"),
        (["--crops", "16", "40"], "crops of (16, 40) px cannot be cut from 32 px", "--crops 28"),
        (["--crops", "0"], "crops of (0,) px cannot be cut", "--crops 28"),
        (["--crops"], "crops of () px cannot be cut", "--crops 28"),
        (["--side", "20"], "cannot be cut from 20 px", "--crops 17"),
        (["--size", "48"], "small_vgg takes images of 32 px, got 48 × 48", "a size of 32"),
        (["--sigma", "-0.1"], "--sigma -0.1 cannot be", "0 or more"),
        (["--dim", "-1", "--means", "random"], "--dim -1 cannot be", "0 or more"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_said_before_any_work(tmp_path, capsys, words, told, fix):
    with patch.object(MMDC, "train", None):
        assert start(MMDC, tmp_path, *words) == 2
    err = capsys.readouterr().err
    assert told in err
    assert f"try: {fix}" in err
    assert files(tmp_path) == []


def test_unlabelled_images_need_a_k(tmp_path, capsys):
    assert start(MMDC, tmp_path, *WORDS, dataset=Unlabelled()) == 2
    assert "--k 10" in capsys.readouterr().err
    assert start(MMDC, tmp_path, *WORDS, "--k", "7", dataset=Unlabelled()) == 0
    assert "acc" not in log(tmp_path)[0]
    assert len(log(tmp_path)[0]["cluster_sizes"]) == 7


@pytest.mark.usefixtures("states_of_epochs")
@pytest.mark.parametrize("refine_at", ["0", "9"])
def test_a_learning_rate_that_diverges(tmp_path, capsys, refine_at):
    assert start(MMDC, tmp_path, *WORDS, "--lr", "1e30", "--refine-at", refine_at) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert [path.split("/")[-1] for path in files(tmp_path)] == ["error.txt"]
