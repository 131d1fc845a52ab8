"""What a linear probe trains on: pooled to the protocols' sizes, standardised, augmented by the seed alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import Toy, bench, photographs

from probes import features, sources
from probes.protocols import PROTOCOLS
from probes.sources import PLAIN, TEST, Cached, Online, generic_pool, moments
from zoo.backbones import empty
from zoo.datasets.folder import Folder
from zoo.evaluation import Evaluation
from zoo.state import State, Unkept
from zoo.views import Centre, RandomCrop, TenCrop

TABLE = {"conv1": 9600, "conv2": 9216, "conv3": 9600, "conv4": 9600, "conv5": 9216}  # deepcluster.md 2.1


def by_blocks(maps, kernel):
    """Means of the whole kernel × kernel blocks of maps (B, c, h, w), flattened."""
    rows, columns = maps.shape[2] // kernel, maps.shape[3] // kernel
    found = np.zeros((*maps.shape[:2], rows, columns))
    for row in range(rows):
        for column in range(columns):
            block = maps[:, :, row * kernel : (row + 1) * kernel, column * kernel : (column + 1) * kernel]
            found[:, :, row, column] = block.double().mean((2, 3)).numpy()
    return found.reshape(len(maps), -1)


@pytest.mark.parametrize("sobel", [False, True])
def test_alexnet_at_224_px_is_pooled_to_the_published_sizes(sobel, tmp_path):
    held = bench(tmp_path, Toy(4, 2), "random-alexnet@0")
    meta = torch.device("meta")  # shapes alone
    shapes = Evaluation(held.checkpoint, "", held.dataset, empty("alexnet", sobel=sobel).eval(), meta)
    assert Online(shapes, list(TABLE), PROTOCOLS["deepcluster"]).dims == TABLE
    assert Online(shapes, ["embedding"], PROTOCOLS["deepcluster"]).dims == {"embedding": 4096}


def test_vgg16_is_pooled_to_the_published_sizes(tmp_path):
    """deepcluster.md 2.1, DeeperCluster's table."""
    held = bench(tmp_path, Toy(4, 2), "random-alexnet@0")
    shapes = Evaluation(held.checkpoint, "", held.dataset, empty("vgg16").eval(), torch.device("meta"))
    wanted = dict(zip((f"conv{n}" for n in range(1, 14)), [9216] * 2 + [8192] * 2 + [9216] * 3 + [8192] * 6))
    assert Online(shapes, list(wanted), PROTOCOLS["deepercluster"]).dims == wanted


@pytest.mark.parametrize(
    "shape",
    [(32, 32, 32), (64, 16, 16), (96, 8, 8), (3, 200, 130), (1, 100, 100), (1, 99, 101), (512, 14, 14), (9999, 1, 1)],
)
def test_the_generic_pool_keeps_most_features_below_10000(shape):
    channels, height, width = shape
    sizes = {kernel: channels * (height // kernel) * (width // kernel) for kernel in range(1, min(height, width) + 1)}
    kernel = min(kernel for kernel, size in sizes.items() if size < 10000)
    maps = torch.randn((2, *shape), generator=torch.Generator().manual_seed(0))
    found = generic_pool(maps)
    assert found.shape[1] == max(size for size in sizes.values() if size < 10000)
    np.testing.assert_allclose(found.numpy(), by_blocks(maps, kernel), atol=1e-5)


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 9), st.floats(-1000, 1000))
def test_moments_are_those_of_numpy_whatever_the_block(count, dim, block, offset):
    rows = (np.random.default_rng(0).normal(size=(count, dim)) + offset).astype(np.float32)
    mean, scale = moments(rows, block)
    np.testing.assert_allclose(mean.numpy(), rows.mean(0, dtype=np.float64), rtol=1e-5, atol=1e-5)
    std = rows.astype(np.float64).std(0)
    expected = np.divide(1, std, out=np.zeros(dim), where=std > 1e-6)
    np.testing.assert_allclose(scale.numpy(), expected, rtol=1e-4)


def test_a_constant_feature_is_dropped():
    rows = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    rows[:, 1] = 1e4 + 0.1
    assert moments(rows)[1][1] == 0


@pytest.fixture
def tables(monkeypatch):
    """Features of two made-up layers, in place of a network's: `wide` has more features than there are images."""
    generator = np.random.default_rng(3)
    held = {
        split: {
            "wide": generator.normal(5, 3, (count, 90)).astype(np.float32),
            "thin": generator.normal(-2, 7, (count, 6)).astype(np.float32),
        }
        for split, count in {"train": 60, "test": 24}.items()
    }
    monkeypatch.setattr(sources.features, "load", lambda bench, split, layers: {n: held[split][n] for n in layers})
    return held


def standardised(tables, split, layer):
    train = tables["train"][layer].astype(np.float64)
    return (tables[split][layer] - train.mean(0)) / train.std(0)


def gather(batches):
    """Labels and features of all batches, joined."""
    labels, tables = zip(*batches)
    return torch.cat(labels), {layer: torch.cat([x[layer] for x in tables]) for layer in tables[0]}


def test_cached_features_are_standardised_by_train(tables, tmp_path):
    held = bench(tmp_path, Toy())
    source = Cached(held, "thin")
    assert (source.dims, source.dual, source.classes) == ({"thin": 6}, {"thin": False}, 3)
    labels, x = gather(source.test(7, 1, Unkept()))
    assert labels.tolist() == held.labels("test").tolist()
    np.testing.assert_allclose(x["thin"][:, 0], standardised(tables, "test", "thin"), atol=1e-5)
    ids = np.array([5, 3, 59, 0])
    for found in (
        next(iter(source.train(ids, 4, 0, "", Unkept()))),
        (torch.from_numpy(ids), *gather(source.plain(ids, 3, Unkept()))),
    ):
        assert found[0].tolist() == ids.tolist()
        assert found[1].tolist() == held.labels("train")[ids].tolist()
        rows = found[2]["thin"].reshape(4, 6)
        np.testing.assert_allclose(rows, standardised(tables, "train", "thin")[ids], atol=1e-5)


def test_fewer_images_than_features_give_similarities(tables, tmp_path):
    source = Cached(bench(tmp_path, Toy()), "wide")
    assert (source.dual, source.dims) == ({"wide": True}, {"wide": 60})
    train = standardised(tables, "train", "wide")
    _, x = gather(source.plain(np.arange(60), 16, Unkept()))
    np.testing.assert_allclose(x["wide"][:, 0], train @ train.T, atol=1e-3)
    _, x = gather(source.test(16, 1, Unkept()))
    np.testing.assert_allclose(x["wide"][:, 0], standardised(tables, "test", "wide") @ train.T, atol=1e-3)


@pytest.fixture
def folder(tmp_path):
    return Folder(photographs(tmp_path / "images", train=4, val=2))


def pooled(held, view, images, ids, layer, seed=0):
    """Features of images `ids` seen one by one, each as it is drawn at its place in the order."""
    _, pixels = next(images.batches(ids, len(ids), view, seed))
    return generic_pool(held.maps(pixels.flatten(0, -4), [layer])[layer])


def test_training_images_are_cropped_and_tests_are_not(folder, tmp_path):
    held = bench(tmp_path / "cache", folder, "random-alexnet32@0")
    held.checkpoint = held.checkpoint.__class__(**{**vars(held.checkpoint), "preprocessing": larger(held)})
    source = Online(held, ["conv2"], PROTOCOLS["generic"])
    order, train = np.array([6, 0, 3]), folder.open("train")
    ((at, labels, x),) = source.train(order, 8, 11, "", Unkept())
    assert (at.tolist(), labels.tolist()) == (order.tolist(), folder.open("train").labels[order].tolist())
    crop = pooled(held, RandomCrop(40, 32, True), train, order, "conv2", seed=11)
    assert torch.equal(x["conv2"], crop)
    ((_, _, other),) = source.train(order, 8, 12, "", Unkept())
    assert not torch.equal(other["conv2"], crop)
    _, plain = gather(source.plain(order, 8, Unkept()))
    assert torch.equal(plain["conv2"][:, 0], pooled(held, Centre(40, 32), train, order, "conv2"))
    labels, x = gather(source.test(3, 1, Unkept()))
    assert labels.tolist() == [0, 0, 1, 1]
    ids = np.arange(4)
    torch.testing.assert_close(x["conv2"][:, 0], pooled(held, Centre(40, 32), folder.open("val"), ids, "conv2"))


def larger(held):
    """The checkpoint's preprocessing, with room for crops."""
    wanted = held.checkpoint.preprocessing
    return wanted.__class__(32, 40, wanted.channels, wanted.mean, wanted.std)


def test_ten_crops_are_ten_rows_of_each_image(folder, tmp_path):
    held = bench(tmp_path / "cache", folder)
    held.checkpoint = held.checkpoint.__class__(**{**vars(held.checkpoint), "preprocessing": larger(held)})
    _, x = gather(Online(held, ["conv1"], PROTOCOLS["generic"]).test(20, 10, Unkept()))
    assert x["conv1"].shape == (4, 10, 32 * 16 * 16)
    view = TenCrop(40, 32)
    for image in range(4):
        rows = pooled(held, view, folder.open("val"), np.array([image]), "conv1")
        torch.testing.assert_close(x["conv1"][image], rows)


def test_workers_and_company_change_no_bit(folder, tmp_path):
    order = np.array([1, 7, 2, 4, 0])
    alone = Online(bench(tmp_path / "cache", folder, workers=0), ["conv3"], PROTOCOLS["generic"])
    among = Online(bench(tmp_path / "cache", folder, workers=2), ["conv1", "conv3", "conv5"], PROTOCOLS["generic"])
    batches = [source.train(order, 2, 5, "", Unkept()) for source in (alone, among)]
    for first, second in zip(*batches, strict=True):
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[2]["conv3"], second[2]["conv3"])


@pytest.mark.parametrize("kind", ["cached", "online"])
def test_batches_are_steps_of_the_state(tables, folder, tmp_path, kind):
    if kind == "cached":
        source, few = Cached(bench(tmp_path / "cache", Toy()), "thin"), 13
    else:
        source, few = Online(bench(tmp_path / "cache", folder), ["conv1"], PROTOCOLS["generic"]), 3
    ids = np.random.default_rng(0).permutation(len(source.labels))
    streams = {
        "training": lambda state: source.train(ids, few, 5, "training", state),
        PLAIN: lambda state: source.plain(ids, few, state),
        TEST: lambda state: source.test(few, 1, state),
    }
    for name, stream in streams.items():
        whole = list(stream(Unkept()))
        place = tmp_path / name
        begun = stream(State(place, every=0.0))
        assert [len(next(begun)) for _ in range(2)] == [len(whole[0])] * 2
        rest = list(stream(State(place, every=0.0)))  # the second was not finished
        assert len(rest) == len(whole) - 1
        assert all(torch.equal(a[-2], b[-2]) for a, b in zip(rest, whole[1:]))  # labels
        (layer,) = source.dims
        assert all(torch.equal(a[-1][layer], b[-1][layer]) for a, b in zip(rest, whole[1:]))
        assert list(stream(State(place, every=0.0))) == []


def test_features_are_taken_whole_where_they_are_small():
    maps = torch.randn(2, 5, 3, 3)
    assert torch.equal(generic_pool(maps), maps.flatten(1))
    assert torch.equal(features.pool_to(maps, 4096), maps.flatten(1))
