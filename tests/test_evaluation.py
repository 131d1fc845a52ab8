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
from zoo.unfinished import alone
from zoo.views import Centre, CentreCrop

TOY = Toy()
TASK = KNN(k=(1, 3))
ALL = KNN(k=(1,), layer="all")


@pytest.fixture(autouse=True)
def _saved_by_the_clock_alone(monkeypatch):
    """However slow this machine is: by default after ten minutes, so never."""
    monkeypatch.setattr("zoo.state.WORTH", 1e9)


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
        *("commit", "dirty", "python", "packages", "device", "device_name", "precision", "threads", "processes")
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


@pytest.fixture
def votes(monkeypatch):
    """The layer of each vote from here on. `at`: number of the vote that is interrupted, once."""
    vote = KNN.vote

    class Votes(list):
        at: int | None = None

    found = Votes()

    def counted(self, *given):
        found.append(self.layer)
        if found.at == len(found) - 1:
            found.at = None
            raise KeyboardInterrupt
        return vote(self, *given)

    monkeypatch.setattr(KNN, "vote", counted)
    return found


def stop(options, votes, at):
    """Run all layers and be interrupted at a vote."""
    votes.clear()
    votes.at = at
    with pytest.raises(KeyboardInterrupt):
        run(options, ALL)
    votes.clear()


def test_a_run_that_was_stopped_continues_with_what_is_not_recorded(options, votes, capsys):
    saved = options(save_every=0.0, quiet=False)
    stop(saved, votes, at=2)
    before = {record.settings["layer"]: record for record in records(options())}
    assert sorted(before) == ["conv1", "conv2"]
    (folder,) = options().runs.iterdir()
    run(options(dry_run=True), ALL)
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("  ")[2] for line in lines] == ["recorded"] * 2 + ["will continue"] * 3
    run(options(dry_run=True), KNN(k=(1,), layer="conv4"))
    assert capsys.readouterr().out.endswith("will run\n")
    run(saved, ALL)
    said = capsys.readouterr()
    assert "continuing where this was stopped" in said.err
    assert "2 of 5 recorded before" in said.out
    assert votes == ["conv3", "conv4", "conv5"]
    found = records(options())
    assert len(found) == 5
    assert all(record in found for record in before.values())
    assert not folder.exists()


def test_force_starts_afresh_and_when_stopped_is_continued_without_it(options, votes, monkeypatch, capsys):
    saved = options(save_every=0.0)
    run(options(), ALL)
    monkeypatch.setattr("zoo.evaluation.now", lambda: "2000-01-01T00:00:00Z")
    stop(dataclasses.replace(saved, force=True), votes, at=3)
    assert [record.started[:4] for record in records(options())].count("2000") == 3
    capsys.readouterr()
    run(dataclasses.replace(saved, dry_run=True, force=True), ALL)
    assert capsys.readouterr().out.count("will run") == 5
    run(dataclasses.replace(saved, dry_run=True), ALL)
    assert capsys.readouterr().out.count("will continue") == 2  # though there are records, of before
    run(saved, ALL)
    assert votes == ["conv4", "conv5"]
    assert {record.started[:4] for record in records(options())} == {"2000"}
    stop(dataclasses.replace(saved, force=True), votes, at=3)
    run(dataclasses.replace(saved, force=True), ALL)
    assert votes == ["conv1", "conv2", "conv3", "conv4", "conv5"]
    assert left(options().runs) == []


def test_a_record_that_is_gone_meanwhile_is_made_again(options, votes):
    saved = options(save_every=0.0)
    stop(saved, votes, at=3)
    (options().store / "probes.knn" / "random-alexnet32@0" / f"{records(options())[0].key}.json").unlink()
    run(saved, ALL)
    assert len(votes) == 3
    assert len(records(options())) == 5
    assert left(options().runs) == []


def test_a_smoke_run_continues_with_all_its_parts(options, votes, capsys):
    saved = options(save_every=0.0, limit=20)
    stop(saved, votes, at=3)
    run(dataclasses.replace(saved, dry_run=True), ALL)
    assert capsys.readouterr().out.count("will continue") == 5
    run(saved, ALL)
    assert len(votes) == 5  # for there are no records to show
    assert left(options().runs) == []


def test_seeds_are_continued_one_by_one(options, monkeypatch):
    task = Linear(layer="conv5", epochs=1)
    run(options(seeds=(0,)), task)
    (key,) = {record.key for record in records(options())}
    fit, fitted = Linear.fit, []

    def stopped(self, *given):
        fitted.append(self.seed)
        if fitted == [1, 1]:
            raise KeyboardInterrupt
        return fit(self, *given)

    monkeypatch.setattr(Linear, "fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(options(seeds=(0, 1, 2), save_every=0.0), task)
    (folder,) = options().runs.iterdir()
    assert folder.name != key
    run(options(seeds=(0, 1, 2), save_every=0.0), task)
    assert fitted == [1, 1, 1, 2, 2]  # the rate was chosen already
    assert sorted(record.settings["seed"] for record in records(options())) == [0, 1, 2]


def test_a_run_that_failed_would_fail_again_and_leaves_no_states(options, failing):
    failing("conv3", RunFailed("no luck"))
    with pytest.raises(RunFailed):
        run(options(save_every=0.0), ALL)
    (note,) = left(options().runs)
    assert note.endswith("/error.txt")


def test_an_error_that_is_no_result_leaves_them(options, failing, capsys):
    failing("conv3", OSError(5, "Input/output error"))
    with pytest.raises(OSError, match="Input"):
        run(options(save_every=0.0), ALL)
    run(options(dry_run=True), ALL)
    assert capsys.readouterr().out.count("will continue") == 3


def test_one_process_at_a_time_runs_the_same(options, forbidden):
    (part,) = TASK.parts(random_checkpoint(), TOY)
    key = cell_key(part.name, 1, dataclasses.asdict(part), random_checkpoint().sha256, TOY.fingerprint())
    (options().runs / key).mkdir(parents=True)
    forbidden()
    with alone(options().runs / key), pytest.raises(UserError, match="another process is running this"):
        run(options())


def test_batches_are_the_steps_of_a_state(tmp_path):
    held = bench(tmp_path, TOY)
    held.directory, held.save_every = tmp_path / "run", 0.0
    images, order = TOY.open("train"), np.array([9, 3, 5, 7, 1])

    def batches():
        return held.batches(images, order, held.view(images), 2, "seen", state=held.state("work"))

    begun = batches()
    assert [next(begun)[0].tolist() for _ in range(2)] == [[9, 3], [5, 7]]  # the second is not finished
    assert [ids.tolist() for ids, _ in batches()] == [[5, 7], [1]]
    assert list(batches()) == []


def test_without_a_folder_nothing_is_saved(tmp_path):
    held = bench(tmp_path, TOY)
    held.save_every = 0.0
    state = held.state("work")
    assert list(state.steps("steps", 3)) == [0, 1, 2]
    state.save()
    assert held.state("work").done("steps") == 0
    assert left(tmp_path) == []


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
