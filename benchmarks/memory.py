"""Anonymous memory of a pretraining run as the number of images grows, and over its epochs.

    python -m benchmarks.memory                            10 000, 40 000 and 160 000 images: a quarter of an hour
    python -m benchmarks.memory --methods deepcluster --clustering gmm --images 10000 40000
    python -m benchmarks.memory --methods deepcluster --clustering pic --images 10000 40000

Each run is a process of its own with one thread, watched from outside: RssAnon of /proc/PID/status, the bytes that no
file holds, every few milliseconds. The images lie in a file that is mapped into memory, so that they count nothing;
MMDC copies them and makes centre crops, which the last column leaves out. It has the largest peak's growth over that
of the row above. The network is alexnet32 at 8 px: what an image costs beside itself is its row of some arrays,
whatever the network. (DeepCluster's descriptors and whitened points lie in files too. PIC finds more clusters in more
of these images, which are noise; its centroids and head grow with them.)
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretrain.deepcluster import DeepCluster
from pretrain.mmdc import MMDC
from zoo import device as devices
from zoo.clustering.partition import CLUSTERINGS
from zoo.datasets.digits import Digits
from zoo.datasets.images import ArrayImages
from zoo.run import Method
from zoo.training import Training

SIDE, EPOCHS, EVERY = 8, 5, 0.004  # pixels, epochs, seconds
RUNS: dict[str, Method] = {
    "deepcluster": DeepCluster(k=100, epochs=EPOCHS, batch=256),
    "mmdc": MMDC(backbone="alexnet32", epochs=EPOCHS, batch=256, refine_at=1, side=SIDE, size=SIDE, crops=(SIDE, 7)),
}
HELD = {"deepcluster": 0, "mmdc": 2 * SIDE**2}  # bytes of an image and its centre crop, where a method copies them


class Marked(Training):
    """A run that says on stdout when an epoch begins, and when the last has ended."""

    def epochs(self, total: int, **parts: Any) -> Iterator[int]:
        """See Training.epochs."""
        for epoch in super().epochs(total, **parts):
            mark()
            yield epoch
        mark()


def mark() -> None:
    """Print the time, by a clock that all processes share."""
    print(time.monotonic(), flush=True)


def train(method: Method, count: int) -> None:
    """Train on `count` generated images; prints marks of the time: begun, each epoch, after them, at the end."""
    devices.prepare(1)
    dataset = Digits()
    with tempfile.TemporaryDirectory() as folder:
        pixels = np.memmap(Path(folder) / "images.u8", np.uint8, "w+", shape=(count, 1, SIDE, SIDE))
        rng = np.random.default_rng(0)
        for block in np.split(pixels, range(10000, count, 10000)):
            block[:] = rng.integers(256, size=block.shape, dtype=np.uint8)
        images = ArrayImages(torch.from_numpy(pixels), np.arange(count) % 10)
        seen = replace(method.preprocessing(dataset), size=SIDE, resize=SIDE)
        run = Marked(method, dataset, images, seen, torch.device("cpu"), Path(folder), quiet=True)
        mark()
        method.train(run)
        mark()


def watch(command: Sequence[str]) -> list[int]:
    """The most anonymous memory of a process, in bytes, between each of the times that it prints and the next."""
    samples: list[tuple[float, int]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            samples.append((time.monotonic(), anonymous_bytes(process.pid)))
            time.sleep(EVERY)
        marks = [float(line) for line in process.stdout or ()]
    if process.returncode:
        raise SystemExit(process.returncode)
    return peaks(samples, marks)


def anonymous_bytes(process: int) -> int:
    """RssAnon of a process; 0 if it has ended."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def peaks(samples: Sequence[tuple[float, int]], marks: Sequence[float]) -> list[int]:
    """The largest of the samples (time, bytes) between each mark and the next; 0 where there is none."""
    return [max((held for at, held in samples if begin <= at < end), default=0) for begin, end in pairwise(marks)]


def table(found: dict[str, dict[int, list[int]]]) -> Iterator[str]:
    """The lines of the table, from the peaks of each method and number of images."""
    phases = ["beginning", *(f"epoch {epoch}" for epoch in range(EPOCHS)), "end"]
    head = ["method", "images", *(f"{phase}, MB" for phase in phases), "kB an image"]
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for name, by_count in found.items():
        for fewer, count in pairwise([0, *by_count]):
            grown = f"{slope(by_count, fewer, count) - HELD[name] / 1000:.2f}" if fewer else ""
            sizes = [f"{held / 1e6:.0f}" if held else "" for held in by_count[count]]
            yield f"| {' | '.join([name, str(count), *sizes, grown])} |"


def slope(by_count: dict[int, list[int]], fewer: int, count: int) -> float:
    """Kilobytes by which the largest peak grows with an image more."""
    return (max(by_count[count]) - max(by_count[fewer])) / (count - fewer) / 1000


def main() -> None:
    """Measure each size of each method and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 40_000, 160_000])
    parser.add_argument("--methods", choices=RUNS, nargs="+", default=list(RUNS))
    parser.add_argument("--clustering", choices=CLUSTERINGS, default="kmeans", help="DeepCluster's")
    parser.add_argument("--watched", action="store_true", help=argparse.SUPPRESS)  # the run itself
    chosen = parser.parse_args()
    if chosen.watched:
        name, count = chosen.methods[0], chosen.images[0]
        own = {"clustering": chosen.clustering} if name == "deepcluster" else {}
        train(replace(RUNS[name], **own), count)
        return
    words = [sys.executable, "-m", "benchmarks.memory", "--watched", "--clustering", chosen.clustering]
    found = {
        name: {n: watch([*words, "--methods", name, "--images", str(n)]) for n in sorted(chosen.images)}
        for name in chosen.methods
    }
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
