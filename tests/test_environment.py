"""What a record says of software and hardware."""

import getpass
import json
import platform
import re
import socket
import subprocess
from importlib import metadata

import pytest
import torch

from results.files import ROOT
from zoo import environment as module
from zoo.environment import environment

CPU = torch.device("cpu")


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A git repository in place of ours, with one commit; a function that runs git in it."""
    home = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]

    def git(*arguments):
        done = subprocess.run(["git", *home, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init")
    (tmp_path / "code.py").write_text("one = 1\n")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return git


def test_what_it_says():
    found = environment(CPU, "bf16")
    assert list(found) == [
        "commit", "dirty", "python", "packages", "device", "device_name", "precision", "threads", "processes"
    ]  # fmt: skip
    assert found["python"] == platform.python_version()
    assert found["device"] == "cpu"
    assert found["precision"] == "bf16"
    assert found["threads"] == torch.get_num_threads()
    assert found["device_name"] == torch.backends.cpu.get_cpu_capability()
    assert json.loads(json.dumps(found)) == found


def test_it_names_versions_of_what_computes():
    found = environment(CPU, "fp32")["packages"]
    assert {"torch", "torchvision", "numpy", "scipy", "scikit-learn"} <= set(found)
    assert all(metadata.version(name) == version for name, version in found.items())


def test_nothing_of_this_machine():
    text = json.dumps(environment(CPU, "fp32"))
    assert str(ROOT) not in text
    assert socket.gethostname() not in text
    assert getpass.getuser() not in re.findall(r"[a-z]+", text)


def test_the_commit(clone, tmp_path):
    found = environment(CPU, "fp32")
    assert re.fullmatch("[0-9a-f]{12}", found["commit"])
    assert clone("rev-parse", "HEAD").startswith(found["commit"])
    assert found["dirty"] is False


@pytest.mark.parametrize("name", ["code.py", "new.py", "results/new.py"])
def test_changed_code_is_dirty(clone, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("two = 2\n")
    assert environment(CPU, "fp32")["dirty"] is True


@pytest.mark.parametrize("folder", ["records", "rendered"])
def test_new_records_and_tables_are_not_dirty(clone, tmp_path, folder):
    (tmp_path / "results" / folder / "probes.linear").mkdir(parents=True)
    (tmp_path / "results" / folder / "probes.linear" / "x.json").write_text("{}")
    assert environment(CPU, "fp32")["dirty"] is False


def test_without_a_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = environment(CPU, "fp32")
    assert (found["commit"], found["dirty"]) == (None, False)


def test_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = environment(CPU, "fp32")
    assert (found["commit"], found["dirty"]) == (None, False)


def test_packages_that_are_not_there_are_left_out(monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ("torch", "no-such-package"))
    assert list(environment(CPU, "fp32")["packages"]) == ["torch"]
