"""A step of gradient descent, and how images are shared out among steps."""

import pytest
import torch

from zoo.steps import batch_sizes, descend


@pytest.mark.parametrize(("clip", "length"), [(float("inf"), 5.0), (10.0, 5.0), (2.0, 2.0)])
def test_long_gradients_are_scaled_together(clip, length):
    weights = [torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)]
    optimizers = [torch.optim.SGD([weight], lr=1.0) for weight in weights]
    descend(3 * weights[0].sum() + 4 * weights[1].sum(), *optimizers, clip=clip)
    moved = torch.cat([weight.detach() for weight in weights])
    assert moved.norm().item() == pytest.approx(length, rel=1e-5)
    assert (moved[1] / moved[0]).item() == pytest.approx(4 / 3)


@pytest.mark.parametrize(("count", "batch", "sizes"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 4, [3])])
def test_the_last_batch_is_what_is_left(count, batch, sizes):
    assert batch_sizes(count, batch, 1) == sizes
