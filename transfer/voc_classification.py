"""Which classes does an image show? Fine-tuned on Pascal VOC; the average precision of ranking images by class.

    python -m transfer.voc_classification          the reference checkpoint on minivoc
    python -m transfer.voc_classification --dataset voc2007 --checkpoint NAME --trained fc6-8

The linear layers start anew, the convolutions from the checkpoint; batch norm keeps its running statistics. An image is
seen as square crops (one of VOC: of a tenth to half of its area); its score is the sum of the outputs for ten of them.
A class counts where it is not difficult to see.

Caron et al., ECCV 2018, section 4.4 (deepcluster.md 2.2): voc2007 has the released program's crops and, with fc6-8, its
solver; with all layers trained that of the paper's Caffe scripts, with one learning rate for weights and biases. (With
fc6-8 the scripts go on to 150 000 iterations, at rates that 16 halvings and more have left.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from results.errors import UserError
from transfer.finetuning import Finetuning, Transfer, check_any, choose
from zoo import device as devices
from zoo import processes
from zoo.backbones import Backbone
from zoo.backbones.backbone import initialise
from zoo.backbones.plain import Plain
from zoo.checkpoint import Checkpoint
from zoo.datasets.dataset import Dataset
from zoo.evaluation import Evaluation
from zoo.options import Flag, check_area
from zoo.run import Outcome, main
from zoo.seeds import derive, numpy_generator
from zoo.views import ResizedCrop, Several
from zoo.voc.average_precision import classification_scores

CROPS = 10  # of an image that is evaluated
CLIP = 10.0  # the largest norm of a step's gradients
BIAS = 0.1  # of linear layers at the start

PUBLISHED: dict[str, Any] = dict(batch=16, warm_up=0, area=(0.1, 0.5))
SOLVERS: dict[str, dict[str, Any]] = {  # by the layers that learn
    "fc6-8": dict(iterations=80_000, lr=3e-3, halve_every=5000),
    "all": dict(iterations=150_000, lr=1e-3, halve_every=20_000),
}


@dataclass(frozen=True)
class VocClassification(Transfer):
    """Settings; those of voc2007 go with --trained, and are the paper's."""

    name: ClassVar[str] = "transfer.voc_classification"
    version: ClassVar[int] = 1
    protocol: ClassVar[str] = "deepcluster"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "voc2007": PUBLISHED,
        "voc2012": PUBLISHED | {"images": "train-val"},
    }
    least: ClassVar[dict[str, float]] = Transfer.least | {"halve_every": 1}

    iterations: int = 1600  # steps, each on one batch
    batch: int = 32  # images of a step
    lr: float = 5e-3  # the largest learning rate
    halve_every: int = 800  # iterations after which the learning rate is halved
    area: tuple[float, float] = (0.4, 1.0)  # least and most area of a crop, as shares of the image's
    train_bn: Flag = False  # with fc6-8: the scales and biases of batch norm learn too (the paper's 72.0)

    @classmethod
    def usual(cls, dataset: str, trained: str) -> dict[str, Any]:
        """See Transfer.usual."""
        found = super().usual(dataset, trained)
        return SOLVERS.get(trained, {}) | found if found else found

    def parts(self, checkpoint: Checkpoint, dataset: Dataset) -> Sequence[Self]:
        """See Task.parts."""
        check_area(self.area)
        if self.train_bn and self.trained == "all":
            happened = "--trained all trains the scales and biases of batch norm anyway"
            raise UserError(happened, fix="--trained fc6-8 --train-bn, or leave --train-bn out")
        return super().parts(checkpoint, dataset)

    def share(self, step: int) -> float:
        """See Transfer.share."""
        return 0.5 ** (step // self.halve_every)

    def run(self, parts: Sequence[Self], bench: Evaluation) -> Iterator[Outcome]:
        state = bench.state("fine-tuning")
        network = Classifier(bench.backbone, len(bench.dataset.classes), self.seed)
        network.choose(self.trained, self.train_bn)
        tuning = Finetuning(self, bench, network.to(bench.device), state, CLIP)
        shown = self.check(tuning)
        self.learn(tuning, network)
        scores, presence = self.score(tuning, network)
        names = [bench.dataset.classes[label] for label in shown]
        metrics, details = classification_scores(scores[:, shown], presence[:, shown], names)
        yield Outcome(self, metrics, {**details, **tuning.conclude()})

    def check(self, tuning: Finetuning) -> np.ndarray:
        """The classes, from 0 on, that images evaluated show: all, but in a smoke run. UserError for a broken file."""
        devkit, view = tuning.devkit, self.view(tuning.bench)
        tuning.check_files(*((devkit.read(split), tuning.rows(split), view) for split in self.splits))
        evaluated = self.splits[1]
        shown = np.flatnonzero((devkit.presence(evaluated)[tuning.rows(evaluated)] == 1).any(0))
        check_any(shown)
        return shown

    def learn(self, tuning: Finetuning, network: Classifier) -> None:
        """Descend on the loss: over each image's classes, summed, of those that count."""
        bench, split = tuning.bench, self.splits[0]
        rows, images = tuning.rows(split), tuning.devkit.read(split)
        presence = torch.from_numpy(tuning.devkit.presence(split)).to(bench.device)
        order = rows[tuning.order(len(rows))]
        seed = derive(self.seed, "crops")
        batches = bench.batches(images, order, self.view(bench), self.batch, "training", seed, tuning.state)

        def loss_of(batch: tuple[np.ndarray, Tensor]) -> Tensor:
            ids, pixels = batch
            own = presence[torch.from_numpy(ids[processes.portion(len(ids))]).to(bench.device)]
            return multilabel_loss(compute(network, pixels, bench), own)

        tuning.descend(batches, loss_of)

    @torch.no_grad()
    def score(self, tuning: Finetuning, network: Classifier) -> tuple[np.ndarray, np.ndarray]:
        """The outputs (N, C) for each image evaluated, summed over its crops, and what it shows (N, C)."""
        bench, split = tuning.bench, self.splits[1]
        rows, images = tuning.rows(split), tuning.devkit.read(split)
        seed = derive(self.seed, "crops evaluated")
        view = Several(self.view(bench), CROPS)
        scores: list[Tensor] = tuning.state.part("scores", [])
        network.eval()
        few = max(processes.count(), 256 // CROPS)
        for ids, pixels in bench.batches(images, rows, view, few, "images evaluated", seed, tuning.state):
            outputs = compute(network, pixels.flatten(0, 1), bench).unflatten(0, (-1, CROPS)).sum(1)
            scores.append(processes.from_portions(outputs, len(ids)).cpu())
        return torch.cat(scores).numpy(), tuning.devkit.presence(split)[rows]

    def view(self, bench: Evaluation) -> ResizedCrop:
        """A crop of the image, at the checkpoint's size."""
        return ResizedCrop(bench.checkpoint.preprocessing.size, self.area, (1.0, 1.0), bench.dataset.flips)


class Classifier(nn.Module):
    """A backbone and a linear layer on its descriptor; all linear layers are new."""

    def __init__(self, backbone: Backbone, classes: int, seed: int) -> None:
        super().__init__()
        self.backbone = deepcopy(backbone)
        self.top = nn.Linear(backbone.embedding_dim, classes)
        generator = numpy_generator(seed, "linear layers")
        for layer in self.linear():
            initialise(layer, "in", getattr(backbone, "linear_std", 0.01), generator)
            nn.init.constant_(layer.bias, BIAS)

    def linear(self) -> list[nn.Linear]:
        """The linear layers above the convolutions, the top one last."""
        below = self.backbone.classifier if isinstance(self.backbone, Plain) else ()
        return [layer for layer in (*below, self.top) if isinstance(layer, nn.Linear)]

    def choose(self, trained: str, train_bn: bool) -> None:
        """Let parameters learn: those of the linear layers, of batch norm with `train_bn`, or `all`."""
        choose(self.backbone, trained)
        for module in self.modules():
            if train_bn and isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs (N, classes) for normalised images (N, C, h, w)."""
        return self.top(torch.relu(self.backbone.embed(x)))


def compute(network: Classifier, pixels: Tensor, bench: Evaluation) -> Tensor:
    """The network's float32 outputs (N, classes) for pixels 0..255."""
    x = bench.checkpoint.preprocessing.normalise(pixels).contiguous(memory_format=torch.channels_last)
    with devices.autocast(bench.device, bench.precision):
        return network(x).float()


def multilabel_loss(outputs: Tensor, presence: Tensor) -> Tensor:
    """The binary cross-entropies of each image's classes, summed over those that count, as a mean over images.

    outputs: (N, C). presence: (N, C) as in VOC's lists: 1, -1, and 0, which does not count.
    """
    each = F.binary_cross_entropy_with_logits(outputs, (presence == 1).float(), reduction="none")
    return (each * (presence != 0)).sum() / len(outputs)


if __name__ == "__main__":
    main(VocClassification)
