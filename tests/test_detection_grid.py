"""Where the cells of a map lie in the image, and what is pooled and thought up from that."""

import pytest
import torch
from torchvision.models.detection.image_list import ImageList

from results.errors import UserError
from transfer.detection.grid import MAP, RATIOS, Anchors, Grid, Pooling, measure
from zoo.backbones import empty

# kernel, stride, padding of the convolutions and poolings up to a layer
THREE, HALVED = (3, 1, 1), (2, 2, 0)
LAYERS = {
    ("alexnet", "conv5"): [(11, 4, 2), (3, 2, 0), (5, 1, 2), (3, 2, 0), THREE, THREE, THREE],
    ("alexnet32", "conv5"): [(5, 1, 2), HALVED, THREE, HALVED, THREE, THREE, THREE],
    ("vgg16", "conv13"): [THREE, THREE, HALVED, THREE, THREE, HALVED, *([THREE] * 3 + [HALVED]) * 2, *[THREE] * 3],
    ("small_vgg", "conv4"): [THREE, HALVED, THREE, HALVED, THREE, HALVED, THREE],
    ("resnet18", "res4"): [THREE, (2, 2, 1), *[THREE] * 4, (3, 2, 1), *[THREE] * 3, (3, 2, 1), *[THREE] * 3],
    ("resnet50", "res4"): [(7, 2, 3), (3, 2, 1), *[THREE] * 3, (3, 2, 1), *[THREE] * 3, (3, 2, 1), *[THREE] * 5],
    ("torchvision:resnet50", "stage5"): [(7, 2, 3), (3, 2, 1), *[(3, 2, 1)] * 3],
}
CHANNELS = {"alexnet": 256, "alexnet32": 64, "vgg16": 512, "small_vgg": 256, "resnet18": 256, "resnet50": 1024}


@pytest.mark.parametrize(("backbone", "layer"), LAYERS)
def test_cells_are_where_the_convolutions_put_them(backbone, layer):
    jump, centre = 1, 0.5  # of the first pixel
    for kernel, stride, padding in LAYERS[backbone, layer]:
        centre += jump * ((kernel - 1) / 2 - padding)
        jump *= stride
    assert measure(empty(backbone), layer) == Grid(CHANNELS.get(backbone, 2048), jump, centre)


def test_a_sobel_filter_moves_nothing():
    assert measure(empty("alexnet", sobel=True), "conv5") == Grid(256, 16, 15.5)


def test_a_network_of_one_size_is_refused():
    with pytest.raises(UserError, match="timm:vit_tiny_patch16_224 does not take images of any size"):
        measure(empty("timm:vit_tiny_patch16_224"), "stage12")


def columns(count=20):
    """A map whose cells hold their column, and their row."""
    across = torch.arange(float(count)).expand(count, count)
    return {MAP: torch.stack([across, across.T])[None].contiguous()}


@pytest.mark.parametrize("kind", ["max", "align"])
@pytest.mark.parametrize("grid", [Grid(2, 16, 15.5), Grid(2, 4, 2.0), Grid(2, 16, 0.5)])
def test_a_region_of_one_cell_is_that_cell(kind, grid):
    centre = grid.first + grid.stride * torch.tensor([3.0, 7.0])  # x, y
    box = torch.cat([centre - grid.stride / 2, centre + grid.stride / 2])[None]
    assert Pooling(grid, 1, kind)(columns(), [box], [(320, 320)]).flatten().tolist() == [3, 7]


def test_the_maximum_is_of_the_cells_in_each_bin():
    box = torch.tensor([[16.0, 32.0, 48.0, 64.0]])  # cells 4 to 11 across, 8 to 15 down
    found = Pooling(Grid(2, 4, 2.0), 4, "max")(columns(), [box], [(80, 80)])
    assert found[0, 0].tolist() == [[5, 7, 9, 11]] * 4
    assert found[0, 1].T.tolist() == [[9, 11, 13, 15]] * 4


def test_align_is_the_mean_where_bins_are():
    box = torch.tensor([[16.0, 32.0, 48.0, 64.0]])
    found = Pooling(Grid(2, 4, 2.0), 4, "align")(columns(), [box], [(80, 80)])
    torch.testing.assert_close(found[0, 0], torch.tensor([4.5, 6.5, 8.5, 10.5]).expand(4, 4))


def test_regions_are_of_their_own_images():
    maps = {MAP: torch.stack([torch.zeros(1, 5, 5), torch.ones(1, 5, 5)])}
    boxes = [torch.zeros(0, 4), torch.tensor([[0.0, 0.0, 20.0, 20.0]])]
    for kind in ("max", "align"):
        assert Pooling(Grid(1, 4, 2.0), 2, kind)(maps, boxes, [(20, 20)] * 2).unique().tolist() == [1]


def test_anchors_lie_around_the_cells():
    grid = Grid(2, 16, 15.5)
    images = ImageList(torch.zeros(2, 3, 100, 100), [(100, 100), (90, 100)])
    one, other = Anchors(grid, (32, 64))(images, [torch.zeros(2, 2, 5, 6)])
    assert torch.equal(one, other)
    boxes = one.reshape(5, 6, len(RATIOS) * 2, 4)
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    assert centres[2, 4].unique(dim=0).tolist() == [[15.5 + 4 * 16, 15.5 + 2 * 16]]
    sides = (boxes[..., 2:] - boxes[..., :2])[0, 0]
    assert sides.prod(1).sqrt().tolist() == pytest.approx([32, 64] * 3, rel=0.05)
    assert (sides[:, 1] / sides[:, 0]).tolist() == pytest.approx([0.5, 0.5, 1, 1, 2, 2], rel=0.05)
