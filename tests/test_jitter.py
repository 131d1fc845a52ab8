"""MMDC's colour augmentation against torchvision's, and against its definition image by image."""

import torch
import torchvision.transforms.functional as TF
from pictures import batch

from zoo import jitter
from zoo.seeds import generator


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
