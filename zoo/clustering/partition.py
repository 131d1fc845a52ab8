"""Ways of clustering DeepCluster's points: what each gives to learn from, and keeps to assign new images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo import processes
from zoo.clustering.gmm import gmm
from zoo.clustering.graph import nearest_neighbours
from zoo.clustering.kmeans import kmeans, means
from zoo.clustering.pic import pic


@dataclass(frozen=True)
class Partition:
    """A clustering of N points of d dimensions into k clusters; each process knows all of it.

    assignment: (N,) int64, 0 … k - 1. kept: what assigns new points: `centroids` (k, d), or the `weights` (k,),
    `means` and `variances` (k, d) of a mixture. soft: where points have shares of several clusters, their `clusters`
    (N, m) int64 and `shares` (N, m), which add up to 1. empty_repaired: clusters that were empty and given points.
    """

    assignment: Tensor
    kept: dict[str, Tensor]
    soft: dict[str, Tensor] = field(default_factory=dict)
    empty_repaired: int = 0

    @property
    def centres(self) -> Tensor:
        """(k, d): the clusters' means."""
        return self.kept["centroids"] if "centroids" in self.kept else self.kept["means"]

    @property
    def k(self) -> int:
        """The number of clusters."""
        return len(self.centres)

    def cross_entropy(self, logits: Tensor, rows: Tensor) -> Tensor:
        """The mean loss of logits (B, k) for the points `rows` (B,), which are on the CPU."""
        if not self.soft:
            return F.cross_entropy(logits, self.assignment[rows].to(logits.device))
        clusters, shares = (self.soft[name][rows].to(logits.device) for name in ("clusters", "shares"))
        return -(shares * F.log_softmax(logits, 1).gather(1, clusters)).sum(1).mean()


# Each process gives its share of the points.
Clustering = Callable[[Tensor, int, int, int, torch.device], Partition]


def by_kmeans(points: Tensor, k: int, iterations: int, seed: int, device: torch.device) -> Partition:
    """The paper's: k-means into k clusters, none of them empty."""
    found = kmeans(points, k, iterations, seed, device=device)
    kept = {"centroids": torch.from_numpy(found.centroids)}
    assignment = processes.gathered(torch.from_numpy(found.assignment))
    return Partition(assignment, kept, empty_repaired=found.empty_repaired)


def by_pic(points: Tensor, k: int, iterations: int, seed: int, device: torch.device) -> Partition:
    """Power iteration clustering, which finds its own number of clusters: none of the numbers rules it."""
    x = points.cpu()
    everyone = processes.gathered(x).numpy()
    assignment = processes.by_first(lambda: pic(*nearest_neighbours(everyone, device=device)))
    own = assignment[processes.share(len(assignment))]
    centroids, _ = means(x.numpy(), own, int(assignment.max()) + 1)
    return Partition(torch.from_numpy(assignment), {"centroids": torch.from_numpy(centroids)})


def by_gmm(points: Tensor, k: int, iterations: int, seed: int, device: torch.device) -> Partition:
    """A mixture of k Gaussians of diagonal covariance; points have shares of the few likeliest."""
    everyone = processes.gathered(points.cpu())
    found = processes.by_first(lambda: gmm(everyone, k, iterations, seed, device))
    tensor = torch.from_numpy
    return Partition(
        tensor(found.assignment),
        {"weights": tensor(found.weights), "means": tensor(found.means), "variances": tensor(found.variances)},
        {"clusters": tensor(found.clusters), "shares": tensor(found.shares)},
        found.empty_repaired,
    )


CLUSTERINGS: dict[str, Clustering] = {"kmeans": by_kmeans, "pic": by_pic, "gmm": by_gmm}
