"""What classifies DeepCluster's clusters: a linear layer, new or matched to the one before it, or their centroids."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.clustering.matching import contingency, match
from zoo.clustering.partition import Partition
from zoo.clustering.whitening import Whitening, l2_normalise


class LinearHead(nn.Module):
    """A linear layer on the rectified descriptors, weights N(0, .01), bias 0: the heads of both papers."""

    def __init__(self, dim: int, outputs: int, seed: int) -> None:
        super().__init__()
        self.top_layer = linear_head(dim, outputs, seed)

    def forward(self, descriptors: Tensor) -> Tensor:
        """Logits (B, k) of descriptors before their ReLU (B, D)."""
        return self.top_layer(torch.relu(descriptors))


class CentroidHead(nn.Module):
    """Cosines with the centroids as logits: what was clustered is what is classified. Nothing in it learns.

    DeepCluster-v2's (Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
    NeurIPS 2020, appendix): there without a whitening, and at a temperature of .1.
    """

    mean: Tensor
    components: Tensor
    centroids: Tensor

    def __init__(self, whitening: Whitening, centroids: Tensor, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        for name, tensor in (
            ("mean", whitening.mean),
            ("components", whitening.components),
            ("centroids", l2_normalise(centroids)),
        ):
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, descriptors: Tensor) -> Tensor:
        """Logits (B, k) of descriptors before their ReLU (B, D)."""
        points = F.normalize((descriptors - self.mean) @ self.components.T)
        return points @ self.centroids.T / self.temperature


def match_head(head: LinearHead, before: dict[str, Tensor], new: Partition, old: Partition) -> None:
    """Give each output the weights that the head `before` had for the old cluster matched to its new one.

    One to one, so that most images stay with their weights (Hungarian). New clusters in excess of the old keep the
    weights that the head has.
    """
    table = contingency(new.assignment.numpy(), old.assignment.numpy(), new.k, old.k)
    rows, columns = map(torch.from_numpy, match(table))
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            parameter[rows] = before[name][columns].to(parameter.device)


def linear_head(dim: int, outputs: int, seed: int) -> nn.Linear:
    """A new linear layer (outputs, dim) with weights N(0, .01) and bias 0: the heads of both papers."""
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(dim, outputs, device="meta").to_empty(device="cpu")
    nn.init.normal_(head.weight, 0.0, 0.01, generator=generator)
    nn.init.zeros_(head.bias)
    return head
