"""Pictures of what was found: where the names of classes stand."""

from itertools import pairwise

import numpy as np
from PIL import Image

from transfer.pictures import GAP, TEXT, Panel, colour, lay_key, save_beside, sides_of

NAMES = [*enumerate(("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"))]


def test_names_stand_beside_the_title_and_below_where_they_are_too_many():
    panel = Panel("found", Image.new("RGB", (300, 50)), NAMES)
    places = lay_key(panel)
    lines = sorted({below for _, below in places})
    assert len(lines) > 1
    assert places[0][0] > GAP
    for line in lines:
        ends = [(left, left + sides_of(name)[0]) for (left, below), (_, name) in zip(places, NAMES) if below == line]
        assert all(end < start for (_, end), (start, _) in pairwise(ends))
        assert ends[-1][1] <= panel.image.width


def test_names_stand_on_the_colours_of_their_classes(tmp_path):
    panels = [Panel("image", Image.new("RGB", (300, 50))), Panel("found", Image.new("RGB", (300, 50)), NAMES)]
    save_beside(tmp_path / "picture.png", panels)
    with Image.open(tmp_path / "picture.png") as sheet:
        pixels = np.asarray(sheet)
    above = pixels[: len(pixels) - 50 - GAP]
    assert (pixels.shape[1], len(above) > 2 * GAP + TEXT) == (3 * GAP + 600, True)
    shown = {tuple(pixel) for pixel in above.reshape(-1, 3).tolist()}
    assert {colour(label) for label, _ in NAMES} <= shown
    assert not {colour(label) for label, _ in NAMES} & {tuple(one) for one in above[:, :300].reshape(-1, 3).tolist()}
