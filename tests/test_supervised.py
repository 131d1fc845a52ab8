"""The control that sees the labels."""

import math
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from trainings import Pictures, Unlabelled, batches, checkpoint, files, log, start, training

from pretrain.supervised import Supervised
from zoo.clustering.heads import linear_head
from zoo.views import ResizedCrop


def test_it_learns(tmp_path):
    words = "--epochs 10 --batch 8 --lr 0.02 --backbone small_vgg --area 0.8 1.0"
    assert start(Supervised, tmp_path, *words.split()) == 0
    history = log(tmp_path)
    assert history[-1]["loss"] < history[0]["loss"] / 10
    assert history[-1]["acc"] > 80  # of the images it learns from, augmented


def test_the_head_has_an_output_for_each_class(tmp_path):
    assert start(Supervised, tmp_path, "--epochs", "1") == 0
    groups = checkpoint(tmp_path).groups
    assert {name: tuple(tensor.shape) for name, tensor in groups["head"].items()} == {
        "top_layer.weight": (10, 512),
        "top_layer.bias": (10,),
    }
    assert set(groups) == {"backbone", "head"}


def test_sobel_filters_stay(tmp_path):
    assert start(Supervised, tmp_path, "--epochs", "1", "--sobel") == 0
    made = checkpoint(tmp_path)
    assert made.name == "supervised-alexnet32-sobel-digits-s0"
    assert torch.equal(made.groups["backbone"]["sobel.0.weight"].flatten(), torch.full((3,), 1 / 3))


def test_an_epoch_by_hand(tmp_path):
    method = Supervised(backbone="small_vgg", batch=24, epochs=2)
    run = training(method, tmp_path, Pictures(channels=1))  # noise: rounding decides no maximum
    backbone = run.build_backbone()
    network = torch.nn.ModuleDict({"backbone": backbone, "top_layer": linear_head(1024, 10, 3)})
    copy = torch.nn.ModuleDict({"backbone": run.build_backbone(), "top_layer": linear_head(1024, 10, 3)})
    optimizer = torch.optim.SGD(network.parameters(), lr=99, momentum=method.momentum, weight_decay=method.weight_decay)
    buffers = [torch.zeros_like(p) for p in copy.parameters()]
    step = 0
    for epoch in run.epochs(2):
        loss, predicted = method.learn(network, optimizer, run, epoch)
        order = torch.randperm(64, generator=torch.Generator().manual_seed(int_seed(run, epoch))).numpy()
        total, seen = 0.0, np.full(64, -1)
        for ids, x in batches(run, ResizedCrop(32, (0.4, 1.0), flip=False), order, 24, "training", epoch):
            logits = copy["top_layer"](torch.relu(copy["backbone"].embed(x)))
            labels = torch.from_numpy(run.labels[ids])
            nll = -F.log_softmax(logits, 1)[torch.arange(len(ids)), labels]
            gradients = torch.autograd.grad(nll.mean(), list(copy.parameters()))
            lr = 0.01 * (1 + math.cos(math.pi * step / 6)) / 2  # 2 epochs of 3 batches
            with torch.no_grad():
                for p, gradient, buffer in zip(copy.parameters(), gradients, buffers):
                    buffer.mul_(0.9).add_(gradient + 5e-4 * p)
                    p.sub_(lr * buffer)
            total += nll.sum().item()
            seen[ids] = logits.argmax(1).numpy()
            step += 1
        assert loss == pytest.approx(total / 64, rel=1e-4)
        assert np.array_equal(predicted, seen)
    for p, wanted in zip(network.parameters(), copy.parameters()):
        assert torch.allclose(p, wanted, atol=1e-5)


def int_seed(run, epoch):
    """The seed from which the order of an epoch is drawn: derived twice, by the run and by the generator."""
    from zoo.seeds import derive

    return derive(run.seed("order", epoch))


def test_images_without_labels(tmp_path, capsys):
    with patch.object(Supervised, "train", None):
        assert start(Supervised, tmp_path, dataset=Unlabelled()) == 2
    err = capsys.readouterr().err
    assert "no classes" in err
    assert "try:" in err
    assert files(tmp_path) == []


@pytest.mark.usefixtures("states_of_epochs")
def test_a_learning_rate_that_diverges(tmp_path, capsys):
    assert start(Supervised, tmp_path, "--epochs", "3", "--batch", "8", "--lr", "1e30") == 1
    err = capsys.readouterr().err
    assert "smaller --lr" in err
    assert "Traceback" not in err
    assert [path.split("/")[-1] for path in files(tmp_path)] == ["error.txt"]
