"""Normalisation against torchvision's, and the changes of channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import Compose, Normalize, ToTensor

from results.errors import UserError
from zoo.preprocessing import Preprocessing

IMAGENET = Preprocessing(224, 256, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 5))
def test_normalise_is_torchvisions_to_the_bit(seed: int, height: int, width: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = Compose([ToTensor(), Normalize(IMAGENET.mean, IMAGENET.std)])(Image.fromarray(pixels))
    given_ = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    for x in (given_, given_.float()):
        assert torch.equal(IMAGENET.normalise(x)[0], expected)


@pytest.mark.parametrize("lead", [(2,), (2, 10), ()])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalise_leaves_its_input_and_its_shape(lead: tuple[int, ...], dtype: torch.dtype) -> None:
    pixels = torch.full((*lead, 3, 4, 5), 51).to(dtype)
    found = IMAGENET.normalise(pixels)
    assert (pixels == 51).all()
    assert found.shape == pixels.shape
    assert found.dtype == torch.float32
    assert found[..., 1, 0, 0].flatten()[0].item() == pytest.approx((0.2 - 0.456) / 0.224)


@pytest.mark.parametrize(("mean", "std"), [((0.0,), (1.0,)), ((0.5,), (0.25,)), ((0.1, 0.2, 0.3), (1.0, 2.0, 4.0))])
def test_grey_images_are_repeated(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    pixels = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
    wanted = Preprocessing(4, 4, 3, mean, std)
    assert torch.equal(wanted.normalise(pixels), wanted.normalise(pixels.repeat(1, 3, 1, 1)))


def test_colours_are_averaged_for_a_grey_network() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert Preprocessing(1, 1, 1, (0,), (1,)).normalise(pixels).item() == pytest.approx(102 / 255)


def test_other_changes_of_channels_are_an_error() -> None:
    with pytest.raises(UserError, match="images of 4 channels for a network of 3"):
        IMAGENET.normalise(torch.zeros(1, 4, 2, 2))


def test_what_is_normalised_under_inference_mode_does_not_spoil_training() -> None:
    odd = Preprocessing(2, 2, 1, (0.31,), (0.77,))  # first used under inference mode, and its constants are kept
    with torch.inference_mode():
        odd.normalise(torch.zeros(1, 1, 2, 2))
    weight = torch.ones(1, requires_grad=True)
    (odd.normalise(torch.zeros(1, 1, 2, 2)) * weight).sum().backward()
    assert weight.grad is not None


def test_lists_become_tuples_and_lengths_must_fit() -> None:
    assert Preprocessing(8, 8, 2, [0, 0.5], [1, 1]) == Preprocessing(8, 8, 2, (0.0, 0.5), (1.0, 1.0))
    with pytest.raises(ValueError, match="3 values"):
        Preprocessing(8, 8, 2, (0, 0, 0), (1, 1))
