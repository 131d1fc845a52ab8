"""scikit-learn's digits, embedded in that package: 1 797 grey images (evaluation.md, last section)."""

from __future__ import annotations

import hashlib
from functools import cached_property

import numpy as np
import torch
from PIL import Image

from zoo.datasets.dataset import Dataset
from zoo.datasets.images import ArrayImages

SIZE = 32
VERSION = 1  # of the way the images are made; part of the fingerprint


class Digits(Dataset):
    """8 x 8 images of values 0..16, scaled to 0..255 and resized to 32 x 32; one in five is for testing."""

    name = "digits"
    channels = 1
    size = SIZE
    classes = tuple("0123456789")
    splits = {"train": 1438, "test": 359}  # noqa: RUF012
    mean = (0.3061,)
    std = (0.3239,)
    flips = False
    licence = "CC BY 4.0 (UCI Optical Recognition of Handwritten Digits)"
    source = "part of scikit-learn: nothing to download"

    def preflight(self) -> None:
        """Nothing can be missing."""

    def read(self, split: str) -> ArrayImages:
        """See Dataset.read."""
        pixels, labels = self._arrays
        test = np.arange(len(labels)) % 5 == 4
        chosen = np.flatnonzero(test if split == "test" else ~test)
        return ArrayImages(torch.from_numpy(pixels[chosen])[:, None], labels[chosen])

    def fingerprint(self, full: bool = False) -> str:
        """See Dataset.fingerprint: pixels, labels and version; always of every byte."""
        pixels, labels = self._arrays
        content = hashlib.sha256(f"digits@{VERSION}".encode())
        content.update(pixels.tobytes())
        content.update(labels.astype(np.uint8).tobytes())
        return content.hexdigest()

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (1797, 32, 32), int64 (1797,)."""
        from sklearn.datasets import load_digits  # a second's import, for this data set alone

        found = load_digits()
        levels = np.rint(found.images * (255 / 16)).astype(np.uint8)
        large = [np.asarray(Image.fromarray(i).resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for i in levels]
        return np.stack(large), found.target.astype(np.int64)
