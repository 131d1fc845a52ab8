"""Small pictures, and small data sets on the disk, for the tests of views and data sets."""

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from zoo.datasets import __main__, files
from zoo.datasets.idx import FashionMnist, Mnist

COUNTS = {"train": 6, "test": 4}
PACKAGED = FashionMnist.packaged  # before the fixture below hides it
SPLIT = ["train/cat/1.jpg", "train/cat/2.JPG", "train/dog/3.png", "val/cat/4.jpeg", "val/dog/5.bmp"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No data set of this machine is found, and nothing is remembered in the clone."""
    monkeypatch.delenv("ZOO_DATA", raising=False)
    for module in (files, __main__):
        monkeypatch.setattr(module, "ROOT", tmp_path / "clone")
    monkeypatch.setattr(FashionMnist, "packaged", ())


class Tiny(Mnist):
    """MNIST with ten images."""

    splits = COUNTS


def idx_bytes(array):
    """The content of an idx file of unsigned bytes."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(place, compress=True, seed=0, **replaced):
    """The four files, but for those whose content is given (None: left out)."""
    draws = np.random.default_rng(seed)
    place.mkdir(parents=True, exist_ok=True)
    contents = {}
    for prefix, count in (("train", 6), ("t10k", 4)):
        images = draws.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        contents[f"{prefix}-images-idx3-ubyte"] = idx_bytes(images)
        contents[f"{prefix}-labels-idx1-ubyte"] = idx_bytes(np.arange(count, dtype=np.uint8))
    contents |= {name.replace("_", "-"): content for name, content in replaced.items()}
    for name, content in contents.items():
        if content is not None:
            path = place / (name + ".gz" if compress else name)
            path.write_bytes(gzip.compress(content) if compress else content)
    return place


def write_image(path, size=(12, 10), seed=0, **options):
    """A small picture, in the format its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def write_folder(root, layout):
    """An image at each path."""
    for seed, path in enumerate(layout):
        write_image(root / path, seed=seed)
    return root


def picture(height, width, channels=3, seed=0):
    """A picture with slopes and noise, as Pillow has it."""
    draws = np.random.default_rng(seed)
    slopes = np.linspace(0, 200, height)[:, None, None] * np.linspace(0.2, 1, width)[None, :, None]
    pixels = np.clip(slopes + draws.integers(0, 56, (height, width, channels)), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])


def batch(count, height, width, channels=3):
    """uint8 (count, channels, height, width) and the same as Pillow images."""
    pictures = [picture(height, width, channels, seed) for seed in range(count)]
    return torch.stack([pil_to_tensor(image) for image in pictures]), pictures


def agree(found, expected, before, after):
    """Equal; or off by one where Pillow 13 and later take the columns first (see zoo/warp.py)."""
    rows, columns = before[0] - after[0], before[1] - after[1]
    allowed = int(rows > 0 and rows > 2 * columns)
    return (found.int() - expected.int()).abs().max() <= allowed
