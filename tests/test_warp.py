"""Resizes, crops and rotations against Pillow's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import agree, batch, picture
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from zoo import warp

BILINEAR = Image.Resampling.BILINEAR


@settings(max_examples=60)
@given(*[st.integers(1, 40)] * 4, st.integers(0, 10**6))
def test_resize_is_pillows_to_the_bit(height, width, new_height, new_width, seed):
    pixels = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (2, 1, height, width), dtype=np.uint8))
    found = warp.resize(pixels, new_height, new_width)
    for before, after in zip(pixels, found):
        expected = pil_to_tensor(Image.fromarray(before[0].numpy()).resize((new_width, new_height), BILINEAR))
        assert agree(after, expected, (height, width), (new_height, new_width))


@settings(max_examples=60)
@given(st.data())
def test_resized_crops_are_pillows_to_the_bit(data):
    boxes = [box(data, 15, 21) for _ in range(3)]
    size = data.draw(st.integers(1, 30))
    pixels, pictures = batch(3, 15, 21)
    found = warp.resize_crops(pixels, torch.tensor(boxes), size)
    for image, (top, left, tall, wide), seen in zip(pictures, boxes, found):
        cut = image.crop((left, top, left + wide, top + tall))
        expected = pil_to_tensor(cut.resize((size, size), BILINEAR))
        assert agree(seen, expected, (tall, wide), (size, size))


def box(data, height, width):
    """top, left, height, width of any box in an image."""
    tall, wide = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    return [data.draw(st.integers(0, height - tall)), data.draw(st.integers(0, width - wide)), tall, wide]


@pytest.mark.parametrize("side", [28, 24, 20, 16])
@pytest.mark.parametrize("place", [(0, 0), (4, 2), (4, 4)])
def test_the_grid_at_no_degrees_is_pillows_crop_and_resize(side, place):
    pixels, pictures = batch(3, 32, 32, 1)
    top, left = place
    boxes = torch.tensor([[top, left, side, side]] * 3)
    found = warp.rotate_crops(pixels, boxes, torch.zeros(3), 32)
    for image, seen in zip(pictures, found):
        cut = image.crop((left, top, left + side, top + side)).resize((32, 32), BILINEAR)
        assert (seen - pil_to_tensor(cut)).abs().max() <= 1


@pytest.mark.parametrize("sides", [(200, 150), (13, 16), (40, 30), (9, 33)])
def test_the_fast_resize_takes_and_leaves_channels_innermost(sides):
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (*sides, 3), dtype=np.uint8)).movedim(-1, 0)
    seen = warp.resize_fast(image, 40, 30)
    assert seen.movedim(0, -1).is_contiguous()
    pillows = pil_to_tensor(Image.fromarray(image.movedim(0, -1).numpy()).resize((30, 40), BILINEAR))
    assert (seen.int() - pillows.int()).abs().max() <= 1
    assert torch.equal(seen, warp.resize_fast(image.contiguous(), 40, 30))


@pytest.mark.parametrize("pixels", ["white", "chequered", "noise"])
def test_float32_adds_up_the_integer_weights_exactly(pixels):
    """Down to a thirteenth, and up to the brightest pixels."""
    rng, side = np.random.default_rng(1), 13 * 17
    values = {
        "white": np.full((2, 1, side, side), 255),
        "chequered": np.indices((2, 1, side, side)).sum(0) % 2 * 255,
        "noise": rng.integers(0, 256, (2, 1, side, side)),
    }[pixels]
    for size in (17, 18, 23, 100, 300):
        seen = warp.resize(torch.from_numpy(values.astype(np.uint8)), size, size)
        for before, after in zip(values, seen):
            exact = Image.fromarray(before[0].astype(np.uint8)).resize((size, size), BILINEAR)
            assert torch.equal(after, pil_to_tensor(exact))


def test_what_is_outside_a_box_does_not_bleed_into_it():
    pixels = torch.zeros(1, 1, 20, 20, dtype=torch.uint8)
    pixels[..., 4:16, 6:18] = 200
    boxes = torch.tensor([[4, 6, 12, 12]])
    for seen in (warp.rotate_crops(pixels, boxes, torch.zeros(1), 32), warp.resize_crops(pixels, boxes, 32)):
        assert torch.allclose(seen.float(), torch.full((1, 1, 32, 32), 200.0), atol=1e-2)


@pytest.mark.parametrize("degrees", [-25.0, -7.0, 10.0, 25.0, 60.0])
def test_rotation_is_pillows(degrees):
    """With bilinear sampling for both; the paper's program takes the nearest pixel: our departure."""
    image = picture(5, 5, 1, seed=2).resize((40, 40), Image.Resampling.BICUBIC)  # smooth
    whole = torch.tensor([[0, 0, 40, 40]])
    seen = warp.rotate_crops(pil_to_tensor(image)[None], whole, torch.tensor([degrees]), 40)[0, 0].numpy()
    expected, wrong_way = (np.asarray(image.rotate(a, BILINEAR), dtype=float) for a in (degrees, -degrees))
    inside = np.hypot(*(np.indices((40, 40)) - 19.5)) < 18  # at the turned image's edges the fill differs
    assert np.abs(seen - expected)[inside].max() < 2
    assert np.abs(seen - wrong_way)[inside].max() > 10


def test_a_quarter_turn_is_rot90():
    pixels, _ = batch(2, 16, 16)
    whole = torch.tensor([[0, 0, 16, 16]] * 2)
    seen = warp.rotate_crops(pixels, whole, torch.tensor([90.0, -90.0]), 16)
    assert (seen[0] - torch.rot90(pixels[0].float(), 1, (-2, -1))).abs().max() < 0.1
    assert (seen[1] - torch.rot90(pixels[1].float(), -1, (-2, -1))).abs().max() < 0.1


def test_outside_a_turned_image_is_black():
    white = torch.full((1, 1, 20, 20), 255, dtype=torch.uint8)
    seen = warp.rotate_crops(white, torch.tensor([[0, 0, 20, 20]]), torch.tensor([45.0]), 20)[0, 0]
    assert seen[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [0, 0, 0, 0]
    assert torch.allclose(seen[8:12, 8:12], torch.tensor(255.0))
