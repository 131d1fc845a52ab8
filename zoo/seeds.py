"""Seeds for single purposes, derived from a run's one seed: nothing draws from a global generator.

generator(seed, "k-means", epoch)
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the purpose that `names` say: the same on every machine, another for another purpose.

    The first 8 bytes of the sha256 of the JSON list [seed, *names] (1 and "1" differ), without the top bit.
    """
    parts = [int(seed), *(name if isinstance(name, str) else int(name) for name in names)]
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8]) >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A torch generator on the CPU: what it draws does not depend on the device of the run."""
    return torch.Generator().manual_seed(derive(seed, *names))


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """A numpy generator, seeded likewise."""
    return np.random.default_rng(derive(seed, *names))
