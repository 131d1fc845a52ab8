"""An evaluation leaves a complete record of what it found, once, and nothing of a smoke run or a failure."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from toys import Toy, bench, photographs, random_checkpoint

from probes.clustering import Clustering
from probes.knn import KNN
from probes.linear import Linear
from results.errors import RunFailed, UserError
from results.files import ROOT
from results.record import cell_key
from results.store import Store
from zoo.checkpoint import Checkpoint
from zoo.datasets.folder import Folder
from zoo.evaluation import evaluate, run_parts
from zoo.options import TaskOptions
from zoo.views import Centre, CentreCrop

TOY = Toy()
TASK = KNN(k=(1, 3))


@pytest.fixture
def options(tmp_path):
    """Options of a command that writes into a folder of its own."""
    usual = TaskOptions(
        store=tmp_path / "records",
        runs=tmp_path / "runs",
        cache=tmp_path / "cache",
        checkpoint="random-alexnet32@0",
        device="cpu",
        workers=0,
        quiet=True,
    )

    def changed(**more):
        return dataclasses.replace(usual, **more)

    return changed


def run(options, task=TASK, dataset=TOY):
    evaluate(task, dataset, options, "python -m probes.knn")


def records(options):
    return Store(options.store).records()


def left(folder):
    """Every file below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def forbidden(monkeypatch):
    """From here on, no evaluation may run."""

    def forbid():
        monkeypatch.setattr(KNN, "run", lambda self, parts, bench: pytest.fail("ran"))

    return forbid


@pytest.fixture
def failing(monkeypatch):
    """From here on, the layer named fails; what comes before it succeeds."""
    whole = KNN.run

    def fail(layer, error):
        def partly(self, parts, bench):
            for outcome in whole(self, parts, bench):
                if outcome.part.layer == layer:
                    raise error
                yield outcome

        monkeypatch.setattr(KNN, "run", partly)

    yield fail
    monkeypatch.setattr(KNN, "run", whole)


@pytest.mark.parametrize(
    ("task", "protocol", "images", "metrics"),
    [
        (KNN(k=(1, 3)), "knn@1", "split", {"top1_k1", "top1_k3"}),
        (Linear(layer="conv5", epochs=2), "small@1, 2 epochs", "split", {"top1", "top5"}),
        (Clustering(k=4), "clustering@1, k = 4", "merged", {"acc", "purity", "nmi_arithmetic", "nmi_geometric",
                                                            "ami", "ari", "cluster_entropy", "empty_clusters"}),
    ],
)  # fmt: skip
def test_a_record_says_all_that_the_house_asks(options, task, protocol, images, metrics):
    run(options(), task)
    (record,) = records(options())
    checkpoint = random_checkpoint()
    assert (record.schema, record.task, record.version, record.protocol) == (1, task.name, 1, protocol)
    (part,) = task.parts(checkpoint, TOY)
    assert record.settings == json.loads(json.dumps(dataclasses.asdict(part)))  # every setting, resolved
    assert record.key == cell_key(
        task.name, 1, dataclasses.asdict(part), checkpoint.sha256, TOY.fingerprint()
    ) == record.expected_key()  # fmt: skip
    assert record.checkpoint == {
        "name": "random-alexnet32@0",
        "sha256": checkpoint.sha256,
        "method": "random",
        "backbone": {"name": "alexnet32", "channels": 3, "sobel": False},
        "recipe": checkpoint.recipe,
        "seed": 0,
        "epoch": 0,
        "source": checkpoint.source,
        "dataset": None,
    }
    assert record.dataset == {
        "name": "toy",
        "protocol": images,
        "fingerprint": TOY.fingerprint(),
        "splits": {"train": 60, "test": 24},
    }
    assert set(record.metrics) == metrics
    assert record.details["frozen"].startswith("verified")
    assert set(record.environment) == {
        *("commit", "dirty", "python", "packages", "device", "device_name", "precision", "threads")
    }
    assert record.environment["packages"]["torch"]
    assert record.command == "python -m probes.knn"
    assert record.started.endswith("Z")
    assert record.seconds >= 0


def test_it_lies_under_task_checkpoint_and_key_without_this_machines_paths(options, tmp_path):
    folder = Folder(photographs(tmp_path / "photographs", side=64))
    run(options(), Linear(layer="conv5", protocol="generic", epochs=1), folder)
    (record,) = records(options())
    path = options().store / "probes.linear" / "random-alexnet32@0" / f"{record.key}.json"
    text = path.read_text()
    assert record.dataset["name"] == "folder:photographs"
    for private in (str(tmp_path), str(ROOT), "/home", "/root", "/tmp"):
        assert private not in text, private
    assert left(options().runs) == []


def test_a_recorded_run_is_printed_and_not_repeated(options, forbidden, capsys):
    run(options())
    first = capsys.readouterr().out
    assert "probes.knn  knn@1  random-alexnet32@0  on toy" in first
    (record,) = records(options())
    assert record.key in first
    assert f"{record.metrics['top1_k3']:.4g}" in first
    forbidden()
    run(options())
    assert capsys.readouterr().out == first + "1 of 1 recorded before; --force runs them again\n"


def test_force_repeats_it(options, monkeypatch):
    run(options())
    (before,) = records(options())
    monkeypatch.setattr("zoo.evaluation.now", lambda: "2000-01-01T00:00:00Z")
    run(options())
    assert records(options()) == [before]
    run(options(force=True))
    (after,) = records(options())
    assert after.started.startswith("2000")
    assert (after.key, after.metrics) == (before.key, before.metrics)


def test_only_what_is_missing_runs(options, monkeypatch, capsys):
    run(options(), KNN(k=(1,), layer="conv2"))
    asked = []
    whole = KNN.run

    def spied(self, parts, bench):
        asked.extend(part.layer for part in parts)
        return whole(self, parts, bench)

    monkeypatch.setattr(KNN, "run", spied)
    capsys.readouterr()
    run(options(), KNN(k=(1,), layer="all"))
    assert asked == ["conv1", "conv3", "conv4", "conv5"]
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("conv")]
    assert shown == ["conv1", "conv2", "conv3", "conv4", "conv5"]


def test_dry_run_says_what_would_run_and_writes_nothing(options, tmp_path, forbidden, capsys):
    run(options(), KNN(k=(1,), layer="conv2"))
    before = left(tmp_path)
    forbidden()
    capsys.readouterr()
    run(options(dry_run=True), KNN(k=(1,), layer="all"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("  ")[2] for line in lines] == ["will run", "recorded"] + ["will run"] * 3
    run(options(dry_run=True, force=True), KNN(k=(1,), layer="conv2"))
    assert capsys.readouterr().out.endswith("will run\n")
    assert left(tmp_path) == before


def test_a_smoke_run_prints_its_numbers_and_records_none(options, capsys):
    run(options(limit=20))
    shown = capsys.readouterr().out
    assert "a smoke run on 20 images (--limit): nothing is recorded" in shown
    assert "none" in shown
    run(options())
    capsys.readouterr()
    run(options(limit=20))  # what is recorded does not answer for a smoke run
    assert "a smoke run" in capsys.readouterr().out
    assert len(records(options())) == 1


def test_nothing_is_recorded_of_a_checkpoint_that_saw_a_part(options, tmp_path, capsys):
    path = tmp_path / "smoke.safetensors"
    Checkpoint(**{**vars(random_checkpoint()), "name": "smoke", "limit": 64}).save(path)
    run(options(checkpoint=str(path)))
    assert "the checkpoint is of a smoke run on 64 images" in capsys.readouterr().out
    assert not options().store.exists()


def test_each_seed_is_a_record(options, capsys):
    run(options(seeds=(0, 1, 0)), Linear(layer="conv5", epochs=1))
    found = records(options())
    assert sorted(record.settings["seed"] for record in found) == [0, 1]
    assert len({record.key for record in found}) == 2
    assert found[0].details["correct"] is not None
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("conv5")]
    assert [row.split()[1] for row in rows] == ["0", "1"]


def test_another_checkpoint_data_set_or_setting_is_another_record(options):
    run(options())
    run(options(checkpoint="random-alexnet32@1"))
    run(options(), dataset=Toy(seed=1))
    run(options(), KNN(k=(1,)))
    assert len(records(options())) == 4
    assert len(left(options().store)) == 4


@pytest.mark.parametrize("place", ["store", "runs", "cache"])
def test_a_place_that_cannot_be_written_is_said(options, tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((UserError, NotADirectoryError), match=r"[Nn]ot a directory"):  # both exit with 2
        run(options(**{place: tmp_path / "file" / "below"}))
    assert left(options().store) == []


def test_a_damaged_record_is_named(options):
    run(options())
    (path,) = options().store.rglob("*.json")
    path.write_text(path.read_text()[:100])
    with pytest.raises(UserError, match=path.name):
        run(options())
    run(options(force=True))
    assert len(records(options())) == 1


def test_a_failure_leaves_its_traceback_and_success_removes_it(options, failing):
    task = KNN(k=(1,), layer="all")
    failing("conv3", RunFailed("no luck"))
    with pytest.raises(RunFailed):
        run(options(), task)
    assert [record.settings["layer"] for record in records(options())] != []
    assert {record.settings["layer"] for record in records(options())} == {"conv1", "conv2"}
    (note,) = left(options().runs)
    assert note.endswith("/error.txt")
    assert "no luck" in (options().runs / note).read_text()


def test_the_same_command_again_clears_the_failure(options, failing, monkeypatch):
    task, whole = KNN(k=(1,), layer="all"), KNN.run
    failing("conv3", ValueError("no luck"))
    with pytest.raises(ValueError, match="no luck"):
        run(options(), task)
    monkeypatch.setattr(KNN, "run", whole)
    run(options(), task)
    assert len(records(options())) == 5
    assert left(options().runs) == []


def test_an_interruption_is_no_failure(options, failing):
    failing("conv5", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(options())
    assert left(options().runs) == []
    assert records(options()) == []


def test_a_backbone_that_moves_fails_the_run(tmp_path):
    held = bench(tmp_path, TOY)
    held.backbone.train()  # batch norm then follows the images it sees
    parts = KNN(k=(1,)).parts(held.checkpoint, TOY)
    with pytest.raises(RunFailed, match="frozen"):
        list(run_parts(parts, held, "", dict.fromkeys(parts, "key")))


def test_the_fingerprint_covers_every_weight_and_statistic(tmp_path):
    held = bench(tmp_path, TOY)
    usual = held.fingerprint()
    for name, tensor in held.backbone.state_dict().items():
        before = tensor.clone()
        tensor.add_(1)
        assert held.fingerprint() != usual, name
        tensor.copy_(before)
    assert held.fingerprint() == usual


def test_the_backbone_sees_what_the_checkpoint_asks_for(tmp_path):
    held = bench(tmp_path, TOY)
    pixels = TOY.open("test").pixels[:4]
    mean, std = held.checkpoint.preprocessing.mean[0], held.checkpoint.preprocessing.std[0]
    x = ((pixels.float() / 255 - mean) / std).expand(-1, 3, -1, -1)
    expected = held.checkpoint.build_backbone()(x, ["conv2", "embedding"])
    found = held.maps(pixels, ["conv2", "embedding"])
    for layer, maps in found.items():
        torch.testing.assert_close(maps, expected[layer].detach(), rtol=1e-4, atol=1e-4)
        assert not maps.requires_grad


def test_bf16_is_computed_in_bf16_and_given_in_float32(tmp_path):
    pixels = TOY.open("test").pixels
    whole = bench(tmp_path, TOY).maps(pixels, ["conv5"])["conv5"]
    half = bench(tmp_path, TOY, precision="bf16").maps(pixels, ["conv5"])["conv5"]
    assert half.dtype == torch.float32
    assert not torch.equal(half, whole)
    assert torch.equal(half, half.bfloat16().float())


def test_images_are_seen_at_the_checkpoints_size(tmp_path):
    held = bench(tmp_path, TOY, "random-alexnet@0")
    assert held.view(TOY.open("test")) == CentreCrop(28, 224)  # 32 px × 224 / 256, then enlarged
    folder = Folder(photographs(tmp_path / "photographs", train=1, val=1))
    assert held.view(folder.open("val")) == Centre(256, 224)


def test_a_limit_opens_that_many_evenly_spaced(tmp_path):
    held = bench(tmp_path, TOY, limit=12)
    assert held.labels("train").tolist() == TOY.labels["train"][::5].tolist()
    assert len(held.open("merged")) == 12


def test_images_without_classes_have_no_labels(tmp_path):
    held = bench(tmp_path, TOY)
    held.dataset = Toy()
    held.dataset.read = lambda split: type(TOY.read(split))(TOY.read(split).pixels, None)
    with pytest.raises(UserError, match="no classes"):
        held.labels("train")


def test_batches_cover_the_order(tmp_path):
    held = bench(tmp_path, TOY)
    images, order = TOY.open("train"), np.array([9, 3, 5, 7, 1])
    seen = list(held.batches(images, order, held.view(images), 2, "what"))
    assert [ids.tolist() for ids, _ in seen] == [[9, 3], [5, 7], [1]]
    assert torch.equal(torch.cat([pixels for _, pixels in seen]), images.pixels[torch.from_numpy(order)])
