"""Images of files resized in batches, as on a GPU, against the same images resized one by one; all of it on the CPU."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pictures import picture, write_image
from torchvision.transforms.functional import pil_to_tensor

from zoo import pieces
from zoo.datasets import images as reading
from zoo.datasets.imagenet10 import Small
from zoo.datasets.images import FileImages
from zoo.pieces import LARGEST, Piece, Pieces, join, needed, on
from zoo.seeds import generator
from zoo.views import Centre, CentreCrop, CropRotate, RandomCrop, ResizedCrop, Stretch, TenCrop
from zoo.windows import Window

CPU, META, GPU = map(torch.device, ("cpu", "meta", "cuda"))
EVALUATED = [Centre(20, 16), Centre(32, 32), Centre(16, 3), Stretch(17)]
TRAINED = [RandomCrop(20, 16), RandomCrop(20, 20, flip=False), ResizedCrop(16), ResizedCrop(24, (0.5, 1.0), flip=False)]
SIDES = [(28, 28), (16, 16), (13, 40), (47, 18), (20, 20), (50, 60), (30, 31)]


def in_pieces(view, pictures, seed):
    """What the batched way makes of the pictures, and the generators after it."""
    draws = [generator(seed, number) for number in range(len(pictures))]
    found = [Pieces(view).image(image, drawn) for image, drawn in zip(pictures, draws)]
    return join(found, CPU), draws


@pytest.mark.parametrize("view", EVALUATED + TRAINED, ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_of_pieces_shows_what_image_by_image_is_shown(view, channels, monkeypatch):
    monkeypatch.setattr(pieces, "PORTION", 5)  # more than one portion, the last one shorter
    monkeypatch.setattr(pieces, "LARGEST", 99)
    pictures = [picture(*sides, channels, seed) for seed, sides in enumerate(SIDES * 3)]
    seen, draws = in_pieces(view, pictures, 4)
    again = [generator(4, number) for number in range(len(pictures))]
    expected = torch.stack([view.image(image, drawn) for image, drawn in zip(pictures, again)])
    assert seen.shape == expected.shape
    assert seen.dtype == torch.uint8
    assert (seen.int() - expected.int()).abs().max() <= 1  # torch's kernel, or Pillow's other order
    in_memory = [view.tensors(pil_to_tensor(image)[None], generator(4, n))[0] for n, image in enumerate(pictures)]
    assert torch.equal(seen, torch.stack(in_memory))

    for one, other in zip(draws, again):
        assert torch.equal(one.get_state(), other.get_state())


@given(st.data())
def test_what_is_cut_away_does_not_matter(data):
    """What a window shows is made of the pixels `needed` names, and of these alone."""
    height, width, size = (data.draw(st.integers(low, 60)) for low in (1, 1, 1))
    full = data.draw(st.integers(size, 80)), data.draw(st.integers(size, 80))
    corner = data.draw(st.integers(0, full[0] - size)), data.draw(st.integers(0, full[1] - size))
    window = Window((0, 0, height, width), full, corner, data.draw(st.booleans()))
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, height, width), dtype=np.uint8))
    whole = Piece(image, (0, height, full[0], corner[0], 1), (0, width, full[1], *start(window, size)), size)
    (top, left, tall, wide), rows, columns = needed(window, size)
    piece = Piece(image[:, top : top + tall, left : left + wide], rows, columns, size)
    assert torch.equal(join([piece], CPU), join([whole], CPU))


def start(window, size):
    """The column shown first, and the step to the next."""
    return (window.corner[1] + size - 1, -1) if window.mirrored else (window.corner[1], 1)


def test_a_centre_crop_takes_less_than_the_image():
    image = picture(50, 75)
    piece = Pieces(Centre(32, 16)).image(image, generator(0))
    assert piece.pixels.shape == (3, 28, 27)  # 16 of 32 is 25 of 50 pixels, and one or two beside them for the filter


def test_large_images_are_resized_by_the_threads():
    small, large = picture(30, 40), picture(40, 16 * LARGEST + 1)
    view, seen = Stretch(16), []
    for image, sides in ((small, (30, 40)), (large, (16, 16))):
        seen.append(Pieces(view).image(image, generator(0)))
        assert seen[-1].pixels.shape[1:] == sides
    assert torch.equal(join(seen, CPU)[1], view.image(large, generator(0)))


def test_only_what_another_device_can_resize_is_left_to_it():
    for view in [*EVALUATED, *TRAINED]:
        assert on(CPU, view) is view
        assert on(GPU, view) == Pieces(view)
    for view in (TenCrop(20, 16), CropRotate((12,), 16), CentreCrop(12, 16), Small(Centre(20, 16))):
        assert on(GPU, view) is view


def test_images_that_are_made_small_first_are_no_pieces():
    view, image = ResizedCrop(16), picture(50, 60)
    seen = Small(Pieces(view)).image(image, generator(3))
    assert torch.equal(join([seen], CPU)[0], Small(view).image(image, generator(3)))


@pytest.fixture
def files(tmp_path):
    names = [f"{n}.{ending}" for n, ending in enumerate(["jpg", "png", "bmp"] * 3)]
    for n, name in enumerate(names):
        write_image(tmp_path / name, size=(30 + 9 * n, 60 - 4 * n), seed=n)
    return FileImages(tmp_path, names, None)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("view", [Centre(20, 16), RandomCrop(20, 16), ResizedCrop(10), TenCrop(20, 16)], ids=repr)
def test_files_are_read_in_pieces_as_they_are_one_by_one(files, view, workers, monkeypatch):
    order = np.array([8, 0, 0, 3, 5, 2, 7, 1])
    expected = list(files.batches(order, 3, view, seed=5))
    monkeypatch.setattr(reading, "on", lambda device, view: on(GPU, view))
    found = list(files.batches(order, 3, view, seed=5, workers=workers))
    assert [ids.tolist() for ids, _ in found] == [[8, 0, 0], [3, 5, 2], [7, 1]]
    for (_, one), (_, other) in zip(found, expected):
        assert one.shape == other.shape
        assert (one.int() - other.int()).abs().max() <= 1


@pytest.mark.parametrize("view", [Centre(20, 16), ResizedCrop(10), TenCrop(20, 16)], ids=repr)
def test_what_is_computed_from_pieces_is_computed_on_their_device(files, view):
    (_, seen), *_ = files.batches(np.arange(9), 9, view, seed=0, device=META)  # what is on the CPU cannot meet it
    assert seen.device == META
    crops = (10,) if isinstance(view, TenCrop) else ()
    assert seen.shape == (9, *crops, 3, view.size, view.size)
