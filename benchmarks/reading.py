"""What reading a folder of JPEGs costs: our decoding and cropping against the plain one, image by image with Pillow.

    python -m benchmarks.reading

Both make the training view of DeepCluster (a random resized crop of 224 px, mirrored half the time, uint8) of a
generated folder of JPEGs of 256–500 px a side, on one thread. Then AlexNet with Sobel takes training steps on ready
tensors with all threads: a core's time for reading an image, over its time for reading and learning it, is the share
that reading costs where the same cores do both.

Times are the processor's, not the clock's, and the two ways of reading take turns: other work on the machine slows
both, by its use of caches and memory, but does not count as theirs.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import transforms

from zoo.backbones import build
from zoo.datasets.folder import Folder
from zoo.device import prepare
from zoo.views import ResizedCrop

COUNT, SIZE, BATCH = 400, 224, 64


def write_photographs(folder: Path, count: int) -> None:
    """`count` JPEGs of noise whose spectrum falls as that of photographs does (1 / f): some 90 kB each."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.rfftfreq(512))
    for number in range(count):
        spectrum = np.fft.rfft2(rng.normal(size=(3, 512, 512))) / np.maximum(frequency, 1 / 512)
        pixels = np.fft.irfft2(spectrum).transpose(1, 2, 0)
        pixels = ((pixels - pixels.mean()) / pixels.std() * 50 + 120).clip(0, 255).astype(np.uint8)
        height, width = rng.integers(256, 501, 2)
        Image.fromarray(pixels[:height, :width]).save(folder / f"{number:04}.jpg", quality=90)


def seconds(*works: Callable[[], object], repeats: int = 5) -> list[float]:
    """Core seconds of each work: the shortest of a few runs by turns, after one that warms up."""
    times = [[core_seconds(work) for work in works] for _ in range(1 + repeats)]
    return [min(runs) for runs in zip(*times[1:])]


def core_seconds(work: Callable[[], object]) -> float:
    """Processor time of one run, of all its threads together."""
    start = time.process_time()
    work()
    return time.process_time() - start


def plain(folder: Path) -> Callable[[], None]:
    """Reads the folder by torchvision's transforms on Pillow images."""
    view = transforms.Compose(
        [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    )
    paths = sorted(folder.glob("*.jpg"))

    def read() -> None:
        for path in paths:
            view(Image.open(path).convert("RGB"))

    return read


def ours(folder: Path) -> Callable[[], None]:
    """Reads it as the suite's batches, in the thread that asks for them."""
    images = Folder(folder).read("train")

    def read() -> None:
        for _ in images.batches(np.arange(len(images)), BATCH, ResizedCrop(SIZE), seed=0):
            pass

    return read


def learning() -> float:
    """Core seconds an image of AlexNet's training steps on ready tensors."""
    model = build("alexnet", sobel=True).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    x = torch.randn(BATCH, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    target = torch.randint(0, 1000, (BATCH,))
    head = torch.nn.Linear(model.embedding_dim, 1000)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(head(torch.relu(model.embed(x))), target).backward()
        optimizer.step()

    return seconds(step)[0] / BATCH


def main() -> None:
    """Time all three and print one line of Markdown."""
    prepare(None)
    with tempfile.TemporaryDirectory() as place:
        write_photographs(Path(place), COUNT)
        torch.set_num_threads(1)
        before, now = (total / COUNT for total in seconds(plain(Path(place)), ours(Path(place))))
    torch.set_num_threads(os.cpu_count() or 1)
    step = learning()
    head = ("JPEGs", "Pillow, images/s a core", "ours, images/s a core", "ratio", "AlexNet steps, images/s a core")
    head += ("reading, share of a step: Pillow", "ours")
    shares = [f"{100 * read / (read + step):.1f} %" for read in (before, now)]
    values = (str(COUNT), f"{1 / before:.0f}", f"{1 / now:.0f}", f"{before / now:.2f}", f"{1 / step:.1f}", *shares)
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|\n| {' | '.join(values)} |")


if __name__ == "__main__":
    main()
