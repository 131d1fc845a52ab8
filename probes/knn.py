"""k nearest neighbours on frozen features: cosine similarity, each neighbour's vote weighted by exp(similarity / T).

python -m probes.knn                                  the deepest conv layer of the reference checkpoint
python -m probes.knn --layer all --checkpoint random-alexnet32@0
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from probes import features
from results.errors import UserError
from zoo import processes
from zoo.checkpoint import Checkpoint
from zoo.datasets.dataset import Dataset
from zoo.evaluation import Evaluation
from zoo.run import Outcome, Task, main


@dataclass(frozen=True)
class KNN(Task):
    """Settings; each layer gives one record."""

    name: ClassVar[str] = "probes.knn"
    version: ClassVar[int] = 1

    layer: str = "deepest"  # a layer's name, `embedding`, `all` conv layers, or the `deepest` of them
    k: tuple[int, ...] = (10, 20, 100, 200)  # neighbours that vote
    temperature: float = 0.07

    def parts(self, checkpoint: Checkpoint, dataset: Dataset) -> Sequence[Self]:
        dataset.check_labelled(evaluation=True)
        count = dataset.splits[dataset.training]
        for k in self.k or (0,):
            if not 1 <= k <= count:
                raise UserError(f"{k} neighbours of {count} training images", fix=f"--k {min(10, count)}")
        if not self.temperature > 0:
            raise UserError(f"a temperature of {self.temperature}", fix=f"--temperature {KNN.temperature}")
        return [replace(self, layer=layer) for layer in checkpoint.layers(self.layer)]

    def protocol_id(self, dataset: Dataset) -> str:
        usual = self.temperature == KNN.temperature
        return f"knn@{self.version}" + ("" if usual else f", temperature {self.temperature:g}")

    def run(self, parts: Sequence[Self], bench: Evaluation) -> Iterator[Outcome]:
        layers = [part.layer for part in parts]
        train, test = bench.dataset.training, bench.dataset.evaluation
        rows, queries = features.load(bench, train, layers), features.load(bench, test, layers)
        labels, wanted = bench.labels(train), bench.labels(test)
        for part in parts:
            predicted = part.vote(rows[part.layer], labels, queries[part.layer], bench)
            correct = predicted == wanted[None]  # (number of ks, N)
            metrics = {f"top1_k{k}": 100 * float(row.mean()) for k, row in zip(self.k, correct)}
            details = {f"correct_k{k}": features.pack(row) for k, row in zip(self.k, correct)}
            yield Outcome(part, metrics, details)

    def vote(self, rows: np.ndarray, labels: np.ndarray, queries: np.ndarray, bench: Evaluation) -> np.ndarray:
        """The class (number of ks, N) that each query's neighbours elect."""
        classes = len(bench.dataset.classes)
        onehot = F.one_hot(torch.from_numpy(labels), classes).float().to(bench.device)
        most = min(max(self.k), len(rows))
        state = bench.state(f"votes of {self.layer}")
        elected: list[Tensor] = state.part("elected", [])
        for number in state.steps("queries", math.ceil(len(queries) / features.BATCH)):
            batch = queries[number * features.BATCH :][: features.BATCH]
            query = torch.from_numpy(np.array(batch[processes.portion(len(batch))]))
            similarity, nearest = nearest_neighbours(rows, query, most, bench.device)
            closeness = (similarity - similarity[:, :1]) / self.temperature  # to the nearest: exp cannot overflow
            weight = torch.exp(closeness)[:, :, None] * onehot[nearest]  # (B, most, classes)
            own = torch.stack([weight[:, :k].sum(1).argmax(1) for k in self.k], 1)
            elected.append(processes.from_portions(own.cpu(), len(batch)))
        return torch.cat(elected).T.numpy()


def nearest_neighbours(rows: np.ndarray, query: Tensor, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine similarity and index (B, k) of the k most similar rows, most similar first.

    Rows are read a block at a time, so memory does not grow with their number.
    """
    query = F.normalize(query.to(device))
    best = torch.full((len(query), 0), 0.0, device=device)
    index = torch.zeros((len(query), 0), dtype=torch.int64, device=device)
    for start in range(0, len(rows), 16384):
        block = F.normalize(torch.from_numpy(np.array(rows[start : start + 16384])).to(device))
        found = query @ block.T
        ids = torch.arange(start, start + len(block), device=device).expand_as(found)
        joined, at = torch.cat([best, found], 1), torch.cat([index, ids], 1)
        best, order = joined.topk(min(k, joined.shape[1]), dim=1)
        index = at.gather(1, order)
    return best, index


if __name__ == "__main__":
    main(KNN)
