"""How well an assignment agrees with labels, and how even its clusters are.

acc and purity in percent; NMI, AMI and ARI as fractions; entropies in nats. Where an entropy is 0 (one
cluster, or one class) NMI is 1 if both are, else 0; AMI and ARI likewise (scikit-learn's conventions).
"""

from __future__ import annotations

import numpy as np
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score

from zoo.clustering.matching import contingency, match


def scores(assignment: np.ndarray, labels: np.ndarray, k: int | None = None) -> dict[str, float]:
    """Every score of an assignment (N,) against labels (N,), by the metric's name in a record.

    `k` is the number of clusters there could be, for counting empty ones; by default max(assignment) + 1.
    ValueError if the two differ in length, are empty, or hold a negative label or one of k or more.
    """
    table = contingency(assignment, labels, rows=k)
    return {
        "acc": acc(table),
        "purity": purity(table),
        "nmi_arithmetic": nmi(assignment, labels, "arithmetic"),
        "nmi_geometric": nmi(assignment, labels, "geometric"),
        "ami": ami(assignment, labels),
        "ari": ari(assignment, labels),
        "cluster_entropy": entropy(table.sum(1)),
        "empty_clusters": empty_clusters(table.sum(1)),
    }


def acc(table: np.ndarray) -> float:
    """Percent of images in the cluster matched to their class, one cluster to one class (Yang et al. 2010).

    `table` is contingency(assignment, labels); clusters in excess of the classes count as wrong.
    """
    return 100 * float(table[match(table)].sum() / table.sum())


def purity(table: np.ndarray) -> float:
    """Percent of images that are of their cluster's most frequent class; it rises with k."""
    return 100 * float(table.max(1).sum() / table.sum())


def nmi(a: np.ndarray, b: np.ndarray, average: str) -> float:
    """Mutual information over the `average` ("arithmetic" or "geometric") of both entropies, 0…1.

    DeepCluster's is geometric, MMDC's arithmetic; geometric is the larger. The same with a and b exchanged.
    """
    return float(normalized_mutual_info_score(a, b, average_method=average))


def ami(a: np.ndarray, b: np.ndarray) -> float:
    """Mutual information adjusted for chance, arithmetic (Vinh et al. 2010): 0 by chance, at most 1."""
    return float(adjusted_mutual_info_score(a, b))


def ari(a: np.ndarray, b: np.ndarray) -> float:
    """The Rand index adjusted for chance (Hubert and Arabie 1985): 0 by chance, at most 1."""
    return float(adjusted_rand_score(a, b))


def entropy(sizes: np.ndarray) -> float:
    """The entropy in nats of a division into `sizes` (k,): 0 if one part has all, log k if all are equal."""
    shares = sizes[sizes > 0] / sizes.sum()
    return float(-(shares * np.log(shares)).sum()) + 0.0  # + 0: no -0 in a record


def empty_clusters(sizes: np.ndarray) -> int:
    """How many of the clusters have no image."""
    return int((sizes == 0).sum())
