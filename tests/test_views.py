"""Views against Pillow and torchvision, image by image; draws against their definition in loops."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as TF
from pictures import agree, batch, picture
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from results.errors import UserError
from zoo import warp
from zoo.seeds import generator
from zoo.views import (
    Centre,
    CentreCrop,
    CropRotate,
    RandomCrop,
    ResizedCrop,
    Several,
    Stretch,
    TenCrop,
    halvings,
    rotations,
    uniform,
)

BILINEAR = Image.Resampling.BILINEAR
FIXED = [Centre(20, 16), Centre(32, 32), TenCrop(20, 17), CentreCrop(11, 32), CentreCrop(12, 7), Stretch(9)]
RANDOM = [
    RandomCrop(20, 16),
    RandomCrop(20, 20),
    ResizedCrop(32),
    ResizedCrop(30, area=(0.5, 1.0), flip=False),
    CropRotate((12,), 16),
    CropRotate((12, 10), 16, flip=True, jitter=True),
    CropRotate((12, 10), 16, degrees=25.0, flip=True),
]


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
@pytest.mark.parametrize("sides", [(28, 28), (32, 32), (13, 40), (41, 18), (20, 20), (50, 60)])
@pytest.mark.parametrize("view", FIXED, ids=repr)
def test_a_fixed_view_is_torchvisions_to_the_bit(view, sides, channels):
    pixels, pictures = batch(3, *sides, channels)
    expected = torch.stack([reference(view, image) for image in pictures])
    assert torch.equal(torch.stack([view.image(image, generator(0)) for image in pictures]), expected)
    resized = (view.size,) * 2 if isinstance(view, Stretch) else sides  # no other view changes the aspect
    assert agree(view.tensors(pixels, generator(0)), expected, sides, resized)


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
    of_tensors = view.tensors(pil_to_tensor(image)[None], generator(seed))[0].float().round()
    apart = (view.image(image, generator(seed)).float() - of_tensors).abs()
    assert apart.max() <= (1 if isinstance(view, RandomCrop | ResizedCrop) else 0)  # these two: torch's kernel
    assert apart.mean() < 0.1


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


def test_angles_fill_their_range():
    bar = torch.zeros(500, 1, 33, 33, dtype=torch.uint8)
    bar[:, :, 16, :] = 255  # a horizontal line: where it leaves on the right tells the angle
    seen = CropRotate((33,), 33, degrees=25.0).tensors(bar, generator(0))[:, 0, :, -4]
    angles = torch.rad2deg(torch.atan2(16 - seen.argmax(1).float(), torch.tensor(13.0)))
    assert angles.abs().max() < 27
    assert angles.min() < -23
    assert angles.max() > 23
    assert abs(angles.mean()) < 2


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


@pytest.mark.parametrize(
    ("side", "size", "factor"),
    [(63, 16, 1), (64, 16, 2), (127, 16, 2), (128, 16, 4), (256, 16, 8), (9999, 16, 8), (500, 224, 1), (10, 224, 1)],
)
def test_a_decoder_leaves_twice_the_size_at_least(side, size, factor):
    assert halvings(side, size) == factor
    assert RandomCrop(size, size).reduction(side + 7, side, generator(0)) == factor
    for view in (Centre(size, size), TenCrop(size, size), Stretch(size)):
        assert view.reduction(side, side, generator(0)) == 1  # what is evaluated is decoded whole


@pytest.mark.parametrize("seed", range(20))
def test_the_box_that_is_drawn_decides_how_a_training_image_is_decoded(seed):
    view = ResizedCrop(16)
    box = view.boxes(1, 300, 400, generator(seed))[0, 2:].min().item()
    assert view.reduction(300, 400, generator(seed)) == halvings(box, 16)
    assert view.reduction(60, 60, generator(seed)) == 1


def test_several_are_drawn_one_after_the_other():
    view, (pixels, _) = ResizedCrop(16), batch(3, 24, 20)
    draws = generator(5)
    wanted = [view.tensors(pixels, draws) for _ in range(4)]
    found = Several(view, 4).tensors(pixels, generator(5))
    assert found.shape == (3, 4, 3, 16, 16)
    assert all(torch.equal(found[:, number], one) for number, one in enumerate(wanted))
    assert not torch.equal(found[:, 0], found[:, 1])


def test_several_of_a_picture():
    view, image, draws = ResizedCrop(16), picture(24, 20), generator(5)
    wanted = torch.stack([view.image(image, draws) for _ in range(3)])
    assert torch.equal(Several(view, 3).image(image, generator(5)), wanted)
