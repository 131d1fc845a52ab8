"""MMDC's targets, recomputed by their definitions (mmdc.md 1.1, 1.3 and 1.5)."""

import itertools
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from sklearn.exceptions import ConvergenceWarning

from results.errors import RunFailed
from zoo.clustering.targets import Targets
from zoo.seeds import generator


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


def test_random_means_come_from_a_cube():
    """Of points in a square 1 - tan(pi/8) of them, not half, are nearer to a diagonal than to an axis."""
    means = Targets.draw(1, 40000, 2, "random", 0.0, seed=0).means.abs()
    angle = torch.atan2(means[:, 1], means[:, 0])
    share = ((angle > np.pi / 8) & (angle < 3 * np.pi / 8)).float().mean().item()
    assert share == pytest.approx(1 - np.tan(np.pi / 8), abs=0.01)


def test_components_are_drawn_independently():
    counts = np.array(
        [torch.bincount(Targets.draw(100, 5, 5, "one_hot", 0.0, seed).held, minlength=5) for seed in range(300)]
    )
    assert counts.mean(0) == pytest.approx(np.full(5, 20), abs=1)
    assert counts.var(0) == pytest.approx(np.full(5, 100 * 0.2 * 0.8), rel=0.3)  # multinomial; 0 if they were balanced


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


@settings(max_examples=25)
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


@settings(max_examples=20)
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


def test_refinement_of_a_collapsed_network_gives_all_images_one_target():
    targets = Targets.draw(40, 5, 5, "one_hot", 0.0, seed=1)
    held = torch.bincount(targets.held, minlength=5)
    targets.outputs = torch.full((40, 5), 0.2).sqrt()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)  # the history has it, not the terminal
        targets.refine(0)
    assert set(targets.held.tolist()) == {held.argmax().item()}  # the largest overlap


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
