"""Power iteration clustering given the graph: seconds and memory, one line of a markdown table a size.

    python -m benchmarks.pic                            10 000, 100 000 and 1 300 000 nodes: a quarter of a minute
    python -m benchmarks.pic --nodes 50000

The graphs are synthetic: 5 random neighbours a node, squared distances uniform in 0–0.2. Random neighbours lie all over
the memory, which is the slowest case. Memory is what is allocated on top of the graph at the peak, in a run of its own,
for counting it takes time.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc

import numpy as np

from zoo.clustering.pic import pic
from zoo.device import prepare

NEIGHBOURS = 5


def random_graph(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Random neighbours (nodes, 5) int64, none of them the node itself, and rising squared distances, float32."""
    generator = np.random.default_rng(0)
    steps = generator.integers(1, nodes, (nodes, NEIGHBOURS))
    distances = generator.random((nodes, NEIGHBOURS), dtype=np.float32) * np.float32(0.2)
    return (np.arange(nodes)[:, None] + steps) % nodes, np.sort(distances)


def measure(nodes: int) -> tuple[int, float, float]:
    """How many clusters there are, the seconds they took, and the mebibytes at the peak."""
    graph = random_graph(nodes)
    start = time.perf_counter()
    clusters = int(pic(*graph).max()) + 1
    seconds = time.perf_counter() - start
    tracemalloc.start()
    pic(*graph)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return clusters, seconds, peak / 2**20


def main() -> None:
    """Measure each size and print its line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[10_000, 100_000, 1_300_000])
    sizes = parser.parse_args().nodes
    prepare(1)
    pic(*random_graph(1000))  # libraries are loaded before the clock starts
    print("| random graph, nodes × neighbours | clusters | PIC on one core, s | memory beside the graph, MiB |")
    print("|---|---|---|---|")
    for nodes in sizes:
        clusters, seconds, mebibytes = measure(nodes)
        print(f"| {nodes} × {NEIGHBOURS} | {clusters} | {seconds:.2f} | {mebibytes:.0f} |")


if __name__ == "__main__":
    main()
