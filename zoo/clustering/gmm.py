"""A mixture of Gaussians with diagonal covariances, fitted by EM: clusters that share their points.

    mixture = gmm(points, k=100)
    clusters, shares = posterior(new_points, mixture)   # of each point: the likeliest components, and their shares

Dempster, Laird & Rubin, "Maximum Likelihood from Incomplete Data via the EM Algorithm", JRSS B 1977. The points are
DeepCluster's: whitened and divided by their length.

The start is a few iterations of k-means: on the digits (8, 32 and 64 dimensions, 10 and 50 components, three seeds)
that led to the larger likelihood after 20 iterations in 15 of 18 trials, against random rows. All components then
have the same weight and the same variances: those of all points, shrunk by the share of their squared distance to
the mean that is left to the nearest start.

No variance falls below a floor. As the M step clamps, it finds the largest likelihood among mixtures that respect
the floor, so the likelihood never falls; a constant that is added (scikit-learn's reg_covar) does not have that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from results.errors import RunFailed, UserError
from zoo.clustering.kmeans import distinct_rows, draw_donor, flat_index, kmeans, matrix, search
from zoo.clustering.whitening import BLOCK, Rows

START_ITERATIONS = 5  # of k-means
# No component is narrower, in any direction, than the root of this part of the points' mean variance: 3 % of their
# spread. Else one on a single row would have a density without bound. A component that narrow in all of 256 dimensions
# has log-densities that float32 errs in by a tenth of a nat; at a tenth of this floor it would be a whole one.
FLOOR = 1e-3
LOST = 1e-3  # rows: a component with less has lost its weight
TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Components:
    """What a mixture is: k Gaussians with diagonal covariances. Arrays or tensors, float32."""

    weights: Rows  # (k,), which add up to 1
    means: Rows  # (k, d)
    variances: Rows  # (k, d)


@dataclass(frozen=True)
class Mixture(Components):
    """The components fitted to N points, and which points are whose. A component may have the largest share of none."""

    weights: np.ndarray  # (k,) float32
    means: np.ndarray  # (k, d) float32
    variances: np.ndarray  # (k, d) float32
    assignment: np.ndarray  # (N,) int64: the component with the largest share
    clusters: np.ndarray  # (N, min(top, k)) int64: the components with the largest shares, falling
    shares: np.ndarray  # (N, min(top, k)) float32: their responsibilities for the point, scaled to add up to 1
    log_likelihood: list[float]  # of all points, in nats; one an iteration, before that iteration's update
    empty_repaired: int  # components that lost all weight and were given half of another


def gmm(
    x: Rows,
    k: int,
    iterations: int = 20,
    seed: int = 0,
    device: str | torch.device = "cpu",
    top: int = 5,
    start: Rows | None = None,
) -> Mixture:
    """The mixture of k components after `iterations` of EM on x (N, d), and its shares in each row.

    `start` (k, d) gives the first means, which must differ: EM never parts equal components. Products are float32
    on `device`, of blocks of rows; sums over blocks are float64. The same seed gives the same bits on one machine.
    RunFailed if x is not finite or too large; UserError if k is not in 1…N, if fewer than k rows differ, if top is
    below 1, or without faiss.
    """
    check_top(top)
    x = matrix(x)
    generator = np.random.default_rng(seed)
    components, floor = begin(x, start_means(x, k, seed, device, start), device)
    log_likelihood: list[float] = []
    repaired = 0
    for _ in range(iterations):
        likelihood, sizes, sums = expect(x, components, device)
        log_likelihood.append(likelihood)
        components, splits = maximise(sizes, sums, centre(components), floor, generator)
        repaired += splits
    clusters, shares = posterior(x, components, top, device)
    return Mixture(
        **{name: np.asarray(part) for name, part in vars(components).items()},
        assignment=clusters[:, 0].copy(),
        clusters=clusters,
        shares=shares,
        log_likelihood=log_likelihood,
        empty_repaired=repaired,
    )


def posterior(
    x: Rows, components: Components, top: int = 5, device: str | torch.device = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Each row's likeliest components, (N, m) int64, and their shares in it, (N, m) float32; m = min(top, k).

    Shares fall along a row and add up to 1: they are the responsibilities of these m alone. RunFailed if x (N, d) is
    not finite or too large; UserError if top is below 1.
    """
    check_top(top)
    x = matrix(x)
    k, width = components.means.shape
    if x.shape[1] != width:
        raise ValueError(f"rows of {x.shape[1]} numbers do not fit components of {width}")
    clusters = np.empty((len(x), min(top, k)), np.int64)
    shares = np.empty(clusters.shape, np.float32)
    for start, (_, joint) in zip(range(0, len(x), BLOCK), log_joint(x, components, device)):
        values, found = joint.topk(clusters.shape[1], dim=1)
        clusters[start : start + BLOCK] = found.cpu().numpy()
        shares[start : start + BLOCK] = values.softmax(1).cpu().numpy()
    check_finite(float(shares.sum(dtype=np.float64)))
    return clusters, shares


def start_means(x: np.ndarray, k: int, seed: int, device: str | torch.device, start: Rows | None) -> np.ndarray:
    """The first means (k, d): those of k-means, or a copy of `start`. Errors as in gmm."""
    if start is None:
        return kmeans(x, k, START_ITERATIONS, seed, device=device).centroids
    distinct_rows(x, k, np.random.default_rng(seed))
    means = matrix(start).copy()
    if means.shape != (k, x.shape[1]):
        raise ValueError(f"a start of shape {means.shape} is not k = {k} rows of {x.shape[1]}")
    return means


def begin(x: np.ndarray, means: np.ndarray, device: str | torch.device) -> tuple[Components, float]:
    """The components to start from, and the floor of their variances: FLOOR of the mean one of x."""
    mean = x.mean(0, dtype=np.float64)
    variance = sum(np.square(x[i : i + BLOCK] - mean).sum(0) for i in range(0, len(x), BLOCK)) / len(x)
    floor = max(FLOOR * variance.mean(), TINY)  # equal rows have no variance
    distances = search(flat_index(x.shape[1], device), x, means)[0]
    left = distances.mean(dtype=np.float64) / max(variance.sum(), TINY)
    variances = np.maximum(variance * min(left, 1), floor).astype(np.float32)
    weights = np.full(len(means), 1 / len(means), np.float32)
    return Components(weights, means, np.tile(variances, (len(means), 1))), floor


def expect(x: np.ndarray, components: Components, device: str | torch.device) -> tuple[float, np.ndarray, np.ndarray]:
    """The log-likelihood of x; the sums over rows of the responsibilities, (k,), and of these times (x, x²), (k, 2d).

    Float64; x counts from the mixture's mean. RunFailed if the likelihood overflows.
    """
    k, width = components.means.shape
    likelihood = torch.zeros((), dtype=torch.float64, device=device)
    sizes = torch.zeros(k, dtype=torch.float64, device=device)
    sums = torch.zeros(k, 2 * width, dtype=torch.float64, device=device)
    for statistics, joint in log_joint(x, components, device):
        evidence = joint.logsumexp(1, keepdim=True)
        responsibilities = joint.sub_(evidence).exp_()
        likelihood += evidence.sum(dtype=torch.float64)
        sizes += responsibilities.sum(0, dtype=torch.float64)
        sums += responsibilities.T @ statistics
    check_finite(float(likelihood))
    return float(likelihood), sizes.cpu().numpy(), sums.cpu().numpy()


def maximise(
    sizes: np.ndarray, sums: np.ndarray, shift: np.ndarray, floor: float, generator: np.random.Generator
) -> tuple[Components, int]:
    """The likeliest components for what `expect` summed about `shift` (d,), and how many had to be repaired."""
    first, second = np.split(sums / np.maximum(sizes, TINY)[:, None], 2, axis=1)
    means = (first + shift).astype(np.float32)
    variances = np.maximum(second - first**2, floor).astype(np.float32)
    repaired = split_lost(means, variances, sizes, generator)
    return Components((sizes / sizes.sum()).astype(np.float32), means, variances), repaired


def split_lost(means: np.ndarray, variances: np.ndarray, sizes: np.ndarray, generator: np.random.Generator) -> int:
    """How many components had lost their weight; each is given half of a random heavier one, in place.

    The donor is drawn as k-means draws it. Its copy and it part by one standard deviation to either side, along
    a diagonal of the dimensions: k-means' pull, in proportion to the mean, would leave means at 0 together for ever.
    """
    width = means.shape[1]
    pull = np.where(np.arange(width) % 2 == 0, 1, -1).astype(np.float32) / np.float32(width**0.5)
    lost = np.flatnonzero(sizes < LOST)
    for component in lost:
        donor = draw_donor(sizes, generator)
        step = np.sqrt(variances[donor]) * pull
        means[component], variances[component] = means[donor] + step, variances[donor]
        means[donor] -= step
        sizes[donor] /= 2
        sizes[component] = sizes[donor]
    return len(lost)


def log_joint(
    x: np.ndarray, components: Components, device: str | torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Of each block of rows: (x, x²), (B, 2d), and the logarithm of weight times density, (B, k), float32.

    A diagonal Gaussian's log-density is linear in (x, x²), so a product gives it. x counts from the mixture's mean:
    an offset would drown the rest in rounding.
    """
    shift = centre(components)
    coefficients, constants = (part.to(device, torch.float32) for part in linear_form(components, shift))
    for start in range(0, len(x), BLOCK):
        rows = torch.from_numpy(x[start : start + BLOCK] - shift).to(device)
        statistics = torch.cat([rows, rows.square()], 1)
        yield statistics, torch.addmm(constants, statistics, coefficients.T)


def centre(components: Components) -> np.ndarray:
    """The mean of the whole mixture, (d,) float32."""
    weights, means, _ = doubles(components)
    return (weights @ means).float().numpy()


def linear_form(components: Components, shift: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """The coefficients (k, 2d) of (x - shift, its square) and the constants (k,) in log(weight × density), float64."""
    weights, means, variances = doubles(components)
    means = means - torch.from_numpy(shift)
    constants = weights.log() - (torch.log(2 * torch.pi * variances) + means**2 / variances).sum(1) / 2
    return torch.cat([means / variances, -0.5 / variances], 1), constants


def doubles(components: Components) -> tuple[torch.Tensor, ...]:
    """The weights, means and variances as float64 tensors on the CPU."""
    parts = components.weights, components.means, components.variances
    return tuple(torch.as_tensor(part, dtype=torch.float64, device="cpu") for part in parts)


def check_top(top: int) -> None:
    """UserError if there is no component to name of each row."""
    if top < 1:
        raise UserError(f"the {top} likeliest components of each row were asked for", fix="at least 1")


def check_finite(outcome: float) -> None:
    """RunFailed if the outcome of sums is not finite."""
    if not np.isfinite(outcome):
        raise RunFailed("the features to cluster are too large: their log-densities overflow float32")
