"""Selective search: each image once, kept whole or not at all, in an order of ours; OpenCV finds the same each time."""

from __future__ import annotations

import builtins
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from results.errors import UserError
from transfer.proposals import MOST, SIDE, Proposals, Search, choose, propose, selective_search
from zoo.datasets.images import FileImages

EXAMPLES = settings(max_examples=60)
RECTANGLES = st.lists(st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(1, 60)] * 2), max_size=40)


class Counted:
    """A search that finds the quarters of an image and the image, and remembers what it was given."""

    def __init__(self, name="quarters", stop_after=None):
        self.name, self.stop_after, self.seen = name, stop_after, []

    def __call__(self, image):
        if len(self.seen) == self.stop_after:
            raise KeyboardInterrupt
        self.seen.append(image)
        height, width = (side // 2 for side in image.shape[:2])
        quarters = [(x, y, width, height) for x in (0, width) for y in (0, height)]
        return np.array([*quarters, (0, 0, 2 * width, 2 * height)])

    def search(self):
        return Search(self.name, self)


@pytest.fixture
def images(tmp_path):
    """Three images of 40x60 in files; the last has the bytes of the first."""
    for name, level in (("a", 10), ("b", 200)):
        Image.new("RGB", (60, 40), (level, 0, 255 - level)).save(tmp_path / f"{name}.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "c.png")
    return FileImages(tmp_path, ["a.png", "b.png", "c.png"], None)


def kept(cache):
    """Everything in the cache, hidden files too."""
    return [path for path in cache.rglob("*") if path.is_file()]


def test_boxes_are_edges_counted_from_nought(images, tmp_path):
    found = propose(images, tmp_path / "cache", Counted().search(), workers=0)
    assert len(found) == 3
    assert found[0].dtype == np.float32
    expected = [[0, 0, 30, 20], [0, 0, 60, 40], [0, 20, 30, 40], [30, 0, 60, 20], [30, 20, 60, 40]]
    assert sorted(found[0].tolist()) == expected
    np.testing.assert_array_equal(found[0], found[2])


def test_a_search_is_given_rgb(images, tmp_path):
    search = Counted()
    propose(images, tmp_path / "cache", search.search(), workers=0)
    assert [image.shape for image in search.seen] == [(40, 60, 3)] * 2
    assert search.seen[0][0, 0].tolist() == [10, 0, 245]


def test_equal_images_are_searched_once_and_none_again(images, tmp_path):
    search, cache = Counted(), tmp_path / "cache"
    propose(images, cache, search.search(), workers=2)
    assert len(search.seen) == len(kept(cache)) == 2
    propose(images.subset(np.array([2, 1])), cache, search.search(), workers=2, side=25)
    assert len(search.seen) == 2
    propose(images, cache, Counted("others").search(), workers=2)
    assert len(kept(cache)) == 4


def test_a_changed_image_is_searched_anew(images, tmp_path):
    search, cache = Counted(), tmp_path / "cache"
    propose(images, cache, search.search(), workers=0)
    Image.new("RGB", (20, 80)).save(tmp_path / "b.png")
    found = propose(images, cache, search.search(), workers=0, side=5)
    assert len(search.seen) == 3
    assert found[1].max() == 80


@pytest.mark.parametrize("workers", [0, 1])
def test_what_was_stopped_goes_on_where_it_was(images, tmp_path, workers):
    cache, again = tmp_path / "cache", Counted()
    with pytest.raises(KeyboardInterrupt):
        propose(images, cache, Counted(stop_after=1).search(), workers)
    assert len(kept(cache)) == 1  # whole: nothing half written lies there
    found = propose(images, cache, again.search(), workers)
    assert len(again.seen) == 1
    once = propose(images, tmp_path / "other", Counted().search(), workers)
    for one, other in zip(found, once):
        np.testing.assert_array_equal(one, other)


def test_workers_do_not_change_what_is_found(images, tmp_path):
    found = [propose(images, tmp_path / str(n), Counted().search(), workers=n) for n in (0, 1, 3)]
    for boxes in zip(*found):
        assert all(np.array_equal(boxes[0], other) for other in boxes)


def test_side_and_number_are_chosen_when_read(images, tmp_path):
    search, cache = Counted().search(), tmp_path / "cache"
    assert len(propose(images, cache, search, workers=0, side=20)[0]) == 5
    assert propose(images, cache, search, workers=0, side=21)[0].tolist() == [[0, 0, 60, 40]]
    assert propose(images, cache, search, workers=0, side=41)[0].shape == (0, 4)
    assert len(propose(images, cache, search, workers=0, most=2)[0]) == 2


def test_an_image_that_cannot_be_read_is_named(images, tmp_path):
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cannot read the image b\.png: it is no image of a known format"):
        propose(images, tmp_path / "cache", Counted().search(), workers=1)
    (tmp_path / "b.png").unlink()
    with pytest.raises(UserError, match=r"cannot read the image b\.png: No such file"):
        propose(images, tmp_path / "cache", Counted().search(), workers=1)


@pytest.mark.parametrize("damaged", [b"", b"\x93NUMPY", b"text"])
def test_a_damaged_file_of_the_cache_is_named(images, tmp_path, damaged):
    found = propose(images, tmp_path / "cache", Counted().search(), workers=0)
    found.paths[1].write_bytes(damaged)
    with pytest.raises(UserError, match="cannot read the proposals") as caught:
        found[1]
    assert caught.value.fix == f"rm {found.paths[1]}"


def test_a_cache_that_cannot_be_written_is_said(images, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="a file stands where a folder is needed"):
        propose(images, tmp_path / "cache", Counted().search(), workers=0)


@EXAMPLES
@given(RECTANGLES, st.integers(1, 30), st.integers(1, 20), st.randoms(use_true_random=False))
def test_chosen_boxes_are_large_single_and_the_same_for_any_order(rectangles, side, most, random):
    table = np.array(rectangles, np.int32).reshape(-1, 4)
    boxes = choose(table, side, most)
    large = {(x, y, x + w, y + h) for x, y, w, h in rectangles if w >= side and h >= side}
    assert boxes.dtype == np.float32
    assert boxes.shape == (min(most, len(large)), 4)
    assert len({tuple(box) for box in boxes.tolist()}) == len(boxes)
    assert {tuple(box) for box in boxes.tolist()} <= large
    shuffled = np.array(random.sample(rectangles, len(rectangles)), np.int32).reshape(-1, 4)
    np.testing.assert_array_equal(choose(np.concatenate([shuffled, table]), side, most), boxes)


def test_fewer_are_the_first_of_more_and_rather_large():
    table = np.random.default_rng(0).integers(16, 200, (3000, 4))
    most, few = choose(table, SIDE, MOST), choose(table, SIDE, 100)
    assert len(most) == 2000
    np.testing.assert_array_equal(few, most[:100])

    def area(boxes):
        return float((boxes[:, 2:] - boxes[:, :2]).prod(1).mean())

    assert area(few) > area(most) > float(table[:, 2:].prod(1).mean())


def test_without_opencv_the_command_to_install_it_is_said(monkeypatch):
    def missing(name, *rest):
        if name == "cv2":
            raise ModuleNotFoundError("No module named 'cv2'")
        return imported(name, *rest)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match="needs OpenCV with its contrib modules") as caught:
        selective_search()
    assert caught.value.fix == "make engines"
    assert "No module named 'cv2'" in caught.value.looked


def test_opencv_without_contrib_is_not_enough(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", type(sys)("cv2"))
    with pytest.raises(UserError, match="contrib") as caught:
        selective_search()
    assert "ximgproc" in caught.value.looked


@pytest.fixture
def opencv():
    return pytest.importorskip("cv2", reason="needs make engines")


def picture(seed: int = 0) -> np.ndarray:
    """A picture of two discs before a dark ground, with noise: uint8 (100, 140, 3)."""
    rows, columns = np.mgrid[:100, :140]
    pixels = np.full((100, 140, 3), 40.0)
    for x, y, radius, colour in ((40, 45, 25, (220, 60, 60)), (105, 60, 20, (60, 200, 90))):
        pixels[(columns - x) ** 2 + (rows - y) ** 2 < radius**2] = colour
    return (pixels + np.random.default_rng(seed).normal(0, 5, pixels.shape)).clip(0, 255).astype(np.uint8)


def in_order(rectangles: np.ndarray) -> np.ndarray:
    return rectangles[np.lexsort(rectangles.T)]


@pytest.mark.usefixtures("opencv")
def test_opencv_finds_the_same_in_any_run_and_thread():
    pictures = [picture(0), picture(1)]
    once = [in_order(selective_search().find(pixels)) for pixels in pictures]
    with ThreadPoolExecutor(2) as pool:
        for number, found in enumerate(pool.map(selective_search().find, pictures * 3)):
            np.testing.assert_array_equal(in_order(found), once[number % 2])


@pytest.mark.usefixtures("opencv")
def test_opencvs_boxes_cover_the_objects_and_lie_in_the_image():
    boxes = choose(selective_search().find(picture()), SIDE, MOST)
    assert [0, 0, 140, 100] in boxes.tolist()
    assert (boxes >= 0).all()
    assert (boxes <= [140, 100, 140, 100]).all()
    for disc in ([16, 21, 65, 70], [86, 41, 125, 80]):
        assert np.abs(boxes - disc).max(1).min() <= 3


@pytest.mark.usefixtures("opencv")
def test_colours_are_not_exchanged(opencv, monkeypatch):
    seen = []
    make = opencv.ximgproc.segmentation.createSelectiveSearchSegmentation

    class Watched:
        def __init__(self):
            self.inner = make()

        def setBaseImage(self, image):
            seen.append(image[0, 0].tolist())
            self.inner.setBaseImage(image)

        def __getattr__(self, name):
            return getattr(self.inner, name)

    monkeypatch.setattr(opencv.ximgproc.segmentation, "createSelectiveSearchSegmentation", Watched)
    selective_search().find(np.full((20, 20, 3), (1, 2, 3), np.uint8))
    assert seen == [[3, 2, 1]]


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 30, 3), (40, 40, 3)])
def test_opencv_takes_small_and_uniform_images(opencv, shape):
    boxes = choose(selective_search().find(np.full(shape, 7, np.uint8)), 1, MOST)
    assert boxes.tolist() == [[0, 0, shape[1], shape[0]]]


def test_opencvs_version_is_in_the_name(opencv):
    assert selective_search().name == f"selective-search-fast-opencv-{opencv.__version__}"


@pytest.mark.usefixtures("opencv")
def test_proposals_of_files_are_the_same_in_every_run(tmp_path):
    for seed in range(2):
        Image.fromarray(picture(seed)).save(tmp_path / f"{seed}.png")
    images = FileImages(tmp_path, ["0.png", "1.png"], None)
    one, other = (propose(images, tmp_path / str(n), selective_search(), workers=n) for n in (1, 2))
    assert isinstance(one, Proposals)
    for a, b in zip(one, other):
        assert len(a) > 3
        np.testing.assert_array_equal(a, b)
