"""Features are computed once, kept by what they are of, and there whole or not at all."""

import dataclasses
import errno
import math
import os
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import Toy, bench, random_checkpoint

from probes.features import SMALL, load, pack, pool_to, unpack
from results.errors import RunFailed, UserError
from results.files import digest
from zoo.checkpoint import Checkpoint
from zoo.views import CentreCrop, Stretch

TOY = Toy()


@pytest.fixture
def held(tmp_path):
    return bench(tmp_path, TOY)


def kept(held):
    """Everything in the cache, hidden files too."""
    return sorted(path.name for path in held.cache.rglob("*") if path.is_file())


def directly(held, split, layer, limit=None):
    images = TOY.open(split, limit=limit)
    view = held.view(images)
    return pool_to(held.maps(view.tensors(images.pixels, torch.Generator()), [layer])[layer], SMALL).numpy()


@settings(max_examples=60)
@given(st.integers(1, 5000), st.integers(1, 30), st.integers(1, 30), st.integers(64, 4096))
def test_the_pool_is_the_largest_grid_with_so_many_features(channels, height, width, most):
    fits = [side for side in range(1, min(height, width) + 1) if channels * side * side <= most]
    side = max(fits, default=1)  # one value a channel is the least
    found = pool_to(torch.empty((1, channels, height, width), device="meta"), most)
    assert found.shape == (1, channels * side * side)


def test_pooled_values_are_the_means_of_their_cells():
    maps = torch.randn(3, 16, 8, 8)
    expected = torch.stack(
        [maps[:, :, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean((2, 3)) for r in range(4) for c in range(4)], 2
    )
    torch.testing.assert_close(pool_to(maps, 16 * 16 + 15), expected.flatten(1))
    assert torch.equal(pool_to(maps, 10**6), maps.flatten(1))


def test_descriptors_pass_as_they_are():
    rows = torch.randn(4, 5000)
    assert pool_to(rows, SMALL) is rows


def test_loaded_features_are_the_computed_ones(held):
    found = load(held, "test", ["conv1", "conv5", "embedding"])
    assert list(found) == ["conv1", "conv5", "embedding"]
    for layer, rows in found.items():
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, directly(held, "test", layer))
    assert found["conv1"].shape == (24, 32 * math.isqrt(SMALL // 32) ** 2)
    assert found["embedding"].shape == (24, 512)


def test_they_are_read_only_maps_of_their_file(held):
    rows = load(held, "test", ["conv5"])["conv5"]
    assert isinstance(rows, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        rows[0] = 0


def test_nothing_is_computed_twice(held, monkeypatch):
    first = load(held, "train", ["conv2"])["conv2"].copy()
    asked = []
    maps = held.maps

    def spied(pixels, layers):
        asked.append(tuple(layers))
        return maps(pixels, layers)

    monkeypatch.setattr(held, "maps", spied)
    again = load(held, "train", ["conv2", "conv4"])
    assert set(asked) == {("conv4",)}  # only what is missing
    monkeypatch.setattr(held, "maps", lambda pixels, layers: pytest.fail("computed again"))
    np.testing.assert_array_equal(load(held, "train", ["conv2"])["conv2"], first)
    np.testing.assert_array_equal(again["conv2"], first)


def test_layers_do_not_change_each_other(tmp_path):
    alone = load(bench(tmp_path / "alone", TOY), "test", ["conv3"])["conv3"]
    among = load(bench(tmp_path / "among", TOY), "test", ["conv1", "conv3", "embedding"])["conv3"]
    np.testing.assert_array_equal(alone, among)


def test_another_anything_is_another_file(tmp_path):
    usual = random_checkpoint("random-alexnet32@0")
    turned = dataclasses.replace(usual.preprocessing, mean=(0.4,))
    other = Checkpoint(**{**vars(usual), "preprocessing": turned})
    benches = [
        bench(tmp_path, TOY),
        bench(tmp_path, TOY, "random-alexnet32@1"),
        bench(tmp_path, TOY, other),
        bench(tmp_path, TOY, limit=10),
        bench(tmp_path, TOY, limit=11),
        bench(tmp_path, TOY, precision="bf16"),
        bench(tmp_path, Toy(seed=1)),
    ]
    for held in benches:
        load(held, "test", ["conv5"])
    assert len(kept(benches[0])) == len(benches)
    load(benches[0], "train", ["conv5"])
    load(benches[0], "test", ["conv4"])
    load(benches[0], "merged", ["conv5"])
    assert len(kept(benches[0])) == len(benches) + 3


def test_the_usual_features_keep_their_files(held):
    """Those that were cached before a view and a pool could be asked for are found again."""
    load(held, "test", ["conv5"])
    pixels = (TOY.fingerprint(), "test", None, dataclasses.asdict(held.checkpoint.preprocessing))
    assert kept(held) == [f"{digest([held.sha256, 'cpu', 'fp32', *pixels, 'conv5', 4096])[:24]}.npy"]


def test_another_view_or_pool_is_another_file(held):
    usual = load(held, "test", ["conv2"])["conv2"]
    few = load(held, "test", ["conv2"], most=300)["conv2"]
    assert few.shape == (24, 64 * 2 * 2)
    halves = load(held, "test", ["conv2"], CentreCrop(16, 32))["conv2"]
    quarters = load(held, "test", ["conv2"], CentreCrop(8, 32))["conv2"]
    stretched = load(held, "test", ["conv2"], Stretch(32))["conv2"]
    assert len(kept(held)) == 5
    assert usual.shape == halves.shape
    assert not (usual == halves).all()
    assert not (halves == quarters).all()
    np.testing.assert_array_equal(stretched, usual)  # of a square image it is the whole too


def test_a_limit_never_stands_for_the_whole(tmp_path):
    assert load(bench(tmp_path, TOY, limit=10), "train", ["conv5"])["conv5"].shape[0] == 10
    whole = bench(tmp_path, TOY)
    np.testing.assert_array_equal(load(whole, "train", ["conv5"])["conv5"], directly(whole, "train", "conv5"))
    np.testing.assert_array_equal(
        load(bench(tmp_path, TOY, limit=10), "train", ["conv5"])["conv5"], directly(whole, "train", "conv5", 10)
    )


def test_merged_is_train_and_then_test(held):
    both = load(held, "merged", ["conv5"])["conv5"]
    parts = [directly(held, split, "conv5") for split in ("train", "test")]
    np.testing.assert_allclose(both, np.concatenate(parts), rtol=1e-5, atol=1e-5)


def test_features_that_are_no_numbers_fail_the_run_and_leave_nothing(held):
    with torch.no_grad():
        held.backbone.features[8].weight.fill_(math.nan)  # conv3's
    with pytest.raises(RunFailed, match="not finite in conv3"):
        load(held, "train", ["conv1", "conv3"])
    assert kept(held) == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_interrupted_pass_leaves_nothing(held, monkeypatch, interruption):
    monkeypatch.setattr("probes.features.BATCH", 16)
    maps, calls = held.maps, []

    def stopped(pixels, layers):
        calls.append(layers)
        if len(calls) == 3:
            raise interruption
        return maps(pixels, layers)

    monkeypatch.setattr(held, "maps", stopped)
    with pytest.raises(interruption):
        load(held, "train", ["conv1", "conv2"])
    assert kept(held) == []
    assert load(held, "train", ["conv1"])["conv1"].shape[0] == 60


def stopped(cache, at, layers, split="train", error=KeyboardInterrupt, directory="0a1b2c3d4e5f"):
    """Compute features and be stopped in batch `at`; what was asked of the backbone, and the bench of it."""
    held = bench(cache, TOY)
    held.directory, held.save_every = cache / "runs" / directory, 0.0
    maps, held.asked = held.maps, []

    def counted(pixels, layers):
        if len(held.asked) == at:
            raise error
        held.asked.append(tuple(layers))
        return maps(pixels, layers)

    held.maps = counted
    if at is None:
        held.found = {layer: np.array(rows) for layer, rows in load(held, split, layers).items()}
    else:
        with pytest.raises(error):
            load(held, split, layers)
    return held


@pytest.fixture
def batches(monkeypatch):
    """Sixty training images are four batches."""
    monkeypatch.setattr("probes.features.BATCH", 16)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SystemExit])
def test_a_pass_that_was_stopped_is_gone_on_with(tmp_path, batches, error):
    layers = ["conv1", "conv2", "conv5"]
    whole = stopped(tmp_path / "whole", None, layers)
    assert whole.asked == [tuple(layers)] * 4
    cache = tmp_path / "stopped"
    assert len(stopped(cache, 2, layers, error=error).asked) == 2
    assert len(list(cache.glob("features/.*.0a1b2c3d4e5f.npy"))) == 3
    again = stopped(cache, None, layers)
    assert again.asked == [tuple(layers)] * 2
    for layer in layers:
        np.testing.assert_array_equal(again.found[layer], whole.found[layer])
    assert kept(again) == kept(whole)  # no state, and nothing hidden


def test_what_another_run_has_made_meanwhile_is_not_made_again(tmp_path, batches):
    stopped(tmp_path, 2, ["conv1", "conv2"])
    load(bench(tmp_path, TOY), "train", ["conv1"])
    again = stopped(tmp_path, None, ["conv1", "conv2"])
    assert again.asked == [("conv2",)] * 2
    assert not list(tmp_path.rglob(".*"))


def test_another_run_has_its_own_file(tmp_path, batches):
    stopped(tmp_path, 2, ["conv1"])
    other = stopped(tmp_path, 1, ["conv1"], directory="fedcba987654")
    assert len(list(tmp_path.glob("features/.*"))) == 2
    assert len(stopped(tmp_path, None, ["conv1"]).asked) == 2
    whole = stopped(tmp_path / "whole", None, ["conv1"]).found["conv1"]
    np.testing.assert_array_equal(load(other, "train", ["conv1"])["conv1"], whole)
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"\x93NUMPY")])
@pytest.mark.parametrize("again", [0, 2])
def test_a_state_without_its_file_is_not_continued_from(tmp_path, batches, damage, again):
    """Not even by the run after the next, for which there is a file again."""
    stopped(tmp_path, 3, ["conv1", "conv2"])
    damage(min(tmp_path.glob("features/.*")))
    with patch("zoo.state.State.save"), patch("probes.features.Growing.discard"):  # killed before it saves anything
        stopped(tmp_path, again, ["conv1", "conv2"])
    found = stopped(tmp_path, None, ["conv1", "conv2"]).found
    for layer, rows in found.items():
        np.testing.assert_array_equal(rows, load(bench(tmp_path / "whole", TOY), "train", [layer])[layer])


def test_a_part_of_too_few_rows_is_not_continued_from(tmp_path, batches):
    stopped(tmp_path, 2, ["conv1"])
    (partial,) = tmp_path.glob("features/.*")
    np.save(partial, np.load(partial)[:50])
    assert len(stopped(tmp_path, None, ["conv1"]).asked) == 4


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve a file's room")
def test_a_full_disk_is_said_before_the_pass(held, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="No space left"):
        load(held, "train", ["conv5"])
    assert kept(held) == []


def test_a_cache_that_cannot_be_made_is_said(held, tmp_path):
    (tmp_path / "features").write_text("a file")
    with pytest.raises(UserError, match="cannot write"):
        load(held, "train", ["conv5"])


@given(st.lists(st.booleans(), max_size=40))
def test_correctness_survives_packing(flags):
    correct = np.array(flags, dtype=bool)
    assert unpack(pack(correct), len(flags)).tolist() == flags
    assert len(pack(correct)) <= 4 * (len(flags) // 24 + 1)
