"""Segmentation of Pascal VOC where masks are wrong, or no pixel of them counts."""

import shutil
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from segmented import COUNTS, segment
from vocs import generate_few

from transfer import voc_segmentation
from transfer.finetuning import Finetuning
from zoo.voc.masks import BORDER, to_image


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return generate_few(tmp_path_factory.mktemp("minivoc"), COUNTS)


@pytest.fixture
def own(few, tmp_path):
    """A copy of the devkit, to be spoilt."""
    found = type(few)(None)
    found.__dict__.update(vars(few))
    found.folder = shutil.copytree(few.folder, tmp_path / "kit")
    found.location = found.folder / few.location.relative_to(few.folder)
    return found


@pytest.fixture
def run(own, tmp_path):
    """Run the command on that copy, whose files may have other sizes; its exit code and the records."""
    with patch.object(type(own), "check_contents", lambda self: None):
        yield partial(segment, tmp_path, own)


def spoil(kit, split, change):
    """Change the last mask of a set; its path."""
    path = kit.masks(split)[-1]
    mask = change(np.array(Image.open(path)))
    to_image(mask).save(path)
    return path


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda mask: mask[:-1], "pixels, and its image"),
        (lambda mask: np.where(mask == 0, 11, mask).astype(np.uint8), "has the class 11, where 0 to 10 and 255"),
    ],
)
@pytest.mark.parametrize("split", ["trainval", "test"])
def test_a_mask_that_is_wrong_is_named(split, change, wanted, own, run, capsys):
    path = spoil(own, split, change)
    assert run("--iterations", "13") == (2, [])
    said = capsys.readouterr().err
    assert f"the mask {path.name}" in said
    assert wanted in said
    assert str(path) in said
    assert "it is generated again" in said


def test_an_image_without_a_pixel_that_counts_is_passed_over(own, run):
    for split in ("trainval", "test"):
        spoil(own, split, lambda mask: np.full_like(mask, BORDER))
    code, (record,) = run("--batch", "1", "--iterations", "49")
    assert code == 0
    assert record.details["loss"].count(0) == 1


def test_masks_without_a_pixel_that_counts_are_refused_before_any_step(own, run, capsys, monkeypatch):
    monkeypatch.setattr(Finetuning, "descend", None)
    for path in own.masks("test"):
        to_image(np.full_like(np.array(Image.open(path)), BORDER)).save(path)
    assert run() == (2, [])
    assert "no pixel of the masks has a class" in capsys.readouterr().err


def test_a_class_that_is_in_no_mask_and_not_found_is_absent(own, run):
    for path in own.masks("test"):
        mask = np.array(Image.open(path))
        to_image(np.where(mask == 4, BORDER, mask).astype(np.uint8)).save(path)

    def never(network, pixels, bench, scale):
        scores = whole(network, pixels, bench, scale)
        return scores - 1e9 * (torch.arange(11) == 4)[:, None, None]

    whole = voc_segmentation.compute
    with patch.object(voc_segmentation, "compute", never):
        code, (record,) = run()
    assert code == 0
    assert record.details["absent"] == ["three"]
    assert len(record.details["IoU"]) == 10
