"""What DeepCluster takes at the size of ImageNet and of 100 million images: derived, not measured.

    python -m benchmarks.scale

For AlexNet with Sobel and k = 10 000 on JPEG folders, by 1 and 8 processes: what each holds in memory and on disk, what
it sends in an epoch, and how long an epoch's arithmetic takes at a rate that is assumed. Batch 256 as in the paper; at
100 million images one would take larger ones, which divides the gradients' traffic.
"""

from __future__ import annotations

from pretrain.deepcluster import DeepCluster
from zoo.backbones import build
from zoo.cost import Cost
from zoo.datasets import find

RATE = 2e13  # multiply-adds a second that a process sustains: 40 TFLOP/s, a guess for one GPU
PATH = 48  # bytes a file's name and label take in each process
SIZES = {"ImageNet": 1_281_167, "100 M images": 100_000_000}


def traffic(method: DeepCluster, count: int, processes: int) -> int:
    """Bytes that a process sends in an epoch: gradients, the covariance, k-means' sums, assignments."""
    if processes == 1:
        return 0
    model = build(method.backbone, sobel=method.sobel)
    parameters = sum(p.numel() for p in model.parameters()) + method.k * (model.embedding_dim + 1)
    gradients = 4 * parameters * -(-count // method.batch)
    covariance = 8 * model.embedding_dim**2
    clustering = 8 * method.k * (method.pca + 1) * (method.iterations + 1)
    ring = 2 * (processes - 1) / processes  # of what is summed, each sends nearly twice the size
    return round(ring * (gradients + covariance + clustering) + 8 * count)


def memory(cost: Cost, count: int) -> float:
    """Bytes that grow with the images, in each process, which knows something of all: names, labels, clusters."""
    return cost.memory + count * PATH


def row(name: str, count: int, processes: int) -> list[str]:
    """A line of the table."""
    dataset = find("imagenet")
    method = DeepCluster(**{**DeepCluster.presets["imagenet"], "processes": processes})
    cost = method.cost(dataset, count)
    gib = [memory(cost, count), cost.scratch / processes, traffic(method, count, processes)]
    hours = sum(cost.phases.values()) / RATE / processes / 3600
    return [name, str(processes), *(f"{value / 2**30:,.1f}" for value in gib), f"{hours:.2f}"]


def main() -> None:
    """Print the table as Markdown."""
    head = ["images", "processes", "memory a process, GiB", "on disk a process, GiB"]
    head += ["sent a process and epoch, GiB", f"hours an epoch at {RATE:.0e} multiply-adds/s a process"]
    rows = [row(name, count, processes) for name, count in SIZES.items() for processes in (1, 8)]
    for line in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
