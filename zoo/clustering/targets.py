"""MMDC's targets: points on the unit sphere that images are assigned to, batch by batch, then cluster by cluster.

Shiran & Weinshall, "Multi-Modal Deep Clustering: Unsupervised Partitioning of Images", ICPR 2020, section 3.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from results.errors import RunFailed
from zoo import processes
from zoo.clustering.kmeans import nearest
from zoo.clustering.matching import relabel
from zoo.seeds import derive, generator


@dataclass
class Targets:
    """What the images are to be mapped to: image i holds row `held[i]` of the `bank` of unit vectors (m, dim)."""

    means: Tensor  # (k, dim), of the mixture's components
    bank: Tensor
    held: Tensor  # (n,)
    outputs: Tensor = field(default_factory=lambda: torch.empty(0))  # (n, dim): the network's last, for all images
    agreed: Tensor = field(init=False)  # (n,): `held`, when all processes last knew the same

    def __post_init__(self) -> None:
        self.agreed = self.held.clone()

    @classmethod
    def draw(cls, n: int, k: int, dim: int, kind: str, sigma: float, seed: int) -> Targets:
        """n targets from a mixture of k Gaussians, projected to the unit sphere (section 3.1).

        The components are drawn independently, so their counts are multinomial, not equal.
        """
        rng = generator(seed)
        means = torch.eye(k) if kind == "one_hot" else F.normalize(torch.rand(k, dim, generator=rng) * 0.2 - 0.1)
        component = torch.randint(k, (n,), generator=rng)
        if sigma == 0:
            return cls(means, means, component)
        noise = torch.randn(n, means.shape[1], generator=rng) * sigma
        return cls(means, F.normalize(means[component] + noise), torch.arange(n))

    def __getitem__(self, rows: Tensor) -> Tensor:
        """The targets (B, dim) of the images `rows`."""
        return self.bank[self.held[rows]]

    def assign(self, rows: Tensor, outputs: Tensor) -> None:
        """Permute the targets of the images `rows` so that the sum of distances to their outputs (B, dim) is least.

        Euclidean, not squared: the two give other assignments. The multiset of targets never changes.
        """
        cost = torch.cdist(outputs.double().cpu(), self[rows].double(), compute_mode="donot_use_mm_for_euclid_dist")
        if not cost.isfinite().all():
            raise RunFailed("the network's outputs are no numbers. Try a smaller --lr")
        _, columns = linear_sum_assignment(cost.numpy())
        self.held[rows] = self.held[rows[torch.from_numpy(columns)]]

    def agree(self) -> None:
        """Let every process know what the others have assigned since the last time: each image is one process's."""
        if processes.count() > 1:
            self.held = self.agreed + processes.summed(self.held - self.agreed)
            self.agreed = self.held.clone()

    def refine(self, seed: int) -> None:
        """Make k-means clusters of the last outputs the targets, matched to the present ones (section 3.3)."""
        k = len(self.means)
        estimator = KMeans(k, n_init=10, max_iter=300, tol=1e-4, algorithm="elkan", random_state=derive(seed) % 2**32)
        with warnings.catch_warnings():
            # fewer distinct outputs than clusters: the history says so, as empty clusters
            warnings.simplefilter("ignore", ConvergenceWarning)
            new = processes.by_first(lambda: estimator.fit_predict(self.outputs.numpy()))
        previous = nearest(self.bank[self.held].numpy(), self.means.numpy())
        self.bank, self.held = self.means, torch.from_numpy(relabel(new, previous, k)[new])
        self.agreed = self.held.clone()

    def clusters(self) -> np.ndarray:
        """The component (n,) whose mean is nearest to each output; with one-hot means, the largest output."""
        return nearest(self.outputs.numpy(), self.means.numpy())

    def state_dict(self) -> dict[str, Tensor]:
        """All of it, to be saved."""
        names = ("means", "bank", "held", "outputs", "agreed")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Become what was saved."""
        for name in self.state_dict():
            setattr(self, name, state[name].cpu())
