"""python -m pretrain: the methods there are, and the checkpoints."""

import subprocess
import sys

import pytest
from trainings import start

from pretrain.__main__ import main
from results.files import ROOT
from zoo.checkpoint import REFERENCE
from zoo.run import registry

METHODS = registry("pretrain")


def lists(folder, monkeypatch, capsys):
    """What the command prints of the runs in `folder`: the lines of the methods, of the checkpoints, the rest."""
    monkeypatch.setattr("sys.argv", ["pretrain", "--runs", str(folder)])
    main()
    return [part.splitlines() for part in capsys.readouterr().out.split("\n\n")]


def test_the_methods(tmp_path, monkeypatch, capsys):
    methods, besides, _, rest = lists(tmp_path, monkeypatch, capsys)
    assert methods[0].split() == ["method", "presets", "besides", "digits"]
    named = [line.split()[0] for line in methods[2:] if line.startswith("pretrain.")]
    assert named == sorted(METHODS)
    shown = " ".join(" ".join(methods).split())
    for kind in METHODS.values():
        assert (sys.modules[kind.__module__].__doc__ or "").split()[0] in shown
        assert all(preset in shown for preset in kind.presets)
    assert [line.split()[0] for line in besides[2:]] == ["pretrain.ablate", "pretrain.assign"]
    assert rest == ["and random-<backbone>[-sobel]@<seed>, which needs no file"]


def test_the_reference_checkpoints_are_listed_without_runs(tmp_path, monkeypatch, capsys):
    _, _, checkpoints, _ = lists(tmp_path / "none", monkeypatch, capsys)
    named = [line.split()[0] for line in checkpoints[2:]]
    assert named == sorted(path.stem for path in REFERENCE.glob("*.safetensors"))


def test_the_checkpoints(tmp_path, monkeypatch, capsys):
    kind = METHODS["pretrain.supervised"]
    assert start(kind, tmp_path, "--epochs", "1", "--seeds", "7") == 0
    assert start(kind, tmp_path, "--epochs", "1", "--seeds", "8", "--limit", "20") == 0
    (made,) = (tmp_path / "runs").glob("*/*s7.safetensors")
    (smoke,) = (tmp_path / "runs").glob("*/*s8.safetensors")
    broken = tmp_path / "runs" / "imported" / "broken.safetensors"
    broken.parent.mkdir()
    broken.write_bytes(made.read_bytes()[:-5])
    capsys.readouterr()
    _, _, checkpoints, _ = lists(tmp_path / "runs", monkeypatch, capsys)
    lines = {line.split()[0]: line for line in checkpoints[2:]}
    told = lines["supervised-alexnet32-digits-s7"]
    assert "supervised, epoch 1" in told
    assert made.parent.name in told
    assert str(made.parent) in told
    assert "smoke" not in told
    assert "a smoke run on 20 images" in lines[smoke.stem]
    assert "damaged" in lines["broken"]


def test_it_is_a_command():
    done = subprocess.run([sys.executable, "-m", "pretrain", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--runs" in done.stdout


def test_an_unknown_flag(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["pretrain", "--rums", "x"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--rums" in capsys.readouterr().err
