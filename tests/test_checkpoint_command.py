"""The command line `python -m zoo.checkpoint`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from releases import mmdc, mmdc_network, uncounted

from zoo import released
from zoo.backbones import build
from zoo.checkpoint import Checkpoint, main, resolve


def test_import_writes_a_checkpoint_that_its_name_finds(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = mmdc(tmp_path, mmdc_network())
    runs = tmp_path / "runs"
    assert main(["import", str(path), "--runs", str(runs)]) == 0
    said = capsys.readouterr().out
    one = released.read(path)
    assert resolve(one.name, runs).sha256 == one.sha256
    assert (runs / "imported" / f"{one.name}.safetensors").is_file()
    assert one.sha256 in said
    assert "backbone      24 tensors" in said
    assert "python -m probes.linear --layer conv3 --checkpoint" in said
    assert main(["import", str(path), "--runs", str(runs)]) == 0  # again: the same file


def test_import_under_a_name_never_replaces_another(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    network = mmdc_network()
    command = ["import", str(mmdc(tmp_path, network)), "--runs", str(tmp_path / "runs"), "--name", "mine"]
    assert main(command) == 0
    first = resolve("mine", tmp_path / "runs").sha256
    network.features[0].weight.data[0] += 1
    mmdc(tmp_path, network)
    assert main(command) == 2
    assert "mine.safetensors exists and holds something else" in capsys.readouterr().err
    assert resolve("mine", tmp_path / "runs").sha256 == first
    for taken in (tmp_path, tmp_path / "model.pt"):  # a folder, and a file that is no checkpoint of ours
        assert main([*command[:-2], "--out", str(taken)]) == 2
        said = capsys.readouterr().err
        assert f"error: {taken.name} exists and holds something else\n  looked in: {taken.parent}\n" in said
        assert said.endswith("try: --name with another name, or --out with another file\n")
    assert main([*command[:-1], "other", "--out", str(tmp_path / "o.safetensors")]) == 0
    assert Checkpoint.load(tmp_path / "o.safetensors").name == "other"


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "a@b", "random-x"])
def test_import_refuses_names_that_could_not_be_found(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = mmdc(tmp_path, mmdc_network())
    assert main(["import", str(path), "--runs", str(tmp_path / "runs"), "--name", name]) == 2
    assert name in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_import_prints_what_became_of_each_tensor(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    network = mmdc_network()
    path = mmdc(tmp_path, network, model_state_dict=uncounted(network.state_dict()))
    assert main(["import", str(path), "--runs", str(tmp_path / "runs")]) == 0
    rows = [line.split(" → ") for line in capsys.readouterr().out.splitlines() if " → " in line]
    became = {before.strip(): after for before, after in rows}
    assert became["features.0.weight"] == "backbone/features.0.weight  32 × 1 × 3 × 3"
    assert became["optimizer_state_dict"] == "left out: no part of the network"
    filled = [after for before, after in rows if before.strip() == "(not in the file)"]
    assert filled[0] == "backbone/features.1.num_batches_tracked, filled in: 0  one value"
    assert len(filled) == 4
    assert set(uncounted(network.state_dict())) <= set(became)


def test_import_of_a_state_dict_that_does_not_tell_its_network(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save(build("alexnet32").state_dict(), tmp_path / "mine.pth")
    command = ["import", str(tmp_path / "mine.pth"), "--runs", str(tmp_path / "runs")]
    assert main(command) == 2
    assert f"try: python -m zoo.checkpoint import {tmp_path / 'mine.pth'} --backbone NAME" in capsys.readouterr().err
    assert main([*command, "--backbone", "alexnet32", "--name", "own"]) == 0
    assert "--layer conv3 --checkpoint" in capsys.readouterr().out
    assert resolve("own", tmp_path / "runs").backbone == {"name": "alexnet32", "channels": 3, "sobel": False}


def test_help_shows_every_command(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(command in said for command in ("import", "assignments", "show", "export"))
