"""MMDC: images are assigned to fixed targets on the unit sphere, and the network learns to meet them.

Shiran & Weinshall, "Multi-Modal Deep Clustering: Unsupervised Partitioning of Images", ICPR 2020.

    python -m pretrain.mmdc                                      small_vgg on scikit-learn's digits
    python -m pretrain.mmdc --dataset mnist --precision bf16     the paper's settings
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from results.errors import UserError
from zoo import processes
from zoo.checkpoint import Preprocessing
from zoo.clustering.heads import linear_head
from zoo.clustering.targets import Targets
from zoo.cost import BACKWARD, Cost
from zoo.datasets.dataset import Dataset
from zoo.datasets.images import ArrayImages
from zoo.run import LATER, Method, Unfit, main
from zoo.seeds import generator
from zoo.training import Training
from zoo.views import CentreCrop, CropRotate, View, rotations

COLOUR = dict(
    backbone="resnet18", batch=128, epochs=400, drop=0.2, drop_at=300, refine_at=350,
    degrees=0.0, flip=True, jitter=True, rotation=True,
)  # fmt: skip
FILES = COLOUR | dict(backbone="small_vgg", side=48, crops=(40,))


@dataclass(frozen=True)
class MMDC(Method):
    """Settings of a run; the defaults are those of the digits data set."""

    name: ClassVar[str] = "pretrain.mmdc"
    version: ClassVar[int] = 1
    presets: ClassVar[dict[str, dict]] = {
        "mnist": dict(batch=128, epochs=50, drop_at=40, refine_at=20, crops=(24, 20, 16)),
        "fashion-mnist": dict(
            batch=128, epochs=50, drop_at=40, refine_at=20, crops=(24, 20, 16), degrees=0.0, flip=True,
        ),
        "cifar10": COLOUR | dict(crops=(20,)),
        "cifar100": COLOUR | dict(crops=(20,), weight_decay=1e-4),
        "cifar100-20": COLOUR | dict(crops=(20,), weight_decay=1e-4),  # the paper's CIFAR-100
        "stl10": COLOUR | dict(crops=(64,), size=64),
        "imagenet10": COLOUR | dict(side=96, crops=(64,), size=64),
        "tiny-imagenet": COLOUR | dict(crops=(40,), size=64, weight_decay=1e-4),
        **dict.fromkeys(("imagenet", "places205", "places365", "folder"), FILES),
        **dict.fromkeys(("voc2007", "voc2012", "minivoc-fashion"), FILES),
        "minivoc": FILES | dict(flip=False),
    }  # fmt: skip
    least: ClassVar[dict[str, float]] = Method.least | dict.fromkeys(
        ("k", "drop", "drop_at", "refine_at", "side", "size", "degrees", "dim", "sigma"), 0
    )

    backbone: str = "small_vgg"  # or resnet18, resnet34 (the paper's), alexnet32, torchvision:NAME …
    images: Literal["split", "merged", "unlabelled"] = "merged"  # the paper trains and evaluates on all
    k: int = 0  # clusters; 0: the number of classes
    epochs: int = 60
    batch: int = 64  # images a step, and the rows of one assignment; the paper has 128, and more images
    lr: float = 0.05
    drop: float = 0.1  # the learning rate is multiplied by this …
    drop_at: int = 48  # … from this epoch on, counted from 0
    momentum: float = 0.9
    weight_decay: float = 5e-4  # of weights; batch-norm parameters and biases have none
    refine_at: int = 24  # from this epoch on the targets are k-means clusters of the network's outputs
    side: int = 0  # images are resized to this side first; 0: used as they are
    crops: tuple[int, ...] = (28, 24, 20)  # sides of the crops, one drawn for each image; the first evaluates
    degrees: float = 25.0  # largest rotation of a training image
    flip: bool = False
    jitter: bool = False  # colour jitter and random grey
    rotation: bool = False  # also learn, in a pass of its own, which of four rotations an image has
    means: Literal["one_hot", "random"] = "one_hot"  # of the target components
    dim: int = 0  # of the target space, with random means; 0: k
    sigma: float = 0.0  # standard deviation of the targets around their component's mean
    size: int = field(default=0, metadata=LATER)  # of the network's input; 0: the backbone's own

    def train(self, run: Training) -> dict[str, dict[str, Tensor]]:
        """The backbone, the heads and the target means after the last epoch."""
        run.images = run.images.materialise(self.source_side(run.dataset), run.workers)
        k = self.k or len(run.dataset.classes)
        centre = self.centre_crops(run)
        targets = Targets.draw(len(run.images), k, self.dim or k, self.means, self.sigma, run.seed("targets"))
        network = self.build_network(run, targets.means.shape[1])
        optimizer = torch.optim.SGD(parameter_groups(network, self.weight_decay), self.lr, self.momentum)
        targets.outputs = evaluate(network, centre, run)
        for epoch in run.epochs(self.epochs, network=network, optimizer=optimizer, targets=targets):
            for group in optimizer.param_groups:
                group["lr"] = self.lr * (self.drop if epoch >= self.drop_at else 1.0)
            if epoch >= self.refine_at:
                run.once("refinement", targets.refine, run.seed("refinement", epoch))
            rotation_loss = None
            if self.rotation:
                with run.phase("rotation"):
                    rotation_loss = self.learn_rotations(network, optimizer, run, epoch)
            with run.phase("training"):
                loss = self.learn(network, optimizer, centre, targets, run, epoch)
            with run.phase("evaluation"):
                targets.outputs = evaluate(network, centre, run)
            run.log(epoch, loss, targets.clusters(), k, rotation_loss=rotation_loss)
        return {
            "backbone": network["backbone"].state_dict(),
            "head": {n: t for n, t in network.state_dict().items() if not n.startswith("backbone.")},
            "clustering": {"means": targets.means},
        }

    def preprocessing(self, dataset: Dataset) -> Preprocessing:
        """Pixels in 0..1 as they are; the centre crop of `crops[0]` pixels at the network's input size."""
        usual = super().preprocessing(dataset)
        size = self.size or usual.size
        resize = round(size * self.source_side(dataset) / self.crops[0])
        return replace(usual, size=size, resize=resize, mean=(0.0,), std=(1.0,))

    def cost(self, dataset: Dataset, count: int) -> Cost:
        """See Method.cost: images and their centre crops are in memory."""
        image, wanted = self.multiply_adds(dataset), self.preprocessing(dataset)
        phases = {"assignment": count * image, "training": BACKWARD * count * image, "evaluation": count * image}
        if self.rotation:
            phases["rotation"] = 4 * BACKWARD * count * image
        pixels = self.source_side(dataset) ** 2 + wanted.size**2
        return Cost(self.epochs, phases, memory=count * dataset.channels * pixels)

    def check(self, dataset: Dataset, count: int) -> None:
        """See Method.check: clusters, target space and crops."""
        super().check(dataset, count)
        k, side = self.k or len(dataset.classes), self.source_side(dataset)
        if k == 0:
            raise UserError("the images have no labels to count classes by", fix="--k 10 (the number of clusters)")
        if not 2 <= k <= count:
            raise Unfit(f"k = {k} clusters of {count} images", fix=f"--k {min(10, count)}")
        if self.means == "one_hot" and self.dim not in (0, k):
            raise UserError(f"one-hot means have {k} dimensions, not {self.dim}", fix="--means random")
        if not self.crops or min(self.crops) < 1 or max(self.crops) > side:
            raise UserError(f"crops of {self.crops} px cannot be cut from {side} px", fix=f"--crops {side * 7 // 8}")
        self.multiply_adds(dataset)  # UserError for a size that the backbone does not take

    def source_side(self, dataset: Dataset) -> int:
        """The side of the images that crops are cut from."""
        return self.side or dataset.size or max(self.crops, default=0)

    def build_network(self, run: Training, dim: int) -> nn.ModuleDict:
        """The backbone with its linear head (dim outputs) and, if asked for, the rotation head (4)."""
        backbone = run.build_backbone()
        network = nn.ModuleDict({"backbone": backbone})
        network["top_layer"] = linear_head(backbone.embedding_dim, dim, run.seed("top_layer"))
        if self.rotation:
            network["rotnet_head"] = linear_head(backbone.embedding_dim, 4, run.seed("rotnet_head"))
        return network.to(run.device)

    def centre_crops(self, run: Training) -> ArrayImages:
        """Every image's centre crop at the network's input size: what is assigned and evaluated, made once."""
        view = CentreCrop(self.crops[0], run.preprocessing.size)
        stream = run.images.batches(np.arange(len(run.images)), 4096, view, seed=0)
        return ArrayImages(torch.cat([pixels for _, pixels in stream]).to(run.device), run.images.labels)

    def learn(
        self,
        network: nn.ModuleDict,
        optimizer: torch.optim.Optimizer,
        centre: ArrayImages,
        targets: Targets,
        run: Training,
        epoch: int,
    ) -> float:
        """One pass towards the targets; its mean loss.

        Until refinement begins, each batch's targets are first re-assigned among its images, by the network's present
        outputs for their centre crops (section 3.2).
        """
        order = torch.randperm(len(run.images), generator=generator(run.seed("order", epoch))).numpy()
        view = CropRotate(self.crops, run.preprocessing.size, self.degrees, self.flip, self.jitter)
        total = run.part("loss", {"sum": torch.zeros((), device=run.device)})
        for ids, x in run.batches(view, order, self.batch, "training", epoch):
            rows = torch.from_numpy(ids)
            if epoch < self.refine_at:
                targets.assign(rows, compute_outputs(network, centre.pixels[rows.to(run.device)], run))
            network.train()
            loss = F.mse_loss(unit_outputs(network, x, run), targets[rows].to(run.device))
            run.descend(loss, optimizer, zeros=True)  # the idle head decays and moves, as in the released program
            total["sum"] += loss.detach() * len(ids)
        targets.agree()
        return run.end_pass(network, total["sum"]) / len(order)

    def learn_rotations(
        self, network: nn.ModuleDict, optimizer: torch.optim.Optimizer, run: Training, epoch: int
    ) -> float:
        """One pass of telling each image's four rotations apart, each cropped on its own; its mean loss."""
        network.train()
        order = torch.randperm(len(run.images), generator=generator(run.seed("rotation order", epoch))).numpy()
        view = FourRotations(CropRotate(self.crops, run.preprocessing.size))
        wanted = torch.arange(4, device=run.device).repeat(self.batch)
        total = run.part("rotation loss", {"sum": torch.zeros((), device=run.device)})
        for ids, x in run.batches(view, order, self.batch, "rotation", epoch):
            logits = network["rotnet_head"](torch.relu(run.embed(network["backbone"], x)))
            loss = F.cross_entropy(logits, wanted[: len(x)])
            run.descend(loss, optimizer, zeros=True)  # the idle head decays and moves, as in the released program
            total["sum"] += loss.detach() * len(ids)
        return run.end_pass(network, total["sum"]) / len(order)


@dataclass(frozen=True)
class FourRotations(View):
    """Every image turned by 0, 90, 180 and 270 degrees, one after the other, each then cropped on its own."""

    view: CropRotate

    def tensors(self, pixels: Tensor, rng: torch.Generator) -> Tensor:
        """Pixels (4 B, C, h, w) of a batch (B, C, H, W)."""
        return self.view.tensors(rotations(pixels), rng)


def unit_outputs(network: nn.ModuleDict, x: Tensor, run: Training) -> Tensor:
    """The head's outputs (B, dim) divided by their length; a zero output stays zero."""
    outputs = network["top_layer"](torch.relu(run.embed(network["backbone"], x)))
    length = outputs.norm(dim=1, keepdim=True)
    return outputs / torch.where(length > 0, length, 1)  # F.normalize's floor of 1e-12 makes gradients of 1e11


@torch.inference_mode()
def compute_outputs(network: nn.ModuleDict, pixels: Tensor, run: Training) -> Tensor:
    """Outputs (B, dim) of centre crops, in eval mode."""
    network.eval()
    x = run.preprocessing.normalise(pixels).contiguous(memory_format=torch.channels_last)
    return unit_outputs(network, x, run)


def evaluate(network: nn.ModuleDict, centre: ArrayImages, run: Training) -> Tensor:
    """Outputs (n, dim) of every image, on the CPU."""
    own = centre.pixels[processes.share(len(centre))]
    head = cast(nn.Linear, network["top_layer"])
    found = torch.empty(len(own), head.out_features)
    for part, pixels in zip(found.split(512), own.split(512)):  # in their place: small pieces would scatter the heap
        part.copy_(compute_outputs(network, pixels, run))
    return processes.gathered(found)


def parameter_groups(network: nn.ModuleDict, weight_decay: float) -> list[dict]:
    """Two groups, in this order: vectors (batch norm, biases) without weight decay, all else with it."""
    learning = [p for p in network.parameters() if p.requires_grad]
    return [
        {"params": [p for p in learning if p.ndim == 1], "weight_decay": 0.0},
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": weight_decay},
    ]


if __name__ == "__main__":
    main(MMDC)
