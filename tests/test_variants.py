"""DeepCluster's variants: every one trains, and each part does what its setting says."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from trainings import Tiny, checkpoint, log, record, start

from pretrain.deepcluster import DeepCluster
from zoo.clustering.assigning import read_clusters
from zoo.clustering.heads import CentroidHead, LinearHead, match_head
from zoo.clustering.partition import CLUSTERINGS, Partition
from zoo.clustering.sampling import SAMPLERS
from zoo.clustering.whitening import Whitening, fit_whitening
from zoo.datasets.folder import Folder

WORDS = ("--k", "8", "--epochs", "3", "--batch", "32")
HEADS = ("reset", "matched", "centroids")


@pytest.mark.parametrize(("clustering", "head"), list(product(CLUSTERINGS, HEADS)))
def test_every_clustering_trains_with_every_head(clustering, head, tmp_path):
    assert start(DeepCluster, tmp_path, *WORDS, "--clustering", clustering, "--head", head) == 0
    made, entries = checkpoint(tmp_path), log(tmp_path)
    assert all(np.isfinite(entry["loss"]) for entry in entries)
    kept = made.groups["clustering"]
    wanted = {"weights", "means", "variances"} if clustering == "gmm" else {"centroids"}
    assert set(kept) == {"pca_mean", "pca_components"} | wanted
    assert ("head" in made.groups) == (head != "centroids")
    # what is kept assigns the training images as the last clustering did
    sizes = record(tmp_path).details["conclusion"]["cluster_sizes"]
    descriptors = embed(made)
    assigned, _ = read_clusters(made).assign(descriptors)
    found = np.bincount(assigned, minlength=len(sizes))
    if clustering != "pic":  # whose clusters are not the nearest centroids
        assert np.abs(found - sizes).sum() <= 2  # rounding: batches of another size


def embed(made):
    """The descriptors of Tiny's training images by a checkpoint."""
    from zoo.evaluation import Evaluation

    dataset = Tiny()
    backbone = made.build_backbone()
    bench = Evaluation(made, made.sha256, dataset, backbone, torch.device("cpu"), quiet=True)
    images = dataset.open("train")
    from zoo.views import Centre

    view = Centre(made.preprocessing.resize, made.preprocessing.size)
    return torch.cat([bench.maps(x, ["embedding"])["embedding"] for _, x in images.batches(np.arange(64), 32, view, 0)])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_trains(sampler, tmp_path):
    assert start(DeepCluster, tmp_path, *WORDS, "--sampler", sampler, "--sobel") == 0
    assert len(log(tmp_path)) == 3


SIZES = np.array([400, 200, 100, 50, 30, 10, 5, 5])


def draws(sampler):
    """How often each cluster is drawn, a mean over passes; clusters are of SIZES, ids shuffled."""
    assignment = np.random.default_rng(0).permutation(np.repeat(np.arange(8), SIZES))
    passes = [SAMPLERS[sampler](assignment, 800, np.random.default_rng(seed)) for seed in range(20)]
    assert all(len(order) == 800 and order.min() >= 0 and order.max() < 800 for order in passes)
    return np.mean([np.bincount(assignment[order], minlength=8) for order in passes], axis=0)


def variation(counts):
    return counts.std() / counts.mean()


def test_the_samplers_differ_in_draws_per_cluster():
    """deepcluster.md 1.8: the released program draws in proportion to size, the paper's text uniformly."""
    uniform, legacy, none = (draws(sampler) for sampler in ("uniform", "legacy", "none"))
    assert variation(uniform) < 0.05
    assert np.array_equal(none, SIZES)
    assert np.corrcoef(legacy, SIZES)[0, 1] > 0.99
    assert variation(legacy) == pytest.approx(variation(SIZES), rel=0.1)


def test_legacy_repeats_images_and_none_does_not():
    assignment = np.repeat(np.arange(8), SIZES)
    rng = np.random.default_rng(0)
    assert len(set(SAMPLERS["none"](assignment, 800, rng))) == 800
    assert 0.4 < len(set(SAMPLERS["legacy"](assignment, 800, rng))) / 800 < 0.7


def test_clusterings_come_when_they_should(tmp_path):
    words = ("--k", "8", "--epochs", "7", "--batch", "64", "--reassign", "2", "--stop-reassign", "4")
    assert start(DeepCluster, tmp_path, *words) == 0
    sizes = [entry["cluster_sizes"] for entry in log(tmp_path)]
    changed = [epoch for epoch in range(1, 7) if sizes[epoch] != sizes[epoch - 1]]
    assert changed == [2]
    clustered = ["clustering" in entry["seconds"] for entry in log(tmp_path)]
    assert clustered == [True, False, True, False, False, False, False]
    nmi = [entry["nmi_previous"] for entry in log(tmp_path)]
    assert nmi[1] == nmi[3] == nmi[6] == pytest.approx(1)
    method = DeepCluster(epochs=7, reassign=2, stop_reassign=4)
    assert [epoch for epoch in range(7) if method.clusters_in(epoch)] == [0, 2]


def test_the_head_stays_while_the_clusters_do(tmp_path):
    heads = []

    class Seen(DeepCluster):
        def build_head(self, *values):
            heads.append(super().build_head(*values))
            return heads[-1]

        def learn(self, model, head, *values):
            heads[-1] = (head.top_layer.weight.detach().clone(), head)
            return super().learn(model, head, *values)

    Seen.name = DeepCluster.name
    assert start(Seen, tmp_path, "--k", "8", "--epochs", "3", "--batch", "32", "--reassign", "2") == 0
    first, second, third = heads
    assert torch.equal(first[1].top_layer.weight, second[0])
    assert not torch.equal(second[1].top_layer.weight, third[0])
    assert third[0].std().item() == pytest.approx(0.01, rel=0.1)


def partition(assignment, k):
    return Partition(torch.tensor(assignment), {"centroids": torch.zeros(k, 2)})


def test_a_matched_head_follows_the_images():
    old, new = partition([0, 0, 0, 1, 1, 2, 2, 2], 3), partition([2, 2, 2, 0, 3, 1, 1, 0], 4)
    before = LinearHead(5, 3, seed=1)
    before.top_layer.bias.data = torch.tensor([1.0, 2.0, 3.0])
    head = LinearHead(5, 4, seed=2)
    fresh = head.top_layer.weight.detach().clone()
    match_head(head, before.state_dict(), new, old)
    w, v = head.top_layer.weight, before.top_layer.weight
    assert torch.equal(w[2], v[0])  # three images in common
    assert torch.equal(w[1], v[2])  # two
    # one of the two new clusters that share an image with the old cluster 1 has its weights, the other its own
    kept = [row for row in (0, 3) if torch.equal(w[row], v[1])]
    assert len(kept) == 1
    assert torch.equal(w[3 - kept[0]], fresh[3 - kept[0]])
    assert sorted(head.top_layer.bias.tolist()) == [0, 1, 2, 3]


def test_equal_clusters_in_another_order_keep_their_weights():
    rng = np.random.default_rng(0)
    assignment = rng.integers(0, 6, 60)
    turn = rng.permutation(6)
    before, head = LinearHead(5, 6, seed=1), LinearHead(5, 6, seed=2)
    match_head(head, before.state_dict(), partition(turn[assignment], 6), partition(assignment, 6))
    assert torch.equal(head.top_layer.weight[turn], before.top_layer.weight)


def test_the_centroid_head_is_the_cosine_with_centroids():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=rng) + 2
    whitening, centroids = fit_whitening(x, 4), torch.randn(3, 4, generator=rng)
    head = CentroidHead(whitening, centroids, temperature=0.5)
    white = (x.double() - x.double().mean(0)) @ whitening.components.double().T
    wanted = F.cosine_similarity(white[:, None], centroids.double()[None], dim=2) / 0.5
    assert torch.allclose(head(x).double(), wanted, atol=1e-4)
    assert list(head.parameters()) == []
    assert head.state_dict() == {}
    x.requires_grad_()
    head(x).sum().backward()
    assert x.grad.abs().max() > 0  # the network learns through it


def test_soft_targets_are_the_mean_cross_entropy_over_the_shares():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    soft = {
        "clusters": torch.tensor([[0, 1], [2, 3], [3, 0], [1, 2]]),
        "shares": torch.tensor([[0.7, 0.3], [1.0, 0.0], [0.5, 0.5], [0.9, 0.1]]),
    }
    found = Partition(torch.tensor([0, 2, 3, 1]), {"means": torch.zeros(4, 2)}, soft)
    rows = torch.tensor([3, 0, 2])
    dense = torch.tensor([[0, 0.9, 0.1, 0], [0.7, 0.3, 0, 0], [0.5, 0, 0, 0.5]])
    assert torch.allclose(found.cross_entropy(logits, rows), nn.CrossEntropyLoss()(logits, dense))
    hard = Partition(found.assignment, found.kept)
    assert torch.equal(hard.cross_entropy(logits, rows), F.cross_entropy(logits, torch.tensor([1, 0, 3])))


class Doubles(Tiny):
    """Ten images, over and over."""

    def read(self, split):
        images = super().read(split)
        images.pixels = images.pixels[torch.arange(len(images)) % 10]
        return images


@pytest.mark.parametrize("clustering", CLUSTERINGS)
def test_duplicates(clustering, tmp_path):
    words = ("--clustering", clustering, "--epochs", "2", "--batch", "32")
    assert start(DeepCluster, tmp_path, *words, "--k", "10", dataset=Doubles()) == 0
    assert all(np.isfinite(entry["loss"]) for entry in log(tmp_path))


@pytest.mark.parametrize("clustering", ["kmeans", "gmm"])
def test_more_clusters_than_images_that_differ(clustering, tmp_path, capsys):
    words = ("--clustering", clustering, "--k", "11", "--epochs", "2")
    assert start(DeepCluster, tmp_path, *words, dataset=Doubles()) == 2
    assert "of which only" in capsys.readouterr().err


@pytest.mark.parametrize("clustering", CLUSTERINGS)
@pytest.mark.parametrize("k", [63, 64])
def test_k_near_the_number_of_images(clustering, k, tmp_path):
    words = ("--clustering", clustering, "--k", str(k), "--epochs", "1", "--batch", "32")
    assert start(DeepCluster, tmp_path, *words) == 0


def test_one_image_is_too_few(tmp_path, capsys):
    assert start(DeepCluster, tmp_path, "--k", "1", "--limit", "1") == 2
    err = capsys.readouterr().err
    assert "1 image" in err
    assert "try:" in err


@pytest.mark.parametrize("count", [2, 3])
def test_few_images(count, tmp_path):
    assert start(DeepCluster, tmp_path, "--k", "2", "--limit", str(count), "--epochs", "2") == 0


MODES = {"grey": "L", "rgba": "RGBA", "palette": "P", "deep": "I;16", "cmyk": "CMYK"}


def test_images_of_every_mode(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for name, mode in MODES.items():
        for number in range(4):
            if mode == "I;16":
                image = Image.fromarray(rng.integers(0, 2**16, (40, 44), dtype=np.uint16))
            else:
                image = Image.fromarray(rng.integers(0, 256, (40, 44, 3), dtype=np.uint8)).convert(mode)
            image.save(tmp_path / "photos" / f"{name}{number}.{'jpg' if mode == 'CMYK' else 'png'}")
    words = ("--backbone", "alexnet32", "--k", "4", "--epochs", "1", "--batch", "8", "--workers", "0")
    folder = Folder(tmp_path / "photos")
    assert start(DeepCluster, tmp_path, "--dataset", f"folder:{tmp_path / 'photos'}", *words, dataset=folder) == 0
    assert record(tmp_path).details["images"] == 20


def test_the_whitening_kept_is_the_trained_network_s(tmp_path):
    assert start(DeepCluster, tmp_path, *WORDS) == 0
    made = checkpoint(tmp_path)
    kept, wanted = made.groups["clustering"], fit_whitening(embed(made), 256)
    assert torch.allclose(kept["pca_mean"], wanted.mean, atol=1e-4 * wanted.mean.abs().max())
    white = Whitening(kept["pca_mean"], kept["pca_components"])(embed(made))
    variance = white.square().mean(0)
    assert torch.allclose(variance[:32], torch.ones(32), atol=0.05)
