"""Images with their boxes as a detector sees them: boxes stay on the objects, what is difficult is not learned from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from devkits import shrink, write_devkit
from PIL import Image
from vocs import generate_few

from results.errors import UserError
from transfer.detection.data import Scaled, Scenes, mirror
from zoo.seeds import generator
from zoo.voc.devkit import Voc2007

BOX = (31, 11, 70, 60)  # xmin, ymin, xmax, ymax: counted from 1, inclusive
SIZE = (120, 80)


@pytest.fixture
def kit(tmp_path, monkeypatch):
    """A devkit whose first image to learn from is a white rectangle in the dark, which is annotated."""
    shrink(monkeypatch, Voc2007)
    folder = write_devkit(tmp_path)
    pixels = np.zeros((*SIZE[::-1], 3), np.uint8)
    pixels[BOX[1] - 1 : BOX[3], BOX[0] - 1 : BOX[2]] = 255
    Image.fromarray(pixels).save(folder / "JPEGImages/000010.jpg", quality=100)
    annotation = folder / "Annotations/000010.xml"
    text = annotation.read_text().replace("<width>14", f"<width>{SIZE[0]}").replace("<height>12", f"<height>{SIZE[1]}")
    for name, before, after in zip(("xmin", "ymin", "xmax", "ymax"), (1, 2, 14, 12), BOX):
        text = text.replace(f"<{name}>{before}<", f"<{name}>{after}<")
    annotation.write_text(text)
    return Voc2007(tmp_path)


def bounds(pixels):
    """Edges of what is bright."""
    bright = pixels.float().mean(0) > 127
    rows, across = (np.flatnonzero(bright.any(axis).numpy()) for axis in (1, 0))
    return [across[0], rows[0], across[-1] + 1, rows[-1] + 1]


def views(scenes, view, seeds=8):
    return [scenes.see(0, view, generator(seed, "test")) for seed in range(seeds)]


def test_boxes_stay_on_the_objects(kit):
    scenes = Scenes(kit, "trainval", np.arange(1))
    scenes.proposals = [np.array([[30, 10, 70, 60], [0, 0, 120, 80]], np.float32)]
    seen = views(scenes, Scaled((40, 80, 120), 240, flip=True), 24)
    assert {one.pixels.shape for one in seen} == {(3, 40, 60), (3, 80, 120), (3, 120, 180)}
    mirrored = set()
    for one in seen:
        assert one.boxes[0].tolist() == pytest.approx(bounds(one.pixels), abs=1)
        assert torch.equal(one.boxes[0], one.proposals[0])
        assert one.proposals[1].tolist() == [0, 0, *reversed(one.pixels.shape[1:])]
        assert (one.proposals / one.scale)[1].tolist() == [0, 0, *SIZE]
        mirrored.add(bool((one.boxes / one.scale)[0, 0] > 40))
    assert mirrored == {True, False}
    assert {(one.boxes / one.scale)[0, 0].item() for one in views(scenes, Scaled((40, 80), 240))} == {30}


def test_the_longer_side_has_an_end(kit):
    scenes = Scenes(kit, "trainval", np.arange(1))
    assert [tuple(one.pixels.shape) for one in views(scenes, Scaled((100,), 90), 1)] == [(3, 60, 90)]


def test_what_is_difficult_is_not_learned_from(kit):
    """In the third image of each set all is difficult."""
    scenes = Scenes(kit, "trainval", np.arange(6), learning=True)
    assert [annotation.name for annotation in scenes.annotations] == ["000010", "000011", "000020", "000021"]
    assert [scenes.path(number).stem for number in range(4)] == ["000010", "000011", "000020", "000021"]
    every = Scenes(kit, "trainval", np.arange(6))
    assert len(every) == 6
    seen = every.see(2, Scaled((24,), 100), generator(0, "test"))
    assert (seen.boxes.shape, seen.labels.shape) == ((0, 4), (0,))
    assert every.see(1, Scaled((24,), 100), generator(0, "test")).labels.tolist() == list(range(2, 21, 2))


def test_images_without_an_object_to_learn_from_are_refused(kit):
    with pytest.raises(UserError, match="none of 1 images has an object to learn from") as caught:
        Scenes(kit, "trainval", np.array([2]), learning=True)
    assert "--limit" in caught.value.fix


def test_the_annotation_of_another_image_is_named(kit):
    scenes = Scenes(kit, "trainval", np.arange(2))
    scenes.annotations[1] = replace(scenes.annotations[0], name="000011")
    with pytest.raises(
        UserError, match=r"annotation 000011\.xml is of 120 x 80 pixels, and the image has 14 x 12 pixels"
    ):
        scenes.see(1, Scaled((24,), 100), generator(0, "test"))


def test_draws_depend_on_the_place_in_the_order_alone(tmp_path):
    kit = generate_few(tmp_path)
    scenes, order, view = Scenes(kit, "train", np.arange(8)), np.arange(8)[::-1], Scaled((30, 40, 50), 100, flip=True)
    whole = [one for _, seen in scenes.batches(order, 4, view, 7) for one in seen]
    halves = [
        list(
            scenes.batches(
                order, 4, view, 7, workers=2, first=1, part=lambda n, half=half: slice(2 * half, 2 * half + 2)
            )
        )
        for half in (0, 1)
    ]
    later = [one for batches in halves for _, seen in batches for one in seen]
    assert len({one.pixels.shape for one in whole}) > 2
    for ours, theirs in zip(whole[4:], later, strict=True):
        assert torch.equal(ours.pixels, theirs.pixels)
        assert torch.equal(ours.boxes, theirs.boxes)


def test_mirrored_twice_is_as_it_was():
    boxes = torch.tensor([[1.0, 2.0, 5.0, 9.0]])
    assert mirror(boxes, 20).tolist() == [[15, 2, 19, 9]]
    assert torch.equal(mirror(mirror(boxes, 20), 20), boxes)
