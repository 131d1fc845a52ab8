"""Images with their masks, and the squares that they are laid in or that are cut out of them."""

import numpy as np
import pytest
import torch
from PIL import Image
from vocs import FEW, generate_few

from transfer.masked import MaskedImages, Placed, Whole
from zoo.seeds import generator
from zoo.voc.masks import BORDER, read_mask


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return generate_few(tmp_path_factory.mktemp("minivoc"))


def test_images_come_with_their_masks(few):
    images = MaskedImages(few, "val")
    assert len(images) == FEW["val"]
    for number, path in enumerate(few.masks("val")):
        seen = images.see(number, Whole(), generator(0))
        image = Image.open(images.path(number))
        assert seen.dtype == torch.uint8
        assert (seen[:3].permute(1, 2, 0).numpy() == np.array(image)).all()
        assert (seen[3].numpy() == read_mask(path, (image.height, image.width), 10)).all()


@pytest.mark.parametrize("side", [5, 12])
def test_squares_are_cut_out_of_images_or_hold_them(side):
    height, width = 7, 9
    image = torch.arange(height * width, dtype=torch.uint8).reshape(1, 1, height, width).expand(1, 4, -1, -1)
    view, corners = Placed(side, (201, 202, 203), flip=False), set()
    for seed in range(200):
        (seen,) = view.tensors(image, generator(seed))
        assert seen.shape == (4, side, side)
        inside = seen[3] != BORDER
        rows, columns = (inside.any(axis).nonzero().flatten() for axis in (1, 0))
        assert len(rows) == min(side, height)
        assert len(columns) == min(side, width)
        first = int(seen[3, rows[0], columns[0]])  # says which pixel of the image it is
        corners.add((int(rows[0]) - first // width, int(columns[0]) - first % width))
        part = image[0, 0, first // width :, first % width :][: len(rows), : len(columns)]
        for channel, level in zip(seen, (201, 202, 203, BORDER)):
            assert torch.equal(channel[inside].reshape(part.shape), part)
            assert (channel[~inside] == level).all()
    assert len(corners) == (1 + abs(side - height)) * (1 + abs(side - width))  # every place comes


def test_squares_are_mirrored_with_their_masks_half_the_time():
    image = torch.arange(9, dtype=torch.uint8).reshape(1, 1, 3, 3).expand(1, 4, -1, -1)
    seen = [Placed(3, (0, 0, 0), flip=True).tensors(image, generator(seed))[0] for seed in range(100)]
    mirrored = [torch.equal(one, image[0].flip(-1)) for one in seen]
    assert all(turned or torch.equal(one, image[0]) for turned, one in zip(mirrored, seen))
    assert 30 < sum(mirrored) < 70
