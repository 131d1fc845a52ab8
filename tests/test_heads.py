"""Classifiers trained side by side are those that torch's SGD trains one by one, in either form."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from probes.heads import Heads, cosine, inverse_sqrt

CPU = torch.device("cpu")
SCHEDULES = pytest.mark.parametrize("schedule", [cosine, inverse_sqrt])
RATES = (0.3, 0.03, 0.1)
DECAY = 0.01


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def classes_of(count, classes, seed=1):
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


def started(dim, classes, rates=RATES, schedule=cosine, seed=0, **more):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return Heads(dim, classes, rates, DECAY, schedule, generator, CPU, **more)


def orders(count, batch, epochs):
    """Batches of ids, each id once an epoch."""
    generator = torch.Generator().manual_seed(7)
    return [ids for _ in range(epochs) for ids in torch.randperm(count, generator=generator).split(batch)]


def by_torch(head, at, x, labels, batches, schedule):
    """The classifier of rate number `at`, trained by torch.optim.SGD from the same start."""
    linear = nn.Linear(x.shape[1], head.values.shape[1])
    with torch.no_grad():
        linear.weight.copy_(head.values[at, :, :-1])
        linear.bias.copy_(head.values[at, :, -1])
    optimizer = torch.optim.SGD(linear.parameters(), lr=1.0, momentum=0.9, weight_decay=DECAY)
    for step, ids in enumerate(batches):
        optimizer.param_groups[0]["lr"] = schedule(head.rates[at], DECAY, step, len(batches))
        optimizer.zero_grad()
        nn.functional.cross_entropy(linear(x[ids]), labels[ids]).backward()
        optimizer.step()
    return linear


def trained(head, x, labels, batches):
    for step, ids in enumerate(batches):
        head.step(x[ids], labels[ids], ids, step, len(batches))
    return head


@SCHEDULES
@settings(max_examples=10)
@given(dim=st.integers(1, 9), classes=st.integers(1, 6), count=st.integers(1, 12), batch=st.integers(1, 5))
def test_each_rate_is_trained_as_by_torch(schedule, dim, classes, count, batch):
    x, labels, batches = draw(count, dim), classes_of(count, classes), orders(count, batch, epochs=4)
    head = started(dim, classes, schedule=schedule)
    expected = [by_torch(head, at, x, labels, batches, schedule) for at in range(len(RATES))]
    trained(head, x, labels, batches)
    for at, linear in enumerate(expected):
        torch.testing.assert_close(head.values[at, :, :-1], linear.weight.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(head.logits(x)[at].T, linear(x).detach(), rtol=1e-4, atol=1e-5)


@SCHEDULES
def test_training_on_the_gram_matrix_is_training_on_the_features(schedule):
    x, unseen, labels = draw(20, 50), draw(8, 50, seed=2), classes_of(20, 4)
    batches = orders(20, 6, epochs=10)
    primal = trained(started(50, 4, schedule=schedule, seed=None), x, labels, batches)
    dual = trained(started(20, 4, schedule=schedule, seed=None, dual=True), x @ x.T, labels, batches)
    torch.testing.assert_close(dual.values[:, :, :-1] @ x, primal.values[:, :, :-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dual.values[:, :, -1], primal.values[:, :, -1], rtol=1e-4, atol=1e-4)
    for rows in (x, unseen):
        torch.testing.assert_close(dual.logits(rows @ x.T), primal.logits(rows), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dual", [False, True])
def test_a_rate_that_diverges_leaves_its_neighbours_alone(dual):
    x, labels, batches = draw(16, 6), classes_of(16, 3), orders(16, 5, epochs=30)
    rows = x @ x.T if dual else x
    dim = rows.shape[1]
    both = trained(started(dim, 3, (0.1, 1e30, 0.03), inverse_sqrt, seed=None, dual=dual), rows, labels, batches)
    found = both.logits(rows)
    assert not found[1].isfinite().all()
    for at, rate in ((0, 0.1), (2, 0.03)):
        alone = trained(started(dim, 3, (rate,), inverse_sqrt, seed=None, dual=dual), rows, labels, batches)
        assert found[at].isfinite().all()
        torch.testing.assert_close(found[at], alone.logits(rows)[0], rtol=1e-5, atol=1e-5)


@SCHEDULES
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_training_that_was_stopped_goes_on_to_the_bit(schedule, stop):
    x, labels, batches = draw(20, 6), classes_of(20, 4), orders(20, 6, epochs=3)
    whole, part = (started(6, 4, schedule=schedule) for _ in range(2))
    trained(whole, x, labels, batches)
    steps = [(x[ids], labels[ids], ids, step, len(batches)) for step, ids in enumerate(batches)]
    for step in steps[:stop]:
        part.step(*step)
    rest = started(6, 4, schedule=schedule, seed=9)
    rest.load_state_dict({name: tensor.clone() for name, tensor in part.state_dict().items()})
    for step in steps[stop:]:
        rest.step(*step)
    assert torch.equal(rest.values, whole.values)
    assert torch.equal(rest.speeds, whole.speeds)


def test_classifiers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"values of shape \(3, 4, 6\), not \(3, 4, 7\)"):
        started(6, 4).load_state_dict(started(5, 4).state_dict())
    with pytest.raises(ValueError, match="not"):
        started(6, 4).load_state_dict(started(6, 4, rates=RATES[:1]).state_dict())


def test_the_start_is_torchs_default_and_the_same_for_every_rate():
    head = started(100, 7)
    assert head.values.shape == (3, 7, 101)
    assert (head.values == head.values[0]).all()
    assert 0.09 < head.values.abs().max() <= 0.1  # torch: uniform within 1 / sqrt(dim)
    assert head.values.unique().numel() > 600
    assert (started(100, 7).values == head.values).all()
    assert (started(100, 7, seed=1).values != head.values).any()
    assert not started(100, 7, seed=None).values.any()


def test_logits_are_by_rate_class_and_image():
    head, x = started(4, 3), draw(5, 4)
    found = head.logits(x)
    assert found.shape == (3, 3, 5)
    for rate in range(3):
        for number in range(3):
            *weight, bias = head.values[rate, number].tolist()
            for image in range(5):
                expected = sum(one * other for one, other in zip(weight, x[image].tolist())) + bias
                assert found[rate, number, image].item() == pytest.approx(expected, abs=1e-6)


@given(st.floats(1e-4, 1), st.integers(1, 1000))
def test_the_cosine_goes_from_the_rate_to_zero(rate, steps):
    assert cosine(rate, DECAY, 0, steps) == rate
    assert cosine(rate, DECAY, steps, steps) == pytest.approx(0, abs=1e-12)
    assert cosine(rate, DECAY, steps, 2 * steps) == pytest.approx(rate / 2)
    rates = [cosine(rate, DECAY, step, steps) for step in range(steps)]
    assert rates == sorted(rates, reverse=True)


def test_deepclusters_schedule_is_its_formula():
    assert inverse_sqrt(0.01, 1e-4, 0, 1) == 0.01
    assert round(inverse_sqrt(0.01, 1e-4, 450000, 1), 4) == 0.0083  # deepcluster.md 2.1
    assert round(inverse_sqrt(0.01, 1e-7, 450000, 1), 6) == 0.009998
    assert inverse_sqrt(0.1, 0.5, 7, 1) == pytest.approx(0.1 / math.sqrt(1 + 0.1 * 0.5 * 7))
