"""One pretraining run: recorded once, continued where it stopped, whole or absent on disk. For every method."""

import errno
import os
import re
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from trainings import SHORT, Tiny, checkpoint, files, log, record, start, untimed

from results.errors import RunFailed
from results.files import ROOT
from results.record import cell_key
from zoo.checkpoint import Checkpoint, describe, recipe, resolve
from zoo.clustering.scores import scores
from zoo.datasets.folder import Folder
from zoo.pretraining import METRICS
from zoo.run import registry, settings_of
from zoo.training import Training
from zoo.unfinished import alone

METHODS = list(registry("pretrain").values())
FASTEST = registry("pretrain")["pretrain.supervised"]  # the fastest, for what is the same for all


def same(a, b):
    """Whether two checkpoints hold the same bits."""
    return a.sha256 == b.sha256 and all(
        torch.equal(a.groups[group][name], tensor) for group, held in b.groups.items() for name, tensor in held.items()
    )


def failing(at, error):
    """A Training.log that raises in epoch `at`."""
    log = Training.log

    def fails(self, epoch, *values, **more):
        if epoch == at:
            raise error
        log(self, epoch, *values, **more)

    return patch.object(Training, "log", fails)


def never(*values, **more):
    raise AssertionError("it trained")


@pytest.fixture(scope="module", params=METHODS, ids=lambda kind: kind.name)
def whole(request, tmp_path_factory):
    """(method, folder of an uninterrupted run of it)."""
    folder = tmp_path_factory.mktemp("whole")
    assert start(request.param, folder, *SHORT, "--seeds", "1") == 0
    return request.param, folder


def test_what_a_run_leaves(whole):
    kind, folder = whole
    made, told = checkpoint(folder), record(folder)
    name = f"{kind.name.removeprefix('pretrain.')}-{made.backbone['name']}-digits-s1"
    assert files(folder) == sorted(
        [
            f"records/{kind.name}/{name}/{told.key}.json",
            f"runs/{told.key}/log.jsonl",
            f"runs/{told.key}/{name}.safetensors",
        ]
    )


def test_the_checkpoint(whole):
    kind, folder = whole
    made = checkpoint(folder)
    settings = {name: value for name, value in settings_of(kind(epochs=3, batch=32)).items() if name != "seed"}
    assert made.method == kind.name.removeprefix("pretrain.")
    assert made.settings == {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    assert (made.seed, made.epoch, made.limit, made.key) == (1, 3, None, record(folder).key)
    assert made.dataset == {"name": "digits", "protocol": kind().images, "fingerprint": Tiny().fingerprint()}
    assert made.recipe == recipe(made.method, made.backbone, made.dataset, settings)
    assert {"backbone", "head"} <= set(made.groups)
    assert all(t.isfinite().all() for held in made.groups.values() for t in held.values())
    assert not made.build_backbone().training  # strict: names and shapes are checked
    assert same(resolve(made.name, folder / "runs"), made)


def test_the_record(whole):
    kind, folder = whole
    told, made = record(folder), checkpoint(folder)
    settings = settings_of(kind(epochs=3, batch=32, seed=1))
    assert told.key == cell_key(kind.name, kind.version, settings, None, Tiny().fingerprint())
    assert (told.task, told.version) == (kind.name, kind.version)
    assert told.protocol == f"{made.method}@{kind.version}"
    assert told.checkpoint is None
    assert told.details["recipe"] == made.recipe
    assert told.details["checkpoint"] == {"name": made.name, "sha256": made.sha256}
    merged = kind().images == "merged"
    assert told.dataset == made.dataset | {"splits": Tiny.splits if merged else {"train": 64}}
    assert told.command == f"python -m {kind.name} --threads 1 --quiet --epochs 3 --batch 32 --seeds 1"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", told.started)
    assert told.environment["threads"] == 1
    assert str(folder) not in told.to_json()
    assert str(ROOT) not in told.to_json()


def test_the_history(whole):
    _, folder = whole
    history = record(folder).details["history"]
    assert history == log(folder)
    assert [entry["epoch"] for entry in history] == [0, 1, 2]
    count = sum(record(folder).dataset["splits"].values())
    for entry in history:
        assert sum(entry["cluster_sizes"]) == count
        assert entry["empty_clusters"] == entry["cluster_sizes"].count(0)
        assert all(seconds >= 0 for seconds in entry["seconds"].values())
        assert "training" in entry["seconds"]
        assert entry["loss"] > 0
        assert isinstance(entry["collapsed"], bool)
        assert set(scores([0, 1], [0, 1])) <= set(entry)
    assert history[0]["nmi_previous"] is None
    assert all(0 <= entry["nmi_previous"] <= 1 for entry in history[1:])
    last = history[-1]
    assert record(folder).metrics == {name: last[name] for name in METRICS}


def test_a_recorded_run_is_printed_and_not_repeated(whole, capsys):
    kind, folder = whole
    with patch.object(kind, "train", never):
        assert start(kind, folder, *SHORT, "--seeds", "1") == 0
    out = capsys.readouterr().out
    assert "recorded before; --force trains it again" in out
    assert checkpoint(folder).name in out
    assert f"{record(folder).metrics['loss']:.4f}".rstrip("0") in out


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.name)
def test_the_same_command_continues_an_interrupted_run(kind, tmp_path, request, tmp_path_factory):
    wanted = tmp_path_factory.mktemp("wanted")
    assert start(kind, wanted, *SHORT) == 0
    with failing(2, KeyboardInterrupt):
        assert start(kind, tmp_path, *SHORT) == 130
    assert len(log(tmp_path)) == 2
    assert [path for path in files(tmp_path) if path.endswith((".safetensors", ".json"))] == []
    logged = []
    continued = Training.log
    with patch.object(Training, "log", lambda *a, **k: (logged.append(a[1]), continued(*a, **k))):
        assert start(kind, tmp_path, *SHORT) == 0
    assert logged == [2]
    assert same(checkpoint(tmp_path), checkpoint(wanted))
    assert untimed(record(tmp_path).details["history"]) == untimed(record(wanted).details["history"])
    assert log(tmp_path) == record(tmp_path).details["history"]
    assert files(tmp_path) == files(wanted)


def test_force_trains_again_from_the_start(tmp_path):
    assert start(FASTEST, tmp_path, *SHORT) == 0
    before, told = checkpoint(tmp_path), record(tmp_path)
    with failing(1, KeyboardInterrupt):
        assert start(FASTEST, tmp_path, *SHORT, "--force") == 130
    assert record(tmp_path) == told  # what there was stays
    assert same(checkpoint(tmp_path), before)
    with failing(0, AssertionError("from the start")), pytest.raises(AssertionError, match="from the start"):
        start(FASTEST, tmp_path, *SHORT, "--force")
    assert start(FASTEST, tmp_path, *SHORT, "--force") == 0
    assert same(checkpoint(tmp_path), before)  # the same seed, the same bits


def test_without_force_an_unfinished_repetition_is_continued(tmp_path):
    assert start(FASTEST, tmp_path, *SHORT) == 0
    with failing(2, KeyboardInterrupt):
        assert start(FASTEST, tmp_path, *SHORT, "--force") == 130
    with failing(0, AssertionError("from the start")):
        assert start(FASTEST, tmp_path, *SHORT) == 0
    assert not any("state" in path for path in files(tmp_path))


def test_seeds_are_runs_of_one_recipe(tmp_path):
    assert start(FASTEST, tmp_path, "--epochs", "1", "--seeds", "0", "5") == 0
    made = [Checkpoint.load(path) for path in sorted(tmp_path.glob("runs/*/*.safetensors"))]
    assert sorted(one.seed for one in made) == [0, 5]
    assert len({one.recipe for one in made}) == 1
    assert len({one.sha256 for one in made}) == len({one.key for one in made}) == 2


def test_a_limited_run_is_never_recorded(tmp_path, capsys):
    assert start(FASTEST, tmp_path, "--epochs", "1", "--limit", "60") == 0
    made = checkpoint(tmp_path)
    assert made.limit == 60
    assert sum(log(tmp_path)[0]["cluster_sizes"]) == 60
    assert not (tmp_path / "records").exists()
    assert "none: --limit 60 is a smoke run" in capsys.readouterr().out
    assert start(FASTEST, tmp_path, "--epochs", "1") == 0  # another key
    assert record(tmp_path).key != made.key


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    with patch.object(FASTEST, "train", never):
        assert start(FASTEST, tmp_path, *SHORT, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "will train: 3 epochs" in said
    assert "64 images" in said
    assert "training" in said.split("multiply-adds")[1]
    assert list(tmp_path.iterdir()) == []
    with failing(1, KeyboardInterrupt):
        start(FASTEST, tmp_path, *SHORT)
    start(FASTEST, tmp_path, *SHORT, "--dry-run")
    assert "will continue" in capsys.readouterr().out
    start(FASTEST, tmp_path, *SHORT)
    capsys.readouterr()
    before = files(tmp_path)
    start(FASTEST, tmp_path, *SHORT, "--dry-run")
    assert capsys.readouterr().out.splitlines()[0].endswith("  recorded")
    start(FASTEST, tmp_path, *SHORT, "--dry-run", "--force")
    assert "will train" in capsys.readouterr().out
    assert files(tmp_path) == before


def refused(kind, folder, capsys, *words):
    """What a command that ends before any work says."""
    with patch.object(kind, "train", never):
        assert start(kind, folder, *words) == 2
    err = capsys.readouterr().err
    assert "try:" in err
    assert "Traceback" not in err
    assert files(folder) == []
    return err


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    ("flag", "value"), [("epochs", "0"), ("batch", "-1"), ("lr", "-0.1"), ("lr", "nan"), ("weight-decay", "-1.0")]
)
def test_a_setting_that_cannot_be(kind, flag, value, tmp_path, capsys):
    assert f"--{flag} {value} cannot be" in refused(kind, tmp_path, capsys, f"--{flag}", value)


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.name)
def test_an_unknown_backbone(kind, tmp_path, capsys):
    for more in ([], ["--dry-run"]):
        assert "did you mean 'alexnet32'" in refused(kind, tmp_path, capsys, "--backbone", "alexnet23", *more)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--limit", "0"], "--limit 0 cannot be"),
        (["--threads", "-1"], "--threads -1 cannot be"),
        (["--workers", "-2"], "--workers -2 cannot be"),
        (["--seeds", "-1"], "--seeds takes numbers from 0 on"),
        (["--seeds"], "--seeds takes numbers from 0 on"),
        (["--device", "tpu"], "'tpu' is not a device"),
        (["--device", "meta"], "nothing here runs on the device 'meta'"),
    ],
)
def test_an_option_that_cannot_be(words, told, tmp_path, capsys):
    assert told in refused(FASTEST, tmp_path, capsys, *words)


def test_out_is_a_copy(tmp_path, capsys):
    assert start(FASTEST, tmp_path, *SHORT, "--out", str(tmp_path / "new" / "a.safetensors")) == 0
    (made,) = tmp_path.glob("runs/*/*.safetensors")
    assert (tmp_path / "new" / "a.safetensors").read_bytes() == made.read_bytes()
    assert str(tmp_path) not in record(tmp_path).command
    assert start(FASTEST, tmp_path, *SHORT, "--out", str(tmp_path / "b")) == 0  # of a recorded run too
    assert (tmp_path / "b").read_bytes() == made.read_bytes()


def test_out_is_one_file(tmp_path, capsys):
    with patch.object(FASTEST, "train", never):
        assert start(FASTEST, tmp_path, "--seeds", "0", "1", "--out", str(tmp_path / "a")) == 2
    assert "one seed at a time" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["records", "runs", "out"])
def test_a_place_that_cannot_be_written_is_said_before_any_work(place, tmp_path, capsys):
    (tmp_path / place).write_text("a file")
    out = ["--out", str(tmp_path / "out" / "x")] if place == "out" else []
    with patch.object(FASTEST, "train", never):
        assert start(FASTEST, tmp_path, *out) == 2
    err = capsys.readouterr().err
    assert str(tmp_path / place) in err
    assert "a file stands where a folder is needed" in err
    assert (tmp_path / place).read_text() == "a file"


@pytest.mark.parametrize("ending", ["jsonl", "pt", "safetensors", "json"])
def test_a_full_disk_loses_nothing(ending, tmp_path, capsys, monkeypatch):
    def full(path):
        if path.suffix == f".{ending}":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patched:
        patched.setattr("results.files.sync", full)
        assert start(FASTEST, tmp_path, *SHORT) == 2
    err = capsys.readouterr().err
    assert "No space left" in err
    assert "free some space" in err
    left = files(tmp_path)
    assert not any(path.endswith(f".{ending}") for path in left)
    assert not any(path.split("/")[-1].startswith(".") for path in left)  # no temporary file
    trained = ending in ("safetensors", "json")
    with failing(0 if trained else 99, AssertionError("from the start")):
        assert start(FASTEST, tmp_path, *SHORT) == 0
    assert not any("error" in path or "state" in path for path in files(tmp_path))
    assert len(record(tmp_path).details["history"]) == len(log(tmp_path)) == 3


def test_one_process_at_a_time_trains_the_same(tmp_path, capsys):
    with failing(1, KeyboardInterrupt()):
        assert start(FASTEST, tmp_path, *SHORT) == 130
    (directory,) = tmp_path.glob("runs/*")
    before = files(tmp_path)
    with alone(directory):
        assert start(FASTEST, tmp_path, *SHORT) == 2
    assert "another process is running this" in capsys.readouterr().err
    assert files(tmp_path) == before
    assert start(FASTEST, tmp_path, *SHORT) == 0


def test_a_disk_without_room_for_descriptors(tmp_path, capsys, monkeypatch):
    def full(*values):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    kind = registry("pretrain")["pretrain.deepcluster"]
    assert start(kind, tmp_path, *SHORT) == 2
    assert "No space left" in capsys.readouterr().err
    assert [path.split("/")[-1] for path in files(tmp_path)] == ["error.txt"]


@pytest.mark.usefixtures("states_of_epochs")
def test_a_run_that_fails_leaves_its_reason_and_no_record(tmp_path, capsys):
    with failing(2, RunFailed("it went wrong")):
        assert start(FASTEST, tmp_path, *SHORT) == 1
    assert "error: it went wrong" in capsys.readouterr().err
    assert [path.split("/")[-1] for path in files(tmp_path)] == ["error.txt", "log.jsonl", "state-1.pt", "state-2.pt"]
    (reason,) = tmp_path.glob("runs/*/error.txt")
    assert "it went wrong" in reason.read_text()
    assert start(FASTEST, tmp_path, *SHORT) == 0
    assert not reason.exists()


def test_a_torn_state_is_passed_over_for_the_one_before_it(tmp_path, capsys):
    with failing(2, KeyboardInterrupt):
        start(FASTEST, tmp_path / "torn", *SHORT)
    newest = max(tmp_path.glob("torn/runs/*/state-*.pt"))
    newest.write_bytes(newest.read_bytes()[:-1000])
    for folder in ("torn", "whole"):
        assert start(FASTEST, tmp_path / folder, *SHORT) == 0
    assert f"{newest.name} is damaged" in capsys.readouterr().err
    assert same(checkpoint(tmp_path / "torn"), checkpoint(tmp_path / "whole"))


def test_a_damaged_checkpoint_is_made_again(tmp_path, capsys):
    assert start(FASTEST, tmp_path, *SHORT) == 0
    (path,) = tmp_path.glob("runs/*/*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert start(FASTEST, tmp_path, *SHORT) == 0
    assert "damaged" in capsys.readouterr().err
    assert path.read_bytes() == whole


def test_a_lost_checkpoint_is_made_again(tmp_path):
    assert start(FASTEST, tmp_path, *SHORT) == 0
    (path,) = tmp_path.glob("runs/*/*.safetensors")
    before = describe(path)["sha256"]
    path.unlink()
    assert start(FASTEST, tmp_path, *SHORT) == 0
    assert describe(path)["sha256"] == before


@pytest.fixture
def images(tmp_path):
    """A folder of photographs of a kind: two classes, train and val."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for label, level in (("dark", 60), ("light", 190)):
            place = tmp_path / "photos" / split / label
            place.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(level - 50, level + 50, (40 + number, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return tmp_path / "photos"


ON_FOLDERS = {
    "deepcluster": ("--backbone", "alexnet32", "--k", "4"),
    "mmdc": ("--rotation", "--jitter"),
    "supervised": ("--backbone", "alexnet32"),
}


@pytest.mark.parametrize("method", ON_FOLDERS)
def test_a_folder_of_images(method, images, tmp_path):
    words = ["--dataset", f"folder:{images}", "--epochs", "1", "--batch", "8", "--workers", "0", *ON_FOLDERS[method]]
    assert start(registry("pretrain")[f"pretrain.{method}"], tmp_path, *words, dataset=Folder(images)) == 0
    told, made = record(tmp_path), checkpoint(tmp_path)
    assert "-folder-photos-s0" in made.name
    assert told.dataset["name"] == "folder:photos"
    assert "--dataset folder:photos" in told.command
    assert str(tmp_path) not in told.to_json()
    assert made.preprocessing.channels == 3
    assert sum(log(tmp_path)[0]["cluster_sizes"]) == (22 if method == "mmdc" else 16)


def test_an_image_that_cannot_be_read(images, tmp_path, capsys):
    (images / "train" / "light" / "5.png").write_bytes(b"no image")
    words = ["--dataset", f"folder:{images}", "--epochs", "1", "--workers", "0", "--backbone", "alexnet32"]
    assert start(FASTEST, tmp_path, *words, dataset=Folder(images)) == 2
    assert "5.png" in capsys.readouterr().err
    assert not list(tmp_path.glob("records/*/*/*.json"))
