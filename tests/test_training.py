"""What methods train with: epochs that resume, a history, seeds, batches."""

import json
import math
import time
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from trainings import Tiny, files, untimed

from results.errors import RunFailed
from zoo.backbones import build
from zoo.preprocessing import Preprocessing
from zoo.state import states
from zoo.steps import trainable
from zoo.training import LOG, SCRATCH, Training, has_collapsed
from zoo.views import Centre

HALVES = np.repeat([0, 1], [40, 24])  # an assignment of Tiny's 64 images


@dataclass(frozen=True)
class Settings:
    backbone: str = "small_vgg"
    sobel: bool = False
    precision: str = "fp32"
    seed: int = 0


def training(folder, images=None, **settings):
    dataset = Tiny()
    return Training(
        settings=Settings(**settings),
        dataset=dataset,
        images=images or dataset.open("train"),
        preprocessing=Preprocessing(32, 32, 1, (0.25,), (0.5,)),
        device=torch.device("cpu"),
        directory=folder,
        quiet=True,
    )


def learn(run, total, stop=None, **more):
    """A linear model that learns noise drawn from the epoch's generator for `total` epochs; its parts."""
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    last: dict = {}
    for epoch in run.epochs(total, model=model, optimizer=optimizer, last=last, **more):
        if epoch == stop:
            raise KeyboardInterrupt
        with run.phase("training"):
            loss = (model(torch.rand(4, 3)) - torch.rand(4, 2)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        last["loss"] = loss.detach()
        run.log(epoch, loss.item(), np.roll(HALVES, epoch), 3)
    return SimpleNamespace(model=model, optimizer=optimizer, last=last)


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_an_interrupted_run_ends_like_one_that_was_not(tmp_path, stop):
    whole = training(tmp_path / "whole")
    wanted = learn(whole, 4)
    with pytest.raises(KeyboardInterrupt):
        learn(training(tmp_path / "torn"), 4, stop)
    torch.rand(7)  # what happens to the global generator in between does not matter
    run = training(tmp_path / "torn")
    found = learn(run, 4)
    assert torch.equal(found.model.weight, wanted.model.weight)
    for group in ("state", "param_groups"):
        assert str(found.optimizer.state_dict()[group]) == str(wanted.optimizer.state_dict()[group])
    assert found.last == wanted.last
    assert untimed(run.history) == untimed(whole.history)
    assert torch.equal(run.previous["assignment"], whole.previous["assignment"])


def test_a_finished_run_has_no_epochs_left(tmp_path):
    wanted = learn(training(tmp_path), 2).model.weight
    run = training(tmp_path)
    assert torch.equal(learn(run, 2, stop=0).model.weight, wanted)
    assert len(run.history) == 2


def test_sizes_of_many_clusters_are_those_of_the_last_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.training.MANY", 2)
    run = training(tmp_path)
    learn(run, 3)
    assert ["cluster_sizes" in entry for entry in run.history] == [False, False, True]
    assert all("empty_clusters" in entry for entry in run.history)


def test_every_epoch_is_seeded_by_its_number(tmp_path):
    drawn = [torch.rand(3) for _ in training(tmp_path / "a").epochs(3)]
    again = [torch.rand(3) for _ in training(tmp_path / "b").epochs(3)]
    other = [torch.rand(3) for _ in training(tmp_path / "c", seed=1).epochs(3)]
    assert all(torch.equal(a, b) for a, b in zip(drawn, again))
    assert not any(torch.equal(a, b) for a, b in zip(drawn, other))
    assert len({tuple(values.tolist()) for values in drawn}) == 3


def test_the_log_has_what_the_history_has(tmp_path):
    run = training(tmp_path)
    learn(run, 3)
    assert [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()] == run.history
    assert files(tmp_path) == [LOG, *(path.name for _, path in states(tmp_path))]


def test_an_entry_of_the_history(tmp_path):
    run = training(tmp_path)
    learn(run, 2)
    first, second = run.history
    scored = {"acc", "purity", "nmi_arithmetic", "nmi_geometric", "ami", "ari", "cluster_entropy", "empty_clusters"}
    assert set(first) == scored | {"epoch", "loss", "nmi_previous", "cluster_sizes", "seconds", "collapsed"}
    assert (first["epoch"], second["epoch"]) == (0, 1)
    assert first["cluster_sizes"] == [40, 24, 0]
    assert first["empty_clusters"] == 1
    p, q = 40 / 64, 24 / 64
    assert first["cluster_entropy"] == pytest.approx(-p * math.log(p) - q * math.log(q))
    assert list(first["seconds"]) == ["training"]
    assert first["nmi_previous"] is None
    # by hand: HALVES against HALVES rolled by one. 39 images stay in 0, 23 in 1, one goes each way
    joint = np.array([[39, 1], [1, 23]]) / 64
    marginal = np.array([40, 24]) / 64
    information = (joint * np.log(joint / np.outer(marginal, marginal))).sum()
    assert second["nmi_previous"] == pytest.approx(information / first["cluster_entropy"])


def test_without_labels_nothing_is_scored_against_them(tmp_path):
    images = Tiny().open("train")
    images.labels = None
    run = training(tmp_path, images)
    learn(run, 1)
    assert "acc" not in run.history[0]
    assert run.history[0]["empty_clusters"] == 1
    assert run.history[0]["cluster_entropy"] > 0


@pytest.mark.parametrize(
    ("sizes", "collapsed"),
    [
        ([10], False),
        ([10, 0], True),
        ([7, 3], False),  # one of two always holds half
        ([6, 3, 1], False),
        ([7, 2, 1], True),
        ([5, 2, 2, 1], False),
        ([6, 2, 1, 1], True),
        ([4, 4, 2, 0, 0, 0, 0], True),  # most are empty
        ([2, 2, 2, 2, 2, 0, 0, 0, 0, 0], False),
    ],
)
def test_a_collapse(sizes, collapsed):
    assert has_collapsed(np.array(sizes)) is collapsed


def test_a_collapse_is_said_aloud(tmp_path, capsys):
    run = training(tmp_path)
    run.quiet = False
    for epoch in run.epochs(1):
        run.log(epoch, 1.0, np.zeros(64, dtype=np.int64), 4)
    said = capsys.readouterr().err
    assert "collapse: 3 of 4 clusters are empty, the largest holds 100 % of the images" in said
    assert run.history[0]["collapsed"] is True


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_leaves_the_state_before_it(tmp_path, loss):
    learn(training(tmp_path), 2)
    before = states(tmp_path)
    run = training(tmp_path)
    epoch = next(run.epochs(3))
    with pytest.raises(RunFailed, match=r"in epoch 2.*smaller --lr"):
        run.log(epoch, loss, HALVES, 2)
    assert states(tmp_path) == before
    assert len(run.history) == 2


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    model = nn.Linear(2, 2)
    epochs = training(tmp_path).epochs(3, model=model)
    assert [next(epochs), next(epochs)] == [0, 1]
    model.bias.data[0] = math.inf
    with pytest.raises(RunFailed, match=r"weights .* epoch 1"):
        next(epochs)
    kept = nn.Linear(2, 2)
    assert next(training(tmp_path).epochs(3, model=kept)) == 1
    assert kept.bias.isfinite().all()


def test_batches_are_normalised_and_in_order(tmp_path):
    run = training(tmp_path)
    order = np.arange(63, -1, -1)
    seen = list(run.batches(Centre(32, 32), order, 24, "training", 0))
    assert [len(ids) for ids, _ in seen] == [24, 24, 16]
    assert np.array_equal(np.concatenate([ids for ids, _ in seen]), order)
    x = torch.cat([x for _, x in seen])
    pixels = run.images.pixels[torch.from_numpy(order)]
    assert torch.allclose(x, (pixels / 255 - 0.25) / 0.5, atol=1e-6)
    assert x.dtype == torch.float32


def test_a_seed_for_each_purpose(tmp_path):
    run, other = training(tmp_path), training(tmp_path, seed=1)
    assert run.seed("a", 0) == run.seed("a", 0)
    assert len({run.seed("a", 0), run.seed("a", 1), run.seed("b", 0), other.seed("a", 0)}) == 4


def test_descriptors_are_float32_at_any_precision(tmp_path):
    model = build("small_vgg", seed=0)
    x = torch.rand(4, 1, 32, 32)
    exact = training(tmp_path).embed(model, x)
    rounded = training(tmp_path, precision="bf16").embed(model, x)
    assert exact.dtype == rounded.dtype == torch.float32
    assert torch.equal(exact, model.embed(x))
    assert not torch.equal(exact, rounded)
    assert torch.nn.functional.cosine_similarity(exact, rounded).min() > 0.99


def test_the_backbone_of_a_run_is_drawn_from_its_seed(tmp_path):
    first, again = (training(tmp_path).build_backbone() for _ in range(2))
    other = training(tmp_path, seed=1).build_backbone()
    assert torch.equal(first.features[0].weight, again.features[0].weight)
    assert not torch.equal(first.features[0].weight, other.features[0].weight)
    assert first.features[4].weight.is_contiguous(memory_format=torch.channels_last)


def test_the_sobel_filters_do_not_train():
    model = build("alexnet32", sobel=True)
    fixed = {id(p) for p in model.sobel.parameters()}
    assert len(fixed) == 4
    assert not fixed & {id(p) for p in trainable(model)}
    assert len(trainable(model)) == len(list(model.parameters())) - 4


def test_what_the_steps_of_a_phase_put_on_disk_stays_there(tmp_path):
    def fill(run, stop=None):
        for _ in run.epochs(1):
            array = run.array("features", (64, 2))
            for number, (ids, x) in enumerate(run.batches(Centre(32, 32), np.arange(64), 24, "features")):
                if number == stop:
                    raise KeyboardInterrupt
                array[ids] = x.flatten(1)[:, :2].numpy() + run.extra
        return np.array(array)

    def start(extra):
        run = training(tmp_path)
        run.save_every, run.extra = 0.0, extra
        return run

    with pytest.raises(KeyboardInterrupt):
        fill(start(0), stop=1)
    found = fill(start(100))
    assert found[:24].max() < 50 < found[24:].min()  # the first step's rows were not computed again


def test_an_array_that_was_lost_is_filled_again(tmp_path):
    run = training(tmp_path)
    epochs = run.epochs(1)
    next(epochs)
    run.array("features", (64, 2))
    assert len(list(run.batches(Centre(32, 32), np.arange(64), 24, "features"))) == 3
    run.state.save()
    (path,) = tmp_path.glob(SCRATCH)
    path.unlink()
    again = training(tmp_path)
    assert next(again.epochs(1)) == 0
    assert not again.array("features", (64, 2)).any()
    assert len(list(again.batches(Centre(32, 32), np.arange(64), 24, "features"))) == 3


def test_an_older_state_does_not_take_the_rows_of_a_later_epoch(tmp_path):
    def go_on(stop=None):
        """Each epoch's array; the run dies in the step `stop`."""
        run = training(tmp_path)
        for epoch in run.epochs(2):
            array = run.array("features", (64, 2))
            for number, (ids, _) in enumerate(run.batches(Centre(32, 32), np.arange(64), 24, "features")):
                array[ids] = 10 * epoch + number
                if (epoch, number) == (0, 1):
                    run.state.save()  # with the rows of the first step
                if (epoch, number) == stop:
                    raise KeyboardInterrupt
            yield np.array(array)

    wanted = np.repeat([0, 1, 2], [24, 24, 16])[:, None].repeat(2, 1)
    epochs = go_on(stop=(1, 2))
    assert np.array_equal(next(epochs), wanted)
    with pytest.raises(KeyboardInterrupt):  # all rows are the second epoch's by now
        next(epochs)
    assert len(list(tmp_path.glob(SCRATCH))) == 1  # the disk has one epoch's at a time
    newest = states(tmp_path)[-1][1]
    newest.write_bytes(newest.read_bytes()[:100])
    first, second = go_on()
    assert np.array_equal(first, wanted)
    assert np.array_equal(second, wanted + 10)


def test_the_seconds_of_a_phase_outlive_an_interruption(tmp_path):
    def run(stop=None):
        run = training(tmp_path)
        run.save_every = 0
        for _ in run.epochs(1):
            with run.phase("training"):
                for number, _ in enumerate(run.batches(Centre(32, 32), np.arange(64), 32, "training")):
                    time.sleep(0.05)
                    if number == stop:
                        raise KeyboardInterrupt
            counted = run.seconds["training"]
        return counted

    with pytest.raises(KeyboardInterrupt):
        run(stop=1)
    assert run() > 0.1  # both batches'
