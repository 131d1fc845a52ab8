"""Do the clusters match the classes? k-means on a layer's frozen features, or the clusters of a checkpoint's own head.

python -m probes.clustering                              k-means on the deepest conv layer
python -m probes.clustering --checkpoint mmdc-small_vgg-digits-s0 --assignment head
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F

from probes import features
from results.errors import UserError
from zoo import processes
from zoo.backbones import EMBEDDING
from zoo.checkpoint import Checkpoint
from zoo.clustering.kmeans import kmeans, nearest
from zoo.clustering.scores import scores
from zoo.clustering.whitening import l2_normalise
from zoo.datasets.dataset import MERGED, Dataset
from zoo.evaluation import Evaluation
from zoo.run import Outcome, Task, main
from zoo.seeds import derive


@dataclass(frozen=True)
class Clustering(Task):
    """Settings; each layer gives one record."""

    name: ClassVar[str] = "probes.clustering"
    version: ClassVar[int] = 1

    assignment: Literal["kmeans", "head"] = "kmeans"  # who clusters: k-means, or the checkpoint's own head
    layer: str = "deepest"  # of k-means: a layer's name, `embedding`, `all` conv layers, or the `deepest` of them
    images: Literal["merged", "split"] = "merged"  # scored on all images; or fitted on train, scored on test
    k: int = 0  # clusters of k-means; 0: the number of classes
    iterations: int = 100  # of k-means

    def parts(self, checkpoint: Checkpoint, dataset: Dataset) -> Sequence[Self]:
        dataset.check_labelled(evaluation=self.images == "split")
        if self.assignment == "head":
            if "top_layer.weight" not in checkpoint.groups.get("head", {}):
                raise UserError(f"{checkpoint.name} has no head to assign clusters", fix="--assignment kmeans")
            held = checkpoint.groups.get("clustering", {}).get("means", checkpoint.groups["head"]["top_layer.bias"])
            return [replace(self, layer=EMBEDDING, k=len(held))]
        k = self.k or len(dataset.classes)
        fitted = MERGED if self.images == "merged" else dataset.training
        count = sum(dataset.splits[split] for split in dataset.members(fitted))
        if not 1 <= k <= count:
            raise UserError(f"k = {k} clusters of {count} images", fix=f"--k {len(dataset.classes)}")
        if self.iterations < 0:
            raise UserError(f"{self.iterations} iterations of k-means", fix=f"--iterations {Clustering.iterations}")
        return [replace(self, layer=layer, k=k) for layer in checkpoint.layers(self.layer)]

    def protocol_id(self, dataset: Dataset) -> str:
        usual = f"clustering@{self.version}"
        if self.assignment == "head":
            return usual
        k = "" if self.k == len(dataset.classes) else f", k = {self.k}"
        return usual + k + ("" if self.iterations == Clustering.iterations else f", {self.iterations} iterations")

    def dataset_protocol(self) -> str:
        return self.images

    def run(self, parts: Sequence[Self], bench: Evaluation) -> Iterator[Outcome]:
        scored = "merged" if self.images == "merged" else bench.dataset.evaluation
        fitted = "merged" if self.images == "merged" else bench.dataset.training
        if self.assignment == "head":
            fitted = scored  # nothing is fitted
        labels = bench.labels(scored)
        layers = [part.layer for part in parts]
        rows = features.load(bench, scored, layers)
        train = rows if fitted == scored else features.load(bench, fitted, layers)
        for part in parts:
            if self.assignment == "head":
                clusters = assign_by_head(rows[part.layer], bench.checkpoint)
            else:
                work = partial(part.cluster, train[part.layer], rows[part.layer], bench)
                clusters = processes.by_first(work)
            metrics = scores(clusters, labels, k=part.k)
            sizes = np.bincount(clusters, minlength=part.k).tolist()
            details = {"cluster_sizes": sizes, "scored_on": scored}
            yield Outcome(part, metrics, details if self.assignment == "head" else {**details, "fitted_on": fitted})

    def cluster(self, train: np.ndarray, rows: np.ndarray, bench: Evaluation) -> np.ndarray:
        """The cluster (N,) of each row: k-means on rows of length 1."""
        seed = derive(self.seed, "k-means")
        found = kmeans(
            l2_normalise(torch.from_numpy(np.array(train))), self.k, self.iterations, seed, device=bench.device
        )
        return (
            found.assignment
            if train is rows
            else nearest(l2_normalise(torch.from_numpy(np.array(rows))), found.centroids)
        )


def assign_by_head(descriptors: np.ndarray, checkpoint: Checkpoint) -> np.ndarray:
    """The cluster (N,) that the head gives each descriptor (N, D): the nearest of its target means, where it has some
    (MMDC), else its largest output."""
    head = checkpoint.groups["head"]
    outputs = F.linear(
        torch.relu(torch.from_numpy(np.array(descriptors))), head["top_layer.weight"], head["top_layer.bias"]
    )
    means = checkpoint.groups.get("clustering", {}).get("means")
    if means is None:
        return outputs.argmax(1).numpy()
    return nearest(F.normalize(outputs).numpy(), means.numpy())


if __name__ == "__main__":
    main(Clustering)
