"""The clusters that a checkpoint holds, and which of them a descriptor belongs to.

Its tensors tell what it assigns by: the first of KINDS whose tensors are all there. Another way of clustering is an
entry there, with a function that makes Clusters of the tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from results.errors import UserError
from zoo.backbones import find
from zoo.checkpoint import DEFAULT, Checkpoint
from zoo.clustering.gmm import Components, posterior
from zoo.clustering.kmeans import nearest
from zoo.clustering.whitening import Whitening, l2_normalise
from zoo.tensors import flatten

Tensors = dict[str, Tensor]  # by group/name


@dataclass(frozen=True)
class Clusters:
    """k centres, the way from descriptors to points in their space, and which centre a point belongs to."""

    centres: Tensor  # (k, d)
    place: Callable[[Tensor], Tensor]  # descriptors (N, D) to points (N, d)
    choose: Callable[[Tensor, Tensor], np.ndarray] = nearest  # points (N, d) and centres to clusters (N,)

    def assign(self, descriptors: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Each descriptor's cluster, (N,) int64, and its point's Euclidean distance to that centre, (N,) float32.

        descriptors: (N, D), the embedding before its ReLU. RunFailed if they are not finite.
        """
        points = self.place(descriptors)
        clusters = self.choose(points, self.centres)
        apart = points - self.centres[torch.from_numpy(clusters).to(points.device)]
        return clusters, torch.linalg.vector_norm(apart, dim=1).cpu().numpy()


def read_clusters(checkpoint: Checkpoint, device: str | torch.device = "cpu") -> Clusters:
    """The clusters of a checkpoint, their tensors on `device`.

    UserError if it holds none, or its tensors do not fit each other or its backbone.
    """
    groups = {group: checkpoint.groups.get(group, {}) for group in ("clustering", "head")}
    held = {name: tensor.to(device, torch.float32) for name, tensor in flatten(groups).items()}
    for shapes, make in KINDS:
        if shapes.keys() <= held.keys():
            check_shapes(shapes, held, checkpoint)
            return make(held)
    fix = f"--checkpoint {DEFAULT}, or another that pretrain.deepcluster or pretrain.mmdc made"
    raise UserError(f"{checkpoint.name} holds no centres of clusters to assign to", fix=fix)


def check_shapes(shapes: dict[str, str], held: Tensors, checkpoint: Checkpoint) -> None:
    """UserError unless each tensor has a dimension for each letter, and each letter one size."""
    sizes = {"D": find(checkpoint.backbone["name"]).embedding_dim}
    for name, letters in shapes.items():
        shape, wanted = tuple(held[name].shape), ", ".join(str(sizes.get(letter, letter)) for letter in letters)
        if len(shape) != len(letters) or any(sizes.setdefault(letter, n) != n for letter, n in zip(letters, shape)):
            raise UserError(f"the clusters of {checkpoint.name} do not fit: {name} is {shape}, not ({wanted})")


def read_centroids(held: Tensors) -> Clusters:
    """DeepCluster's: centroids of whitened descriptors of length 1 (Caron et al. 2018, section 3.4)."""
    return Clusters(held["clustering/centroids"], whitened(held))


def read_mixture(held: Tensors) -> Clusters:
    """DeepCluster's with a mixture of Gaussians: the component with the largest share in the point."""
    components = Components(*(held[f"clustering/{name}"] for name in ("weights", "means", "variances")))

    def choose(points: Tensor, centres: Tensor) -> np.ndarray:
        return posterior(points, components, top=1, device=points.device)[0][:, 0]

    return Clusters(held["clustering/means"], whitened(held), choose)


def whitened(held: Tensors) -> Callable[[Tensor], Tensor]:
    """The way from DeepCluster's descriptors to its points."""
    whiten = Whitening(held["clustering/pca_mean"], held["clustering/pca_components"])
    return lambda x: l2_normalise(whiten(x))


def read_means(held: Tensors) -> Clusters:
    """MMDC's: means of the targets that the head's outputs of length 1 are to meet (Shiran & Weinshall, section 3)."""
    head = held["head/top_layer.weight"], held["head/top_layer.bias"]
    return Clusters(held["clustering/means"], lambda x: F.normalize(F.linear(torch.relu(x), *head)))


# Each tensor has a dimension a letter, and a letter is one size: D descriptor, d point, k clusters. A kind whose
# tensors another kind has too stands before that.
PCA = {"clustering/pca_mean": "D", "clustering/pca_components": "dD"}
KINDS: tuple[tuple[dict[str, str], Callable[[Tensors], Clusters]], ...] = (
    (PCA | {"clustering/centroids": "kd"}, read_centroids),
    (
        PCA | {"clustering/weights": "k", "clustering/means": "kd", "clustering/variances": "kd"},
        read_mixture,
    ),
    (
        {"head/top_layer.weight": "dD", "head/top_layer.bias": "d", "clustering/means": "kd"},
        read_means,
    ),
)
