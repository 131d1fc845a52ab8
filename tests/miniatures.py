"""Every data set in miniature: a few images in its official format, and what is to be read back.

`MINIATURES[name](root, monkeypatch)` writes one below `root`, brings the counts of its class down to what was written,
and gives the data_dir to find it by. `expected(name, split)` are its pixels and labels.
"""

import functools
import io
import zlib
from dataclasses import dataclass

import devkits
import numpy as np
from pictures import idx_bytes
from PIL import Image

from zoo.datasets import DATASETS, files
from zoo.datasets.dataset import UNLABELLED
from zoo.datasets.idx import FashionMnist
from zoo.datasets.imagenet10 import CLASSES as TEN
from zoo.voc import VOCS

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
WNIDS = ("n02124075", "n01443537", "n04067472", "n04540053")  # in Tiny ImageNet's order, which is not sorted


@dataclass(frozen=True)
class Sketch:
    """A miniature: images per split, of this shape (C, H, W), and the names of its classes."""

    counts: dict[str, int]
    shape: tuple[int, int, int]
    classes: tuple[str, ...]

    def pixels(self, split):
        """uint8 (N, C, H, W), other ones for each split."""
        draws = np.random.default_rng(zlib.crc32(f"{split} {self.counts} {self.shape}".encode()))
        return draws.integers(0, 256, (self.counts[split], *self.shape), dtype=np.uint8)

    def labels(self, split):
        """int64 (N,), from 0 on: the classes in turn."""
        return np.arange(self.counts[split]) % len(self.classes)

    def names(self, split):
        """The class name of each image."""
        return [self.classes[label] for label in self.labels(split)]


FINE = tuple(f"fine_{number:02}" for number in range(100))
COARSE = tuple(f"coarse_{number:02}" for number in range(20))
SKETCHES = {
    "mnist": Sketch({"train": 60, "test": 20}, (1, 28, 28), tuple("0123456789")),
    "fashion-mnist": Sketch({"train": 50, "test": 30}, (1, 28, 28), tuple("0123456789")),
    "cifar10": Sketch({"train": 100, "test": 20}, (3, 32, 32), CIFAR10),
    "cifar100": Sketch({"train": 120, "test": 40}, (3, 32, 32), FINE),
    "cifar100-20": Sketch({"train": 120, "test": 40}, (3, 32, 32), COARSE),
    "stl10": Sketch({"train": 40, "test": 20, UNLABELLED: 30}, (3, 96, 96), STL10),
    "tiny-imagenet": Sketch({"train": 24, "val": 8}, (3, 64, 64), tuple(sorted(WNIDS))),
    "imagenet10": Sketch({"train": 30, "val": 10}, (3, 100, 120), TEN),
    "imagenet": Sketch({"train": 12, "val": 6}, (3, 80, 80), ("n01440764", "n01443537", "n01484850")),
    "places205": Sketch({"train": 12, "val": 6}, (3, 80, 80), ("a/abbey", "a/apartment_building/outdoor", "y/yard")),
    "places365": Sketch({"train": 12, "val": 6}, (3, 80, 80), ("airfield", "apartment_building-outdoor", "zen_garden")),
}


def write_idx(root, name):
    """Four files as torchvision unpacks them."""
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = SKETCHES[name].pixels(split)[:, 0], SKETCHES[name].labels(split).astype(np.uint8)
        put(root / name / f"{prefix}-images-idx3-ubyte", idx_bytes(images))
        put(root / name / f"{prefix}-labels-idx1-ubyte", idx_bytes(labels))


def write_cifar10(root, name):
    """cifar-10-binary.tar.gz: five training files and one for testing, records of 1 + 3072 bytes."""
    folder = root / "cifar-10-batches-bin"
    train = np.split(records(name, "train", labels_of(name, "train")), 5)
    for number, part in enumerate(train, 1):
        put(folder / f"data_batch_{number}.bin", part.tobytes())
    put(folder / "test_batch.bin", records(name, "test", labels_of(name, "test")).tobytes())
    put(folder / "batches.meta.txt", "\n".join(CIFAR10).encode() + b"\n\n")  # with an empty line at the end


def write_cifar100(root, name):
    """cifar-100-binary.tar.gz: a file each, records of 2 + 3072 bytes; the coarse label is first."""
    folder = root / "cifar-100-binary"
    for split in ("train", "test"):
        labels = np.concatenate([labels_of("cifar100-20", split), labels_of("cifar100", split)], 1)
        put(folder / f"{split}.bin", records(name, split, labels).tobytes())
    put(folder / "fine_label_names.txt", "\n".join(FINE).encode() + b"\n")
    put(folder / "coarse_label_names.txt", "\n".join(COARSE).encode() + b"\n")


def write_stl10(root, name):
    """stl10_binary.tar.gz: pixels column by column, labels from 1 on."""
    folder = root / "stl10_binary"
    for split, stem in (("train", "train"), ("test", "test"), (UNLABELLED, "unlabeled")):
        put(folder / f"{stem}_X.bin", SKETCHES[name].pixels(split).transpose(0, 1, 3, 2).tobytes())
    for split in ("train", "test"):
        put(folder / f"{split}_y.bin", (labels_of(name, split) + 1).tobytes())
    put(folder / "class_names.txt", "\n".join(STL10).encode() + b"\n")


def write_tiny_imagenet(root, name):
    """tiny-imagenet-200.zip."""
    folder = root / "tiny-imagenet-200"
    put(folder / "wnids.txt", "\n".join(WNIDS).encode())
    put(folder / "words.txt", "".join(f"{wnid}\ta thing\n" for wnid in sorted(WNIDS)).encode())
    for number, (content, wnid) in enumerate(zip(jpegs(name, "train"), SKETCHES[name].names("train"))):
        put(folder / "train" / wnid / "images" / f"{wnid}_{number:03}.JPEG", content)
    for wnid in WNIDS:
        put(folder / "train" / wnid / f"{wnid}_boxes.txt", f"{wnid}_000.JPEG\t0\t0\t62\t62\n".encode())
    lines = []
    for number, (content, wnid) in enumerate(zip(jpegs(name, "val"), SKETCHES[name].names("val"))):
        put(folder / "val" / "images" / f"val_{number}.JPEG", content)
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t{number}\t43\t62\n")
    put(folder / "val" / "val_annotations.txt", "".join(lines).encode())
    put(folder / "test" / "images" / "test_0.JPEG", content)


def write_classes(folder, root, name):
    """train/CLASS/IMAGE and val/CLASS/IMAGE below root/folder."""
    for split in ("train", "val"):
        for number, (content, chosen) in enumerate(zip(jpegs(name, split), SKETCHES[name].names(split))):
            put(root / folder / split / chosen / f"{split}_{number:08}.JPEG", content)


def write_imagenet10(root, name):
    """An ImageNet folder, with a class that is none of the ten."""
    write_classes("imagenet", root, name)
    for split in ("train", "val"):
        put(root / "imagenet" / split / "n01440764" / "other.JPEG", jpegs(name, "val")[0])


WRITERS = {
    "digits": lambda root, name: None,
    "mnist": write_idx,
    "fashion-mnist": write_idx,
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "cifar100-20": write_cifar100,
    "stl10": write_stl10,
    "tiny-imagenet": write_tiny_imagenet,
    "imagenet10": write_imagenet10,
    "imagenet": functools.partial(write_classes, "imagenet"),
    "places205": functools.partial(write_classes, "places205"),
    "places365": functools.partial(write_classes, "places365_standard"),
    "voc2007": lambda root, name: devkits.write_devkit(root, "2007"),
    "voc2012": lambda root, name: devkits.write_devkit(root, "2012"),
    "minivoc": lambda root, name: None,
    "minivoc-fashion": lambda root, name: write_idx(root, "fashion-mnist"),
}


def write(name, root, monkeypatch):
    """One miniature below `root`; its data_dir. Nothing is remembered in the clone."""
    monkeypatch.setattr(files, "ROOT", root / "clone")
    WRITERS[name](root, name)
    if name in SKETCHES:
        sketch, kind = SKETCHES[name], DATASETS[name]
        if hasattr(kind, "counts"):
            monkeypatch.setattr(kind, "counts", {"classes": len(sketch.classes), **sketch.counts})
        else:
            monkeypatch.setattr(kind, "splits", sketch.counts)
    elif name.startswith("voc"):
        devkits.shrink(monkeypatch, VOCS[name])
    elif name == "minivoc-fashion":
        monkeypatch.setattr(FashionMnist, "splits", SKETCHES["fashion-mnist"].counts)
    return root


MINIATURES = {name: functools.partial(write, name) for name in WRITERS}


def expected(name, split):
    """Pixels (N, C, H, W) and labels (N,) or None, in the order in which they are to be read."""
    sketch = SKETCHES[name]
    pixels, labels = sketch.pixels(split), sketch.labels(split)
    if hasattr(DATASETS[name], "counts"):
        images = [Image.open(io.BytesIO(content)).convert("RGB") for content in jpegs(name, split)]
        if name == "imagenet10":
            images = [image.resize((96, 96), Image.Resampling.NEAREST) for image in images]
        pixels = np.stack([np.asarray(image).transpose(2, 0, 1) for image in images])
        listed = name == "tiny-imagenet" and split == "val"
        order = np.arange(len(labels)) if listed else np.argsort(labels, kind="stable")
        pixels, labels = pixels[order], labels[order]
    return pixels, None if split == UNLABELLED else labels


def records(name, split, labels):
    """uint8 (N, bytes): the label bytes, then the pixels."""
    return np.concatenate([labels, SKETCHES[name].pixels(split).reshape(len(labels), -1)], 1)


def labels_of(name, split):
    """uint8 (N, 1)."""
    return SKETCHES[name].labels(split).astype(np.uint8)[:, None]


@functools.cache
def jpegs(name, split):
    """The images as JPEG files."""
    contents = []
    for image in SKETCHES[name].pixels(split):
        file = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(file, "JPEG")
        contents.append(file.getvalue())
    return contents


def put(path, content):
    """A file, and the folders it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
