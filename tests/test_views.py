"""Views against Pillow and torchvision, image by image; draws against their definition in loops."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from results.errors import UserError
from zoo import jitter, warp
from zoo.seeds import generator
from zoo.views import (
    Centre,
    CentreCrop,
    CropRotate,
    RandomCrop,
    ResizedCrop,
    Stretch,
    TenCrop,
    rotations,
    uniform,
)

BILINEAR = Image.Resampling.BILINEAR
FIXED = [Centre(20, 16), Centre(32, 32), TenCrop(20, 17), CentreCrop(11, 32), CentreCrop(12, 7), Stretch(9)]
RANDOM = [
    RandomCrop(20, 16),
    RandomCrop(20, 20),
    ResizedCrop(16),
    ResizedCrop(24, area=(0.5, 1.0), flip=False),
    CropRotate((12,), 16),
    CropRotate((12, 10), 16, flip=True, jitter=True),
    CropRotate((12, 10), 16, degrees=25.0, flip=True),
]


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


def reference(view, image):
    """What torchvision makes of the image."""
    if isinstance(view, Centre):
        return pil_to_tensor(TF.center_crop(TF.resize(image, view.resize), view.size))
    if isinstance(view, TenCrop):
        return torch.stack([pil_to_tensor(crop) for crop in TF.ten_crop(TF.resize(image, view.resize), view.size)])
    if isinstance(view, CentreCrop):
        image = TF.center_crop(image, view.crop)
    return pil_to_tensor(image.resize((view.size, view.size), BILINEAR))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sides", [(28, 28), (32, 32), (13, 40), (41, 18), (20, 20)])
@pytest.mark.parametrize("view", FIXED, ids=repr)
def test_a_fixed_view_is_torchvisions_to_the_bit(view, sides, channels):
    pixels, pictures = batch(3, *sides, channels)
    expected = torch.stack([reference(view, image) for image in pictures])
    assert torch.equal(view.tensors(pixels, generator(0)), expected)
    assert torch.equal(torch.stack([view.image(image, generator(0)) for image in pictures]), expected)


@settings(deadline=None, max_examples=60)
@given(*[st.integers(1, 40)] * 4, st.integers(0, 10**6))
def test_resize_is_pillows_to_the_bit(height, width, new_height, new_width, seed):
    pixels = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (2, 1, height, width), dtype=np.uint8))
    found = warp.resize(pixels, new_height, new_width)
    for before, after in zip(pixels, found):
        expected = Image.fromarray(before[0].numpy()).resize((new_width, new_height), BILINEAR)
        assert np.array_equal(after[0].numpy(), np.asarray(expected))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_resized_crops_are_pillows_to_the_bit(data):
    boxes = [box(data, 15, 21) for _ in range(3)]
    size = data.draw(st.integers(1, 30))
    pixels, pictures = batch(3, 15, 21)
    found = warp.resize_crops(pixels, torch.tensor(boxes), size)
    for image, (top, left, tall, wide), seen in zip(pictures, boxes, found):
        cut = image.crop((left, top, left + wide, top + tall))
        assert torch.equal(seen, pil_to_tensor(cut.resize((size, size), BILINEAR)))


def box(data, height, width):
    """top, left, height, width of any box in an image."""
    tall, wide = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    return [data.draw(st.integers(0, height - tall)), data.draw(st.integers(0, width - wide)), tall, wide]


def test_images_of_the_right_size_are_not_touched():
    pixels, _ = batch(2, 32, 32)
    assert warp.resize(pixels, 32, 32) is pixels
    assert torch.equal(Centre(32, 32).tensors(pixels, generator(0)), pixels)


@pytest.mark.parametrize("view", FIXED + RANDOM, ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
def test_views_have_the_shape_and_range_they_promise(view, channels):
    pixels, pictures = batch(4, 28, 24, channels)
    seen = view.tensors(pixels, generator(0))
    crops = (10,) if isinstance(view, TenCrop) else ()
    assert seen.shape == (4, *crops, channels, view.size, view.size)
    assert seen.dtype == (torch.float32 if getattr(view, "degrees", 0) else torch.uint8)
    assert seen.min() >= 0
    assert seen.max() <= 255
    one = view.image(pictures[0], generator(0))
    assert one.shape == seen.shape[1:]
    assert one.dtype == torch.uint8


@pytest.mark.parametrize("view", RANDOM, ids=repr)
def test_draws_depend_on_the_generator_alone(view):
    pixels, pictures = batch(8, 24, 26)
    before = torch.get_rng_state()
    assert torch.equal(view.tensors(pixels, generator(3)), view.tensors(pixels, generator(3)))
    assert not torch.equal(view.tensors(pixels, generator(3)), view.tensors(pixels, generator(4)))
    assert torch.equal(view.image(pictures[0], generator(3)), view.image(pictures[0], generator(3)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("view", RANDOM, ids=repr)
@pytest.mark.parametrize("seed", range(5))
def test_an_image_and_a_batch_of_one_are_the_same(view, seed):
    image = picture(30, 22)
    of_tensors = view.tensors(pil_to_tensor(image)[None], generator(seed))[0]
    assert torch.equal(view.image(image, generator(seed)), of_tensors.round().to(torch.uint8))


@pytest.mark.parametrize("view", [view for view in FIXED + RANDOM if not getattr(view, "jitter", False)], ids=repr)
def test_pixels_stay_on_their_device(view):
    pixels = torch.zeros(2, 3, 24, 24, dtype=torch.uint8, device="meta")  # what is on the CPU cannot meet it
    assert view.tensors(pixels, generator(0)).device.type == "meta"


def test_a_random_crop_is_a_piece_of_the_resized_centre():
    view, image = RandomCrop(12, 10, flip=True), picture(15, 21)
    whole = pil_to_tensor(TF.center_crop(TF.resize(image, 12), 12))
    pieces = [whole[:, top : top + 10, left : left + 10] for top in range(3) for left in range(3)]
    pieces += [piece.flip(-1) for piece in pieces]
    seen = view.tensors(pil_to_tensor(image).expand(400, -1, -1, -1), generator(0))
    counts = [int((seen == piece).flatten(1).all(1).sum()) for piece in pieces]
    assert sum(counts) == 400
    assert min(counts) > 400 / 18 / 3  # every place, mirrored or not, about as often


def test_boxes_are_the_first_of_ten_draws_that_fits():
    view, count, height, width = ResizedCrop(8, area=(0.3, 1.0)), 200, 17, 30
    boxes = view.boxes(count, height, width, generator(1))
    draws = generator(1)
    share = uniform((count, 10), 0.3, 1.0, draws) * height * width
    ratio = uniform((count, 10), math.log(3 / 4), math.log(4 / 3), draws).exp()
    place = uniform((count, 2), 0, 1, draws)
    for number in range(count):
        assert boxes[number].tolist() == first_fit(share[number], ratio[number], place[number], height, width)


def first_fit(shares, ratios, place, height, width):
    for share, ratio in zip(shares.tolist(), ratios.tolist()):
        wide, tall = round(math.sqrt(share * ratio)), round(math.sqrt(share / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            row, column = place.tolist()
            return [int(row * (height - tall + 1)), int(column * (width - wide + 1)), tall, wide]
    tall, wide = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    return [(height - tall) // 2, (width - wide) // 2, tall, wide]


@pytest.mark.parametrize("sides", [(10, 50), (50, 10), (1, 40), (40, 1), (9, 23)])
def test_where_no_box_fits_it_is_torchvisions_central_one(sides):
    expected = T.RandomResizedCrop.get_params(torch.zeros(3, *sides), scale=[1, 1], ratio=[3 / 4, 4 / 3])
    boxes = ResizedCrop(8, area=(1.0, 1.0)).boxes(5, *sides, generator(0))
    assert boxes.tolist() == [list(expected)] * 5


def test_boxes_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    image = torch.zeros(3, 60, 90)
    theirs = [T.RandomResizedCrop.get_params(image, [0.08, 1], [3 / 4, 4 / 3]) for _ in range(4000)]
    ours = ResizedCrop(8).boxes(4000, 60, 90, generator(0)).double()
    expected = torch.tensor(theirs, dtype=torch.float64)
    assert torch.allclose(ours.mean(0), expected.mean(0), rtol=0.04)
    assert torch.allclose(ours.std(0), expected.std(0), rtol=0.04)


def test_crops_without_rotation_are_pieces_resized_as_pillow_does():
    view, image = CropRotate((8, 6), 10, flip=True), picture(9, 9, 1)
    pieces = []
    for mirrored in (image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
        for side in (8, 6):
            places = [(top, left) for top in range(10 - side) for left in range(10 - side)]
            boxes = [(left, top, left + side, top + side) for top, left in places]
            pieces.append([pil_to_tensor(mirrored.crop(b).resize((10, 10), BILINEAR)) for b in boxes])
    seen = view.tensors(pil_to_tensor(image).expand(600, -1, -1, -1), generator(0))
    counts = [[int((seen == piece).flatten(1).all(1).sum()) for piece in group] for group in pieces]
    assert sum(map(sum, counts)) == 600
    assert all(100 < sum(group) < 200 for group in counts)  # each side, mirrored or not, a quarter
    assert all(count > 0 for group in counts for count in group)


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


def test_angles_fill_their_range():
    bar = torch.zeros(500, 1, 33, 33, dtype=torch.uint8)
    bar[:, :, 16, :] = 255  # a horizontal line: where it leaves on the right tells the angle
    seen = CropRotate((33,), 33, degrees=25.0).tensors(bar, generator(0))[:, 0, :, -4]
    angles = torch.rad2deg(torch.atan2(16 - seen.argmax(1).float(), torch.tensor(13.0)))
    assert angles.abs().max() < 27
    assert angles.min() < -23
    assert angles.max() > 23
    assert abs(angles.mean()) < 2


def test_colours_are_torchvisions():
    pixels, _ = batch(6, 14, 17)
    x, amount = pixels.float(), torch.linspace(-1, 1, 6).view(6, 1, 1, 1)
    for change, theirs, scale in [
        (jitter.brightness, TF.adjust_brightness, 0.4),
        (jitter.saturation, TF.adjust_saturation, 0.4),
        (jitter.contrast, TF.adjust_contrast, 0.4),
        (jitter.hue, TF.adjust_hue, 0.125),
    ]:
        for before, seen, a in zip(x, change(x, amount), amount.flatten().tolist()):
            expected = theirs(before / 255, scale * a + (0 if theirs is TF.adjust_hue else 1)) * 255
            assert (seen - expected).abs().max() < 0.6, change  # the mean grey is a whole number, as Pillow's


def test_grey_has_no_hue():
    grey = torch.full((1, 3, 4, 4), 77.0)
    assert torch.allclose(jitter.hue(grey, torch.ones(1, 1, 1, 1)), grey)


def test_jitter_takes_each_image_through_its_own_order():
    pixels, _ = batch(40, 9, 9)
    draws = generator(5)
    order = torch.rand(40, 4, generator=draws).argsort(1)
    amount = 2 * torch.rand(40, 4, generator=draws) - 1
    turns_grey = torch.rand(40, generator=draws) < 0.2
    changes = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    seen = jitter.jitter(pixels, generator(5))
    assert 0 < turns_grey.sum() < 20
    for number in range(40):
        x = pixels[number : number + 1].float()
        for which in order[number].tolist():
            x = changes[which](x, amount[number, which].view(1, 1, 1, 1))
        x = jitter.luminance(x).expand(-1, 3, -1, -1) if turns_grey[number] else x
        assert torch.equal(seen[number], x[0].round().to(torch.uint8))


def test_jitter_of_a_grey_image_is_that_of_its_three_equal_channels():
    pixels, _ = batch(10, 8, 8, 1)
    assert torch.equal(
        jitter.jitter(pixels, generator(0)), jitter.jitter(pixels.expand(-1, 3, -1, -1), generator(0))[:, :1]
    )


def test_rotations_are_rotnets():
    pixels, _ = batch(2, 7, 7)
    found = rotations(pixels)
    assert found.shape == (8, 3, 7, 7)
    for number, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):  # mmdc.md 1.3, on (H, W, C)
        turned = image.transpose(1, 0, 2)
        expected = [image, np.flipud(turned), np.fliplr(np.flipud(image)), np.flipud(image).transpose(1, 0, 2)]
        for turn in range(4):
            assert np.array_equal(found[4 * number + turn].permute(1, 2, 0).numpy(), expected[turn])


def test_only_square_images_are_turned():
    with pytest.raises(ValueError, match="square"):
        rotations(torch.zeros(1, 1, 4, 5))


@pytest.mark.parametrize("view", [CropRotate((12, 30), 32), CropRotate((30,), 32, degrees=5.0), CentreCrop(30, 32)])
def test_a_crop_larger_than_the_image_is_an_error(view):
    with pytest.raises(UserError, match="30 pixels does not fit an image of 24 x 40"):
        view.tensors(torch.zeros(1, 1, 24, 40, dtype=torch.uint8), generator(0))


@pytest.mark.parametrize("kind", [Centre, RandomCrop, TenCrop])
def test_a_crop_larger_than_the_resized_image_is_an_error(kind):
    with pytest.raises(UserError, match="crop of 33 pixels"):
        kind(32, 33)
