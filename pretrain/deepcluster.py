"""DeepCluster: k-means on the network's own descriptors gives the labels that the network learns next.

Caron, Bojanowski, Joulin, Douze, "Deep Clustering for Unsupervised Learning of Visual Features", ECCV 2018.

    python -m pretrain.deepcluster                      alexnet32 on scikit-learn's digits
    python -m pretrain.deepcluster --dataset imagenet   the paper's AlexNet with Sobel, k = 10 000
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from results.errors import UserError
from zoo.backbones import Backbone, find
from zoo.clustering import sampling
from zoo.clustering.kmeans import KMeans, kmeans
from zoo.clustering.whitening import Whitening, fit_whitening, l2_normalise
from zoo.cost import BACKWARD, Cost
from zoo.datasets.dataset import Dataset
from zoo.run import Method, main
from zoo.seeds import numpy_generator
from zoo.training import SCRATCH, Training, create_array, linear_head, trainable
from zoo.views import Centre, ResizedCrop

SMALL = {"sobel": True, "k": 100, "epochs": 20, "batch": 256}
PHOTOGRAPHS = {"backbone": "alexnet", "sobel": True, "k": 1000, "epochs": 200, "batch": 256, "area": (0.08, 1.0)}


@dataclass(frozen=True)
class DeepCluster(Method):
    """Settings of a run; the defaults are those of the digits data set."""

    name: ClassVar[str] = "pretrain.deepcluster"
    version: ClassVar[int] = 1
    presets: ClassVar[dict[str, dict]] = {
        "mnist": SMALL,
        "fashion-mnist": SMALL,
        "cifar10": SMALL,
        "cifar100": SMALL | {"k": 1000},
        "cifar100-20": SMALL | {"k": 200},
        "stl10": SMALL,
        "imagenet10": SMALL,
        "tiny-imagenet": SMALL | {"k": 2000},
        "imagenet": PHOTOGRAPHS | {"k": 10000, "epochs": 500},  # the paper's; its VGG-16 is --backbone vgg16
        "places205": PHOTOGRAPHS | {"k": 10000},
        "places365": PHOTOGRAPHS | {"k": 10000},
        "folder": PHOTOGRAPHS,
    }

    least: ClassVar[dict[str, float]] = {**Method.least, "k": 1, "pca": 1, "iterations": 1}

    k: int = 50  # clusters; the paper takes ten times the number of classes, and here are few images
    epochs: int = 40  # one clustering each
    batch: int = 64  # images a step
    lr: float = 0.05  # constant: the paper has no schedule
    momentum: float = 0.9  # of the backbone; the head is new each epoch and has none
    weight_decay: float = 1e-5  # of backbone and head
    area: tuple[float, float] = (0.4, 1.0)  # share of the image that a training crop keeps
    pca: int = 256  # dimensions the descriptors are whitened to
    iterations: int = 20  # of k-means

    def train(self, run: Training) -> dict[str, dict[str, Tensor]]:
        """The backbone, the head and the clustering of the last epoch."""
        model = run.build_backbone()
        optimizer = torch.optim.SGD(
            trainable(model), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        last: dict[str, Tensor] = {}  # what the last epoch leaves behind
        for epoch in run.epochs(self.epochs, model=model, optimizer=optimizer, last=last):
            with run.phase("features"):
                descriptors = compute_descriptors(model, run)
            with run.phase("clustering"):
                whitening, clusters = self.cluster(descriptors, run, epoch)
            with run.phase("training"):
                head = linear_head(model.embedding_dim, self.k, run.seed("head", epoch)).to(run.device)
                loss = self.learn(model, head, optimizer, clusters.assignment, run, epoch)
            run.log(epoch, loss, clusters.assignment, self.k, empty_repaired=clusters.empty_repaired)
            last.update(
                weight=head.weight.detach().cpu(),
                bias=head.bias.detach().cpu(),
                pca_mean=whitening.mean,
                pca_components=whitening.components,
                centroids=torch.from_numpy(clusters.centroids),
            )
        return {
            "backbone": model.state_dict(),
            "head": {"top_layer.weight": last["weight"], "top_layer.bias": last["bias"]},
            "clustering": {name: last[name].float() for name in ("pca_mean", "pca_components", "centroids")},
        }

    def check(self, dataset: Dataset, count: int) -> None:
        """See Method.check."""
        super().check(dataset, count)
        if self.k > count:
            raise UserError(f"k = {self.k} clusters of {count} images", fix=f"--k {max(1, count // 10)}")

    def cost(self, dataset: Dataset, count: int) -> Cost:
        """See Method.cost: the descriptors are on disk, the whitened points in memory."""
        dim, image = find(self.backbone).embedding_dim, self.multiply_adds(dataset)
        pca = min(self.pca, count, dim)
        phases = {
            "features": count * image,
            "whitening": count * dim * (dim + pca),
            "k-means": (self.iterations + 1) * count * pca * self.k,
            "training": BACKWARD * count * (image + dim * self.k),
        }
        memory = 4 * count * pca + self.image_bytes(dataset, count)
        return Cost(self.epochs, phases, scratch=4 * count * dim, memory=memory)

    def cluster(self, descriptors: np.ndarray, run: Training, epoch: int) -> tuple[Whitening, KMeans]:
        """PCA-whiten the descriptors (N, D), normalise each to length 1, and cluster them with k-means."""
        whitening = fit_whitening(descriptors, self.pca)
        points = l2_normalise(whitening(descriptors))
        return whitening, kmeans(points, self.k, self.iterations, run.seed("k-means", epoch), device=run.device)

    def learn(
        self,
        model: Backbone,
        head: nn.Linear,
        optimizer: torch.optim.Optimizer,
        assignment: np.ndarray,
        run: Training,
        epoch: int,
    ) -> float:
        """One pass of cross-entropy on the clusters, each visited equally often; its mean loss."""
        model.train()
        head_optimizer = torch.optim.SGD(head.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        order = sampling.uniform(assignment, len(assignment), numpy_generator(run.seed("sampler", epoch)))
        view = ResizedCrop(run.preprocessing.size, area=self.area, flip=run.dataset.flips)
        targets = torch.from_numpy(assignment).to(run.device)
        total = torch.zeros((), device=run.device)
        for ids, x in run.batches(view, order, self.batch, "training", epoch):
            logits = head(torch.relu(run.embed(model, x)))
            loss = F.cross_entropy(logits, targets[torch.from_numpy(ids).to(run.device)])
            optimizer.zero_grad()
            head_optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            head_optimizer.step()
            total += loss.detach() * len(ids)
        return total.item() / len(order)


@torch.inference_mode()
def compute_descriptors(model: Backbone, run: Training) -> np.ndarray:
    """fc7 before its ReLU of every image's centre crop, (N, D) float32, on disk: 21 GB for ImageNet.

    At epoch 0 the batch-norm statistics are the initial ones: the first clustering is of a plain random network.
    """
    model.eval()
    count = len(run.images)
    found = create_array(run.directory / SCRATCH[0], (count, model.embedding_dim))
    view = Centre(run.preprocessing.resize, run.preprocessing.size)
    for ids, x in run.batches(view, np.arange(count), run.settings.batch, "features"):
        found[ids] = run.embed(model, x).cpu().numpy()
    return found


if __name__ == "__main__":
    main(DeepCluster)
