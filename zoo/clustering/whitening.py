"""PCA-whitening of streamed features, and row normalisation (DeepCluster: Caron et al. 2018, section 3.4).

The features are read once, block by block, into one (D, D) matrix; memory does not grow with N:

    covariance = Covariance()
    for block in features:            # (n, D) each
        covariance.update(block)
    whiten = covariance.whitening(dim=256)
    z = l2_normalise_(whiten(features))   # (N, 256)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.linalg
import torch
from threadpoolctl import threadpool_limits

from results.errors import RunFailed
from zoo import processes

Rows: TypeAlias = torch.Tensor | np.ndarray  # (n, D): a tensor, an array or a memory map, any float type

BLOCK = 4096  # rows read at once: large enough that adding a block's products into float64 costs little
PANEL = 512  # columns: only panels on and above the diagonal are computed, which halves the work

# Products are always summed in float64. They are computed in float64 up to this width, where that is cheap,
# and in float32 above it (4096 wide: 8 s instead of 13 for 60 000 rows on two cores).
WIDEST_DOUBLE = 2048
# Directions whose variance is below this part of the largest are rounding, not signal, and are silenced.
# float32 products err by about 3e-8 of the largest eigenvalue. With float64 products there is the rounding of
# float32 features left, (6e-8)² of their mean square: below 1e-10 even if the mean is 100 times the spread.
FLOOR = {torch.float32: 1e-7, torch.float64: 1e-10}
# Total variance below this part of the mean's squared norm is what float32 leaves of equal rows: a constant.
CONSTANT = 1e-12


class Covariance:
    """The mean and covariance of rows that come block by block, on the device of the first block.

    `products` is the type in which a block's products are computed (by default chosen by width, see above).
    Each update adds a (D, D) matrix, so blocks of thousands of rows are much faster than of hundreds.
    """

    def __init__(self, products: torch.dtype | None = None) -> None:
        self.products = products
        self.count = 0

    def update(self, rows: Rows) -> Covariance:
        """This covariance with `rows` (n, D) added; any n, and longer ones are read in blocks."""
        for start in range(0, len(rows), BLOCK):
            self._add(_tensor(rows[start : start + BLOCK]))
        return self

    def _add(self, block: torch.Tensor) -> None:
        if self.count == 0:
            self._begin(block)
        block = self.shifted[: len(block)].copy_(block).sub_(self.shift)
        for i in range(0, block.shape[1], PANEL):
            self.moments[i : i + PANEL, i:] += block[:, i : i + PANEL].T @ block[:, i:]
        self.total += block.sum(0, dtype=torch.float64)
        self.count += len(block)

    def _begin(self, block: torch.Tensor) -> None:
        """Allocate, and shift by the first block's mean: a large offset would drown the rest in rounding."""
        width = block.shape[1]
        products = self.products or (torch.float64 if width <= WIDEST_DOUBLE else torch.float32)
        self.shift = block.mean(0, dtype=torch.float64).to(products)
        self.shifted = torch.empty(BLOCK, width, dtype=products, device=block.device)  # one for all blocks
        self.total = torch.zeros(width, dtype=torch.float64, device=block.device)
        self.moments = torch.zeros(width, width, dtype=torch.float64, device=block.device)

    def mean_and_upper(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean (D,) and the covariance (D, D) above its diagonal, float64, divided by N (not N - 1).

        Of all processes' rows; each process has seen its own.
        """
        if self.count == 0:
            raise RunFailed("there are no features to whiten")
        offset = self.total / self.count
        mean, upper = self.shift.double() + offset, self.moments / self.count - torch.outer(offset, offset)
        if processes.count() == 1:
            return mean, upper
        share = self.count / self.total_count()
        middle = processes.summed(share * mean)
        apart = mean - middle
        return middle, processes.summed(share * (upper + torch.outer(apart, apart)))

    def total_count(self) -> int:
        """The number of rows in all processes."""
        return int(processes.summed(torch.tensor(self.count)))

    def whitening(self, dim: int = 256) -> Whitening:
        """The map onto the min(dim, N, D) directions of largest variance, each scaled to variance 1.

        Directions under the floor (N centred rows have rank N - 1 at most) are kept as zeros, not amplified.
        RunFailed if the features are not finite, or constant.
        """
        mean, upper = self.mean_and_upper()
        self._check(mean, upper)
        dim = min(dim, self.total_count(), len(mean))
        values, vectors = processes.by_first(lambda: _largest(upper, dim))
        heard = values > FLOOR[self.shift.dtype] * values[0]
        scale = torch.where(heard, values, 1).rsqrt() * heard
        components = (vectors * scale).T.to(mean.device)
        return Whitening(mean.float(), components.float().contiguous())

    def _check(self, mean: torch.Tensor, upper: torch.Tensor) -> None:
        variance = upper.diagonal().sum()
        if not torch.isfinite(variance):
            raise RunFailed("the features are not finite: the network puts out NaN or infinity")
        if variance <= CONSTANT * mean.square().sum():
            raise RunFailed(f"the features are constant: {self.count} equal rows leave nothing to whiten")


@dataclass(frozen=True)
class Whitening:
    """x ↦ (x - mean) @ componentsᵀ: uncorrelated columns of variance 1 for the rows it was fitted to."""

    mean: torch.Tensor  # (D,) float32
    components: torch.Tensor  # (d, D) float32: eigenvectors divided by the root of their eigenvalue

    def __call__(self, x: Rows, out: torch.Tensor | None = None) -> torch.Tensor:
        """The whitened rows, (N, d) float32, on the device of x, or put into `out`; read in blocks."""
        device = x.device if isinstance(x, torch.Tensor) else torch.device("cpu")
        mean, components = self.mean.to(device), self.components.to(device)
        whitened = torch.empty(len(x), len(components), device=device) if out is None else out
        for start in range(0, len(x), BLOCK):
            block = _tensor(x[start : start + BLOCK]).float()
            whitened[start : start + BLOCK] = (block - mean) @ components.T
        return whitened


def fit_whitening(x: Rows, dim: int = 256) -> Whitening:
    """The whitening fitted to rows that are all at hand: an array, a tensor or a memory map (N, D)."""
    return Covariance().update(x).whitening(dim)


def l2_normalise(x: torch.Tensor, epsilon: float = 1e-12) -> torch.Tensor:
    """The rows of x (N, d) divided by their norm, or by `epsilon` if that is larger: zero rows stay zero."""
    return x / _lengths(x, epsilon)


def l2_normalise_(x: torch.Tensor, epsilon: float = 1e-12) -> torch.Tensor:
    """The same to the bit, in the memory of x itself: for N points there is no second (N, d)."""
    return x.div_(_lengths(x, epsilon))


def _lengths(x: torch.Tensor, epsilon: float) -> torch.Tensor:
    return torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(epsilon)


def _tensor(rows: Rows) -> torch.Tensor:
    if isinstance(rows, torch.Tensor):
        return rows.detach()
    rows = np.asarray(rows)
    return torch.from_numpy(rows if rows.flags.writeable else rows.copy())  # torch takes no read-only memory


def _largest(upper: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `dim` largest eigenvalues, falling, and their eigenvectors (D, dim), float64, on the CPU.

    LAPACK's subset driver: for 256 of 4096 it takes a third of the time of the whole decomposition. On one
    thread: it waits for memory, so a second gains little, and beside other processes the two spin on each other.
    """
    width = len(upper)
    with threadpool_limits(1, "blas"):
        values, vectors = scipy.linalg.eigh(
            upper.cpu().numpy(), lower=False, subset_by_index=[width - dim, width - 1], driver="evr"
        )
    return torch.from_numpy(values[::-1].copy()), torch.from_numpy(vectors[:, ::-1].copy())
