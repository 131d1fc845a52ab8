"""Masks: VOC's colours, and what is refused."""

import numpy as np
import pytest
from devkits import write_mask
from PIL import Image

from results.errors import UserError
from zoo.voc.masks import palette, read_mask, to_image


def test_the_palette_is_vocs():
    """The colours of the development kit: background, aeroplane, bicycle, bird, person, tvmonitor, border."""
    wanted = {
        **{0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0)},
        **{15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)},
    }
    assert {index: tuple(palette()[index].tolist()) for index in wanted} == wanted
    assert len(np.unique(palette(), axis=0)) == 256


def test_what_is_written_is_read_again(tmp_path):
    mask = np.array([[0, 1, 2], [20, 255, 0]], dtype=np.uint8)
    to_image(mask).save(tmp_path / "1.png")
    found = read_mask(tmp_path / "1.png", (2, 3))
    assert found.dtype == np.uint8
    assert np.array_equal(found, mask)
    colours = np.asarray(Image.open(tmp_path / "1.png").convert("RGB"))
    assert np.array_equal(colours, palette()[mask])


def test_another_palette_is_read_by_its_indices(tmp_path):
    write_mask(tmp_path / "1.png", (4, 1), (0, 7, 255, 20))
    assert read_mask(tmp_path / "1.png", (1, 4)).tolist() == [[0, 7, 255, 20]]


def test_a_mask_of_one_pixel(tmp_path):
    write_mask(tmp_path / "1.png", (1, 1), (3,))
    assert read_mask(tmp_path / "1.png", (1, 1)).tolist() == [[3]]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: write_mask(path, (3, 2)), "has 3 x 2 pixels, and its image 4 x 2"),
        (lambda path: write_mask(path, (2, 4)), "has 2 x 4 pixels, and its image 4 x 2"),
        (lambda path: write_mask(path, (4, 2), (0, 21)), "has the class 21, where 0 to 20 and 255 are expected"),
        (lambda path: Image.new("RGB", (4, 2)).save(path), "has no palette: its mode is RGB, not P"),
        (lambda path: Image.new("L", (4, 2)).save(path), "has no palette: its mode is L, not P"),
        (lambda path: path.write_bytes(b"no image"), "it is no image of a known format"),
        (lambda path: path.write_bytes(b""), "it is no image of a known format"),
        (lambda path: None, "No such file"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, write, message):
    path = tmp_path / "000032.png"
    write(path)
    with pytest.raises(UserError, match=r"the mask 000032\.png") as caught:
        read_mask(path, (2, 4))
    assert message in caught.value.happened
    assert caught.value.looked == str(path)


def test_a_mask_that_is_cut_short_is_named(tmp_path):
    path = tmp_path / "1.png"
    write_mask(path, (40, 40), range(20))
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(UserError, match=r"cannot read the mask 1\.png"):
        read_mask(path, (40, 40))


def test_fewer_classes_are_an_upper_bound(tmp_path):
    write_mask(tmp_path / "1.png", (2, 1), (10, 11))
    with pytest.raises(UserError, match="has the class 11, where 0 to 10"):
        read_mask(tmp_path / "1.png", (1, 2), classes=10)
