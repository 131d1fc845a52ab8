"""An epoch of a method as it runs, against its bare steps: what data handling, clustering and all else cost.

    python -m benchmarks.epoch                     DeepCluster on the digits: two minutes on one core
    python -m benchmarks.epoch --method mmdc       one minute
    python -m benchmarks.epoch --method mmdc --dataset mnist --precision bf16 --epochs 4

It takes what the method's own command takes (--dataset, --precision, --threads, --limit …) and trains as that does, in
a temporary folder. The first epoch warms up, and its batches are kept. Before each later one a copy of the network and
its optimizer takes the bare steps on them: forward pass, backward pass and optimizers, for MMDC also the assignment of
each batch. The training phase does the same on batches that it makes. So the two alternate, and a machine that slows
down slows both; rates are of the medians. Shares are of all epochs but the first; the rest is the new head, scores,
the log, and the state that is saved.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.deepcluster import DeepCluster
from pretrain.mmdc import MMDC, unit_outputs
from zoo import device as devices
from zoo.backbones import Backbone
from zoo.clustering.partition import Partition
from zoo.clustering.targets import Targets
from zoo.datasets import find
from zoo.datasets.images import Batch
from zoo.options import check_least
from zoo.pretraining import open_images, open_run
from zoo.run import Method, guarded, parse
from zoo.steps import descend, trainable
from zoo.training import Training
from zoo.views import View


@dataclass
class Watched(Training):
    """A run that keeps its first epoch's batches, takes bare steps on them before each later epoch, and times both."""

    bare_steps: Callable[..., Tensor] = field(kw_only=True)
    ready: list[Batch] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)  # seconds of the bare steps before each epoch but the first
    whole: list[float] = field(default_factory=list)  # seconds of each epoch but the first

    def batches(
        self, view: View, order: np.ndarray, batch: int, phase: str, *seed: int, own: bool = False
    ) -> Iterator[Batch]:
        """See Training.batches."""
        for ids, x in super().batches(view, order, batch, phase, *seed, own=own):
            if phase == "training" and not self.history:
                self.ready.append((ids, x))
            yield ids, x

    def epochs(self, total: int, **parts: Any) -> Iterator[int]:
        """See Training.epochs."""
        begun = None
        for epoch in super().epochs(total, **parts):
            self._end(begun)
            if epoch:
                self.bare.append(self._time_bare_steps(**deepcopy(parts)))
                begun = time.perf_counter()
            yield epoch
        self._end(begun)

    def _time_bare_steps(self, **copies: Any) -> float:
        start = time.perf_counter()
        self.bare_steps(self, **copies).item()  # waits for a GPU
        return time.perf_counter() - start

    def _end(self, begun: float | None) -> None:
        if begun is not None:
            self.whole.append(time.perf_counter() - begun)


def learn_clusters(run: Watched, model: Backbone, optimizer: torch.optim.Optimizer, last: dict[str, Any]) -> Tensor:
    """DeepCluster's steps on the last epoch's clusters and head; the last loss."""
    partition = Partition(**last["clusters"]["partition"])
    head = run.settings.build_head(model, last["clusters"], last, run.seed("head")).to(run.device)
    optimizer.add_param_group({"params": trainable(head), "momentum": 0.0})
    model.train()
    for ids, x in run.ready:
        loss = partition.cross_entropy(head(run.embed(model, x)), torch.from_numpy(ids))
        descend(loss, optimizer)
    return loss


def meet_targets(run: Watched, network: nn.ModuleDict, optimizer: torch.optim.Optimizer, targets: Targets) -> Tensor:
    """MMDC's steps, until refinement begins with the assignment of each batch; the last loss."""
    for ids, x in run.ready:
        rows = torch.from_numpy(ids)
        if len(run.history) < run.settings.refine_at:
            network.eval()
            with torch.inference_mode():
                targets.assign(rows, unit_outputs(network, x, run))
        network.train()
        loss = F.mse_loss(unit_outputs(network, x, run), targets[rows].to(run.device))
        descend(loss, optimizer, zeros=True)
    return loss


METHODS: dict[str, tuple[type[Method], Callable[..., Tensor]]] = {
    "deepcluster": (DeepCluster, learn_clusters),
    "mmdc": (MMDC, meet_targets),
}


def watch(name: str, epochs: int, words: Sequence[str]) -> Watched:
    """The run of the method `name` by the words of its command line, when it has ended."""
    check_least({"epochs": epochs}, {"epochs": 2})
    kind, bare_steps = METHODS[name]
    method, options = parse(kind, ["--epochs", str(epochs), *words])
    options.check()
    devices.prepare(options.threads or None)
    dataset = find(options.dataset, options.data_dir)
    dataset.preflight()
    method.check(dataset, len(open_images(method, dataset, options)))
    with tempfile.TemporaryDirectory() as folder:
        run = Watched(**vars(open_run(method, dataset, options, Path(folder))), bare_steps=bare_steps)
        method.train(run)
    return run


def shares(run: Watched) -> dict[str, float]:
    """What part of its epochs each phase took, and the rest, the first epoch left out."""
    epochs, whole = [entry["seconds"] for entry in run.history[1:]], sum(run.whole)
    found = {phase: sum(epoch.get(phase, 0.0) for epoch in epochs) / whole for phase in epochs[-1]}
    return found | {"the rest": 1 - sum(found.values())}


def table(name: str, run: Watched) -> Iterator[str]:
    """The lines of the table."""
    training = median(entry["seconds"]["training"] for entry in run.history[1:])
    bare, count, settings = median(run.bare), len(run.images), run.settings
    data = f"{run.dataset.name}, {settings.backbone}{'-sobel' * settings.sobel}"
    row = {"method": name, "data": data, "images": count, "batch": settings.batch, "precision": settings.precision}
    row |= {"threads": torch.get_num_threads(), "bare steps, images/s": f"{count / bare:.0f}"}
    row |= {"training, images/s": f"{count / training:.0f}", "ratio": f"{bare / training:.3f}"}
    row |= {f"{phase}, % of an epoch": f"{100 * share:.1f}" for phase, share in shares(run).items()}
    yield f"| {' | '.join(row)} |"
    yield "|---" * len(row) + "|"
    yield f"| {' | '.join(map(str, row.values()))} |"


def main() -> None:
    """Train and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--method", choices=METHODS, default="deepcluster")
    parser.add_argument("--epochs", type=int, default=13, help="the first is not timed")
    chosen, words = parser.parse_known_args()
    print("\n".join(table(chosen.method, watch(chosen.method, chosen.epochs, words))))


if __name__ == "__main__":
    sys.exit(guarded(main))
