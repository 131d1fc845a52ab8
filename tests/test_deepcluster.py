"""DeepCluster: each part of an epoch, recomputed by its definition (deepcluster.md 1.4, 1.13)."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from trainings import Tiny, batches, checkpoint, files, log, start, training

import pretrain.deepcluster as module
from pretrain.deepcluster import DeepCluster, compute_descriptors
from zoo.backbones import build
from zoo.checkpoint import Checkpoint
from zoo.clustering import sampling
from zoo.clustering.heads import LinearHead, linear_head
from zoo.clustering.partition import Partition
from zoo.clustering.whitening import Whitening
from zoo.seeds import numpy_generator
from zoo.steps import trainable
from zoo.views import ResizedCrop

WORDS = ("--k", "8", "--epochs", "2", "--batch", "32")


class Constant(Tiny):
    """Images of one grey."""

    def read(self, split):
        images = super().read(split)
        images.pixels = torch.full_like(images.pixels, 100)
        return images


def started(folder, **settings):
    method = DeepCluster(**{"k": 8, "epochs": 2, "batch": 24, **settings})
    return method, training(method, folder)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "sobel"])
def folder(request, tmp_path_factory):
    """A folder with a finished run."""
    folder = tmp_path_factory.mktemp("run")
    assert start(DeepCluster, folder, *WORDS, *["--sobel"] * request.param) == 0
    return folder


def test_the_groups_of_the_checkpoint(folder):
    made = checkpoint(folder)
    shapes = {group: {n: tuple(t.shape) for n, t in held.items()} for group, held in made.groups.items()}
    assert shapes["head"] == {"top_layer.weight": (8, 512), "top_layer.bias": (8,)}
    assert shapes["clustering"] == {"pca_mean": (512,), "pca_components": (64, 512), "centroids": (8, 64)}
    assert set(shapes) == {"backbone", "head", "clustering"}
    assert all(tensor.dtype == torch.float32 for tensor in made.groups["clustering"].values())


def test_what_has_learnt(folder):
    made = checkpoint(folder)
    before = build(**made.backbone, seed=0).state_dict()
    for name, tensor in made.groups["backbone"].items():
        assert torch.equal(tensor, before[name]) == name.startswith("sobel."), name


def test_the_name_says_sobel(folder):
    made = checkpoint(folder)
    assert made.name == f"deepcluster-alexnet32{'-sobel' * made.backbone['sobel']}-digits-s0"


def test_the_history(folder):
    first, second = log(folder)
    assert list(first["seconds"]) == ["clustering", "features", "training", "whitening"]  # sorted by the log
    assert first["nmi_previous"] is None
    assert 0 < second["nmi_previous"] < 1
    for entry in (first, second):
        assert entry["empty_clusters"] == 0
        assert entry["empty_repaired"] >= 0
        assert len(entry["cluster_sizes"]) == 8
        assert sum(entry["cluster_sizes"]) == 64
        assert 1 < entry["loss"] < 8  # a head that knows nothing: ln 8 = 2.08


def test_the_clustering_saved_is_the_last_epoch_s(folder):
    # the descriptors of the second epoch's start give the centroids: their assignment is nearest, by definition
    made = checkpoint(folder)
    assert made.groups["clustering"]["centroids"].isfinite().all()
    assert not torch.equal(made.groups["clustering"]["centroids"][0], made.groups["clustering"]["centroids"][1])


def test_the_first_descriptors_are_a_plain_random_network_s(tmp_path):
    _, run = started(tmp_path)
    model = run.build_backbone()
    found = compute_descriptors(model, run)
    plain = build("alexnet32", seed=0)
    x = torch.from_numpy(np.repeat(run.images.pixels.numpy(), 3, 1)).float() / 255
    x = (x - run.dataset.mean[0]) / run.dataset.std[0]
    with torch.no_grad():
        for layer in plain.features:
            # batch norm with mean 0, variance 1, weight 1 and bias 0 is the identity
            x = x / (1 + layer.eps) ** 0.5 if isinstance(layer, nn.BatchNorm2d) else layer(x)
        fc6, fc7 = plain.classifier[1], plain.classifier[4]  # no dropout, and no ReLU after fc7
        wanted = fc7(torch.relu(fc6(x.flatten(1))))
    assert found.dtype == np.float32
    assert found.shape == (64, 512)
    assert np.allclose(found, wanted.numpy(), rtol=1e-3, atol=1e-6 + 1e-4 * wanted.abs().max().item())
    assert (found < 0).mean() > 0.3


def test_descriptors_leave_the_network_as_it_was(tmp_path):
    _, run = started(tmp_path)
    model = run.build_backbone()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = compute_descriptors(model, run).copy()
    (tmp_path / "again").mkdir()
    again = started(tmp_path / "again")[1]
    assert np.array_equal(compute_descriptors(model, again), first)  # no dropout
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_descriptors_are_whitened_and_of_length_1(tmp_path):
    method, run = started(tmp_path, pca=16)
    descriptors = compute_descriptors(run.build_backbone(), run)
    seen = {}

    def recorded(points, k, iterations, seed, device):
        seen.update(points=points, k=k, iterations=iterations, seed=seed)
        return Partition(torch.zeros(64, dtype=torch.int64), {"centroids": points[:k]})

    with patch.dict(module.CLUSTERINGS, kmeans=recorded):
        clusters = method.partition(descriptors, run, 5)
    whitening = Whitening(**clusters["whitening"])
    assert torch.equal(Partition(**clusters["partition"]).centres, seen["points"][:8])
    points = seen["points"].double().numpy()
    assert points.shape == (64, 16)
    assert np.allclose(np.linalg.norm(points, axis=1), 1, atol=1e-5)
    z = whitening(descriptors).double().numpy()
    assert np.allclose(z.T @ z / 64, np.eye(16), atol=1e-3)
    assert np.allclose(points, z / np.linalg.norm(z, axis=1, keepdims=True), atol=1e-5)
    assert (seen["k"], seen["iterations"], seen["seed"]) == (8, 20, run.seed("k-means", 5))


def epoch_by_hand(run, model, head, buffers, assignment, epoch, drawn):
    """One epoch of DeepCluster's two gradient descents, written out; its mean loss."""
    total = 0.0
    order = sampling.uniform(assignment, 64, numpy_generator(run.seed("sampler", epoch)))
    torch.set_rng_state(drawn)  # dropout
    model.train()
    weights = trainable(model)
    for ids, x in batches(run, ResizedCrop(32, (0.4, 1.0), flip=False), order, 24, "training", epoch):
        logits = torch.relu(model.embed(x)) @ head.top_layer.weight.T + head.top_layer.bias
        loss = -F.log_softmax(logits, 1)[torch.arange(len(ids)), torch.from_numpy(assignment[ids])]
        gradients = torch.autograd.grad(loss.mean(), [*weights, *head.parameters()])
        with torch.no_grad():
            for p, gradient, buffer in zip(weights, gradients, buffers):
                buffer.mul_(0.9).add_(gradient + 1e-5 * p)
                p.sub_(0.001 * buffer)
            for p, gradient in zip(head.parameters(), gradients[-2:]):  # no momentum
                p.sub_(0.001 * (gradient + 1e-5 * p))
        total += loss.sum().item()
    return total / 64


@pytest.mark.parametrize("sobel", [False, True])
def test_two_epochs_by_hand(tmp_path, sobel):
    method, run = started(tmp_path, sobel=sobel, lr=0.001)  # small: rounding is not to grow
    torch.manual_seed(0)
    model, copy, before = (run.build_backbone() for _ in range(3))
    optimizer = torch.optim.SGD(trainable(model), lr=0.001, momentum=0.9, weight_decay=1e-5)
    buffers = [torch.zeros_like(p) for p in trainable(copy)]
    for epoch in run.epochs(2):  # the backbone's momentum lasts, the head is new
        assignment = np.random.default_rng(epoch).integers(0, 8, 64)
        head, other, new = (LinearHead(512, 8, run.seed("head", epoch)) for _ in range(3))
        drawn = torch.get_rng_state()
        partition = Partition(torch.from_numpy(assignment), {})
        loss = method.learn(model, head, optimizer, partition, run, epoch)
        assert loss == pytest.approx(epoch_by_hand(run, copy, other, buffers, assignment, epoch, drawn), rel=1e-4)
        assert moved_alike(head, other, new)
    assert moved_alike(model, copy, before, 0.05)  # where a ReLU's input is 0 but for rounding, the two part


def moved_alike(found, wanted, start, tolerance=0.01):
    """Whether two modules moved from `start` to the same place, up to a part of the way."""
    triples = zip(found.parameters(), wanted.parameters(), start.parameters())
    # a convolution's bias has no gradient but rounding: batch norm takes it away
    return all((a - b).abs().max() <= tolerance * (b - c).abs().max() + 1e-7 for a, b, c in triples)


def test_each_epoch_has_a_new_head_and_a_new_clustering(tmp_path):
    heads, starts = [], []

    def head(dim, outputs, seed):
        heads.append(linear_head(dim, outputs, seed))
        starts.append(heads[-1].weight.detach().clone())
        return heads[-1]

    with patch("zoo.clustering.heads.linear_head", head):
        assert start(DeepCluster, tmp_path, *WORDS) == 0
    assert len(heads) == 2
    assert not torch.equal(*starts)
    assert all(weights.std().item() == pytest.approx(0.01, rel=0.05) for weights in starts)
    assert torch.equal(checkpoint(tmp_path).groups["head"]["top_layer.weight"], heads[-1].weight)


def test_it_is_the_same_in_any_order_of_seeds(tmp_path):
    assert start(DeepCluster, tmp_path / "a", *WORDS, "--seeds", "4") == 0
    assert start(DeepCluster, tmp_path / "b", *WORDS, "--seeds", "3", "4") == 0
    (again,) = (tmp_path / "b").glob("runs/*/*s4.safetensors")
    assert Checkpoint.load(again).sha256 == checkpoint(tmp_path / "a").sha256


@pytest.mark.parametrize("more", [[], ["--limit", "40"]])
def test_more_clusters_than_images(tmp_path, capsys, more):
    k = "41" if "--limit" in more else "65"
    assert start(DeepCluster, tmp_path, "--k", k, *more) == 2
    err = capsys.readouterr().err
    count = "40" if "--limit" in more else "64"
    assert f"k = {k} clusters of {count} images" in err
    assert f"try: --k {int(count) // 10}" in err
    assert files(tmp_path) == []


def test_a_dry_run_with_more_clusters_than_images_says_so_and_what_it_would_cost(tmp_path, capsys):
    assert start(DeepCluster, tmp_path, "--k", "65", "--dry-run") == 0
    said = capsys.readouterr()
    assert "cannot: k = 65 clusters of 64 images\n  try: --k 6\n64 images\n" in said.out
    assert "multiply-adds" in said.out
    assert (said.err, files(tmp_path)) == ("", [])


def test_as_many_clusters_as_images(tmp_path):
    assert start(DeepCluster, tmp_path, "--k", "64", "--epochs", "1") == 0
    assert log(tmp_path)[0]["cluster_sizes"] == [1] * 64


def test_areas_that_are_no_shares(tmp_path, capsys):
    assert start(DeepCluster, tmp_path, "--area", "8", "100") == 2
    assert "--area 8 100 cannot be" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--k", "0"), ("--pca", "0"), ("--iterations", "0")])
def test_numbers_below_one(tmp_path, capsys, words):
    assert start(DeepCluster, tmp_path, *words) == 2
    assert f"{words[0]} 0 cannot be" in capsys.readouterr().err


@pytest.mark.usefixtures("states_of_epochs")
def test_equal_images(tmp_path, capsys):
    assert start(DeepCluster, tmp_path, *WORDS, dataset=Constant()) == 1
    err = capsys.readouterr().err
    assert "the features are constant" in err
    assert "Traceback" not in err
    assert [path.split("/")[-1] for path in files(tmp_path)] == ["error.txt"]


@pytest.mark.usefixtures("states_of_epochs")
def test_a_learning_rate_that_diverges(tmp_path, capsys):
    assert start(DeepCluster, tmp_path, *WORDS, "--lr", "1e30") == 1
    err = capsys.readouterr().err
    assert "smaller --lr" in err
    assert "Traceback" not in err
    assert [path.split("/")[-1] for path in files(tmp_path)] == ["error.txt"]


@pytest.mark.usefixtures("states_of_epochs")
def test_a_divergence_keeps_the_epochs_before_it(tmp_path, capsys):
    learn = DeepCluster.learn

    def diverges(self, model, head, optimizer, assignment, run, epoch):
        return float("nan") if epoch == 1 else learn(self, model, head, optimizer, assignment, run, epoch)

    with patch.object(DeepCluster, "learn", diverges):
        assert start(DeepCluster, tmp_path, *WORDS) == 1
    assert "in epoch 1" in capsys.readouterr().err
    assert [path.split("/")[-1] for path in files(tmp_path)] == ["error.txt", "log.jsonl", "state-1.pt"]
    assert len(log(tmp_path)) == 1
    assert start(DeepCluster, tmp_path, *WORDS) == 0
    assert len(log(tmp_path)) == 2


def test_bf16(tmp_path):
    assert start(DeepCluster, tmp_path, *WORDS, "--precision", "bf16") == 0
    made = checkpoint(tmp_path)
    assert all(t.dtype in (torch.float32, torch.int64) for t in made.groups["backbone"].values())
    assert start(DeepCluster, tmp_path / "exact", *WORDS) == 0
    assert made.sha256 != checkpoint(tmp_path / "exact").sha256
