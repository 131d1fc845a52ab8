"""How much of MMDC's speed its data handling costs: an epoch against the bare steps on ready tensors.

    python -m benchmarks.mmdc_epoch                    70 000 images of MNIST's size, bf16, two rounds
    python -m benchmarks.mmdc_epoch --images 7000 --precision fp32

Both do the same work on the network: for each batch of 128 the assignment (forward pass in eval mode, Hungarian
matching) and the training step. The epoch also shuffles, augments as the paper does and normalises; its evaluation pass
is timed apart. Rounds alternate, so that a machine that slows down slows both; the ratio is of the medians.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.mmdc import MMDC, Targets, evaluate, parameter_groups, step, unit_outputs
from zoo import device as devices
from zoo.datasets.idx import Mnist
from zoo.datasets.images import ArrayImages
from zoo.training import Training


def bare_steps(
    network: nn.ModuleDict, optimizer: torch.optim.Optimizer, targets: Targets, ready: Tensor, run: Training
) -> None:
    """Assignment and training step on every batch of network inputs (N, C, h, w), one after the other."""
    for rows in torch.arange(len(ready)).split(run.settings.batch):
        x = ready[rows].contiguous(memory_format=torch.channels_last)
        network.eval()
        with torch.inference_mode():
            outputs = unit_outputs(network, x, run)
        targets.assign(rows, outputs)
        network.train()
        step(optimizer, F.mse_loss(unit_outputs(network, x, run), targets[rows]))


def seconds(work: object, *arguments: object) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    work(*arguments)  # type: ignore[operator]
    return time.perf_counter() - start


def main() -> None:
    """Time both and print one line of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=70000)
    parser.add_argument("--precision", choices=devices.PRECISIONS, default="bf16")
    parser.add_argument("--rounds", type=int, default=2)
    chosen = parser.parse_args()
    devices.prepare(None)
    method = MMDC(**MMDC.presets["mnist"], precision=chosen.precision)
    dataset = Mnist(None)
    pixels = torch.randint(
        256, (chosen.images, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    images = ArrayImages(pixels, np.arange(chosen.images) % 10)
    with tempfile.TemporaryDirectory() as folder:
        place, cpu = Path(folder), torch.device("cpu")
        run = Training(method, dataset, images, method.preprocessing(dataset), cpu, place, quiet=True)
        network = method.build_network(run, 10)
        optimizer = torch.optim.SGD(parameter_groups(network, method.weight_decay), method.lr, method.momentum)
        centre = method.centre_crops(run)
        targets = Targets.draw(len(images), 10, 10, "one_hot", 0.0, 0)
        ready = run.preprocessing.normalise(centre.pixels)
        bare_steps(network, optimizer, targets, ready[:2048], run)  # warm up
        times: dict[str, list[float]] = {"epoch": [], "bare": [], "evaluation": []}
        for number in range(chosen.rounds):
            times["epoch"].append(seconds(method.learn, network, optimizer, centre, targets, run, number))
            times["bare"].append(seconds(bare_steps, network, optimizer, targets, ready, run))
            times["evaluation"].append(seconds(evaluate, network, centre, run))
    rate = {name: chosen.images / median(values) for name, values in times.items()}
    print("| images | precision | threads | epoch, images/s | bare steps, images/s | ratio | evaluation, images/s |")
    print("|---|---|---|---|---|---|---|")
    setting = f"| {chosen.images} | {chosen.precision} | {torch.get_num_threads()} "
    ratio = rate["epoch"] / rate["bare"]
    print(f"{setting}| {rate['epoch']:.0f} | {rate['bare']:.0f} | {ratio:.3f} | {rate['evaluation']:.0f} |")


if __name__ == "__main__":
    main()
