"""Where are the objects? Fast or Faster R-CNN fine-tuned on Pascal VOC; the average precision of the boxes found.

    python -m transfer.voc_detection                        the reference checkpoint on minivoc
    python -m transfer.voc_detection --dataset voc2007 --checkpoint NAME --trained fc6-8
    python -m transfer.voc_detection --engine detectron2    its own model, trained and scored alike

With --proposals selective-search it is Fast R-CNN, the paper's; with rpn Faster R-CNN. transfer/detection/model.py says
which layers see what: they start from the checkpoint, and batch norm keeps its running statistics. Images are
normalised as the checkpoint wants it, and then filled up with zeros to the largest of their batch. Learned from are
objects that are not difficult, and images that have one, as in py-faster-rcnn. Detections score more than .05, those of
one class overlap by an IoU of .3 at most, and an image has 100 at most.

voc2007 has the literature's values for self-supervised networks (deepcluster.md 2.3), with one learning rate and one
weight decay: Caffe doubles the rate of biases, and does not decay them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from transfer.detection.data import Scaled, Scenes, Seen
from transfer.detection.model import MOST, Detector
from transfer.engines import details_of
from transfer.finetuning import Finetuning, Transfer, check_any
from transfer.pictures import Mark, Panel, draw_boxes, save_beside
from transfer.proposals import propose, selective_search
from transfer.scores import detection_scores, detections, to_edges, truths
from zoo import processes
from zoo.backbones import empty
from zoo.checkpoint import Checkpoint
from zoo.datasets.dataset import Dataset, spaced
from zoo.datasets.decoding import read_rgb
from zoo.datasets.images import FileImages
from zoo.evaluation import PICTURES, Evaluation
from zoo.options import TaskOptions, TransferOptions, check_least
from zoo.run import Outcome, main
from zoo.seeds import derive
from zoo.voc.annotation import Annotation, Box
from zoo.voc.average_precision import check_present

DRAWN = 0.25  # the least score of a detection in a picture; few are sure of themselves after a short training
Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # in an image: edges (n, 4), classes (n,) from 0 on, scores (n,)

FAST_RCNN: dict[str, Any] = dict(
    proposals="selective-search",
    iterations=150_000,
    lr=2e-3,
    milestones=(50_000, 100_000),
    warm_up=0,
    sides=(400, 500, 600, 700),
    side=600,
    longest=1000,
    anchors=(128, 256, 512),
    candidates=12_000,
    rois=64,  # of an image, where Girshick 2015 and py-faster-rcnn's BATCH_SIZE have 128 for the two of a batch
)


@dataclass(frozen=True)
class VocDetection(Transfer):
    """Settings; those of voc2007 are the literature's."""

    name: ClassVar[str] = "transfer.voc_detection"
    version: ClassVar[int] = 1
    protocol: ClassVar[str] = "deepcluster"
    options: ClassVar[type[TaskOptions]] = TransferOptions
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "voc2007": FAST_RCNN,
        "voc2012": FAST_RCNN | {"images": "train-val"},
    }
    least: ClassVar[dict[str, float]] = Transfer.least | {
        "side": 1,
        "longest": 1,
        "candidates": 2,
        "rois": 2,
    }

    engine: Literal["torchvision", "detectron2"] = "torchvision"  # whose parts it is made of (detectron2: make engines)
    proposals: Literal["rpn", "selective-search"] = "rpn"  # Faster R-CNN, or Fast R-CNN (which needs OpenCV)
    iterations: int = 1800  # steps, each on one batch
    batch: int = 2  # images of a step
    lr: float = 1e-2  # the largest learning rate
    weight_decay: float = 5e-4  # of the weights that learn
    milestones: tuple[int, ...] = (1350,)  # iterations from which on the learning rate is a tenth of what it was
    sides: tuple[int, ...] = (56, 64, 72, 80)  # pixels of the shorter side of images learned from, drawn for each
    side: int = 64  # pixels of the shorter side of images evaluated
    longest: int = 107  # pixels that the longer side has at most, the shorter then having less
    anchors: tuple[int, ...] = (16, 32, 48)  # sides in pixels of boxes that the region proposal network starts from
    candidates: int = 600  # boxes of that network that are compared, and in evaluation half as many
    rois: int = 64  # regions of an image that are learned from

    def parts(self, checkpoint: Checkpoint, dataset: Dataset) -> Sequence[Self]:
        """See Task.parts."""
        for name, none in (("sides", 0), ("anchors", 0), ("milestones", 1)):
            check_least({name: min(getattr(self, name), default=none)}, {name: 1})
        if self.proposals == "selective-search":
            selective_search()
        detector_of(self.engine).check(empty(**checkpoint.backbone))
        return super().parts(checkpoint, dataset)

    def share(self, step: int) -> float:
        """See Transfer.share."""
        return 0.1 ** sum(step >= milestone for milestone in self.milestones)

    def run(self, parts: Sequence[Self], bench: Evaluation) -> Iterator[Outcome]:
        classes = bench.dataset.classes
        regions = (self.anchors if self.proposals == "rpn" else (), self.candidates, self.rois)
        network = detector_of(self.engine)(bench.backbone, len(classes), self.seed, *regions, self.precision)
        network.choose(self.trained)
        tuning = Finetuning(self, bench, network.to(bench.device), bench.state("fine-tuning"))
        scenes = self.scenes(tuning)
        self.learn(tuning, network, scenes[0])
        found = self.find(tuning, network, scenes[1])
        metrics, details = score(found, scenes[1].annotations, classes, bench.limit is not None)
        save_pictures(scenes[1], found, bench)
        learned = f"{len(scenes[0])} of {len(tuning.rows(self.splits[0]))} images"
        details |= {"learned_from": learned, "regions": scenes[1].regions}
        yield Outcome(self, metrics, details | details_of(self.engine) | tuning.conclude())

    def scenes(self, tuning: Finetuning) -> list[Scenes]:
        """The images learned from and those evaluated, with proposals where these are asked for.

        UserError for a file that is broken, and for a class without an object that counts in the images evaluated.
        """
        view, bench = Scaled((self.side,), self.longest), tuning.bench
        found = [Scenes(tuning.devkit, split, tuning.rows(split), split == self.splits[0]) for split in self.splits]
        tuning.check_files(*((scenes, np.arange(len(scenes)), view) for scenes in found))
        counted(found[1].annotations, bench.dataset.classes, bench.limit is not None)
        if self.proposals == "selective-search":
            for scenes in found:
                search_all(scenes, bench)
        return found

    def learn(self, tuning: Finetuning, network: Detector, scenes: Scenes) -> None:
        """Descend on the loss."""
        bench, order = tuning.bench, tuning.order(len(scenes))
        view = Scaled(self.sides, self.longest, bench.dataset.flips)
        seed = derive(self.seed, "scales")
        batches = bench.batches(scenes, order, view, self.batch, "training", seed, tuning.state)
        tuning.descend(batches, lambda batch: loss_of(network, batch[1], bench))

    @torch.no_grad()
    def find(self, tuning: Finetuning, network: Detector, scenes: Scenes) -> list[Found]:
        """What is found in each image evaluated."""
        bench, order, view = tuning.bench, np.arange(len(scenes)), Scaled((self.side,), self.longest)
        kept: list[Tensor] = tuning.state.part("found", [])
        network.eval()
        few = processes.count()  # an image each
        for ids, seen in bench.batches(scenes, order, view, few, "images evaluated", 0, tuning.state):
            own = torch.stack([found_in(network, one, bench) for one in seen])
            kept.extend(processes.from_portions(own, len(ids)).cpu())
        return [split(rows) for rows in kept]


def search_all(scenes: Scenes, bench: Evaluation) -> None:
    """Give the images their proposals, which are searched for if the cache does not have them."""
    search = selective_search()
    scenes.regions = search.name
    own = FileImages(scenes.root, scenes.paths[processes.share(len(scenes))], None)
    for images in (own, scenes):  # of many processes, each searches its own first
        scenes.proposals = propose(images, bench.cache, search, bench.workers, quiet=bench.quiet)
        processes.meet()


def detector_of(engine: str) -> Any:
    """The class of an engine's networks: Detector, or one that is used alike. UserError without the engine."""
    if engine == "torchvision":
        return Detector
    from transfer.engines.detectron2_detector import Detectron2Detector  # imports detectron2, which few have

    return Detectron2Detector


def loss_of(network: Detector, seen: Sequence[Seen], bench: Evaluation) -> Tensor:
    """The network's loss of some images."""
    targets = [{"boxes": one.boxes.to(bench.device), "labels": one.labels.to(bench.device)} for one in seen]
    loss = network(lay(network, seen, bench), regions(seen, bench), targets)
    assert isinstance(loss, Tensor)
    return loss


def found_in(network: Detector, seen: Seen, bench: Evaluation) -> Tensor:
    """What the network finds in an image: (MOST, 6), of which a row is a box in the file's pixels, class and score.

    The class counts from 0; rows that hold nothing have the score 0.
    """
    (found,) = network(lay(network, [seen], bench), regions([seen], bench))
    boxes = found["boxes"] / seen.scale.to(bench.device)
    rows = torch.cat([boxes, found["labels"][:, None] - 1, found["scores"][:, None]], 1)
    return F.pad(rows, (0, 0, 0, MOST - len(rows)))


def split(rows: Tensor) -> Found:
    """Boxes (n, 4), classes (n,) and scores (n,) of the rows of an image."""
    table = rows[rows[:, 5] > 0].numpy()
    return table[:, :4], table[:, 4].astype(np.int64), table[:, 5]


def lay(network: Detector, seen: Sequence[Seen], bench: Evaluation) -> ImageList:
    """The images as the network takes them: normalised, then filled up with zeros at the right and below."""
    images = [bench.checkpoint.preprocessing.normalise(one.pixels.to(bench.device)) for one in seen]
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    height, width = (max(network.least, *sides) for sides in zip(*sizes))
    together = torch.stack(
        [F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2])) for image in images]
    )
    return ImageList(together.contiguous(memory_format=torch.channels_last), sizes)


def regions(seen: Sequence[Seen], bench: Evaluation) -> list[Tensor]:
    """The proposals of the images, on the device; none where there are none."""
    return [one.proposals.to(bench.device) for one in seen if one.proposals is not None]


def score(
    found: Sequence[Found], annotations: Sequence[Annotation], classes: Sequence[str], some: bool
) -> tuple[dict[str, float], dict[str, Any]]:
    """See detection_scores; of the classes that are `counted`."""
    names = counted(annotations, classes, some)
    if some:
        shown = [classes.index(name) for name in names]
        chosen = [np.isin(labels, shown) for _, labels, _ in found]
        found = [
            (edges[mine], np.searchsorted(shown, labels[mine]), scores[mine])
            for (edges, labels, scores), mine in zip(found, chosen)
        ]
        annotations = [replace(one, boxes=tuple(box for box in one.boxes if box.name in names)) for one in annotations]
    metrics, details = detection_scores(detections(found), truths(annotations, names), names)
    return metrics, dict(details)


def counted(annotations: Sequence[Annotation], classes: Sequence[str], some: bool) -> list[str]:
    """The classes that are scored: all; or `some`, of which an image has an object that is not difficult.

    UserError for a class, or with `some` for images, without such an object.
    """
    there = {box.name for one in annotations for box in one.boxes if not box.difficult}
    if not some:
        check_present(np.array([name in there for name in classes]), classes)
    found = [name for name in classes if name in there]
    check_any(found)
    return found


def save_pictures(scenes: Scenes, found: Sequence[Found], bench: Evaluation) -> None:
    """Draw as many of the images as are asked for, with what was found in them and what there is."""
    if not bench.save_pictures or bench.directory is None or processes.rank():
        return
    classes = bench.dataset.classes
    for number in spaced(len(scenes), bench.save_pictures).tolist():
        place, boxes = scenes.place(number), scenes.annotations[number].boxes
        best = sorted(zip(*found[number]), key=lambda one: -one[2])
        sure = [
            Mark(edges.tolist(), label, f"{classes[label]} {score:.2f}")
            for edges, label, score in best
            if score >= DRAWN
        ]
        there = [
            Mark(to_edges(np.array(box.corners)).tolist(), classes.index(box.name), describe(box)) for box in boxes
        ]
        image = read_rgb(place)
        title = f"found{'' if sure else ': nothing'} with a score of {DRAWN:g} or more"
        panels = [Panel(title, draw_boxes(image, sure)), Panel("annotated", draw_boxes(image, there))]
        save_beside(bench.directory / PICTURES / f"{place.path.stem}.png", panels)


def describe(box: Box) -> str:
    """An annotated object, in words."""
    return box.name + (" (difficult)" if box.difficult else "")


if __name__ == "__main__":
    main(VocDetection)
