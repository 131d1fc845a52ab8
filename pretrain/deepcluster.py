"""DeepCluster: k-means on the network's own descriptors gives the labels that the network learns next.

Caron, Bojanowski, Joulin, Douze, "Deep Clustering for Unsupervised Learning of Visual Features", ECCV 2018.

    python -m pretrain.deepcluster                      alexnet32 on scikit-learn's digits
    python -m pretrain.deepcluster --dataset imagenet   the paper's AlexNet with Sobel, k = 10 000
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from zoo import processes
from zoo.allocator import borrowed_memory
from zoo.backbones import Backbone, find
from zoo.clustering.heads import CentroidHead, LinearHead, match_head
from zoo.clustering.partition import CLUSTERINGS, Partition
from zoo.clustering.sampling import SAMPLERS
from zoo.clustering.whitening import Whitening, fit_whitening, l2_normalise_
from zoo.cost import BACKWARD, Cost
from zoo.datasets.dataset import Dataset
from zoo.options import check_area
from zoo.run import LATER, Method, Unfit, main
from zoo.seeds import numpy_generator
from zoo.steps import trainable
from zoo.training import Training
from zoo.views import Centre, ResizedCrop

SMALL = {"sobel": True, "k": 100, "epochs": 20, "batch": 256}
PHOTOGRAPHS = {"backbone": "alexnet", "sobel": True, "k": 1000, "epochs": 200, "batch": 256, "area": (0.08, 1.0)}

# Bytes of an image: its clusters and its place in the order, its shares, its neighbours and their weights.
HELD = {"kmeans": 80, "gmm": 280, "pic": 350}


@dataclass(frozen=True)
class DeepCluster(Method):
    """Settings of a run; the defaults are those of the digits data set."""

    name: ClassVar[str] = "pretrain.deepcluster"
    version: ClassVar[int] = 2  # 1 kept the clustering of the last epoch's beginning
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
        "voc2007": PHOTOGRAPHS | {"k": 200},
        "voc2012": PHOTOGRAPHS | {"k": 200},
        "minivoc": {"sobel": True, "batch": 32},
        "minivoc-fashion": {"sobel": True, "batch": 32},
        "folder": PHOTOGRAPHS,
    }

    least: ClassVar[dict[str, float]] = Method.least | {
        **dict.fromkeys(("k", "pca", "iterations", "reassign"), 1), "stop_reassign": 0, "temperature": 1e-3,
    }  # fmt: skip

    k: int = 50  # clusters; the paper takes ten times the number of classes, and here are few images
    epochs: int = 40  # one pass over the images each
    batch: int = 64  # images a step
    lr: float = 0.05  # constant: the paper has no schedule
    momentum: float = 0.9  # of the backbone; the head is new each epoch and has none
    weight_decay: float = 1e-5  # of backbone and head
    area: tuple[float, float] = (0.4, 1.0)  # share of the image that a training crop keeps
    pca: int = 256  # dimensions the descriptors are whitened to
    iterations: int = 20  # of k-means, or of EM
    # pic: power iteration clustering on the graph of 5 neighbours, which finds a number of clusters of its own;
    # gmm: a mixture of Gaussians, whose largest few responsibilities are the targets
    clustering: Literal["kmeans", "pic", "gmm"] = field(default="kmeans", metadata=LATER)
    # between clusterings: reset, a new one; matched, weights go to the new cluster with the most common images;
    # centroids, the centroids are the head
    head: Literal["reset", "matched", "centroids"] = field(default="reset", metadata=LATER)
    temperature: float = field(default=0.1, metadata=LATER)  # of the cosines with centroids
    reassign: int = field(default=1, metadata=LATER)  # epochs from one clustering to the next
    stop_reassign: int = field(default=0, metadata=LATER)  # no clustering from this epoch on; 0: never
    # uniform over clusters, as the paper says; legacy: by their size, as its program does; none: each image once
    sampler: Literal["uniform", "legacy", "none"] = field(default="uniform", metadata=LATER)

    def train(self, run: Training) -> dict[str, dict[str, Tensor]]:
        """The backbone and the head after the last epoch, and a clustering by that backbone."""
        model = run.build_backbone()
        optimizer = torch.optim.SGD(
            trainable(model), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        last: dict[str, Any] = {}  # the last epoch's clusters and head
        for epoch in run.epochs(self.epochs, model=model, optimizer=optimizer, last=last):
            clusters = self.cluster(model, run, epoch) if self.clusters_in(epoch) else last["clusters"]
            head = run.part("head", self.build_head(model, clusters, last, run.seed("head", epoch)).to(run.device))
            partition = Partition(**clusters["partition"])
            with run.phase("training"):
                loss = self.learn(model, head, optimizer, partition, run, epoch)
            repaired = partition.empty_repaired if self.clusters_in(epoch) else 0
            run.log(epoch, loss, partition.assignment.numpy(), partition.k, empty_repaired=repaired)
            last.update(clusters=clusters, head={name: tensor.cpu() for name, tensor in head.state_dict().items()})
        clusters = self.cluster(model, run, self.epochs)  # of the network as it is now: what assigns new images
        partition = Partition(**clusters["partition"])
        run.conclude(partition.assignment.numpy(), partition.k)
        pca = {f"pca_{name}": tensor for name, tensor in clusters["whitening"].items()}
        return {"backbone": model.state_dict(), "head": last["head"], "clustering": {**pca, **partition.kept}}

    def clusters_in(self, epoch: int) -> bool:
        """Whether an epoch begins with a clustering."""
        return epoch % self.reassign == 0 and (epoch == 0 or self.stop_reassign == 0 or epoch < self.stop_reassign)

    def check(self, dataset: Dataset, count: int) -> None:
        """See Method.check."""
        super().check(dataset, count)
        check_area(self.area)
        if count < 2:
            raise Unfit(f"{count} image cannot be clustered", fix="more images, or a larger --limit")
        if self.clustering != "pic" and self.k > count:
            raise Unfit(f"k = {self.k} clusters of {count} images", fix=f"--k {max(1, count // 10)}")

    def cost(self, dataset: Dataset, count: int) -> Cost:
        """See Method.cost: descriptors and whitened points are on disk, what is known of each point in memory."""
        dim, image = find(self.backbone).embedding_dim, self.multiply_adds(dataset)
        pca = min(self.pca, count, dim)
        rounds = {"kmeans": (self.iterations + 1) * self.k, "gmm": 4 * (self.iterations + 1) * self.k, "pic": count}
        often = (sum(map(self.clusters_in, range(self.epochs))) + 1) / self.epochs
        phases = {
            "features": round(often * count * image),
            "whitening": round(often * count * dim * (dim + pca)),
            "clustering": round(often * count * pca * rounds[self.clustering]),
            "training": BACKWARD * count * (image + dim * self.k),
        }
        memory = HELD[self.clustering] * count + self.image_bytes(dataset, count)
        return Cost(self.epochs, phases, scratch=4 * count * (dim + pca), memory=memory)

    def cluster(self, model: Backbone, run: Training, epoch: int) -> dict[str, dict[str, Any]]:
        """The fields of a Whitening and of a Partition: the clusters of all images, as the backbone sees them now."""
        with run.phase("features"):
            descriptors = compute_descriptors(model, run)
        return run.once("clustering", self.partition, descriptors, run, epoch)

    def partition(self, descriptors: np.ndarray, run: Training, epoch: int) -> dict[str, dict[str, Any]]:
        """PCA-whiten the descriptors (N, D), normalise each to length 1, and cluster them."""
        by = CLUSTERINGS[self.clustering]
        with borrowed_memory():
            with run.phase("whitening"):
                whitening = fit_whitening(descriptors, self.pca)
                room = run.room((len(descriptors), len(whitening.components)))
                points = l2_normalise_(whitening(descriptors, out=room))
            partition = by(points, self.k, self.iterations, run.seed("k-means", epoch), run.device)
        return {"whitening": vars(whitening), "partition": vars(partition)}

    def build_head(self, model: Backbone, clusters: dict[str, Any], last: dict[str, Any], seed: int) -> nn.Module:
        """The head of an epoch: the last one's while the clusters are, else as the setting says."""
        partition = Partition(**clusters["partition"])
        if self.head == "centroids":
            return CentroidHead(Whitening(**clusters["whitening"]), partition.centres, self.temperature)
        head = LinearHead(model.embedding_dim, partition.k, seed)
        if clusters is last.get("clusters"):
            head.load_state_dict(last["head"])
        elif self.head == "matched" and last:
            match_head(head, last["head"], partition, Partition(**last["clusters"]["partition"]))
        return head

    def learn(
        self,
        model: Backbone,
        head: nn.Module,
        optimizer: torch.optim.Optimizer,
        partition: Partition,
        run: Training,
        epoch: int,
    ) -> float:
        """One pass of cross-entropy on the clusters, in the order of the sampler; its mean loss."""
        model.train()
        optimizers = [optimizer]
        if trainable(head):  # without momentum: the paper's head is new each epoch
            optimizers += [torch.optim.SGD(trainable(head), lr=self.lr, weight_decay=self.weight_decay)]
        assignment = partition.assignment.numpy()
        order = SAMPLERS[self.sampler](assignment, len(assignment), numpy_generator(run.seed("sampler", epoch)))
        view = ResizedCrop(run.preprocessing.size, area=self.area, flip=run.dataset.flips)
        total = run.part("loss", {"sum": torch.zeros((), device=run.device)})
        for ids, x in run.batches(view, order, self.batch, "training", epoch):
            logits = head(run.embed(model, x))
            loss = partition.cross_entropy(logits, torch.from_numpy(ids))
            run.descend(loss, *optimizers)
            total["sum"] += loss.detach() * len(ids)
        return run.end_pass(model, total["sum"]) / len(order)


@torch.inference_mode()
def compute_descriptors(model: Backbone, run: Training) -> np.ndarray:
    """fc7 before its ReLU of every image's centre crop, (N, D) float32, on disk: 21 GB for ImageNet.

    Each of many processes has those of its share of the images.
    At epoch 0 the batch-norm statistics are the initial ones: the first clustering is of a plain random network.
    """
    model.eval()
    rows = np.arange(len(run.images))[processes.share(len(run.images))]
    found = run.array("features", (len(rows), model.embedding_dim))
    view = Centre(run.preprocessing.resize, run.preprocessing.size)
    for ids, x in run.batches(view, rows, run.settings.batch, "features", own=True):
        found[ids - rows[0]] = run.embed(model, x).cpu().numpy()
    return found


if __name__ == "__main__":
    main(DeepCluster)
