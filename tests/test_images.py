"""Images come the same way however they are read, and a file that cannot be read is named."""

import threading
from hashlib import sha256

import numpy as np
import pytest
import torch
from pictures import write_image
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from results.errors import UserError
from zoo.datasets.decoding import Place, read_rgb
from zoo.datasets.digits import Digits
from zoo.datasets.images import ArrayImages, FileImages, ahead, table
from zoo.seeds import generator
from zoo.views import Centre, CropRotate, RandomCrop, ResizedCrop, Stretch, TenCrop


def test_an_array_is_read_by_order_and_batch():
    pixels = torch.arange(10 * 3 * 8 * 8).remainder(256).to(torch.uint8).view(10, 3, 8, 8)
    images, order, view = ArrayImages(pixels, np.arange(10)), np.array([7, 1, 1, 9, 0]), CropRotate((6,), 8)
    found = list(images.batches(order, 2, view, seed=3))
    assert [ids.tolist() for ids, _ in found] == [[7, 1], [1, 9], [0]]
    for number, (ids, seen) in enumerate(found):
        assert torch.equal(seen, view.tensors(pixels[torch.from_numpy(ids)], generator(3, number)))
    assert list(images.batches(order[:0], 2, view, seed=3)) == []


def test_an_array_can_be_moved_and_is_then_seen_there():
    images = ArrayImages(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), None).to("meta")
    (_, seen), *_ = images.batches(np.arange(4), 4, Stretch(9), seed=0, device="meta")
    assert seen.device.type == images.pixels.device.type == "meta"


def test_materialised_arrays_are_stretched_or_left_alone():
    images = Digits().open("test", 20)
    same, small = images.materialise(32), images.materialise(16)
    assert torch.equal(same.pixels, images.pixels)
    assert small.pixels.shape == (20, 1, 16, 16)
    assert np.array_equal(small.labels, images.labels)


@pytest.fixture
def files(tmp_path):
    """Nine pictures of several sizes and formats, as files."""
    names = [f"{n}.{ending}" for n, ending in enumerate(["jpg", "png", "bmp"] * 3)]
    for n, name in enumerate(names):
        write_image(tmp_path / name, size=(30 + n, 40 - 2 * n), seed=n)
    return FileImages(tmp_path, names, np.arange(9))


VIEWS = [ResizedCrop(16), RandomCrop(20, 16), TenCrop(20, 16), CropRotate((18, 14), 16, flip=True, jitter=True)]


@pytest.mark.parametrize("view", VIEWS, ids=repr)
def test_files_are_the_same_to_any_number_of_workers(files, view):
    order, before = np.array([8, 0, 0, 3, 5, 2, 7]), torch.get_rng_state()
    alone = list(files.batches(order, 3, view, seed=5))
    helped = list(files.batches(order, 3, view, seed=5, workers=2))
    assert [ids.tolist() for ids, _ in alone] == [ids.tolist() for ids, _ in helped] == [[8, 0, 0], [3, 5, 2], [7]]
    for (_, one), (_, two) in zip(alone, helped):
        assert torch.equal(one, two)
        assert one.dtype == torch.uint8
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_drawn_for_a_file_depends_on_seed_and_position_alone(files):
    view, order = ResizedCrop(16), np.array([4, 4, 2])
    seen = torch.cat([pixels for _, pixels in files.batches(order, 2, view, seed=5)])
    for position, image in enumerate(order):
        expected = view.image(read_rgb(files.place(image)), generator(5, position))
        assert torch.equal(seen[position], expected)
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen, torch.cat([p for _, p in files.batches(order, 2, view, seed=6)]))


def test_files_and_an_array_of_them_are_the_same(files):
    array = files.materialise(24, workers=2)
    assert array.pixels.shape == (9, 3, 24, 24)
    for number in range(9):
        image = read_rgb(files.place(number)).resize((24, 24), Image.Resampling.BILINEAR)
        assert torch.equal(array.pixels[number], pil_to_tensor(image))
    assert np.array_equal(array.labels, files.labels)


def test_nothing_cannot_be_materialised(files):
    with pytest.raises(UserError, match="no images"):
        files.subset(np.arange(0)).materialise(8)


def test_images_may_be_stretches_of_a_file(files, tmp_path):
    contents = [files.place(number).read() for number in range(3)]
    (tmp_path / "all").write_bytes(b"".join(contents))
    sizes = [len(content) for content in contents]
    places = {"path": [b"all"] * 3, "size": sizes, "offset": [0, *np.cumsum(sizes)[:-1]], "key": [b"a", b"b", b"c"]}
    images = FileImages(tmp_path, table(**places), np.arange(3)).subset(np.array([2, 0, 1]))
    assert images.names.tolist() == [b"all:c", b"all:a", b"all:b"]
    assert [images.place(number).read() for number in range(3)] == [contents[n] for n in (2, 0, 1)]
    expected = files.batches(np.array([2, 0, 1]), 3, Stretch(9), seed=0)
    assert torch.equal(next(images.batches(np.arange(3), 3, Stretch(9), seed=0))[1], next(expected)[1])
    place = images.place(0)
    assert (str(place), place.name) == (f"{tmp_path}/all:c", "all:c")
    assert [place.content(full) for full in (False, True)] == [b"%d" % sizes[2], sha256(contents[2]).digest()]


def test_images_of_several_parts_are_joined(files):
    joined = FileImages.joined([files.subset(np.array([8])), files.subset(np.array([1, 0]))])
    assert joined.names.tolist() == [b"8.bmp", b"1.png", b"0.jpg"]
    assert joined.labels.tolist() == [8, 1, 0]


def grey(path):
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(path)


def transparent(path):
    Image.fromarray(np.full((8, 8, 4), (10, 20, 30, 128), dtype=np.uint8)).save(path)


def deep(path):
    Image.fromarray(np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)).save(path)


def palette(path):
    Image.fromarray(np.full((8, 8, 3), (10, 20, 30), dtype=np.uint8)).convert("P").save(path)


@pytest.mark.parametrize("write", [grey, transparent, deep, palette])
def test_every_kind_of_image_becomes_rgb(tmp_path, write):
    write(tmp_path / "x.png")
    image = read_rgb(Place(tmp_path / "x.png"))
    assert (image.mode, image.size) == ("RGB", (8, 8))
    pixels = np.asarray(image).reshape(64, 3)
    if write is grey:
        assert np.array_equal(pixels, np.repeat(np.arange(64)[:, None] * 4, 3, axis=1))
    if write is transparent:
        assert (pixels == (10, 20, 30)).all()
    if write is deep:  # scaled from 16 bits, not clipped
        assert np.abs(pixels - np.linspace(0, 255, 64)[:, None]).max() <= 1


def truncated(path):
    write_image(path, size=(64, 64))
    path.write_bytes(path.read_bytes()[:-600])


BROKEN = {
    "truncated jpg": ("3.jpg", truncated),
    "truncated png": ("3.png", truncated),
    "text": ("3.jpg", lambda path: path.write_text("404 not found")),
    "empty": ("3.jpg", lambda path: path.write_bytes(b"")),
    "folder": ("3.jpg", lambda path: path.mkdir()),
    "gone": ("3.jpg", lambda path: None),
    "damaged header": ("3.png", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(200)))),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_cannot_be_read_is_named(tmp_path, kind):
    name, damage = BROKEN[kind]
    damage(tmp_path / name)
    with pytest.raises(UserError, match=f"cannot read the image {name}: .") as caught:
        read_rgb(Place(tmp_path / name))
    assert caught.value.looked == str(tmp_path / name)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_keep_the_order_and_do_not_run_far_ahead(workers, monkeypatch):
    made = []

    def work(at):
        made.append(at)
        return torch.tensor(at)

    for at, found in enumerate(ahead(work, range(40), workers, 5)):
        assert found == at
        assert len(made) <= at + 1 + (5 if workers else 0)
    assert sorted(made) == list(range(40))


def test_workers_stop_when_nobody_reads_on(monkeypatch):
    made = []
    found = ahead(lambda at: made.append(at) or torch.tensor(at), range(1000), 2, 5)
    assert next(found) == 0
    found.close()
    assert len(made) <= 6


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_end_with_an_error(workers, monkeypatch):
    before, made = set(threading.enumerate()), []

    def work(at):
        if at == 4:
            raise ValueError("the fifth")
        made.append(at)
        return at

    found = ahead(work, range(1000), workers, 5)
    assert [next(found) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="the fifth"):
        next(found)
    assert list(found) == []
    assert max(made) <= 9
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=60)
        assert not thread.is_alive()


def test_an_image_that_takes_long_keeps_its_place():
    others = threading.Event()

    def work(at):
        assert at or others.wait(60)  # the first is done after the last
        if at == 2:
            others.set()
        return at

    assert list(ahead(work, range(3), 2, 9)) == [0, 1, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_error_of_a_worker_arrives_as_it_is(files, workers):
    truncated(files.root / "3.jpg")
    batches = files.batches(np.arange(9), 2, Centre(8, 8), seed=0, workers=workers)
    assert next(batches)[0].tolist() == [0, 1]
    with pytest.raises(UserError) as caught:
        next(batches)
    assert caught.value.happened.startswith("cannot read the image 3.jpg")
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_too_small_for_a_view_is_named(files, workers):
    write_image(files.root / "4.png", size=(9, 40))
    with pytest.raises(UserError, match="crop of 12 pixels does not fit an image of 40 x 9") as caught:
        list(files.batches(np.arange(9), 9, CropRotate((12,), 16), seed=0, workers=workers))
    assert caught.value.looked.endswith("4.png")


def smooth(path, side):
    """A JPEG or PNG of a gradient, which is the same at every scale."""
    ramp = np.linspace(0, 255, side)
    pixels = np.stack([ramp[:, None] + 0 * ramp, 0 * ramp[:, None] + ramp, np.full((side, side), 99.0)], 2)
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=95)


@pytest.mark.parametrize(
    ("name", "factor", "side"),
    [("big.jpg", 8, 64), ("big.jpg", 4, 128), ("big.jpg", 2, 256), ("big.jpg", 1, 512), ("big.png", 8, 512)],
)
def test_a_jpeg_may_be_decoded_smaller(tmp_path, name, factor, side):
    smooth(tmp_path / name, 512)
    asked = []
    image = read_rgb(Place(tmp_path / name), lambda height, width: asked.append((height, width)) or factor)
    assert image.size == (side, side)
    assert asked == ([(512, 512)] if name.endswith("jpg") else [])


@pytest.mark.parametrize("view", [ResizedCrop(16), RandomCrop(20, 16)], ids=repr)
def test_a_reduced_image_shows_what_the_whole_one_does(tmp_path, view, monkeypatch):
    smooth(tmp_path / "big.jpg", 512)
    images, order = FileImages(tmp_path, ["big.jpg"], None), np.zeros(8, dtype=np.int64)
    ((_, reduced),) = images.batches(order, 8, view, seed=1)
    monkeypatch.setattr(type(view), "reduction", lambda *_: 1)
    ((_, full),) = images.batches(order, 8, view, seed=1)
    assert not torch.equal(reduced, full)
    assert (reduced.float() - full.float()).abs().max() <= 6  # of 255 from side to side
