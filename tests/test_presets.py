"""Every preset, the papers' among them, takes two iterations on a miniature in its data set's official format."""

import json
import math
from dataclasses import asdict

import pytest
from miniatures import MINIATURES
from pictures import elsewhere  # noqa: F401
from toys import photographs
from trainings import checkpoint, log

from zoo.datasets import DATASETS
from zoo.run import command, guarded, registry
from zoo.voc import VOCS

METHODS = registry("pretrain")
# What a miniature is too small for; everything else is the preset's.
FEWER = {"pretrain.deepcluster": ("--k", "3"), "pretrain.mmdc": ("--k", "3"), "pretrain.supervised": ()}


def presets():
    found = [(name, dataset, ()) for name, method in METHODS.items() for dataset in ("digits", *method.presets)]
    found.append(("pretrain.deepcluster", "imagenet", ("--backbone", "vgg16")))
    # those of Places, VOC and a folder are ImageNet's with another k or number of epochs, and take as long
    found = [entry for entry in found if entry[1] not in ("folder", "places205", "places365", "voc2007", "voc2012")]
    return [entry for entry in found if entry[:2] != ("pretrain.mmdc", "imagenet")]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function: the exit code of a method's command, its runs in tmp_path."""

    def go(name, *words):
        places = ["--store", str(tmp_path / "records"), "--runs", str(tmp_path / "runs"), "--threads", "1", "--quiet"]
        return guarded(lambda: command(METHODS[name], [*places, "--workers", "0", *words]))

    return go


@pytest.mark.parametrize(("name", "dataset", "more"), presets())
def test_a_preset_takes_two_iterations(name, dataset, more, run, tmp_path, monkeypatch, capsys):
    data_dir = MINIATURES[dataset](tmp_path / "data", monkeypatch)
    words = ["--dataset", dataset, *FEWER[name], *more]
    words += ["--data-dir", str(data_dir)] if data_dir else []
    assert run(name, *words, "--dry-run") == 0  # the whole plan, and what it costs
    assert f"{(METHODS[name].presets.get(dataset, {}).get('epochs') or METHODS[name]().epochs)} epochs" in (
        capsys.readouterr().out
    )
    assert run(name, *words, "--epochs", "1", "--batch", "6", "--limit", "12") == 0, capsys.readouterr().err
    assert [math.isfinite(entry["loss"]) for entry in log(tmp_path)] == [True]
    made = checkpoint(tmp_path)
    wanted = asdict(METHODS[name]()) | METHODS[name].presets.get(dataset, {})
    wanted |= {"epochs": 1, "batch": 6} | ({"k": 3} if "k" in wanted else {})
    wanted |= {"backbone": more[1]} if more else {}
    for setting, value in made.settings.items():
        assert setting == "seed" or json.dumps(value) == json.dumps(wanted[setting]), setting
    assert made.backbone["name"] == wanted["backbone"]


@pytest.mark.parametrize("name", ["pretrain.mmdc", "pretrain.supervised"])
def test_a_folder_of_photographs_takes_two_iterations(name, run, tmp_path):
    photographs(tmp_path / "data", train=4, val=1)
    words = ["--dataset", f"folder:{tmp_path / 'data'}", *FEWER[name], "--epochs", "1", "--batch", "4", "--limit", "8"]
    assert run(name, *words) == 0
    assert math.isfinite(log(tmp_path)[0]["loss"])


@pytest.mark.parametrize(
    ("name", "dataset", "count"),
    [
        ("pretrain.deepcluster", "imagenet", "1,281,167"),
        ("pretrain.mmdc", "imagenet10", "13,000"),
        ("pretrain.mmdc", "cifar100-20", "60,000"),
        ("pretrain.supervised", "places205", "2,448,873"),
        ("pretrain.mmdc", "tiny-imagenet", "100,000"),
        ("pretrain.mmdc", "voc2007", "9,963"),
        ("pretrain.deepcluster", "voc2012", "5,717"),
    ],
)
def test_a_dry_run_without_the_data_says_what_it_would_cost(name, dataset, count, run, tmp_path, capsys):
    assert run(name, "--dataset", dataset, "--dry-run", "--data-dir", str(tmp_path)) == 0
    said = capsys.readouterr().out
    assert f"cannot: {dataset} is not here\n  looked in: {tmp_path}" in said
    assert f"\n{count} images\n" in said
    assert f"{METHODS[name].presets[dataset]['epochs']} epochs" in said
    assert run(name, "--dataset", dataset, "--data-dir", str(tmp_path)) == 2
    assert run(name, "--dataset", dataset, "--dry-run", "--batch", "0", "--data-dir", str(tmp_path)) == 2
    assert run(name, "--dataset", f"folder:{tmp_path / 'none'}", "--dry-run") == 2  # whose counts nobody knows
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "runs").exists()


def test_the_papers_presets_are_those_of_the_protocols():
    """mmdc.md 1.6 and deepcluster.md 1.1."""
    mmdc = METHODS["pretrain.mmdc"]
    table = {  # backbone, rotation, epochs, drop, drop at, weight decay, refine at, first crop, size
        "mnist": ("small_vgg", False, 50, 0.1, 40, 5e-4, 20, 24, 0),
        "cifar10": ("resnet18", True, 400, 0.2, 300, 5e-4, 350, 20, 0),
        "cifar100-20": ("resnet18", True, 400, 0.2, 300, 1e-4, 350, 20, 0),
        "stl10": ("resnet18", True, 400, 0.2, 300, 5e-4, 350, 64, 64),
        "imagenet10": ("resnet18", True, 400, 0.2, 300, 5e-4, 350, 64, 64),
        "tiny-imagenet": ("resnet18", True, 400, 0.2, 300, 1e-4, 350, 40, 64),
    }
    for dataset, row in table.items():
        s = mmdc(**mmdc.presets[dataset])
        found = (s.backbone, s.rotation, s.epochs, s.drop, s.drop_at, s.weight_decay, s.refine_at, s.crops[0], s.size)
        assert found == row, dataset
        assert (s.batch, s.lr, s.momentum, s.sigma, s.means, s.images) == (128, 0.05, 0.9, 0.0, "one_hot", "merged")
        colour = dataset != "mnist"
        assert (s.flip, s.jitter, s.degrees) == (colour, colour, 0.0 if colour else 25.0)
    deepcluster = METHODS["pretrain.deepcluster"]
    s = deepcluster(**deepcluster.presets["imagenet"])
    assert (s.backbone, s.sobel, s.k, s.epochs, s.batch) == ("alexnet", True, 10000, 500, 256)
    assert (s.lr, s.momentum, s.weight_decay, s.pca, s.iterations, s.area) == (0.05, 0.9, 1e-5, 256, 20, (0.08, 1.0))


def test_every_preset_is_of_a_data_set_that_there_is_and_every_data_set_has_one():
    for name, method in METHODS.items():
        unlabelled = set(VOCS) if name == "pretrain.supervised" else set()
        assert set(DATASETS) - {"digits"} - unlabelled <= set(method.presets)  # else it would get those of the digits
        assert set(method.presets) <= {*DATASETS, "folder"}
