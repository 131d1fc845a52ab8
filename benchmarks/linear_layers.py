"""What one pass for all layers saves: `probes.linear --layer all` against one run a layer, as a user types them.

    python -m benchmarks.linear_layers                       digits: images in memory, alexnet32 at 32 px
    python -m benchmarks.linear_layers --backbone alexnet    the same, AlexNet at 224 px
    python -m benchmarks.linear_layers --jpegs 400 --epochs 10
                                                             a generated folder of JPEGs, alexnet32 at 32 px
    python -m benchmarks.linear_layers --jpegs 400 --epochs 2 --backbone alexnet-sobel

Each run is a process of its own with an empty store and cache. The ratio is the five runs' time over the one's.
What all layers share is read once: start, decoding, and the forward pass to the deepest layer. A pass that stops at
a layer needs fewer multiply-adds, so where these are most of the time the ratio has a bound: for AlexNet at 224 px,
of whose conv layers the first needs 7 % and the first four 50, 64 and 86 %, it is 3.1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")


def write_jpegs(folder: Path, count: int, classes: int = 10) -> None:
    """`count` training and a fifth as many validation JPEGs, 375–500 px, smooth noise on a class's own colour."""
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("val", count // 5)):
        for image in range(number):
            label = image % classes
            width, height = rng.integers(375, 501, 2)
            coarse = rng.integers(0, 256, (12, 16, 3)) * 0.5 + 12.0 * label
            path = folder / split / f"class{label}" / f"{image}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize(
                (int(width), int(height)), Image.BICUBIC
            )
            picture.save(path, quality=90)


def timed(layer: str, words: list[str]) -> float:
    """Seconds of one `probes.linear` process for `layer`, nothing cached or recorded before."""
    with tempfile.TemporaryDirectory() as place:
        command = [
            sys.executable,
            "-m",
            "probes.linear",
            "--layer",
            layer,
            "--store",
            f"{place}/records",
            "--runs",
            place,
        ]
        start = time.perf_counter()
        subprocess.run(
            [*command, "--cache", f"{place}/cache", "--quiet", *words], check=True, stdout=subprocess.DEVNULL
        )
        return time.perf_counter() - start


def main() -> None:
    """Time both ways and print one line of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="alexnet32", help="of the random checkpoint, `-sobel` added if it has it")
    parser.add_argument("--jpegs", type=int, default=0, help="training images of the generated folder; 0: digits")
    parser.add_argument("--epochs", type=int, default=0, help="0: the protocol's number")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = ["--checkpoint", f"random-{chosen.backbone}@0", "--epochs", str(chosen.epochs)]
        if chosen.jpegs:
            write_jpegs(Path(folder), chosen.jpegs)
            words += ["--dataset", f"folder:{folder}"]
        together = timed("all", words)
        single = {layer: timed(layer, words) for layer in LAYERS}
    data = f"{chosen.jpegs} JPEGs, {chosen.backbone}" if chosen.jpegs else f"digits, {chosen.backbone}"
    print("| data | processors | all layers, s | " + " | ".join(f"{layer}, s" for layer in LAYERS) + " | ratio |")
    print("|---" * (4 + len(LAYERS)) + "|")
    times = " | ".join(f"{value:.1f}" for value in single.values())
    print(f"| {data} | {os.cpu_count()} | {together:.1f} | {times} | {sum(single.values()) / together:.2f} |")


if __name__ == "__main__":
    main()
