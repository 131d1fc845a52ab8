"""Which class does each pixel belong to? Fully convolutional networks fine-tuned on Pascal VOC; the mean IoU.

    python -m transfer.voc_segmentation                     the reference checkpoint on minivoc
    python -m transfer.voc_segmentation --dataset voc2012 --checkpoint NAME --trained fc6-8
    python -m transfer.voc_segmentation --engine mmseg      its own model, trained and scored alike

fc6 and fc7 are convolutions with the checkpoint's weights, the layer of scores is new; batch norm keeps its running
statistics. Learned from are squares in which an image lies, or that are cut out of it; each image is evaluated whole,
at its own size. Pixels of 255 (borders, and what is difficult) count nowhere. The loss is the mean cross-entropy over
the pixels of a batch; 0 if none counts.

The paper's setting is FCN-32s on AlexNet (deepcluster.md 2.4; transfer/fcn.py says how ours departs). voc2012 has the
values of its solver, with batches of 20 images where that adds up 20 gradients, and one learning rate for weights and
biases. Its further training images (SBD) are not here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from transfer.engines import details_of
from transfer.fcn import Fcn, PixelNetwork, outline
from transfer.finetuning import Finetuning, Transfer
from transfer.masked import MaskedImages, Placed, Whole
from transfer.pictures import Panel, draw_mask, save_beside
from transfer.scores import check_counted, confusion, segmentation_scores
from zoo import processes
from zoo.backbones import empty
from zoo.checkpoint import Checkpoint
from zoo.datasets.dataset import Dataset, spaced
from zoo.evaluation import PICTURES, Evaluation
from zoo.options import TaskOptions, TransferOptions
from zoo.preprocessing import Preprocessing
from zoo.run import Outcome, main
from zoo.seeds import derive
from zoo.voc.devkit import SEGMENTATION
from zoo.voc.masks import BORDER
from zoo.warp import resize

FCN_ALEXNET: dict[str, Any] = dict(iterations=100_000, batch=20, lr=1e-4, warm_up=0, power=0.0, crop=512, scale=1.0)


@dataclass(frozen=True)
class VocSegmentation(Transfer):
    """Settings; those of voc2012 are FCN-AlexNet's."""

    name: ClassVar[str] = "transfer.voc_segmentation"
    version: ClassVar[int] = 1
    protocol: ClassVar[str] = "deepcluster"
    of: ClassVar[str] = SEGMENTATION
    options: ClassVar[type[TaskOptions]] = TransferOptions
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "voc2007": FCN_ALEXNET,
        "voc2012": FCN_ALEXNET | {"images": "train-val"},
    }
    least: ClassVar[dict[str, float]] = Transfer.least | {"power": 0, "crop": 1, "scale": 1e-3}

    engine: Literal["torchvision", "mmseg"] = "torchvision"  # whose parts the network is made of (mmseg: make engines)
    iterations: int = 1500  # steps, each on one batch
    batch: int = 8  # images of a step
    lr: float = 1e-1  # the largest learning rate
    weight_decay: float = 5e-4  # of the weights that learn
    power: float = 0.9  # of the share of iterations that is left, by which the learning rate falls; 0: it does not
    crop: int = 96  # side of the squares that are learned from, in pixels of the images
    scale: float = 0.5  # by which images are scaled for the network; masks and scores keep the images' own pixels

    def parts(self, checkpoint: Checkpoint, dataset: Dataset) -> Sequence[Self]:
        """See Task.parts."""
        found = super().parts(checkpoint, dataset)
        network_of(self.engine)
        outline(empty(**checkpoint.backbone))  # which can be scored
        return found

    def share(self, step: int) -> float:
        """See Transfer.share."""
        return (1 - step / self.iterations) ** self.power

    def run(self, parts: Sequence[Self], bench: Evaluation) -> Iterator[Outcome]:
        state = bench.state("fine-tuning")
        names = ("background", *bench.dataset.classes)
        network = network_of(self.engine)(bench.backbone, len(names), self.seed, self.precision)
        network.choose(self.trained)
        network.to(bench.device).to(memory_format=torch.channels_last)
        tuning = Finetuning(self, bench, network, state)
        self.check(tuning)
        self.learn(tuning, network)
        metrics, details = segmentation_scores(self.measure(tuning, network), names)
        self.draw(tuning, network)
        yield Outcome(self, metrics, details | details_of(self.engine) | tuning.conclude())

    def check(self, tuning: Finetuning) -> None:
        """UserError for a file that is broken, or if no pixel of the masks evaluated counts."""
        view = Whole()
        sets = [(MaskedImages(tuning.devkit, split), tuning.rows(split), view) for split in self.splits]
        tuning.check_files(*sets)
        images, rows, _ = sets[1]
        masks = (images.see(number, view, torch.Generator())[3] for number in rows.tolist())
        check_counted(any((mask != BORDER).any() for mask in masks))  # which the first image tells, nearly always

    def learn(self, tuning: Finetuning, network: PixelNetwork) -> None:
        """Descend on the loss of the pixels that count."""
        bench, split = tuning.bench, self.splits[0]
        rows, seed = tuning.rows(split), derive(self.seed, "squares")
        order = rows[tuning.order(len(rows))]
        view = Placed(self.crop, mean_colour(bench.checkpoint.preprocessing), bench.dataset.flips)
        images = MaskedImages(tuning.devkit, split)
        batches = bench.batches(images, order, view, self.batch, "training", seed, tuning.state)

        def loss_of(batch: tuple[np.ndarray, Tensor]) -> Tensor:
            pixels, masks = batch[1][:, :3], batch[1][:, 3]
            return network.loss(see(pixels, bench, self.scale), masks)

        tuning.descend(batches, loss_of)

    @torch.no_grad()
    def measure(self, tuning: Finetuning, network: PixelNetwork) -> np.ndarray:
        """How often pixels of one class were found to be of another: the confusion, int64 (C + 1, C + 1)."""
        bench, split = tuning.bench, self.splits[1]
        rows, images = tuning.rows(split), MaskedImages(tuning.devkit, split)
        classes = 1 + len(bench.dataset.classes)
        found = tuning.state.part("confusion", {"own": torch.zeros((classes, classes), dtype=torch.int64)})
        network.eval()
        few = processes.count()  # one each: they differ in size
        for ids, pixels in bench.batches(images, rows, Whole(), few, "images evaluated", 0, tuning.state):
            predicted = compute(network, pixels[:, :3], bench, self.scale).argmax(1)
            if processes.rank() < len(ids):  # where images are fewer than processes, the last are given others'
                found["own"] += confusion(predicted, pixels[:, 3], classes).cpu()
        return processes.summed(found["own"]).numpy()

    @torch.no_grad()
    def draw(self, tuning: Finetuning, network: PixelNetwork) -> None:
        """Draw as many of the images as are asked for: as they are, what is annotated, and what is found."""
        bench, split = tuning.bench, self.splits[1]
        if not bench.save_pictures or bench.directory is None or processes.rank():
            return
        rows, images = tuning.rows(split), MaskedImages(tuning.devkit, split)
        some = rows[spaced(len(rows), bench.save_pictures)]
        for number, (_, pixels) in zip(some, images.batches(some, 1, Whole(), 0, bench.device, bench.workers)):
            (found,) = compute(network, pixels[:, :3], bench, self.scale).argmax(1)
            panels = show(pixels[0].cpu(), found.cpu(), bench.dataset.classes)
            save_beside(bench.directory / PICTURES / f"{images.path(number).stem}.png", panels)


def network_of(engine: str) -> Callable[..., PixelNetwork]:
    """What makes an engine's networks: Fcn, or a class that is used alike. UserError without the engine."""
    if engine == "torchvision":
        return Fcn
    return import_module(f"transfer.engines.{engine}_segmentor").MmsegFcn


def see(pixels: Tensor, bench: Evaluation, scale: float) -> Tensor:
    """Images, uint8 (N, 3, h, w), as the network takes them: scaled and normalised."""
    height, width = (max(1, round(scale * side)) for side in pixels.shape[-2:])
    seen = bench.checkpoint.preprocessing.normalise(resize(pixels, height, width))
    return seen.contiguous(memory_format=torch.channels_last)


def compute(network: PixelNetwork, pixels: Tensor, bench: Evaluation, scale: float) -> Tensor:
    """The network's float32 scores (N, classes, h, w) of images, uint8 (N, 3, h, w)."""
    return network.scores(see(pixels, bench, scale), pixels.shape[-2:])


def show(seen: Tensor, found: Tensor, classes: Sequence[str]) -> list[Panel]:
    """An image with its mask, uint8 (4, h, w): as it is, what is annotated, and what was found (h, w)."""
    image = Image.fromarray(seen[:3].permute(1, 2, 0).numpy())
    masks = {"annotated": seen[3], "found": found.to(torch.uint8)}
    plain = Panel("image", draw_mask(image, torch.zeros_like(seen[3]).numpy()))
    return [plain, *(show_mask(title, image, mask, classes) for title, mask in masks.items())]


def show_mask(title: str, image: Image.Image, mask: Tensor, classes: Sequence[str]) -> Panel:
    """An image under a mask, the names of its classes above."""
    key = [(label - 1, classes[label - 1]) for label in mask.unique().tolist() if 0 < label != BORDER]
    return Panel(title if key else f"{title}: nothing", draw_mask(image, mask.numpy()), key)


def mean_colour(preprocessing: Preprocessing) -> tuple[int, int, int]:
    """The grey levels that `normalise` brings to 0, nearly: red, green, blue."""
    red, green, blue = (round(255 * value) for value in np.broadcast_to(preprocessing.mean, 3).tolist())
    return red, green, blue


if __name__ == "__main__":
    main(VocSegmentation)
