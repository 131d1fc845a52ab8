"""A linear classifier on each conv layer's frozen features: the field's standard test.

Zhang et al., ECCV 2016; Caron et al., "Deep Clustering …", ECCV 2018, table 1.

    python -m probes.linear --layer conv3                       the reference checkpoint on scikit-learn's digits
    python -m probes.linear --checkpoint FILE --dataset imagenet

The learning rate is chosen on a tenth of the training images that the classifier does not see, then it is trained
again on all of them. The number is the last epoch's; the best epoch's is kept beside it, as the papers report it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from probes import features
from probes.heads import Heads
from probes.protocols import PROTOCOLS
from probes.sources import Cached, Labelled, Online, Source
from results.errors import RunFailed, UserError
from zoo import processes
from zoo.backbones import find
from zoo.checkpoint import Checkpoint
from zoo.datasets.dataset import Dataset
from zoo.device import side_by_side
from zoo.evaluation import Evaluation
from zoo.run import Outcome, Task, main
from zoo.seeds import derive, generator, numpy_generator
from zoo.state import State

BATCH = 256
HELD_OUT = 0.1  # share of train on which the learning rate is chosen
LIGHT = 1 << 25  # multiply-adds of a step's largest product, below which more threads make it no faster


@dataclass(frozen=True)
class Linear(Task):
    """Settings; each layer gives one record, and its number does not depend on which layers ride along."""

    name: ClassVar[str] = "probes.linear"
    version: ClassVar[int] = 1

    layer: str = "all"  # a conv layer's name, or all of them in one pass
    # auto: small up to 96 px, else deepcluster for alexnet and generic for others; the last three choose nothing
    protocol: Literal[
        "auto", "small", "deepcluster", "generic", "deepcluster-published", "deepcluster-script", "deepercluster"
    ] = "auto"
    crops: Literal[1, 10] = 1  # of a test image whose class probabilities are averaged (not with `small`)
    epochs: int = 0  # 0: the protocol's; another number is another protocol in records and tables

    def parts(self, checkpoint: Checkpoint, dataset: Dataset) -> Sequence[Self]:
        dataset.check_labelled(evaluation=True)
        protocol = self.protocol if self.protocol != "auto" else natural_protocol(checkpoint, dataset)
        wanted, backbone = PROTOCOLS[protocol].backbone, checkpoint.backbone["name"]
        if wanted not in ("", backbone):
            raise UserError(f"the {protocol} protocol is made for {wanted}, not {backbone}", fix="--protocol generic")
        if protocol == "small" and self.crops != 1:
            raise UserError("the small protocol has one view of an image", fix="--crops 1, or --protocol generic")
        if self.epochs < 0:
            raise UserError(f"--epochs {self.epochs} trains nothing", fix="--epochs 0, for the protocol's own number")
        epochs = self.epochs or PROTOCOLS[protocol].epochs
        resolved = replace(self, protocol=protocol, epochs=epochs)
        layers = checkpoint.layers(self.layer)
        resolved.grid(layers, checkpoint, dataset)
        return [replace(resolved, layer=layer) for layer in layers]

    def grid(self, layers: Sequence[str], checkpoint: Checkpoint, dataset: Dataset) -> dict[str, tuple[float, ...]]:
        """The learning rates that each layer's classifiers are trained with."""
        return PROTOCOLS[self.protocol].grid(layers, find(checkpoint.backbone["name"]).layers, dataset.name)

    def protocol_id(self, dataset: Dataset) -> str:
        usual = self.epochs == PROTOCOLS[self.protocol].epochs
        return f"{self.protocol}@{self.version}" + ("" if usual else f", {self.epochs} epochs")

    def run(self, parts: Sequence[Self], bench: Evaluation) -> Iterator[Outcome]:
        layers = [part.layer for part in parts]
        if self.protocol != "small":
            state = bench.state("classifiers")
            yield from self.probe(parts, Online(bench, layers, PROTOCOLS[self.protocol]), bench, state)
            return
        features.load(bench, bench.dataset.evaluation, layers)  # here, so that all layers are of one pass
        features.load(bench, bench.dataset.training, layers)
        yield from processes.each_by_first(lambda: self.probe_cached(parts, bench))

    def probe_cached(self, parts: Sequence[Self], bench: Evaluation) -> Iterator[Outcome]:
        """The outcomes of the parts on features that are cached."""
        rows = features.load(bench, bench.dataset.training, [part.layer for part in parts])
        outputs = len(PROTOCOLS[self.protocol].rates) * len(bench.dataset.classes)
        light = [part for part in parts if BATCH * min(rows[part.layer].shape) * outputs < LIGHT]
        heavy = [part for part in parts if part not in light]

        def work(part: Self) -> list[Outcome]:
            return list(self.probe([part], Cached(bench, part.layer), bench, bench.state(part.layer)))

        for found in chain(side_by_side(work, light, bench.device), map(work, heavy)):
            yield from found

    def probe(self, parts: Sequence[Self], source: Source, bench: Evaluation, state: State) -> Iterator[Outcome]:
        """The outcomes of the layers of a source."""
        layers = [part.layer for part in parts]
        count = len(source.labels)
        grid = self.grid(layers, bench.checkpoint, bench.dataset)
        chosen = state.once("learning rates", lambda: self.choose_rates(source, grid, state))
        curve: list[dict[str, float]] = state.part("curve", [])

        def watch(heads: dict[str, Heads]) -> None:
            found = measure(heads, source.test(BATCH, 1, state), state.part("measured", {}))
            curve.append({layer: found[layer].top1[0] for layer in layers})

        final = {layer: (chosen[layer]["lr"],) for layer in layers}
        heads = self.fit(source, np.arange(count), final, "training", state, watch)
        found = measure(heads, source.test(BATCH, self.crops, state), state.part("measured", {}))
        for part in parts:
            yield report(part, found[part.layer], chosen[part.layer], [point[part.layer] for point in curve])

    def choose_rates(
        self, source: Source, grid: Mapping[str, Sequence[float]], state: State
    ) -> dict[str, dict[str, Any]]:
        """Each layer's learning rate, chosen on training images held out from the fit; one alone is taken."""
        if all(len(rates) == 1 for rates in grid.values()):
            return {layer: {"lr": rate, "held_out_top1": None} for layer, (rate,) in grid.items()}
        held, kept = split_off(len(source.labels), self.seed)
        heads = self.fit(source, kept, grid, "choosing the learning rate", state)
        return choose(measure(heads, source.plain(held, BATCH, state), state.part("measured", {})), grid)

    def fit(
        self,
        source: Source,
        ids: np.ndarray,
        rates: Mapping[str, Sequence[float]],
        what: str,
        state: State,
        after_epoch: Callable[[dict[str, Heads]], None] | None = None,
    ) -> dict[str, Heads]:
        """Each layer's classifiers, one a rate, after training on the images `ids`."""
        protocol = PROTOCOLS[self.protocol]
        per_epoch = math.ceil(len(ids) / BATCH)
        least = protocol.least_steps if self.epochs == protocol.epochs else 0
        epochs = max(self.epochs, math.ceil(least / per_epoch))
        heads = {
            layer: state.part(f"classifiers of {layer}", self.new_heads(source, layer, rates[layer])) for layer in rates
        }
        for epoch in state.steps(what, epochs):  # steps: epochs can be too short for a state after each
            order = numpy_generator(self.seed, "order", epoch).permutation(ids)
            title = f"{what}, epoch {epoch + 1} of {epochs}"
            first = epoch * per_epoch + state.done(title)
            batches = source.train(order, BATCH, derive(self.seed, "crops", epoch), title, state)
            for step, (rows, labels, x) in enumerate(batches, first):
                for layer, head in heads.items():
                    head.step(x[layer], labels, rows, step, epochs * per_epoch)
            if after_epoch is not None:
                after_epoch(heads)
        return heads

    def new_heads(self, source: Source, layer: str, rates: Sequence[float]) -> Heads:
        """Untrained classifiers of a layer, one a rate."""
        protocol = PROTOCOLS[self.protocol]
        start = None if protocol.zero_start else generator(self.seed, "start", layer)
        classes, dim = source.classes, source.dims[layer]
        dual, device = source.dual[layer], source.labels.device
        return Heads(dim, classes, rates, protocol.decay, protocol.schedule, start, device, dual)


def natural_protocol(checkpoint: Checkpoint, dataset: Dataset) -> Literal["small", "deepcluster", "generic"]:
    """`small` for images of up to 96 px, else `deepcluster` for its AlexNet and `generic` for all others."""
    if dataset.size is not None and dataset.size <= 96:
        return "small"
    return "deepcluster" if checkpoint.backbone["name"] == "alexnet" else "generic"


def split_off(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the tenth of the training images held out to choose the learning rate, and of the rest."""
    order = numpy_generator(seed, "held out").permutation(count)
    held = max(1, round(HELD_OUT * count))
    if held == count:
        raise UserError(f"{count} training images are too few to hold some out", fix="more images, or a larger --limit")
    return np.sort(order[:held]), np.sort(order[held:])


@dataclass(frozen=True)
class Measured:
    """What R classifiers of a layer get right."""

    top1: list[float]  # percent, one a classifier
    top5: list[float]
    loss: list[float]  # mean cross-entropy of the averaged probabilities
    correct: np.ndarray  # (R, N) booleans


def measure(heads: dict[str, Heads], batches: Iterable[Labelled], seen: dict[str, list[Tensor]]) -> dict[str, Measured]:
    """Each layer's classifiers on images (B, crops, d): class probabilities are averaged over the crops.

    `seen` holds what is known of the batches before these, a part of the state that counts them.

    In logarithms: as probabilities, what a steep classifier holds for impossible would be 0, and its loss infinite.
    """
    for labels, x in batches:
        for layer, head in heads.items():
            rows = x[layer]
            each = torch.log_softmax(head.logits(rows.flatten(0, 1)), 1).unflatten(2, rows.shape[:2])
            mean = each.logsumexp(3) - math.log(rows.shape[1])  # (R, C, B)
            own = mean.gather(1, labels.expand(len(mean), 1, -1))  # (R, 1, B)
            # A class that is no number, or ties with the true one, ranks before it: nothing is right by accident.
            rank = (~(mean < own)).sum(1) - 1
            seen.setdefault(layer, []).append(torch.stack([rank.float(), -own.squeeze(1)]))
    return {layer: _measured(torch.cat([part.cpu() for part in seen[layer]], 2)) for layer in heads}


def _measured(found: Tensor) -> Measured:
    rank, loss = found  # each (R, N)
    top1, top5 = 100 * (rank < 1).double().mean(1), 100 * (rank < 5).double().mean(1)
    return Measured(top1.tolist(), top5.tolist(), loss.double().mean(1).tolist(), (rank < 1).numpy())


def choose(found: dict[str, Measured], grid: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Each layer's learning rate: the best top-1 on the held-out images, among equals the lowest loss.

    RunFailed if every rate of a layer diverged.
    """
    chosen = {}
    for layer, rates in grid.items():
        whole = [at for at in range(len(rates)) if math.isfinite(found[layer].loss[at])]
        if not whole:
            raise RunFailed(f"every learning rate of {layer} diverged: {rates}")
        best = max(whole, key=lambda at: (found[layer].top1[at], -found[layer].loss[at]))
        tried = {str(rate): found[layer].top1[at] for at, rate in enumerate(rates)}
        chosen[layer] = {"lr": rates[best], "held_out_top1": tried}
    return chosen


def report(part: Linear, found: Measured, choice: dict[str, Any], curve: list[float]) -> Outcome:
    """The outcome of one layer: the last epoch's numbers, and the best epoch's beside them."""
    if not math.isfinite(found.loss[0]):
        raise RunFailed(f"the classifier of {part.layer} diverged at learning rate {choice['lr']}")
    best = int(np.argmax(curve))
    details = {
        **choice,
        "best_epoch": {"epoch": best + 1, "top1": curve[best]},  # of one crop, as is the next
        "top1_by_epoch": [round(value, 3) for value in curve],
        "correct": features.pack(found.correct[0]),
    }
    return Outcome(part, {"top1": found.top1[0], "top5": found.top5[0]}, details)


if __name__ == "__main__":
    main(Linear)
