"""ImageNet-10: ten classes of an ImageNet folder, its images resized before any view."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from miniatures import MINIATURES, expected
from pictures import elsewhere  # noqa: F401
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from results.errors import UserError
from zoo.datasets import find
from zoo.datasets.folder import Folder
from zoo.datasets.imagenet10 import CLASSES, ImageNet10, Small
from zoo.seeds import generator
from zoo.views import Centre, CropRotate, Stretch


@pytest.fixture
def data(tmp_path, monkeypatch):
    return MINIATURES["imagenet10"](tmp_path / "data", monkeypatch)


def test_classes_are_those_of_the_paper():
    assert len(set(CLASSES)) == 10
    assert list(CLASSES) == sorted(CLASSES)  # as ImageNet's are
    assert ImageNet10.counts == {"classes": 10, "train": 13000, "val": 500}


@given(st.integers(1, 1200), st.integers(1, 900))
def test_the_pixels_are_pillow_s(width, height):
    pixels = (np.arange(width * height) % 251).astype(np.uint8).reshape(height, width)
    small = np.asarray(Image.fromarray(pixels).resize((96, 96), Image.Resampling.NEAREST))
    seen = Small(Stretch(96)).tensors(torch.from_numpy(pixels)[None, None], generator(0))
    assert np.array_equal(seen[0, 0].numpy(), small)


@pytest.mark.parametrize("view", [Centre(96, 64), CropRotate((64,), 64, flip=True), Stretch(48)])
def test_a_view_is_given_the_small_images(data, view):
    pixels, _ = expected("imagenet10", "val")
    order = np.arange(len(pixels))[::-1]
    images = find("imagenet10", data).open("val")
    for workers in (0, 2):
        (ids, seen), *_ = images.batches(order, len(order), view, seed=3, workers=workers)
        wanted = [view.tensors(torch.from_numpy(pixels[[at]]), generator(3, n))[0] for n, at in enumerate(ids)]
        assert torch.equal(seen, torch.stack(wanted).round().to(torch.uint8))


def test_images_in_memory_are_the_same(data):
    images = find("imagenet10", data).open("merged")
    assert np.array_equal(images.materialise(96).pixels, expected("imagenet10", "train")[0])


def test_cmyk_and_grey_are_converted_not_dropped(data):
    paths = sorted((data / "imagenet" / "train" / CLASSES[0]).iterdir())
    with Image.open(paths[0]) as image:
        image.convert("CMYK").save(paths[0], "JPEG")
    with Image.open(paths[1]) as image:
        image.convert("L").save(paths[1], "JPEG")
    images = find("imagenet10", data).open("train")
    (_, seen), *_ = images.batches(np.arange(30), 30, Stretch(96), seed=0)
    assert len(images) == len(seen) == 30
    for number, path in enumerate(paths[:2]):
        with Image.open(path) as image:
            small = image.convert("RGB").resize((96, 96), Image.Resampling.NEAREST)
        assert torch.equal(seen[number], pil_to_tensor(small))


def test_it_is_not_the_folder_of_its_classes(data):
    for split in ("train", "val"):
        (data / "imagenet" / split / "n01440764" / "other.JPEG").unlink()
        (data / "imagenet" / split / "n01440764").rmdir()
    folder, ten = Folder(data / "imagenet"), find("imagenet10", data)
    assert folder.classes == ten.classes
    assert folder.fingerprint() != ten.fingerprint()  # its images are others


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_that_is_not_there_is_named(data, split):
    (data / "imagenet" / split).rename(data / "away")
    with pytest.raises(UserError) as caught:
        find("imagenet10", data).preflight()
    assert str(data / "imagenet") in caught.value.looked
