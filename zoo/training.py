"""What a pretraining method trains with: images in batches, phases timed, history logged, all of it resumed."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from results.errors import RunFailed
from results.files import write_text
from zoo import processes
from zoo.backbones import Backbone, build, channels_for
from zoo.checkpoint import Preprocessing
from zoo.clustering.scores import empty_clusters, entropy, nmi, scores
from zoo.datasets.dataset import Dataset
from zoo.datasets.images import Images
from zoo.device import autocast
from zoo.scratch import OnDisk, create_array, discard, open_array, unnamed_array
from zoo.seeds import derive
from zoo.state import State
from zoo.steps import batch_sizes, descend, own_sizes
from zoo.views import View

LOG = "log.jsonl"
SCRATCH = "descriptors*.f32"  # what only a running run needs
MANY = 1000  # clusters
Part = TypeVar("Part")
Result = TypeVar("Result")


@dataclass
class Training:
    """One pretraining run in its folder `directory`; `settings` is the method, a frozen dataclass."""

    settings: Any
    dataset: Dataset
    images: Images
    preprocessing: Preprocessing
    device: torch.device
    directory: Path
    workers: int = 2
    quiet: bool = False
    save_every: float = 10.0  # minutes
    history: list[dict] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # of the present epoch's phases
    previous: dict[str, Tensor] = field(default_factory=dict)  # the last epoch's `assignment`
    conclusion: dict[str, Any] = field(default_factory=dict)  # clusters after the last epoch, if a method makes some
    weight: float = 1.0  # of this process's part of the present batch
    since: float = 0.0  # when the seconds of the present phase were last counted

    @cached_property
    def state(self) -> State:
        """What the run continues from, read when the training begins."""
        return State(self.directory, self.save_every, self.device)

    @property
    def labels(self) -> np.ndarray | None:
        """Class of each image (N,), or None. Methods may score their clusters with them, never train on them."""
        return self.images.labels

    def seed(self, *names: str | int) -> int:
        """A seed for one purpose, derived from the run's own."""
        return derive(self.settings.seed, *names)

    def build_backbone(self) -> Backbone:
        """The backbone of the settings with its initial weights, on the device."""
        name = self.settings.backbone
        channels = channels_for(name, self.dataset.channels)
        model = build(name, channels=channels, sobel=self.settings.sobel, seed=self.settings.seed)
        return model.to(self.device).to(memory_format=torch.channels_last)

    def embed(self, model: nn.Module, x: Tensor) -> Tensor:
        """The backbone's descriptors (B, D) in float32, computed at the run's precision."""
        with autocast(self.device, self.settings.precision):
            descriptors = cast(Backbone, model).embed(x)
        return descriptors.float()

    def batches(
        self, view: View, order: np.ndarray, batch: int, phase: str, *seed: int, own: bool = False
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """(ids, network input float32 (B, C, h, w)) of the images in `order`, with a progress bar.

        Batches are the steps of `phase`: a run that is continued gets those that it had not finished. Each of many
        processes gets its part of every batch, whose share of the batch is then `weight`; or, with `own`, has an order
        of its own.
        """
        sizes = own_sizes(len(order), batch) if own else batch_sizes(len(order), batch, processes.count())
        first, total = self.state.done(phase), len(sizes)
        drawn = self.seed(phase, *seed)
        part = slice if own else processes.share
        stream = self.images.batches(order, sizes, view, drawn, self.device, self.workers, first, part)
        steps = zip(self.state.steps(phase, total), stream)
        hidden = True if self.quiet else None  # None: no bar where stderr is not a terminal
        for number, (ids, pixels) in tqdm(steps, desc=phase, initial=first, total=total, disable=hidden, leave=False):
            x = self.preprocessing.normalise(pixels)
            self.weight = len(ids) / sizes[number]
            yield ids, x.contiguous(memory_format=torch.channels_last)
            self._count(phase)

    def descend(self, loss: Tensor, *optimizers: torch.optim.Optimizer, zeros: bool = False) -> None:
        """A step of gradient descent (see `descend`) on the loss of the present batch, or of this process's part."""
        descend(loss if processes.count() == 1 else loss * self.weight, *optimizers, zeros=zeros)

    def end_pass(self, module: nn.Module, total: Tensor) -> float:
        """The sum of the processes' `total` at the end of a pass, after which their batch norms agree too."""
        processes.average_statistics(module)
        return processes.summed(total).item()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds of a part of the epoch under `name`."""
        self.since = time.perf_counter()
        yield
        self._count(name)

    def _count(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.since
        self.since = now

    def once(self, name: str, work: Callable[..., Result], *given: Any) -> Result:
        """work(*given), plain values and tensors, as a phase: a run that is continued does not do it again."""
        with self.phase(name):
            return self.state.once(name, lambda: work(*given))

    def part(self, name: str, part: Part) -> Part:
        """The part, given what it held in this epoch if the run is continued in it (see State.part)."""
        return self.state.part(name, part)

    def array(self, phase: str, shape: tuple[int, int]) -> np.ndarray:
        """A float32 array on disk that the steps of `phase` fill, with what they had filled before in this epoch.

        Its file is the epoch's: a state from before another epoch wrote its rows finds none, and the phase begins anew.
        """
        path = self.directory / SCRATCH.replace("*", f"-{self.state.root.done.get('epochs', 0)}")
        discard(self.directory, SCRATCH, path)
        if not path.exists() or path.stat().st_size != 4 * shape[0] * shape[1]:
            self.state.forget(phase)
        array = open_array(path, shape) if self.state.done(phase) else create_array(path, shape)
        self.part(f"{phase} on disk", OnDisk(array))
        return array

    def room(self, shape: tuple[int, int]) -> Tensor:
        """A float32 tensor that lies on disk rather than in memory, until it is let go."""
        return torch.from_numpy(unnamed_array(self.directory, shape))

    def epochs(self, total: int, **parts: Any) -> Iterator[int]:
        """Epoch numbers from where an interrupted run stopped; after each, the state of `parts` is saved.

        Everything random in an epoch is drawn from the seed and the epoch's number, so a run that was interrupted
        ends like one that was not. RunFailed for weights that are no numbers: the state before that epoch stays.
        """
        for name, part in {**parts, "history": self.history, "previous": self.previous}.items():
            self.part(name, part)
        if self.state.number and not self.quiet:
            tqdm.write(f"continuing in epoch {self.state.done('epochs')}", file=sys.stderr)
        for epoch in self.state.epochs("epochs", total):
            # dropout draws from the global generator; no two processes drop the same
            torch.manual_seed(self.seed("epoch", epoch, *([processes.rank()] if processes.rank() else [])))
            self.seconds = self.part("seconds", {})
            yield epoch
            self._check_finite(epoch, parts)
            lines = "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in self.history)
            write_text(self.directory / LOG, lines)  # before the state: a run that dies between repeats the epoch
        self.seconds = self.part("seconds", {})

    def log(self, epoch: int, loss: float, assignment: np.ndarray, k: int, **values: Any) -> None:
        """Add an epoch to the history: its loss, its clusters against the labels, its seconds.

        Of more than MANY clusters, the sizes are those of the last epoch alone: the history is in each state.
        RunFailed for a loss that is no number: the state saved before this epoch stays.
        """
        if not math.isfinite(loss):
            raise self._diverged(f"the loss became {loss}", epoch)
        sizes, found = self._describe(assignment, k)
        before = self.previous.get("assignment")
        stayed = None if before is None else nmi(assignment, before.numpy(), "geometric")
        self.previous["assignment"] = torch.from_numpy(assignment)
        entry = {"epoch": epoch, "loss": loss, **found, "nmi_previous": stayed, **values}
        entry |= {"cluster_sizes": sizes.tolist(), "seconds": self._rounded(), "collapsed": has_collapsed(sizes)}
        if self.history and k > MANY:
            self.history[-1].pop("cluster_sizes", None)
        self.history.append(entry)
        self._say(entry, k)

    def conclude(self, assignment: np.ndarray, k: int) -> None:
        """Note the clusters that the trained network gives, after the last epoch."""
        sizes, found = self._describe(assignment, k)
        self.conclusion = {**found, "cluster_sizes": sizes.tolist(), "seconds": self._rounded()}

    def _describe(self, assignment: np.ndarray, k: int) -> tuple[np.ndarray, dict[str, float]]:
        """The clusters' sizes (k,), and their scores against the labels, if there are some."""
        sizes = np.bincount(assignment, minlength=k)
        if self.labels is not None:
            return sizes, scores(assignment, self.labels, k=k)
        return sizes, {"cluster_entropy": entropy(sizes), "empty_clusters": empty_clusters(sizes)}

    def _rounded(self) -> dict[str, float]:
        return {name: round(seconds, 3) for name, seconds in self.seconds.items()}

    def _say(self, entry: dict, k: int) -> None:
        if self.quiet:
            return
        shown = [f"epoch {entry['epoch']}", f"loss {entry['loss']:.4f}"]
        shown += [f"{n} {entry[n]:.3f}" for n in ("nmi_arithmetic", "nmi_previous") if entry.get(n) is not None]
        shown += [f"acc {entry['acc']:.1f} %"] if "acc" in entry else []
        shown += [f"{sum(entry['seconds'].values()):.1f} s"]
        tqdm.write("  ".join(shown), file=sys.stderr)
        if entry["collapsed"]:
            sizes = entry["cluster_sizes"]
            share = 100 * max(sizes) / max(1, sum(sizes))
            tqdm.write(
                f"collapse: {sizes.count(0)} of {k} clusters are empty, the largest holds {share:.0f} % of the images",
                file=sys.stderr,
            )

    def _check_finite(self, epoch: int, parts: dict[str, Any]) -> None:
        for part in parts.values():
            if isinstance(part, nn.Module) and not all(t.isfinite().all() for t in part.state_dict().values()):
                raise self._diverged("weights became infinite or no numbers", epoch)

    def _diverged(self, happened: str, epoch: int) -> RunFailed:
        kept = f"the state before it is kept in {self.directory.name}" if epoch else "nothing was saved before it"
        return RunFailed(f"{happened} in epoch {epoch}; {kept}. Try a smaller --lr")


def has_collapsed(sizes: np.ndarray) -> bool:
    """Whether clusters of these sizes (k,) are degenerate: most are empty, or one holds most images.

    One of two clusters always holds half of the images, so few clusters have collapsed only at twice their
    equal share.
    """
    k, largest = len(sizes), sizes.max()
    crowded = largest > sizes.sum() / 2 and largest * k >= 2 * sizes.sum()
    return bool(k > 1 and (crowded or (sizes == 0).sum() > k / 2))
