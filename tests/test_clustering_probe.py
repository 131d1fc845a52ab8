"""The clustering probe: k-means on frozen features, or the head's own assignment, scored against the classes."""

import numpy as np
import pytest
import torch
from toys import Toy, bench, random_checkpoint

from probes import clustering, features
from probes.clustering import Clustering, assign_by_head
from results.errors import UserError
from zoo.checkpoint import Checkpoint
from zoo.clustering.scores import scores

TOY = Toy(60, 24)


def blobs(labels, seed=0, spread=0.05):
    """Rows around one direction for each class, of many lengths."""
    generator = np.random.default_rng(seed)
    rows = np.eye(8)[labels] + spread * generator.normal(size=(len(labels), 8))
    return (rows * generator.uniform(0.5, 20, (len(labels), 1))).astype(np.float32)


@pytest.fixture
def tables(monkeypatch):
    """Blobs in place of a network's features, by split."""
    held = {split: blobs(TOY.labels[split], seed) for seed, split in enumerate(TOY.splits)}
    held["merged"] = np.concatenate([held["train"], held["test"]])
    monkeypatch.setattr(features, "load", lambda bench, split, layers: dict.fromkeys(layers, held[split]))
    return held


@pytest.fixture
def calls(monkeypatch):
    """The rows that k-means was given, and what it returned."""
    found = []
    kmeans = clustering.kmeans

    def spied(x, *more, **named):
        found.append((x.numpy().copy(), kmeans(x, *more, **named)))
        return found[-1][1]

    monkeypatch.setattr(clustering, "kmeans", spied)
    return found


def with_head(outputs=4, means=None, seed=0, method="deepcluster", **more):
    """A random alexnet32 with a random head and, as MMDC's, the means of its targets."""
    generator = torch.Generator().manual_seed(seed)
    head = {
        "top_layer.weight": torch.randn(outputs, 512, generator=generator),
        "top_layer.bias": torch.randn(outputs, generator=generator),
    }
    groups = {"backbone": random_checkpoint().groups["backbone"], "head": head}
    if means is not None:
        groups["clustering"] = {"means": means}
    fields = {**vars(random_checkpoint()), "name": "with-head", "method": method, "groups": groups, "recipe": ""}
    return Checkpoint(**{**fields, **more})


def outcome(held, **settings):
    parts = Clustering(**settings).parts(held.checkpoint, held.dataset)
    (found,) = parts[0].run(parts, held)
    return found


def test_separable_blobs_are_found(tables, tmp_path):
    found = outcome(bench(tmp_path, TOY), seed=1)
    assert found.metrics["acc"] == found.metrics["purity"] == 100
    for name in ("nmi_arithmetic", "nmi_geometric", "ami", "ari"):
        assert found.metrics[name] == pytest.approx(1)
    assert found.metrics["empty_clusters"] == 0
    assert sum(found.details["cluster_sizes"]) == 84
    assert (found.details["scored_on"], found.details["fitted_on"]) == ("merged", "merged")


def test_split_fits_on_train_and_scores_on_test(tables, calls, tmp_path):
    found = outcome(bench(tmp_path, TOY), images="split", seed=1)
    ((rows, fitted),) = calls
    assert rows.shape == (60, 8)
    unit = tables["train"] / np.linalg.norm(tables["train"], axis=1, keepdims=True)
    np.testing.assert_allclose(rows, unit, atol=1e-6)  # of length 1
    test = tables["test"] / np.linalg.norm(tables["test"], axis=1, keepdims=True)
    clusters = np.array([np.argmin([np.square(row - mean).sum() for mean in fitted.centroids]) for row in test])
    assert found.metrics == pytest.approx(scores(clusters, TOY.labels["test"], k=3))
    assert (found.details["scored_on"], found.details["fitted_on"]) == ("test", "train")
    assert sum(found.details["cluster_sizes"]) == 24


def test_merged_clusters_train_and_test_together(tables, calls, tmp_path):
    found = outcome(bench(tmp_path, TOY), k=5, iterations=3)
    ((rows, fitted),) = calls
    assert len(rows) == 84
    labels = np.concatenate([TOY.labels["train"], TOY.labels["test"]])
    assert found.metrics == pytest.approx(scores(fitted.assignment, labels, k=5))


def test_the_seed_is_used(tables, calls, tmp_path):
    tables["merged"][:] = np.random.default_rng(0).normal(size=(84, 8))
    held = bench(tmp_path, TOY)
    for seed in (0, 0, 1):
        outcome(held, k=7, iterations=1, seed=seed)
    first, again, other = (fitted.centroids for _, fitted in calls)
    assert (first == again).all()
    assert (first != other).any()


def test_a_layers_number_does_not_depend_on_the_others(tmp_path):
    held = bench(tmp_path, TOY)
    parts = Clustering(layer="all").parts(held.checkpoint, TOY)
    together = {found.part.layer: found for found in parts[0].run(parts, held)}
    alone = outcome(bench(tmp_path / "alone", TOY), layer="conv2")
    assert (alone.metrics, alone.details) == (together["conv2"].metrics, together["conv2"].details)


def head_outputs(held, split):
    """What the head gives the images of a split, one by one in float64."""
    head = held.checkpoint.groups["head"]
    rows = torch.from_numpy(np.array(features.load(held, split, ["embedding"])["embedding"])).double()
    return rows.clamp(min=0) @ head["top_layer.weight"].double().T + head["top_layer.bias"].double()


def test_a_head_assigns_its_largest_output(tmp_path):
    held = bench(tmp_path, TOY, with_head())
    found = outcome(held, assignment="head", images="split")
    clusters = head_outputs(held, "test").argmax(1).numpy()
    assert found.metrics == pytest.approx(scores(clusters, TOY.labels["test"], k=4))
    assert found.details == {"cluster_sizes": np.bincount(clusters, minlength=4).tolist(), "scored_on": "test"}
    assert (found.part.layer, found.part.k) == ("embedding", 4)


@pytest.mark.parametrize("components", [3, 9])
def test_mmdcs_head_assigns_the_nearest_mean(tmp_path, components):
    means = torch.nn.functional.normalize(torch.randn(components, 5, generator=torch.Generator().manual_seed(3)))
    held = bench(tmp_path, TOY, with_head(outputs=5, means=means))
    found = outcome(held, assignment="head")
    assert found.part.k == components  # of the means: the head's outputs are coordinates
    outputs = head_outputs(held, "merged").numpy()
    unit = outputs / np.linalg.norm(outputs, axis=1, keepdims=True)
    clusters = np.array([np.argmin([np.square(row - mean).sum() for mean in means.numpy()]) for row in unit])
    rows = features.load(held, "merged", ["embedding"])["embedding"]
    assert assign_by_head(rows, held.checkpoint).tolist() == clusters.tolist()
    labels = np.concatenate([TOY.labels["train"], TOY.labels["test"]])
    assert found.metrics == pytest.approx(scores(clusters, labels, k=components))


def test_one_hot_means_are_the_largest_output(tmp_path):
    plain, mmdc = (with_head(outputs=5, means=means) for means in (None, torch.eye(5)))
    rows = np.random.default_rng(0).normal(size=(50, 512)).astype(np.float32)
    assert assign_by_head(rows, plain).tolist() == assign_by_head(rows, mmdc).tolist()


def test_a_checkpoint_without_a_head_cannot_assign():
    with pytest.raises(UserError, match="has no head") as caught:
        Clustering(assignment="head").parts(random_checkpoint(), TOY)
    assert caught.value.fix == "--assignment kmeans"


def test_k_is_the_number_of_classes():
    (part,) = Clustering().parts(random_checkpoint(), TOY)
    assert (part.k, part.layer) == (3, "conv5")
    assert part.dataset_protocol() == "merged"
    assert Clustering(images="split").dataset_protocol() == "split"


@pytest.mark.parametrize(("images", "count"), [("merged", 84), ("split", 60)])
def test_more_clusters_than_images_are_refused(images, count):
    assert Clustering(images=images, k=count).parts(random_checkpoint(), TOY)
    for k in (count + 1, -1):
        with pytest.raises(UserError, match=f"of {count} images"):
            Clustering(images=images, k=k).parts(random_checkpoint(), TOY)


def test_fewer_iterations_than_none_are_refused():
    with pytest.raises(UserError, match="iterations"):
        Clustering(iterations=-1).parts(random_checkpoint(), TOY)


def test_a_smoke_run_of_fewer_images_than_clusters_says_so(tmp_path):
    with pytest.raises(UserError, match="10 clusters were asked of 5 rows"):
        outcome(bench(tmp_path, TOY, limit=5), k=10)


def test_what_differs_from_the_defaults_is_another_protocol():
    def protocol(**settings):
        (part,) = Clustering(**settings).parts(with_head(), TOY)
        return part.protocol_id(TOY)

    assert protocol() == protocol(k=3) == protocol(layer="conv1") == "clustering@1"
    assert protocol(k=10) == "clustering@1, k = 10"
    assert protocol(iterations=20) == "clustering@1, 20 iterations"
    assert protocol(k=10, iterations=20) == "clustering@1, k = 10, 20 iterations"
    assert protocol(assignment="head", iterations=5) == "clustering@1"  # nothing is fitted: k is the head's


def test_unlabelled_images_cannot_be_scored():
    class Unlabelled(Toy):
        classes = ()

    with pytest.raises(UserError, match="no classes"):
        Clustering().parts(random_checkpoint(), Unlabelled())
