"""What the processes of test_processes.py compute on."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from zoo.datasets.images import ArrayImages, FileImages
from zoo.views import ResizedCrop

_rng = np.random.default_rng(0)
_centres = _rng.normal(size=(6, 12)) * 4
POINTS = (_centres[_rng.integers(0, 6, 301)] + _rng.normal(size=(301, 12))).astype(np.float32)  # no even number
START = POINTS[[5, 80, 120, 200, 250, 299]]
DUPLICATES = np.repeat(_rng.normal(size=(5, 12)).astype(np.float32), [40, 1, 1, 1, 1], axis=0)
PIXELS = _rng.integers(0, 256, (25, 3, 20, 20), dtype=np.uint8)
ORDER = _rng.permutation(25)  # in batches of 8 that leaves one image: not enough for two processes
VIEW = ResizedCrop(16)


def write_files(folder):
    """The images as files in a folder of their own."""
    for number, image in enumerate(PIXELS):
        path = Path(folder) / f"{number}.png"
        if not path.exists():
            Image.fromarray(image.transpose(1, 2, 0)).save(path)
    return FileImages(Path(folder), [f"{number}.png" for number in range(25)], None)


IMAGES = {"arrays": lambda folder: ArrayImages(torch.from_numpy(PIXELS), None), "files": write_files}


def build_linear():
    """A linear model, always the same."""
    model = torch.nn.Linear(12, 1)
    with torch.no_grad():
        model.weight.fill_(0.01)
        model.bias.fill_(0.1)
    return model
