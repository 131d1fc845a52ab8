"""The commands as a person types them: tables on stdout, words that help where something is wrong."""

import math
import os
import pickle
import pty
import shutil
import signal
import subprocess
import sys
import termios

import pytest
import torch
from toys import photographs, random_checkpoint

from pretrain.mmdc import MMDC
from pretrain.supervised import Supervised
from probes.clustering import Clustering
from probes.knn import KNN
from probes.linear import Linear
from results.files import ROOT
from results.store import Store
from zoo import checkpoint as checkpoints
from zoo.backbones import build
from zoo.checkpoint import Checkpoint
from zoo.run import Task, main

RANDOM = "random-alexnet32@0"


@pytest.fixture
def places(tmp_path):
    """Flags that keep a command's output out of the clone."""
    return [word for name in ("store", "runs", "cache") for word in (f"--{name}", str(tmp_path / name))]


def shell(*words, **more):
    """`python -m …` in the clone, as a process of its own with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, **more)


@pytest.fixture
def typed(places, capsys):
    """(exit code, stdout, stderr) of a method's or probe's command, run in this process."""

    def run(kind, *words, store=places):
        more = store if issubclass(kind, Task) else store[:4]
        with pytest.raises(SystemExit) as ended:
            main(kind, ["--device", "cpu", "--threads", "1", "--workers", "0", *more, *map(str, words)])
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


# Commands that work as they stand


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["probes.linear", "--layer", "conv3", "--epochs", "2"], "conv3"),
        (["probes.clustering"], "nmi_arithmetic"),
    ],
    ids=lambda given: given[0] if isinstance(given, list) else "",
)
def test_a_probe_prints_its_table(words, shown, places):
    done = shell(*words, *places, "--limit", 64, "--checkpoint", RANDOM)
    assert done.returncode == 0, done.stderr
    first, head, rule, row, last = done.stdout.splitlines()
    assert first.startswith(f"{words[0]}  ")
    assert f"{RANDOM}  on digits" in first
    assert "record" in head
    assert set(rule) <= {"-", " "}
    assert shown in head + row
    assert last.endswith("nothing is recorded")


@pytest.mark.parametrize(
    "words",
    [
        ["probes.linear", "--layer", "conv3"],
        ["probes.knn"],
        ["probes.clustering", "--checkpoint", "mmdc-small_vgg-digits-s0", "--assignment", "head"],
        ["pretrain.deepcluster"],
        ["pretrain.mmdc"],
    ],
    ids=lambda words: words[0],
)
def test_a_bare_command_finds_the_committed_record(words, tmp_path):
    # --runs: a checkpoint that was trained here since would be another
    done = shell(*words, "--runs", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "-digits-s0" in done.stdout
    assert f"results/records/{words[0]}" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_record_is_made_and_found_again(typed, places):
    words = ["--checkpoint", RANDOM, "--layer", "conv5", "--k", "5"]
    first, again = typed(KNN, *words), typed(KNN, *words)
    assert again == (0, first[1] + "1 of 1 recorded before; --force runs them again\n", "")
    assert (first[0], first[2]) == (0, "")
    (record,) = Store(places[1]).records()
    options = "--device cpu --threads 1 --workers 0"
    assert record.command == f"python -m probes.knn {options} --checkpoint {RANDOM} --layer conv5 --k 5"
    assert record.metrics["top1_k5"] > 90  # random features tell digits apart


def test_a_method_prints_its_table(places):
    done = shell("pretrain.deepcluster", *places[:4], "--limit", 64, "--epochs", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("deepcluster-alexnet32-digits-s0  digits (split)  trained in")
    assert "smoke run" in done.stdout
    assert "epoch 0" in done.stderr
    assert "epoch 0" not in done.stdout


@pytest.mark.parametrize("method", [MMDC, Supervised])
def test_the_other_methods_do_too(typed, method):
    code, out, err = typed(method, "--limit", 64, "--epochs", 1)
    assert code == 0
    assert out.startswith(f"{method.name.partition('.')[2]}-")
    assert "smoke run" in out
    assert "epoch 0" in err


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["zoo.datasets", "digits"], "train 1438, test 359"),
        (["zoo.checkpoint", "show", RANDOM], "alexnet32"),
        (["results", "--store", "{store}", "--runs", "{runs}"], "missing"),
        (["results", "--store", "{store}", "--runs", "{runs}", "--missing"], "python -m probes.knn"),
        (["results.tables", "digits_knn", "--store", "{store}", "--out", "{out}", "--print"], "| k = 10"),
    ],
    ids=lambda given: " ".join(given[:2]) if isinstance(given, list) else "",
)  # fmt: skip
def test_a_list_is_printed(words, shown, tmp_path):
    folders = {name: tmp_path / name for name in ("store", "runs", "out")}
    done = shell(*(word.format(**folders) for word in words))
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout


def test_progress_is_for_the_terminal_alone(places):
    """A bar on stderr if that is a terminal; never a word of it on stdout."""
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 80))
    words = ["probes.knn", *places, "--limit", "300", "--checkpoint", RANDOM, "--k", "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", *words], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=end, text=True
    ) as running:
        os.close(end)
        shown = b""
        while chunk := read(terminal):
            shown += chunk
        out = running.stdout.read()
    os.close(terminal)
    assert running.returncode == 0
    assert b"features of train" in shown
    assert out.startswith("probes.knn  knn@1  random-alexnet32@0  on digits\n")
    assert "features of" not in out
    assert "\r" not in out


def read(terminal):
    """What a terminal shows next; nothing once nobody writes to it any more."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


# What is wrong, and what to type


@pytest.mark.parametrize(
    ("kind", "words", "said"),
    [
        (Linear, ["--checkpoint", "random-alexnt32@0"], ["did you mean 'alexnet32'?"]),
        (Linear, ["--checkpoint", "random-alexnet32"], ["random-alexnet32@0, for instance"]),
        (KNN, ["--checkpoint", "my-checkpoint"], ["no checkpoint my-checkpoint", "python -m pretrain"]),
        (KNN, ["--checkpoint", "no/such/file.pth.tar"], ["no file no/such/file.pth.tar"]),
        (Linear, ["--layer", "cov3"], ["alexnet32 has no layer 'cov3'", "did you mean 'conv3'?"]),
        (Clustering, ["--layer", "conv9"], ["conv1, conv2", "embedding"]),
        (KNN, ["--dataset", "digit"], ["no data set 'digit'", "did you mean 'digits'?", "folder:PATH"]),
        (KNN, ["--dataset", "folder:"], ["folder:PATH"]),
        (KNN, ["--dataset", "folder:no/such"], ["there is no folder such", "train/CLASS/IMAGE"]),
        (KNN, ["--layr", "conv3"], ["--layr", "--layer"]),
        (Linear, ["--protocol", "smal"], ["smal", "small"]),
        (Linear, ["--crops", "5"], ["10"]),
        (Linear, ["--crops", "10"], ["--crops 1, or --protocol generic"]),
        (Linear, ["--protocol", "deepcluster"], ["made for alexnet, not alexnet32", "--protocol generic"]),
        (Linear, ["--epochs", "-1"], ["--epochs -1"]),
        (Linear, ["--epochs", "1e1"], ["1e1"]),
        (KNN, ["--k", "2000"], ["2000 neighbours of 1438", "--k 10"]),
        (KNN, ["--k", "0"], ["0 neighbours"]),
        (KNN, ["--k"], ["--k"]),
        (KNN, ["--temperature", "0"], ["--temperature 0.07"]),
        (Clustering, ["--k", "1798"], ["k = 1798 clusters of 1797 images", "--k 10"]),
        (Clustering, ["--assignment", "head"], ["has no head", "--assignment kmeans"]),
        (Clustering, ["--limit", "5"], ["10 clusters were asked of 5 rows"]),
        (KNN, ["--limit", "0"], ["--limit"]),
        (KNN, ["--limit", "-3"], ["--limit"]),
        (KNN, ["--seeds", "-1"], ["--seeds"]),
        (KNN, ["--seeds"], ["--seeds"]),
        (KNN, ["--device", "gpu0"], ["'gpu0' is not a device", "--device cpu"]),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)  # fmt: skip
def test_a_command_that_cannot_be_run_says_what_to_type(typed, kind, words, said, tmp_path):
    given = [] if "--checkpoint" in words else ["--checkpoint", RANDOM]
    code, out, err = typed(kind, *given, *words)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    for part in said:
        assert part in err
    assert not (tmp_path / "store").exists() or not any((tmp_path / "store").iterdir())


def test_missing_data_says_where_it_was_looked_for(typed, tmp_path):
    code, out, err = typed(Linear, "--checkpoint", RANDOM, "--dataset", "imagenet", "--data-dir", tmp_path)
    assert (code, out) == (2, "")
    assert "imagenet is not here" in err
    assert str(tmp_path / "imagenet") in err
    assert "image-net.org" in err


class Hostile:
    """A pickle that, opened without care, makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def write_hostile(path):
    with path.open("wb") as file:
        pickle.dump({"state_dict": Hostile(path.with_name("made"))}, file, protocol=2)


def write_truncated(path):
    random_checkpoint().save(path)
    with path.open("r+b") as file:
        file.truncate(100_000)


def write_short_zip(path):
    torch.save({"state_dict": {"features.0.weight": torch.zeros(9)}}, path)
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("cut.safetensors", write_truncated, "is damaged"),
        ("empty.safetensors", lambda path: path.write_bytes(b""), "is damaged"),
        ("text.safetensors", lambda path: path.write_text("not a checkpoint at all"), "not a safetensors file"),
        ("text.pth.tar", lambda path: path.write_text("not a checkpoint at all"), "is damaged, or not written"),
        ("empty.pt", lambda path: path.write_bytes(b""), "is damaged"),
        ("half.pth.tar", write_short_zip, "is damaged"),
        ("list.pt", lambda path: torch.save([1, 2], path), "no format known here"),
        ("foreign.pth", lambda path: torch.save({"state_dict": {"w": torch.ones(2)}}, path), "does not fit any"),
        ("hostile.pth.tar", write_hostile, "is refused"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_checkpoint_is_named(typed, tmp_path, name, write, said):
    path = tmp_path / name
    write(path)
    code, out, err = typed(KNN, "--checkpoint", path)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert name in err
    assert said in err
    assert "try:" in err
    assert not (tmp_path / "made").exists()


def test_a_folder_in_a_checkpoints_place_is_no_checkpoint(typed, tmp_path):
    code, _, err = typed(KNN, "--checkpoint", f"{tmp_path}/")
    assert code == 2
    assert "Traceback" not in err


@pytest.fixture
def images(tmp_path):
    return photographs(tmp_path / "images", train=3, val=2, side=64)


def corrupt(path):
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: corrupt(root / "train/ant/000.jpg"), "cannot read the image 000.jpg"),
        (lambda root: corrupt(root / "train/bee/002.jpg"), "cannot read the image 002.jpg"),
        (lambda root: corrupt(root / "val/bee/001.jpg"), "cannot read the image 001.jpg"),
        (lambda root: (root / "val/bee/001.jpg").write_text("no image"), "cannot read the image 001.jpg"),
        (lambda root: shutil.rmtree(root / "val"), "no images to evaluate on"),
        (lambda root: shutil.rmtree(root / "train"), "a folder val but no train"),
        (lambda root: shutil.rmtree(root / "val/bee"), "classes in train but not in val: bee"),
        (lambda root: [p.unlink() for p in (root / "train/bee").iterdir()], "the class folder bee has no images"),
        (lambda root: shutil.copy(root / "val/bee/001.jpg", root / "train/x.jpg"), "x.jpg lies beside"),
        (lambda root: [shutil.rmtree(root / s) for s in ("train", "val")] and (root / "a.txt").touch(), "no images"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_as_it_should_be(typed, images, spoil, said):
    spoil(images)
    for kind in (Linear, KNN):
        words = ["--epochs", "1"] if kind is Linear else ["--k", "1"]
        code, out, err = typed(kind, "--checkpoint", RANDOM, "--dataset", f"folder:{images}", *words)
        assert (code, out) == (2, "")
        assert "Traceback" not in err
        assert said in err
        assert "looked in:" in err or "try:" in err


def test_images_without_labels_cannot_be_probed(typed, images, tmp_path):
    flat = tmp_path / "flat"
    shutil.copytree(images / "train" / "ant", flat)
    for kind in (Linear, KNN, Clustering):
        code, _, err = typed(kind, "--checkpoint", RANDOM, "--dataset", f"folder:{flat}")
        assert code == 2
        assert "the images of folder:flat have no classes" in err


def test_an_image_that_a_worker_cannot_read_is_named_too(typed, images, places):
    corrupt(images / "train/bee/001.jpg")
    words = ["probes.knn", *places, "--checkpoint", RANDOM, "--dataset", f"folder:{images}", "--k", 1]
    done = shell(*words, "--workers", 2)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: cannot read the image 001.jpg" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((images.parent / "cache").rglob("*.npy")) == []


@pytest.mark.parametrize("place", [1, 3, 5])
def test_a_place_that_cannot_be_written_is_said(typed, places, tmp_path, place):
    (tmp_path / "file").touch()
    places[place] = str(tmp_path / "file" / "below")
    code, out, err = typed(KNN, "--checkpoint", RANDOM, "--k", "1", store=places)
    assert (code, out) == (2, "")
    assert "Not a directory" in err
    assert "Traceback" not in err


def test_weights_that_are_no_numbers_end_with_1(typed, tmp_path, places):
    groups = {"backbone": {n: t.clone() for n, t in random_checkpoint().groups["backbone"].items()}}
    groups["backbone"]["features.8.weight"].fill_(math.nan)
    path = tmp_path / "nan.safetensors"
    Checkpoint(**{**vars(random_checkpoint()), "name": "nan", "groups": groups}).save(path)
    code, out, err = typed(Linear, "--checkpoint", path, "--layer", "conv4")
    assert (code, out) == (1, "")
    assert err == "error: nan gives features that are not finite in conv4\n"
    (note,) = (tmp_path / "runs").glob("*/error.txt")
    assert not (tmp_path / "store" / "probes.linear").exists()
    done = shell("results", *places[:4])
    assert f"failed: {note.parent.name}: " in done.stdout
    assert "not finite in conv4" in done.stdout


# The user's own path: a released checkpoint on a folder of JPEGs


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """AlexNet with Sobel as DeepCluster's program saves it, ten clusters; random weights."""
    place = tmp_path_factory.mktemp("released")
    state = {
        name.replace("features.", "features.module."): torch.full((), 0.01).expand(tensor.shape)
        if name.startswith("classifier") and tensor.ndim == 2  # takes no room in the file
        else tensor
        for name, tensor in build("alexnet", sobel=True, seed=3).state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    state |= {"top_layer.weight": torch.randn(10, 4096), "top_layer.bias": torch.zeros(10)}
    held = {"epoch": 200, "arch": "alexnet", "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}
    torch.save(held, place / "checkpoint.pth.tar")
    yield place / "checkpoint.pth.tar"
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory):
    """39 photographs of three classes, larger than what the network sees."""
    root = tmp_path_factory.mktemp("own") / "jpegs"
    return photographs(root, train=10, val=3, classes=("ant", "bee", "cat"), side=230)


@pytest.fixture(scope="module")
def imported(released, tmp_path_factory):
    """The folder of runs that the checkpoint was imported into."""
    runs = tmp_path_factory.mktemp("runs")
    assert checkpoints.main(["import", str(released), "--runs", str(runs), "--name", "mine"]) == 0
    yield runs
    shutil.rmtree(runs)


def probed(out):
    """The rows of a probe's table, by layer."""
    return {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith("conv")}


def test_a_released_checkpoint_on_ones_own_images(typed, released, imported, jpegs, places, tmp_path):
    places[3] = str(imported)
    common = ["--dataset", f"folder:{jpegs}", "--epochs", "1"]
    code, out, err = typed(Linear, "--checkpoint", "mine", "--layer", "conv3", *common, store=places)
    assert (code, err) == (0, "")
    assert out.startswith("probes.linear  deepcluster@1, 1 epochs  mine  on folder:jpegs")
    (record,) = Store(tmp_path / "store").records()
    assert record.checkpoint["backbone"] == {"name": "alexnet", "channels": 3, "sobel": True}
    assert (record.checkpoint["method"], record.checkpoint["epoch"]) == ("deepcluster", 200)
    assert record.checkpoint["source"].startswith("imported from checkpoint.pth.tar")
    assert record.dataset["splits"] == {"train": 30, "val": 9}
    assert str(tmp_path.parent) not in record.to_json()

    code, again, _ = typed(Linear, "--checkpoint", released, "--layer", "conv3", *common, store=places)
    assert code == 0
    assert probed(again) == probed(out)  # the file itself: the same contents, so the record is found
    assert len(Store(tmp_path / "store").records()) == 1


def test_every_layer_of_it_with_ten_crops(typed, imported, jpegs, places, tmp_path):
    places[3] = str(imported)
    words = ["--checkpoint", "mine", "--layer", "all", "--crops", "10", "--dataset", f"folder:{jpegs}", "--epochs", "1"]
    code, out, err = typed(Linear, *words, store=places)
    assert (code, err) == (0, "")
    assert list(probed(out)) == ["conv1", "conv2", "conv3", "conv4", "conv5"]
    found = Store(tmp_path / "store").records()
    assert {record.settings["layer"] for record in found} == set(probed(out))
    assert {record.settings["crops"] for record in found} == {10}
    assert {record.protocol for record in found} == {"deepcluster@1, 1 epochs"}


def test_what_was_imported_is_listed(imported):
    done = shell("pretrain", "--runs", imported)
    assert done.returncode == 0, done.stderr
    for name in ("pretrain.deepcluster", "pretrain.mmdc", "mine", "random-<backbone>"):
        assert name in done.stdout


def test_the_commands_tell_their_errors_from_bugs(typed, monkeypatch):
    def broken(self, parts, bench):
        raise ValueError("a bug")

    monkeypatch.setattr(KNN, "run", broken)
    with pytest.raises(ValueError, match="a bug"):  # a traceback is what a bug needs
        typed(KNN, "--checkpoint", RANDOM)
