"""MMDC: each part of an epoch, recomputed by its definition (mmdc.md 1 and 2.3)."""

import itertools
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import nn
from trainings import TINY, Tiny, checkpoint, files, log, start, untimed

import pretrain.mmdc as module
from pretrain.mmdc import MMDC, FourRotations, Targets, evaluate, fill_gradients, parameter_groups, step, unit_outputs
from results.errors import RunFailed
from zoo.seeds import generator
from zoo.training import Training
from zoo.views import CropRotate

WORDS = ("--epochs", "2", "--batch", "32")
ROTATING = ("--rotation", "--means", "random", "--dim", "12", "--sigma", "0.1", "--refine-at", "2", "--epochs", "3")


class Unlabelled(Tiny):
    classes = ()

    def read(self, split):
        images = super().read(split)
        images.labels = None
        return images


def training(folder, dataset=TINY, **settings):
    method = MMDC(**{"epochs": 2, "batch": 24, **settings})
    return method, Training(
        settings=method,
        dataset=dataset,
        images=dataset.open(method.opens(dataset)),
        preprocessing=method.preprocessing(dataset),
        device=torch.device("cpu"),
        directory=folder,
        quiet=True,
    )


def network(folder, **settings):
    method, run = training(folder, **settings)
    return method, run, method.build_network(run, 10)


# Targets


@pytest.mark.parametrize("kind", ["one_hot", "random"])
@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_targets_are_unit_vectors_around_their_means(kind, sigma):
    dim = 5 if kind == "one_hot" else 8
    targets = Targets.draw(4000, 5, dim, kind, sigma, seed=1)
    rows = targets[torch.arange(4000)]
    assert rows.shape == (4000, dim)
    assert torch.allclose(rows.norm(dim=1), torch.ones(4000), atol=1e-5)
    assert torch.allclose(targets.means.norm(dim=1), torch.ones(5), atol=1e-5)
    if sigma == 0:
        assert len(torch.unique(rows, dim=0)) == 5
        assert (rows[:, None] == targets.means).all(2).any(1).all()
    else:
        assert len(torch.unique(rows, dim=0)) == 4000
    component = torch.cdist(rows, targets.means).argmin(1)
    counts = torch.bincount(component, minlength=5)
    assert len(set(counts.tolist())) > 1  # multinomial, not balanced
    assert (counts - 800).abs().max() < 250


def test_one_hot_means_are_the_identity():
    assert torch.equal(Targets.draw(9, 4, 4, "one_hot", 0.0, seed=0).means, torch.eye(4))


def test_the_noise_has_standard_deviation_sigma():
    k, sigma = 3, 0.01  # so small that the projection to the sphere takes away one direction and no more
    targets = Targets.draw(30000, k, k, "one_hot", sigma, seed=0)
    rows = targets[torch.arange(30000)]
    for component in range(k):
        own = rows[rows[:, component] > 0.9]
        others = [axis for axis in range(k) if axis != component]
        assert own[:, others].std().item() == pytest.approx(sigma, rel=0.05)


def test_targets_are_drawn_from_the_seed():
    first, again, other = (Targets.draw(50, 5, 5, "random", 0.1, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.bank, again.bank)
    assert not torch.equal(first.bank, other.bank)


# Assignment


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(2, 4), st.sampled_from([0.0, 0.4]))
def test_the_assignment_costs_least_of_all_permutations(seed, count, k, sigma):
    targets = Targets.draw(count, k, k, "one_hot", sigma, seed)
    outputs = F.normalize(torch.randn(count, k, generator=generator(seed, "outputs")))
    before = targets[torch.arange(count)].double().numpy()
    targets.assign(torch.arange(count), outputs)
    after = targets[torch.arange(count)].double().numpy()
    found = np.linalg.norm(outputs.double().numpy() - after, axis=1).sum()
    least = min(
        np.linalg.norm(outputs.double().numpy() - before[list(order)], axis=1).sum()
        for order in itertools.permutations(range(count))
    )
    assert found == pytest.approx(least, abs=1e-12)


def test_the_cost_is_the_distance_and_not_its_square():
    outputs = F.normalize(torch.randn(64, 5, generator=torch.Generator().manual_seed(0))).double()
    targets = Targets.draw(64, 5, 5, "one_hot", 0.0, seed=3)
    rows = targets[torch.arange(64)].double()
    difference = outputs[:, None] - rows
    distance = difference.square().sum(2).sqrt().numpy()
    targets.assign(torch.arange(64), outputs.float())
    found = targets[torch.arange(64)].double().numpy()
    assert np.array_equal(found, rows.numpy()[linear_sum_assignment(distance)[1]])
    assert not np.array_equal(found, rows.numpy()[linear_sum_assignment(distance**2)[1]])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.5]))
def test_an_assignment_permutes_the_targets_of_its_images(seed, sigma):
    targets = Targets.draw(30, 4, 6, "random", sigma, seed)
    rows = torch.randperm(30, generator=generator(seed))[:11]
    others = torch.tensor([row for row in range(30) if row not in set(rows.tolist())])
    before, left = targets[rows].tolist(), targets[others]
    targets.assign(rows, F.normalize(torch.randn(11, 6, generator=generator(seed, "o"))))
    assert sorted(targets[rows].tolist()) == sorted(before)
    assert torch.equal(targets[others], left)


def test_outputs_that_are_no_numbers():
    targets = Targets.draw(3, 2, 2, "one_hot", 0.0, seed=0)
    with pytest.raises(RunFailed, match="smaller --lr"):
        targets.assign(torch.arange(3), torch.tensor([[1.0, 0], [np.nan, 0], [0, 1]]))


# Refinement


def clumps(k, dim, order, seed=0):
    """Outputs (len(order), dim) in k tight clumps around unit vectors, image i in clump order[i]; the vectors."""
    rng = np.random.default_rng(seed)
    centres = np.eye(dim)[:k]
    rows = centres[order] + rng.normal(0, 0.01, (len(order), dim))
    return torch.from_numpy(rows).float()


def test_refinement_keeps_the_labels_of_equal_clusters():
    order = np.random.default_rng(0).integers(0, 5, 60)
    means = torch.eye(5)
    targets = Targets(means, means, torch.from_numpy(order), clumps(5, 5, order))
    for seed in range(3):
        targets.refine(seed)
        assert np.array_equal(targets.held.numpy(), order)
        assert torch.equal(targets.bank, means)


def test_refinement_frees_the_sizes_and_takes_the_labels_that_overlap_most():
    order = np.repeat([0, 1, 2], [30, 20, 10])  # where the outputs lie
    held = np.repeat([2, 0, 1], 20)  # where the targets wanted them: 20 + 10 + 10 overlap with 2, 0, 1
    means = torch.eye(3)
    targets = Targets(means, means, torch.from_numpy(held), clumps(3, 3, order))
    targets.refine(0)
    assert np.array_equal(targets.held.numpy(), np.repeat([2, 0, 1], [30, 20, 10]))


def test_refinement_of_targets_with_noise_goes_to_their_means():
    targets = Targets.draw(80, 4, 7, "random", 0.05, seed=2)
    component = torch.cdist(targets[torch.arange(80)], targets.means).argmin(1)
    targets.outputs = targets[torch.arange(80)] + 1e-3
    targets.refine(0)
    assert torch.equal(targets.held, component)
    assert torch.equal(targets[torch.arange(80)], targets.means[component])


def test_the_cluster_of_an_output_is_the_nearest_mean():
    targets = Targets.draw(6, 4, 9, "random", 0.1, seed=2)
    targets.outputs = F.normalize(torch.randn(50, 9))
    distance = np.linalg.norm(targets.outputs.numpy()[:, None] - targets.means.numpy(), axis=2)
    assert np.array_equal(targets.clusters(), distance.argmin(1))
    one_hot = Targets(torch.eye(9), torch.eye(9), torch.zeros(50, dtype=torch.int64), targets.outputs)
    assert np.array_equal(one_hot.clusters(), targets.outputs.argmax(1).numpy())


def test_targets_are_saved_whole():
    targets = Targets.draw(20, 3, 5, "random", 0.2, seed=0)
    targets.outputs = torch.rand(20, 5)
    other = Targets.draw(20, 3, 5, "random", 0.2, seed=1)
    other.load_state_dict(targets.state_dict())
    for name in ("means", "bank", "held", "outputs"):
        assert torch.equal(getattr(other, name), getattr(targets, name))


# The network and its optimiser


def test_the_network_is_the_released_one(tmp_path):
    _, _, net = network(tmp_path)
    assert sum(p.numel() for p in net.parameters()) == 398570
    names = {name.removeprefix("backbone.") for name in net.state_dict()}
    tracked = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    wanted = {f"features.{i}.weight" for i in (0, 4, 8, 12)} | {"top_layer.weight", "top_layer.bias"}
    assert names == wanted | {f"features.{i}.{name}" for i in (1, 5, 9, 13) for name in tracked}


@pytest.mark.parametrize(("rotation", "sizes"), [(False, (9, 5)), (True, (10, 6))])
def test_two_groups_of_parameters_vectors_first(tmp_path, rotation, sizes):
    _, _, net = network(tmp_path, rotation=rotation)
    vectors, matrices = parameter_groups(net, 5e-4)
    assert (len(vectors["params"]), len(matrices["params"])) == sizes
    assert (vectors["weight_decay"], matrices["weight_decay"]) == (0.0, 5e-4)
    named = {id(p): name for name, p in net.named_parameters()}
    assert all(p.ndim == 1 for p in vectors["params"])
    for group, wanted in ((vectors, True), (matrices, False)):
        assert [named[id(p)] for p in group["params"]] == [
            n for n, p in net.named_parameters() if (p.ndim == 1) == wanted
        ]


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
    assert not unit_outputs(net, x, run).any()


def test_an_idle_head_decays_and_keeps_its_momentum():
    head, other = nn.Linear(3, 2), nn.Linear(3, 4)
    optimizer = torch.optim.SGD(parameter_groups(nn.ModuleList([head, other]), 0.1), lr=0.05, momentum=0.9)
    x = torch.rand(5, 3)
    step(optimizer, head(x).square().mean())  # other has no gradient yet: it is left alone
    before = other.weight.detach().clone()
    step(optimizer, head(x).square().mean())
    assert torch.equal(other.weight, before)
    step(optimizer, other(x).square().mean())
    weight, bias = other.weight.detach().clone(), other.bias.detach().clone()
    momentum, drift = (optimizer.state[p]["momentum_buffer"].clone() for p in (other.weight, other.bias))
    for _ in range(7):  # by hand: no gradient, but weight decay (of the matrix alone) and momentum
        momentum = 0.9 * momentum + 0.1 * weight
        weight = weight - 0.05 * momentum
        drift = 0.9 * drift
        bias = bias - 0.05 * drift
        step(optimizer, head(x).square().mean())
    assert torch.allclose(other.weight, weight, atol=1e-6)
    assert torch.allclose(other.bias, bias, atol=1e-6)
    assert not torch.equal(other.weight, before)


def test_missing_gradients_are_filled_and_others_stay():
    pair = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    pair[0](torch.ones(1, 2)).sum().backward()
    had = pair[0].weight.grad.clone()
    fill_gradients(pair)
    assert torch.equal(pair[0].weight.grad, had)
    assert not pair[1].weight.grad.any()
    assert not pair[1].bias.grad.any()


# Views


def test_the_images_evaluated_are_pillow_s_centre_crops(tmp_path):
    method, run = training(tmp_path)
    centre = method.centre_crops(run)
    assert centre.pixels.shape == (80, 1, 32, 32)
    for image, found in zip(run.images.pixels[:, 0].numpy(), centre.pixels[:, 0].numpy()):
        cut = Image.fromarray(image).crop((2, 2, 30, 30)).resize((32, 32), Image.Resampling.BILINEAR)
        assert np.array_equal(np.asarray(cut), found)


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
    _, run = training(tmp_path)
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


def learn_by_hand(method, run, net, centre, targets, epoch, buffers, lr):
    """One clustering pass written out, float64 assignment over the whole matrix; its mean loss."""
    order = torch.randperm(80, generator=generator(run.seed("order", epoch))).numpy()
    view = CropRotate(method.crops, 32, method.degrees, method.flip, method.jitter)
    total = 0.0
    for ids, x in run.batches(view, order, method.batch, "training", epoch):
        if epoch < method.refine_at:
            net.eval()
            with torch.no_grad():
                outputs = unit_outputs(net, centre.pixels[ids].float() / 255, run).double().numpy()
            cost = np.linalg.norm(outputs[:, None] - targets[ids][None].astype(np.float64), axis=2)
            targets[ids] = targets[ids][linear_sum_assignment(cost)[1]]
        net.train()
        output = net["top_layer"](net["backbone"].embed(x).relu())
        error = (output / output.norm(dim=1, keepdim=True) - torch.from_numpy(targets[ids])).square()
        parameters = list(net.parameters())
        gradients = torch.autograd.grad(error.mean(), parameters)
        with torch.no_grad():
            for p, gradient, buffer in zip(parameters, gradients, buffers):
                buffer.mul_(0.9).add_(gradient + (5e-4 * p if p.ndim > 1 else 0))
                p.sub_(lr * buffer)
        total += error.mean().item() * len(ids)
    return total / 80


def test_two_epochs_by_hand(tmp_path):
    settings = {"lr": 1e-3, "drop": 0.1, "drop_at": 1, "refine_at": 5}
    method, run, net = network(tmp_path, **settings)
    copy, before = method.build_network(run, 10), method.build_network(run, 10)
    centre = method.centre_crops(run)
    targets = Targets.draw(80, 10, 10, "one_hot", 0.0, seed=0)
    by_hand = targets[torch.arange(80)].numpy().copy()
    optimizer = torch.optim.SGD(parameter_groups(net, 5e-4), 1e-3, 0.9)
    buffers = [torch.zeros_like(p) for p in copy.parameters()]
    for epoch in range(2):
        loss = method.learn(net, optimizer, centre, targets, run, epoch)
        assert loss == pytest.approx(learn_by_hand(method, run, copy, centre, by_hand, epoch, buffers, 1e-3), rel=1e-4)
        assert np.array_equal(targets[torch.arange(80)].numpy(), by_hand)
    for (name, found), wanted, old in zip(net.named_parameters(), copy.parameters(), before.parameters()):
        assert (found - wanted).abs().max() <= 0.01 * (wanted - old).abs().max(), name


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


@pytest.mark.parametrize("refine_at", ["0", "9"])
def test_a_learning_rate_that_diverges(tmp_path, capsys, refine_at):
    assert start(MMDC, tmp_path, *WORDS, "--lr", "1e30", "--refine-at", refine_at) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert [path.split("/")[-1] for path in files(tmp_path)] == ["error.txt"]
