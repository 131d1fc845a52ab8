"""PCA-whitening against faiss's: fit and apply, one line of a markdown table.

    python -m benchmarks.whitening                      60 000 × 4096 → 256: two minutes and 4 GB on two cores
    python -m benchmarks.whitening --rows 5000 --dims 512

Both results are compared by the sine of the largest principal angle between the two subspaces (0: the same; 1:
a direction of one is missing in the other). Variances fall as 1/i and halve after the directions that are kept,
or the last of these would be a matter of rounding.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import faiss
import numpy as np
import torch

from zoo.clustering.whitening import fit_whitening
from zoo.device import prepare


def features(rows: int, dims: int, dim: int) -> np.ndarray:
    """Random rows (rows, dims) float32 about an offset, of variances 1, 1/2, 1/3, … in a random basis."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(dims, dims, generator=generator))[0]
    scaled = basis / torch.arange(1, dims + 1).sqrt()
    scaled[:, dim:] /= 2**0.5
    x = torch.empty(rows, dims)
    for block in x.split(4096):
        torch.matmul(torch.randn(len(block), dims, generator=generator), scaled.T, out=block)
        block += 0.1
    return x.numpy()


def clock(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """The seconds that `work` took, and the directions (d, D) that it found."""
    start = time.perf_counter()
    directions = work()
    return time.perf_counter() - start, directions


def ours(x: np.ndarray, dim: int) -> np.ndarray:
    whiten = fit_whitening(x, dim)
    whiten(x)
    return whiten.components.numpy()


def by_faiss(x: np.ndarray, dim: int) -> np.ndarray:
    whiten = faiss.PCAMatrix(x.shape[1], dim, -0.5)
    whiten.train(x)
    whiten.apply(x)
    return faiss.vector_to_array(whiten.A).reshape(dim, x.shape[1])


def largest_sine(a: np.ndarray, b: np.ndarray) -> float:
    """The sine of the largest principal angle between the row spaces of a and b, (d, D) each."""
    p, q = (np.linalg.qr(directions.T.astype(np.float64))[0] for directions in (a, b))
    return float(np.linalg.norm(p - q @ (q.T @ p), ord=2))


def main() -> None:
    """Time both and print the line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=60000)
    parser.add_argument("--dims", type=int, default=4096)
    parser.add_argument("--components", type=int, default=256)
    options = parser.parse_args()
    dim = min(options.components, options.rows, options.dims)
    prepare(None)  # threads and allocator, as every command here does, for both
    x = features(options.rows, options.dims, dim)
    ours(x[: min(512, len(x))], min(dim, 8))  # threads and libraries are up before the clock starts
    seconds, found = clock(lambda: ours(x, dim))
    reference_seconds, reference = clock(lambda: by_faiss(x, dim))
    print("| PCA-whitening | faiss.PCAMatrix, s | clusterzoo, s | times faster | sine of the largest angle |")
    print("|---|---|---|---|---|")
    name = f"{options.rows} × {options.dims} → {dim}, {torch.get_num_threads()} threads"
    ratio, sine = reference_seconds / seconds, largest_sine(found, reference)
    print(f"| {name} | {reference_seconds:.2f} | {seconds:.2f} | {ratio:.1f} | {sine:.1e} |")


if __name__ == "__main__":
    main()
