"""`python -m results` says what there is; `--missing` prints commands that can be run, in an order that works."""

import importlib
import shlex
import subprocess
import sys

import pytest
import tyro
from synthetic import pretraining, probe, run_of

from results import __main__ as results_main
from results import gaps
from results.declarations import BACKBONES, DATASETS, TABLES, TIERS
from results.declarations.digits import DEEPCLUSTER, MMDC
from results.errors import ending
from results.files import ROOT
from results.gaps import UNAVAILABLE
from results.store import Store

DIGITS = [table for table in TABLES.values() if table.tier == "digits"]


def run(*words):
    """The exit code of `python -m results`, called in this process."""
    arguments = [str(word) for word in words]
    return ending(lambda: tyro.cli(results_main.main, args=arguments, config=(tyro.conf.FlagCreatePairsOff,)))


@pytest.fixture
def places(tmp_path):
    return ["--store", tmp_path / "records", "--runs", tmp_path / "runs"]


@pytest.fixture
def missing(places, capsys):
    """The lines of --missing, without the folders that each of them names."""

    def lines(*words):
        assert run(*places, "--missing", *words) == 0
        folders = f" {shlex.join(map(str, places))}"
        found = capsys.readouterr().out.splitlines()
        assert all(line.endswith(folders) for line in found)
        return [line.removesuffix(folders) for line in found]

    return lines


def checkpoint_of(line):
    words = shlex.split(line)
    return words[words.index("--checkpoint") + 1]


def test_an_empty_store_misses_every_run_of_the_digits_tier(missing):
    lines = missing("--tier", "digits")
    assert lines[:4] == [
        "python -m pretrain.deepcluster --dataset digits --backbone alexnet32 --seeds 0 1 2",
        "python -m pretrain.supervised --dataset digits --backbone alexnet32 --seeds 0 1 2",
        "python -m pretrain.mmdc --dataset digits --backbone small_vgg --seeds 0 1 2",
        "python -m pretrain.supervised --dataset digits --backbone small_vgg --seeds 0 1 2",
    ]
    exact = f"mmdc-small_vgg-digits-s1@{MMDC.key(1)}"
    assert f"python -m probes.linear --layer all --checkpoint {exact} --dataset digits" in lines
    assert "python -m probes.knn --layer conv5 --checkpoint random-alexnet32@2 --dataset digits" in lines
    by_head = "--dataset digits --assignment head --images merged"
    exact = f"mmdc-small_vgg-digits-s0@{MMDC.key(0)}"
    assert f"python -m probes.clustering --checkpoint {exact} {by_head}" in lines
    assert len(lines) == len(set(lines)) == 4 + 18 + 18 + 21  # four trainings; MMDC is clustered in two ways


def test_pretraining_comes_before_whatever_needs_it(missing):
    made = set()
    for line in missing():
        words = shlex.split(line.removeprefix(UNAVAILABLE))
        if words[2].startswith("pretrain."):
            name = [words[2].removeprefix("pretrain."), words[words.index("--backbone") + 1]]
            name += ["sobel"] * ("--sobel" in words) + [words[words.index("--dataset") + 1]]
            made |= {f"{'-'.join(name)}-s{seed}" for seed in words[words.index("--seeds") + 1 :]}
        else:
            checkpoint = checkpoint_of(line)
            assert checkpoint.startswith("random-") or checkpoint.partition("@")[0] in made


def test_every_line_is_a_command_or_a_comment(missing):
    lines = missing()
    for line in lines:
        assert line.startswith(("python -m ", UNAVAILABLE + "python -m "))
        task = shlex.split(line.removeprefix(UNAVAILABLE))[2]
        there = (ROOT / task.replace(".", "/")).with_suffix(".py").exists()
        assert there != line.startswith("#")
    assert any(line.startswith("python -m probes.linear") and "places205" in line for line in lines)
    assert any(line.startswith("python -m pretrain.deepcluster") and "vgg16" in line for line in lines)
    assert any("transfer.voc_classification" in line and "voc2007" in line for line in lines)


def test_the_default_places_are_not_named():
    found = gaps.find(TABLES["digits_linear"], [])
    assert (
        gaps.commands(found, [])[0]
        == "python -m pretrain.deepcluster --dataset digits --backbone alexnet32 --seeds 0 1 2"
    )


def test_what_is_recorded_is_not_missing(missing, tmp_path):
    store = Store(tmp_path / "records")
    before = missing("--tier", "digits")
    for layer in ("conv1", "conv2", "conv3", "conv4", "conv5"):
        store.write(probe("random-alexnet32@1", settings={"layer": layer}))
    gone = "python -m probes.linear --layer all --checkpoint random-alexnet32@1 --dataset digits"
    assert [line for line in before if line != gone] == missing("--tier", "digits")


def test_one_missing_layer_is_asked_for_alone(missing, tmp_path):
    store = Store(tmp_path / "records")
    for layer in ("conv1", "conv2", "conv4", "conv5"):
        store.write(probe("random-alexnet32@1", settings={"layer": layer}))
    lines = missing("--tier", "digits")
    assert "python -m probes.linear --layer conv3 --checkpoint random-alexnet32@1 --dataset digits" in lines


def test_only_seeds_without_a_record_are_trained(missing, tmp_path):
    store, runs = Store(tmp_path / "records"), tmp_path / "runs"
    for seed in (0, 2):
        store.write(run_of(MMDC, seed))
        (runs / MMDC.key(seed)).mkdir(parents=True)
        (runs / MMDC.key(seed) / f"mmdc-small_vgg-digits-s{seed}.safetensors").touch()
    trainings = [line for line in missing("--tier", "digits") if "pretrain.mmdc" in line]
    assert trainings == ["python -m pretrain.mmdc --dataset digits --backbone small_vgg --seeds 1"]


def test_a_recorded_checkpoint_that_is_not_here_is_trained_again(missing, tmp_path):
    store, runs = Store(tmp_path / "records"), tmp_path / "runs"
    for seed in (0, 1, 2):
        store.write(run_of(MMDC, seed))
    lies = runs / MMDC.key(1) / "mmdc-small_vgg-digits-s1.safetensors"
    other = runs / MMDC.but({"k": 7}).key(2) / "mmdc-small_vgg-digits-s2.safetensors"  # of the same name
    for path in (lies, other):
        path.parent.mkdir(parents=True)
        path.touch()
    trainings = [line for line in missing("--tier", "digits") if "pretrain.mmdc" in line]
    assert trainings == ["python -m pretrain.mmdc --dataset digits --backbone small_vgg --seeds 0 2"]


def test_a_checkpoint_that_is_known_by_name_alone_is_trained_where_it_is_not_here(missing, tmp_path):
    name = "supervised-small_vgg-digits-s1"
    Store(tmp_path / "records").write(pretraining(name))
    line = "python -m pretrain.supervised --dataset digits --backbone small_vgg --seeds"
    assert f"{line} 0 1 2" in missing("--tier", "digits")
    path = tmp_path / "runs" / "somewhere" / f"{name}.safetensors"
    path.parent.mkdir(parents=True)
    path.touch()
    assert f"{line} 0 2" in missing("--tier", "digits")


def test_a_run_of_another_version_or_other_settings_is_none_of_the_tables(missing, tmp_path):
    store = Store(tmp_path / "records")
    store.write(run_of(DEEPCLUSTER, 0, version=DEEPCLUSTER.version - 1))
    store.write(run_of(DEEPCLUSTER.but({"k": 51}), 1))
    assert "python -m pretrain.deepcluster --dataset digits --backbone alexnet32 --seeds 0 1 2" in missing(
        "--tier", "digits"
    )


def test_an_imported_checkpoint_without_a_seed_fills_its_row():
    table = TABLES["deepcluster_table1"]
    records = [
        probe(
            "deepcluster-alexnet-sobel-imagenet",
            protocol="deepcluster@1",
            dataset="imagenet",
            settings={"layer": f"conv{number}", "protocol": "deepcluster", "crops": 1},
        )
        for number in range(1, 6)
    ]
    wanted = [gap for gap in gaps.find(table, records) if gap.dataset == "imagenet"]
    assert {gap.checkpoint for gap in wanted} == {"supervised-alexnet-imagenet-s0", "random-alexnet-sobel@0"}


def test_the_summary_lists_recorded_stale_missing_and_failed(places, tmp_path, capsys):
    store, runs = Store(tmp_path / "records"), tmp_path / "runs"
    store.write(probe("random-alexnet32@0"))
    store.write(probe("random-alexnet32@0", version=0, protocol="small@0"))
    store.write(pretraining(version=1))
    store.write(pretraining(version=2))
    (runs / "0123456789ab").mkdir(parents=True)
    error = (
        'Traceback (most recent call last):\n  File "x.py", line 1\nresults.errors.RunFailed: the loss is NaN\n  try: y'
    )
    (runs / "0123456789ab" / "error.txt").write_text(error)
    (runs / "empty").mkdir()
    (runs / "empty" / "error.txt").touch()
    assert run(*places) == 0
    out = capsys.readouterr().out
    assert "4 runs recorded, 2 of them stale; " in out
    lines = [line.split() for line in out.splitlines()]
    assert ["probes.linear", "random-alexnet32", "digits", "2", "1", "14", "of", "digits_linear,"] in (
        line[:8] for line in lines
    )
    assert ["pretrain.deepcluster", "deepcluster-alexnet32-digits", "digits", "2", "1"] in (line[:5] for line in lines)
    assert "failed: 0123456789ab: results.errors.RunFailed: the loss is NaN\n" in out
    assert "failed: empty: no message\n" in out


def test_a_tier_restricts_the_summary(places, capsys):
    assert run(*places, "--tier", "fashion-mnist") == 0
    out = capsys.readouterr().out
    assert "fashion_linear" in out
    assert "digits_linear" not in out


def test_an_unknown_tier_is_the_persons_to_fix(places, capsys):
    assert run(*places, "--tier", "digit") == 2
    assert "no tier 'digit' (did you mean 'digits'?)" in capsys.readouterr().err
    assert {"digits", "fashion-mnist", "paper"} <= set(TIERS)


def test_an_unknown_flag_exits_2():
    with pytest.raises(SystemExit) as caught:
        run("--mising")
    assert caught.value.code == 2


def test_a_corrupt_record_exits_2_and_is_named(places, tmp_path, capsys):
    path = Store(tmp_path / "records").write(probe())
    path.write_text("{")
    assert run(*places) == 2
    assert path.name in capsys.readouterr().err


def test_the_command_itself(places):
    command = [sys.executable, "-m", "results", "--missing", *map(str, places)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    syntax = subprocess.run(["sh", "-n"], input=done.stdout, text=True, capture_output=True)
    assert (syntax.returncode, syntax.stderr) == (0, "")


def test_a_reader_that_leaves_early_is_no_error(places):
    command = shlex.join([sys.executable, "-m", "results", "--missing", *map(str, places)])
    done = subprocess.run(["sh", "-c", f"{command} | head -n 1"], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""


def test_declared_data_sets_and_backbones_are_those_of_the_zoo():
    assert set(BACKBONES) == set(importlib.import_module("zoo.backbones").BACKBONES)
    assert set(DATASETS) == set(importlib.import_module("zoo.datasets").DATASETS)


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_tables_expect_the_version_and_the_settings_their_task_has(table):
    for name in {table.task_of(column) for column in table.columns}:
        if not (ROOT / name.replace(".", "/")).with_suffix(".py").exists():
            continue
        module = importlib.import_module(name)
        (task,) = [kind for kind in vars(module).values() if isinstance(kind, type) and vars(kind).get("name") == name]
        known = {"seed", *task.__dataclass_fields__}
        for column in [column for column in table.columns if table.task_of(column) == name]:
            assert table.version_of(column) == task.version
            assert set(column.settings) <= known
            named, _, changed = column.protocol.partition(", ")  # what differs from the preset
            assert named.endswith(f"@{task.version}")
            assert set(changed.split()[::2]) <= set(column.settings)
            assert column.of_training or all(set(row.settings) <= known for row in table.rows)


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_the_commands_of_gaps_are_understood(table):
    parse = importlib.import_module("zoo.run").parse
    for line in gaps.commands(gaps.find(table, []), []):
        if not line.startswith("#"):
            _, _, task, *words = shlex.split(line)
            module = importlib.import_module(task)
            (kind,) = [
                kind for kind in vars(module).values() if isinstance(kind, type) and vars(kind).get("name") == task
            ]
            _, options = parse(kind, words)
            assert options.dataset in DATASETS


def test_only_the_runs_of_the_seeds_that_are_asked_for_are_missing(missing):
    lines = missing("--tier", "digits", "--seeds", "1")
    assert lines[0] == "python -m pretrain.deepcluster --dataset digits --backbone alexnet32 --seeds 1"
    checkpoints = {checkpoint_of(line) for line in lines if "probes." in line}
    assert checkpoints
    assert all("-s1" in name or name.endswith("@1") for name in checkpoints)
