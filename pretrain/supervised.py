"""The control that sees the labels: cross-entropy on the classes, with DeepCluster's augmentation.

python -m pretrain.supervised                                    alexnet32 on scikit-learn's digits
python -m pretrain.supervised --backbone small_vgg
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from results.errors import UserError
from zoo import processes
from zoo.clustering.heads import linear_head
from zoo.cost import BACKWARD, Cost
from zoo.datasets.dataset import UNLABELLED, Dataset
from zoo.options import check_area
from zoo.run import Method, main
from zoo.seeds import generator
from zoo.steps import trainable
from zoo.training import Training
from zoo.views import ResizedCrop

SMALL = dict(epochs=10, batch=256)
PHOTOGRAPHS = dict(backbone="alexnet", epochs=90, batch=256, area=(0.08, 1.0))


@dataclass(frozen=True)
class Supervised(Method):
    """Settings of a run; the defaults are those of the digits data set."""

    name: ClassVar[str] = "pretrain.supervised"
    version: ClassVar[int] = 1
    presets: ClassVar[dict[str, dict]] = {
        **dict.fromkeys(("mnist", "fashion-mnist", "cifar10", "cifar100", "cifar100-20"), SMALL),
        **dict.fromkeys(("stl10", "imagenet10", "tiny-imagenet"), SMALL),
        **dict.fromkeys(("imagenet", "places205", "places365", "folder"), PHOTOGRAPHS),
    }

    epochs: int = 30
    batch: int = 64  # images a step
    lr: float = 0.01  # at the start; it falls to 0 along a cosine
    momentum: float = 0.9
    weight_decay: float = 5e-4
    area: tuple[float, float] = (0.4, 1.0)  # share of the image that a training crop keeps

    def train(self, run: Training) -> dict[str, dict[str, Tensor]]:
        """The backbone and the classifier after the last epoch."""
        classes = len(run.dataset.classes)
        model = run.build_backbone()
        head = linear_head(model.embedding_dim, classes, run.seed("head")).to(run.device)
        network = torch.nn.ModuleDict({"backbone": model, "top_layer": head})
        optimizer = torch.optim.SGD(
            trainable(network), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        for epoch in run.epochs(self.epochs, network=network, optimizer=optimizer):
            with run.phase("training"):
                loss, predicted = self.learn(network, optimizer, run, epoch)
            run.log(epoch, loss, predicted, classes)
        return {"backbone": model.state_dict(), "head": {f"top_layer.{n}": t for n, t in head.state_dict().items()}}

    def cost(self, dataset: Dataset, count: int) -> Cost:
        """See Method.cost."""
        phases = {"training": BACKWARD * count * self.multiply_adds(dataset)}
        return Cost(self.epochs, phases, memory=self.image_bytes(dataset, count))

    def check(self, dataset: Dataset, count: int) -> None:
        """See Method.check."""
        super().check(dataset, count)
        check_area(self.area)
        dataset.check_labelled()
        if self.images == UNLABELLED:
            raise UserError("a classifier cannot learn from images without classes", fix="--images split")

    def learn(
        self, network: torch.nn.ModuleDict, optimizer: torch.optim.Optimizer, run: Training, epoch: int
    ) -> tuple[float, np.ndarray]:
        """One pass; its mean loss, and the class predicted for each image as it was visited."""
        network.train()
        count = len(run.images)
        order = torch.randperm(count, generator=generator(run.seed("order", epoch))).numpy()
        view = ResizedCrop(run.preprocessing.size, area=self.area, flip=run.dataset.flips)
        assert run.labels is not None  # checked before
        labels = torch.from_numpy(run.labels).to(run.device)
        predicted = torch.zeros(count, dtype=torch.int64, device=run.device)
        seen: dict[str, Any] = {"steps": 0, "loss": torch.zeros((), device=run.device), "predicted": predicted}
        run.part("seen", seen)
        steps = math.ceil(count / self.batch)
        for ids, x in run.batches(view, order, self.batch, "training", epoch):
            progress = (epoch * steps + seen["steps"]) / (self.epochs * steps)
            for group in optimizer.param_groups:
                group["lr"] = self.lr * (1 + math.cos(math.pi * progress)) / 2
            rows = torch.from_numpy(ids).to(run.device)
            logits = network["top_layer"](torch.relu(run.embed(network["backbone"], x)))
            loss = F.cross_entropy(logits, labels[rows])
            run.descend(loss, optimizer)
            seen["predicted"][rows] = logits.detach().argmax(1)
            seen["loss"] += loss.detach() * len(ids)
            seen["steps"] += 1
        return run.end_pass(network, seen["loss"]) / count, processes.summed(seen["predicted"]).cpu().numpy()


if __name__ == "__main__":
    main(Supervised)
