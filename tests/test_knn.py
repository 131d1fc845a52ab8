"""The vote of the nearest neighbours, against loops over all of them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import Toy, bench, random_checkpoint

from probes import features
from probes.knn import KNN, nearest_neighbours
from results.errors import UserError

CPU = torch.device("cpu")
TOY = Toy()


def rows_of(count, dim=5, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def elected(rows, labels, query, k, temperature, classes):
    """The class with the largest sum of exp(similarity / T), in logarithms, among the k most similar rows."""
    near = sorted(((cosine(row, query), label) for row, label in zip(rows, labels)), reverse=True)[:k]
    votes = [[similarity / temperature for similarity, label in near if label == c] for c in range(classes)]
    return int(np.argmax([np.logaddexp.reduce(own) if own else -np.inf for own in votes]))


@pytest.fixture
def voters(tmp_path):
    """Rows, their labels, queries and the bench of a data set of four classes."""
    labels = np.random.default_rng(5).integers(0, 4, 40)
    return rows_of(40), labels, rows_of(30, seed=1), bench(tmp_path, Toy(40, 30, classes=4))


@pytest.mark.parametrize("temperature", [0.005, 0.07, 1.0, 50.0])
def test_votes_are_those_of_the_definition(voters, temperature):
    rows, labels, queries, held = voters
    ks = (1, 2, 5, 17, 40)
    found = KNN(k=ks, temperature=temperature).vote(rows, labels, queries, held)
    assert found.shape == (len(ks), len(queries))
    for k, predicted in zip(ks, found):
        expected = [elected(rows, labels, query, k, temperature, 4) for query in queries]
        assert predicted.tolist() == expected


def test_one_neighbour_is_the_nearest_row(voters):
    rows, labels, queries, held = voters
    expected = [labels[np.argmax([cosine(row, query) for row in rows])] for query in queries]
    assert KNN(k=(1,)).vote(rows, labels, queries, held)[0].tolist() == expected


def test_a_steep_vote_is_the_nearest_rows(voters):
    rows, labels, queries, held = voters
    steep = KNN(k=(1, 30), temperature=1e-4).vote(rows, labels, queries, held)
    assert steep[1].tolist() == steep[0].tolist()  # exp(1 / T) alone would overflow


def test_a_vote_that_was_stopped_goes_on(voters, monkeypatch, tmp_path):
    rows, labels, queries, held = voters
    whole = KNN(k=(1, 5)).vote(rows, labels, queries, held)
    monkeypatch.setattr(features, "BATCH", 4)
    held.directory, held.save_every = tmp_path / "run", 0.0
    blocks = []

    def counted(*given):
        blocks.append(given)
        if len(blocks) == 4:
            raise KeyboardInterrupt
        return nearest_neighbours(*given)

    monkeypatch.setattr("probes.knn.nearest_neighbours", counted)
    with pytest.raises(KeyboardInterrupt):
        KNN(k=(1, 5)).vote(rows, labels, queries, held)
    assert KNN(k=(1, 5)).vote(rows, labels, queries, held).tolist() == whole.tolist()
    assert len(blocks) == 8 + 1  # thirty queries in fours, the interrupted ones twice


@settings(max_examples=20)
@given(st.floats(0.1, 1000), st.integers(0, 99))
def test_length_does_not_count(factor, seed):
    rows, query = rows_of(12, seed=seed), torch.from_numpy(rows_of(3, seed=seed + 1))
    similarity, index = nearest_neighbours(rows, query, 4, CPU)
    scaled, same = nearest_neighbours(rows * np.float32(factor), query * factor, 4, CPU)
    torch.testing.assert_close(similarity, scaled, atol=1e-5, rtol=1e-5)
    assert torch.equal(index, same)


def test_neighbours_come_from_every_block_most_similar_first():
    rows, query = rows_of(16384 + 60, 4), torch.from_numpy(rows_of(3, 4, seed=2))
    rows[16384 + 50] = query[0] * 3  # the nearest is in the second block
    similarity, index = nearest_neighbours(rows, query, 20, CPU)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for row, near, at in zip(query.numpy(), similarity, index):
        expected = unit.astype(np.float64) @ (row / np.linalg.norm(row))
        order = np.argsort(-expected)[:20]
        np.testing.assert_allclose(near, expected[order], atol=1e-6)
        assert set(at.tolist()) == set(order.tolist())
    assert index[0, 0] == 16384 + 50


def test_a_row_of_zeros_is_far_from_all():
    rows = rows_of(5)
    rows[2] = 0
    similarity, index = nearest_neighbours(rows, torch.from_numpy(rows_of(1, seed=3)), 5, CPU)
    assert similarity.isfinite().all()
    assert similarity[index == 2].item() == 0


def outcomes(held, **settings):
    parts = KNN(**settings).parts(held.checkpoint, held.dataset)
    return {outcome.part.layer: outcome for outcome in parts[0].run(parts, held)}


def test_metrics_count_the_packed_correctness(tmp_path):
    held = bench(tmp_path, TOY)
    (found,) = outcomes(held, k=(1, 5)).values()
    assert list(found.metrics) == ["top1_k1", "top1_k5"]
    train, test = (features.load(held, split, ["conv5"])["conv5"] for split in ("train", "test"))
    wanted = TOY.labels["test"]
    for k in (1, 5):
        correct = features.unpack(found.details[f"correct_k{k}"], len(wanted))
        votes = [elected(train, TOY.labels["train"], query, k, 0.07, 3) for query in test]
        assert correct.tolist() == (votes == wanted).tolist()
        assert found.metrics[f"top1_k{k}"] == pytest.approx(100 * correct.mean())


def test_a_layers_number_does_not_depend_on_the_others(tmp_path):
    together = outcomes(bench(tmp_path / "together", TOY), layer="all", k=(3,))
    assert list(together) == ["conv1", "conv2", "conv3", "conv4", "conv5"]
    for layer in ("conv1", "conv4"):
        alone = outcomes(bench(tmp_path / layer, TOY), layer=layer, k=(3,))[layer]
        assert (alone.metrics, alone.details) == (together[layer].metrics, together[layer].details)


def test_the_deepest_layer_is_the_default():
    checkpoint = random_checkpoint("random-small_vgg@0")
    assert [part.layer for part in KNN(k=(1,)).parts(checkpoint, TOY)] == ["conv4"]
    assert KNN(k=(1,), layer="embedding").parts(checkpoint, TOY)[0].layer == "embedding"


@pytest.mark.parametrize("k", [(61,), (1, 61), (0,), (-1,), ()])
def test_a_k_that_cannot_be_is_refused(k):
    with pytest.raises(UserError, match="neighbours of 60 training images") as caught:
        KNN(k=k).parts(random_checkpoint(), TOY)
    assert caught.value.fix == "--k 10"
    assert KNN(k=(60,)).parts(random_checkpoint(), TOY)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_cannot_be_is_refused(temperature):
    with pytest.raises(UserError, match="temperature"):
        KNN(k=(1,), temperature=temperature).parts(random_checkpoint(), TOY)


def test_a_smoke_run_votes_with_what_there_is(tmp_path):
    held = bench(tmp_path, TOY, limit=12)
    (found,) = outcomes(held, k=(10, 40)).values()
    train, test = (features.load(held, split, ["conv5"])["conv5"] for split in ("train", "test"))
    votes = [elected(train, held.labels("train"), query, 12, 0.07, 3) for query in test]
    assert found.metrics["top1_k40"] == pytest.approx(100 * (votes == held.labels("test")).mean())


def test_another_temperature_is_another_protocol():
    assert KNN().protocol_id(TOY) == "knn@1"
    assert KNN(k=(7,)).protocol_id(TOY) == "knn@1"  # the metric's name says k
    assert KNN(temperature=0.1).protocol_id(TOY) == "knn@1, temperature 0.1"
