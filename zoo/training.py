"""What a pretraining method trains with: images in batches, phases timed, history logged, state saved and resumed."""

from __future__ import annotations

import io
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from results.errors import RunFailed, UserError
from results.files import write_bytes, write_text
from zoo.backbones import Backbone, build, channels_for
from zoo.checkpoint import Preprocessing
from zoo.clustering.scores import empty_clusters, entropy, nmi, scores
from zoo.datasets.dataset import Dataset
from zoo.datasets.images import Images
from zoo.device import autocast
from zoo.seeds import derive
from zoo.views import View

STATE, LOG = "state.pt", "log.jsonl"
SCRATCH = ("descriptors.f32",)  # what only a running run needs


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
    history: list[dict] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    previous: np.ndarray | None = None  # the last epoch's assignment

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
        self, view: View, order: np.ndarray, batch: int, phase: str, *seed: int
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """(ids, network input float32 (B, C, h, w)) of the images in `order`, with a progress bar."""
        drawn = self.seed(phase, *seed)
        stream = self.images.batches(order, batch, view, drawn, device=self.device, workers=self.workers)
        total = math.ceil(len(order) / batch)
        hidden = True if self.quiet else None  # None: no bar where stderr is not a terminal
        for ids, pixels in tqdm(stream, desc=phase, total=total, disable=hidden, leave=False):
            x = self.preprocessing.normalise(pixels)
            yield ids, x.contiguous(memory_format=torch.channels_last)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds of a part of the epoch under `name`."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def epochs(self, total: int, **parts: Any) -> Iterator[int]:
        """Epoch numbers from where an interrupted run stopped; after each, the state of `parts` is saved.

        A part is a module, an optimizer or a plain dict of tensors and numbers. Everything random in an epoch
        is drawn from the seed and the epoch's number, so a run that was interrupted ends like one that was not.
        RunFailed for weights that are no numbers: the state saved before that epoch stays.
        """
        for epoch in range(self._restore(parts), total):
            torch.manual_seed(self.seed("epoch", epoch))  # dropout draws from the global generator
            self.seconds = {}
            yield epoch
            self._check_finite(epoch, parts)
            self._save(epoch + 1, parts)

    def log(self, epoch: int, loss: float, assignment: np.ndarray, k: int, **values: Any) -> None:
        """Add an epoch to the history: its loss, its clusters against the labels, its seconds.

        RunFailed for a loss that is no number: the state saved before this epoch stays.
        """
        if not math.isfinite(loss):
            raise self._diverged(f"the loss became {loss}", epoch)
        sizes = np.bincount(assignment, minlength=k)
        found = {"cluster_entropy": entropy(sizes), "empty_clusters": empty_clusters(sizes)}
        if self.labels is not None:
            found = scores(assignment, self.labels, k=k)
        stayed = None if self.previous is None else nmi(assignment, self.previous, "geometric")
        self.previous = assignment
        entry = {"epoch": epoch, "loss": loss, **found, "nmi_previous": stayed, **values}
        entry |= {"cluster_sizes": sizes.tolist(), "seconds": {n: round(s, 3) for n, s in self.seconds.items()}}
        entry["collapsed"] = has_collapsed(sizes)
        self.history.append(entry)
        self._say(entry, k)

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

    def _save(self, epoch: int, parts: dict[str, Any]) -> None:
        held = {name: part if isinstance(part, dict) else part.state_dict() for name, part in parts.items()}
        previous = None if self.previous is None else torch.from_numpy(self.previous)
        written = io.BytesIO()  # not the file itself: there a full disk would be torch's RuntimeError
        torch.save({"epoch": epoch, "parts": held, "history": self.history, "previous": previous}, written)
        lines = "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in self.history)
        write_text(self.directory / LOG, lines)  # first: a run that dies between the two repeats the epoch
        write_bytes(self.directory / STATE, written.getbuffer())

    def _restore(self, parts: dict[str, Any]) -> int:
        path = self.directory / STATE
        if not path.exists():
            return 0
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            for name, part in parts.items():
                load = part.update if isinstance(part, dict) else part.load_state_dict
                load(state["parts"][name])
            self.history[:] = state["history"]
            self.previous = None if state["previous"] is None else state["previous"].cpu().numpy()
        except Exception as error:  # a torn or foreign file can fail in any layer of the reader
            happened = f"the saved state {STATE} cannot be continued from ({type(error).__name__})"
            raise UserError(happened, str(self.directory), "--force, to start afresh") from error
        if not self.quiet and state["epoch"]:
            tqdm.write(f"continuing after epoch {state['epoch'] - 1}", file=sys.stderr)
        return state["epoch"]


def has_collapsed(sizes: np.ndarray) -> bool:
    """Whether clusters of these sizes (k,) are degenerate: most are empty, or one holds most images.

    One of two clusters always holds half of the images, so few clusters have collapsed only at twice their
    equal share.
    """
    k, largest = len(sizes), sizes.max()
    crowded = largest > sizes.sum() / 2 and largest * k >= 2 * sizes.sum()
    return bool(k > 1 and (crowded or (sizes == 0).sum() > k / 2))


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that learn: all but the fixed Sobel filters."""
    return [p for p in module.parameters() if p.requires_grad]


def create_array(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """A float32 array that lies in the file `path`, which is made. OSError if the disk has no room for it."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):  # else a full disk would show as a crash (SIGBUS) when it is filled
            os.posix_fallocate(file.fileno(), 0, max(1, 4 * shape[0] * shape[1]))
        else:
            file.truncate(4 * shape[0] * shape[1])
    return np.memmap(path, dtype=np.float32, mode="r+", shape=shape)


def linear_head(dim: int, outputs: int, seed: int) -> nn.Linear:
    """A new linear layer (outputs, dim) with weights N(0, .01) and bias 0: the heads of both papers."""
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(dim, outputs, device="meta").to_empty(device="cpu")
    nn.init.normal_(head.weight, 0.0, 0.01, generator=generator)
    nn.init.zeros_(head.bias)
    return head
