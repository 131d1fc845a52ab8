"""Grids of ablations: every cell is the run that it says, only what is missing is run, and tables take no other run."""

import ast
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tyro
from synthetic import probe, run_of

from pretrain import ablate
from pretrain.ablate import Crew, listing, plan
from results import gaps, tables
from results.cells import rows
from results.declarations import TABLES, TIERS
from results.declarations import ablations as declared
from results.declarations.ablations import GRIDS, Grid
from results.declarations.digits import DEEPCLUSTER, MMDC
from results.errors import RunFailed, UserError, ending
from results.files import ROOT
from results.record import cell_key
from results.store import Store
from zoo.datasets import find
from zoo.run import parse, registry, settings_of

METHODS = registry("pretrain")
NAMED = {grid.name: grid for grid in GRIDS}
K = NAMED["k"]
WORDS = ["--threads", "1"]


def run(*words):
    """The exit code of `python -m pretrain.ablate`, called in this process."""
    arguments = [str(word) for word in words]
    return ending(lambda: tyro.cli(ablate.main, args=arguments, config=(tyro.conf.FlagCreatePairsOff,)))


# What is declared


def test_the_grids_vary_what_they_say():
    varied = {grid.name: {tuple(cell) for cell in grid.cells.values() if cell} for grid in GRIDS}
    assert varied == {
        "k": {("k",)},
        "clustering": {("clustering",)},
        "head": {("head",)},
        "sampler": {("sampler",)},
        "reassign": {("reassign",), ("stop_reassign",)},
        "sobel": {("sobel",)},
        "rotation": {("rotation",)},
        "refinement": {("refine_at",)},
    }
    assert [cell.get("k", 50) for cell in K.cells.values()] == [10, 20, 50, 100, 200, 500]
    assert {cell["reassign"] for cell in NAMED["reassign"].cells.values() if "reassign" in cell} == {2, 5, 10}


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_a_grid_has_a_table_and_the_presets_own_run_once(grid):
    assert TABLES[grid.table.name] == grid.table
    assert grid.table.tier == "ablations" in TIERS
    assert list(grid.cells.values()).count({}) == 1
    trainings = [row.training for row in grid.table.rows if row.training]
    assert len({training.recipe for training in trainings}) == len(grid.cells)
    assert grid.usual in trainings


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_a_command_makes_the_run_of_its_cell(grid):
    """Its settings, as the command itself resolves them, give the key under which the table looks for the run."""
    found = gaps.find(replace(grid.table, seeds=(4,)), [])
    for gap in (gap for gap in found if gap.of_training):
        (line,) = gaps.pretraining([gap], [], None)
        _, _, task, *words = shlex.split(line)
        kind = METHODS[task]
        settings, options = parse(kind, words)
        (seed,) = options.seeds
        key = cell_key(
            task, kind.version, settings_of(replace(settings, seed=seed)), None, find(options.dataset).fingerprint()
        )
        assert gap.key == key, line


def test_refinement_that_never_begins():
    (cell,) = [cell for cell in NAMED["refinement"].cells.values() if cell]
    assert cell["refine_at"] >= METHODS["pretrain.mmdc"]().epochs


def test_the_command_imports_nobody():
    tree = ast.parse((ROOT / "pretrain" / "ablate.py").read_text())
    names = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [name for name in names if name.partition(".")[0] in ("zoo", "pretrain", "probes")]


# What a table takes


def grown(seed, epochs=40):
    """A history whose NMI grows, faster with the seed."""
    return [
        {"epoch": e, "nmi_arithmetic": (1 + seed) * e / 100, "nmi_previous": e / 50 if e else None}
        for e in range(epochs)
    ]


def probes_of(run, top1):
    """The two probes of the deepest layer of a run's checkpoint."""
    layer = "conv5" if "alexnet32" in run.checkpoint_name else "conv4"
    more = {"recipe": run.subject["recipe"], "sha256": run.subject["sha256"], "settings": {"layer": layer}}
    knn = {"top1_k20": top1, "top1_k200": top1 - 1}
    return [
        probe(run.checkpoint_name, task="probes.knn", protocol="knn@1", metrics=knn, **more),
        probe(run.checkpoint_name, top1 + 1, **more),
    ]


def recorded(training, seeds=(0, 1, 2), top1=90.0):
    """All records of a cell."""
    made = [run_of(training, seed, {"nmi_arithmetic": 0.5 + seed / 10}, grown(seed)) for seed in seeds]
    return [record for run in made for record in (run, *probes_of(run, top1 + run.settings["seed"]))]


def cells_of(table, label, records):
    """The cells of one row, by header."""
    (found,) = [cells for cells in rows(table, records) if cells[0].row.label == label]
    return {cell.column.header: cell for cell in found}


def test_a_row_holds_its_runs_and_the_probes_of_their_checkpoints():
    records = [*recorded(DEEPCLUSTER.but({"k": 10})), *recorded(DEEPCLUSTER, top1=50.0)]
    found = cells_of(K.table, "k = 10", records)
    assert [cell.n for cell in found.values()] == [3] * 6
    assert [cell.mean for cell in found.values()] == pytest.approx([0.6, 0.4, 0.6, 91.0, 90.0, 92.0])
    assert found["NMI, labels"].std == pytest.approx(0.1)
    assert cells_of(K.table, "k = 50 (preset)", records)["kNN 20, %"].mean == 51.0
    assert cells_of(K.table, "k = 20", records)["kNN 20, %"].n == 0


def test_checkpoints_of_one_name_are_told_apart():
    """All of them are called deepcluster-alexnet32-digits-s0."""
    cells = [grid.usual.but(cell) for grid in GRIDS[:5] for cell in grid.cells.values() if cell]
    records = [record for number, cell in enumerate(cells) for record in recorded(cell, (0,), top1=float(number))]
    assert len({record.checkpoint_name for record in records}) == 1
    for grid in GRIDS[:5]:
        for row, found in zip(grid.table.rows, rows(grid.table, records), strict=True):
            for cell in found:
                wanted = [float(cells.index(row.training))] if row.training in cells else []
                if cell.column.header == "kNN 20, %":
                    assert cell.values == wanted, row.label
    assert cells_of(NAMED["head"].table, "reset (preset)", records)["NMI, labels"].n == 0


def old_version(training):
    made = run_of(training, 0, version=training.version - 1)
    told = {**made.details, "checkpoint": {**made.details["checkpoint"], "sha256": "of the old version"}}
    return [replace(made, details=told), *probes_of(replace(made, details=told), 10.0)]


def another_image_set(training):
    made = run_of(training, 0)
    return [replace(made, dataset={**made.dataset, "protocol": "merged"})]


def renamed(training):
    """Probes of a checkpoint that says the name and the recipe, and that no recorded run made."""
    return old_version(training)[1:]


@pytest.mark.parametrize("others", [old_version, another_image_set, renamed])
def test_what_another_run_made_is_left_out(others):
    found = cells_of(K.table, "k = 50 (preset)", others(DEEPCLUSTER))
    assert not any(cell.n for cell in found.values())
    mixed = cells_of(K.table, "k = 50 (preset)", [*recorded(DEEPCLUSTER), *others(DEEPCLUSTER)])
    assert [cell.n for cell in mixed.values()] == [3] * 6
    assert mixed["kNN 20, %"].mean == 91.0


def test_the_untrained_row_has_probes_and_no_clusters():
    records = [
        probe(f"random-alexnet32@{seed}", 70.0, recipe="229034fa0564", settings={"layer": "conv5"}) for seed in range(3)
    ]
    found = cells_of(K.table, "random, alexnet32 conv5", records)
    assert [cell.applies for cell in found.values()] == [False] * 3 + [True] * 3
    assert found["linear, %"].mean == 70.0
    text = tables.render(K.table, records)["ablation_k.md"]
    assert "--checkpoint random-alexnet32@0" in text  # its nearest neighbours
    assert "pretrain.random" not in text


def test_epochs_are_means_over_the_runs():
    texts = tables.render(K.table, recorded(DEEPCLUSTER, (0, 1)))
    lines = [line.split(",") for line in texts["ablation_k_epochs.csv"].splitlines()]
    assert lines[0] == ["row", "metric", "epoch", "mean", "std", "n"]
    epochs = [int(line[2]) for line in lines[1:] if line[1] == "nmi_arithmetic"]
    assert epochs == [0, 5, 10, 15, 20, 25, 30, 35, 39]
    assert [int(line[2]) for line in lines[1:] if line[1] == "nmi_previous"] == epochs[1:]  # none at first
    row, metric, epoch, mean, std, n = lines[3]
    assert (row, metric, epoch, n) == ("k = 50 (preset)", "nmi_arithmetic", "10", "2")
    assert (float(mean), float(std)) == (pytest.approx(0.15), pytest.approx(0.1 / 2**0.5))
    text = texts["ablation_k.md"]
    assert "![Ablation on the digits: DeepCluster's number of clusters](ablation_k.svg)" in text
    assert "**NMI with the epoch before, by epoch**" in text


def test_a_figure_has_a_line_for_each_row_and_a_point_for_each_k():
    records = [record for k in (10, 500) for record in recorded(DEEPCLUSTER.but({"k": k}))]
    text = tables.render(K.table, records)["ablation_k.svg"]
    assert text.count("<circle") == 2 * 5  # two k; NMI, AMI, two kNN, linear
    assert text.count('stroke-width="1.8"') == 2 * 2 + 5
    assert all(f">{label}<" in text for label in ("k = 10", "k = 50 (preset)", "k = 500", "kNN 200", "epoch"))
    empty = tables.render(K.table, [])["ablation_k.svg"]
    assert empty.count("no run recorded yet") == 4
    assert "ablation_k.svg" not in tables.render(K.table, [])["ablation_k.md"]


def test_kept_clusters_are_not_compared_with_themselves():
    table = NAMED["reassign"].table
    assert "nmi_previous" not in {column.metric for column in table.columns} | set(table.figure.curves)


# What is run


def test_a_chain_trains_and_then_probes_the_checkpoint_it_made(tmp_path):
    chains = plan([NAMED["head"]], (0, 1), [], tmp_path, WORDS)
    assert len(chains) == 3 * 2 + 2  # the untrained networks too
    key = DEEPCLUSTER.but({"head": "matched"}).key(1)
    training = "python -m pretrain.deepcluster --dataset digits --backbone alexnet32 --head matched --seeds 1"
    where = f"--layer conv5 --checkpoint deepcluster-alexnet32-digits-s1@{key} --dataset digits --threads 1"
    assert chains[3] == [
        f"{training} --threads 1",
        f"python -m probes.knn {where}",
        f"python -m probes.linear {where}",
    ]


def test_the_presets_run_is_shared_by_the_grids(tmp_path):
    chains = plan(GRIDS, (0,), [], tmp_path, WORDS)
    first = [shlex.split(chain[0]) for chain in chains]
    assert len(chains) == len({tuple(words) for words in first})
    assert sum("pretrain.deepcluster" in words for words in first) == 18
    assert sum("pretrain.mmdc" in words for words in first) == 3


def test_what_is_recorded_is_not_planned(tmp_path):
    cell = DEEPCLUSTER.but({"head": "matched"})
    usual, matched = recorded(DEEPCLUSTER, (0,)), recorded(cell, (0,))
    lines = [line for chain in plan([NAMED["head"]], (0,), usual, tmp_path, []) for line in chain]
    assert not [line for line in lines if DEEPCLUSTER.key(0) in line]
    assert [line for line in lines if "pretrain." in line] == [
        f"python -m pretrain.deepcluster --dataset digits --backbone alexnet32 --head {head} --seeds 0"
        for head in ("matched", "centroids")
    ]
    path = tmp_path / cell.key(0) / "deepcluster-alexnet32-digits-s0.safetensors"
    path.parent.mkdir()
    path.touch()
    chains = plan([NAMED["head"]], (0,), [*usual, *matched[:2]], tmp_path, [])  # its checkpoint is here
    assert [f"python -m probes.linear --layer conv5 --checkpoint {path.stem}@{cell.key(0)} --dataset digits"] in chains
    path.unlink()
    (chain,) = [c for c in plan([NAMED["head"]], (0,), [*usual, *matched[:2]], tmp_path, []) if "matched" in c[0]]
    assert [line.split()[2] for line in chain] == ["pretrain.deepcluster", "probes.linear"]


def test_the_list_of_grids_counts_what_is_recorded(tmp_path, capsys):
    store = Store(tmp_path / "records")
    for record in recorded(DEEPCLUSTER, (0, 1)):
        store.write(record)
    assert run("--store", store.root) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines if line[-2:-1] == ["of"]] == list(NAMED)
    (head,) = [line for line in lines if line[:1] == ["head"]]
    assert head[-6:] == ["2", "of", "9", "4", "of", "24"]
    assert "0 of 6" in listing([NAMED["sobel"]], (0, 1, 2), [])


def test_a_dry_run_prints_commands_and_runs_none(tmp_path, capsys):
    places = ["--store", tmp_path / "records", "--runs", tmp_path / "runs"]
    assert run("sobel", *places, "--seeds", 3, "--threads", 2, "--data-dir", tmp_path, "--dry-run") == 0
    said = capsys.readouterr()
    words = f"--store {tmp_path}/records --runs {tmp_path}/runs --threads 2 --data-dir {tmp_path}"
    lines = said.out.splitlines()
    assert all(line.startswith("python -m p") and line.endswith(words) for line in lines)
    assert f"python -m pretrain.deepcluster --dataset digits --backbone alexnet32 --sobel --seeds 3 {words}" in lines
    assert (len(lines), said.err, list(tmp_path.iterdir())) == (3 + 3 + 2 + 2, "", [])


def test_the_processors_are_shared(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert [ablate.share(jobs) for jobs in (1, 3, 16, 40)] == [16, 5, 1, 1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["smapler"], "error: no grid 'smapler' (did you mean 'sampler'?)"),
        (["k", "--dataset", "mnist"], "error: no grid is declared for the data set mnist"),
        (["k", "--seeds", "-1"], "error: --seeds takes numbers from 0 on"),
        (["k", "--jobs", "0"], "error: --jobs 0 runs nothing"),
        (["k", "--threads", "-2"], "error: --threads -2 cannot be"),
    ],
)
def test_what_the_person_can_fix(words, said, tmp_path, capsys):
    assert run(*words, "--store", tmp_path / "records", "--runs", tmp_path / "runs") == 2
    told = capsys.readouterr().err
    assert told.startswith(said)
    assert "  try: " in told
    assert not list(tmp_path.iterdir())


def test_a_corrupt_record_is_named(tmp_path, capsys):
    path = Store(tmp_path).write(run_of(DEEPCLUSTER, 0))
    path.write_text("{}")
    assert run("k", "--store", tmp_path, "--dry-run") == 2
    assert str(path) in capsys.readouterr().err


def test_it_is_a_command(tmp_path):
    words = [sys.executable, "-m", "pretrain.ablate", "--store", str(tmp_path / "records")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "DeepCluster's number of clusters" in done.stdout


# How it is run


def python(text):
    """A command as a crew runs it."""
    return shlex.join(["python", "-c", text])


@pytest.fixture
def at_once(monkeypatch):
    """What a crew runs takes no time."""
    monkeypatch.setattr(ablate, "time", SimpleNamespace(perf_counter=lambda: 0.0))


@pytest.mark.usefixtures("at_once")
def test_a_crew_says_how_each_command_ended(tmp_path, capsys):
    chain = [python(f"import os; open({str(tmp_path / name)!r}, 'w').write(os.getcwd())") for name in "ab"]
    assert Crew(2).run([chain], jobs=1) == 0
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == str(ROOT)
    said = capsys.readouterr()
    first, second = said.err.splitlines()
    assert first.startswith("[1/2] ran 0 s: python -c")
    assert second.startswith("[2/2] ran 0 s: python -c")
    assert said.out == ""


@pytest.mark.usefixtures("at_once")
def test_a_failure_ends_its_chain_and_no_other(tmp_path, capsys):
    bad = python("import sys; print('epoch 1'); sys.exit('error: the loss became nan\\n  try: a smaller --lr')")
    worse = python("1 / 0")
    never = python(f"open({str(tmp_path / 'never')!r}, 'w')")
    after = python(f"open({str(tmp_path / 'after')!r}, 'w')")
    with pytest.raises(RunFailed) as failed:
        Crew(4).run([[bad, never], [worse], [after]], jobs=1)
    assert failed.value.exit_code == 1
    assert str(failed.value).splitlines() == [
        "2 of 4 commands failed, 1 that need them were not run:",
        f"  {bad}",
        "    error: the loss became nan",
        "      try: a smaller --lr",
        f"  {worse}",
        "    ZeroDivisionError: division by zero",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["after"]
    assert "[1/4] failed with exit code 1 after 0 s: " in capsys.readouterr().err


def test_jobs_run_side_by_side(tmp_path):
    """Each waits for the other's file."""
    wait = """
import pathlib, time
pathlib.Path({!r}).touch()
while not pathlib.Path({!r}).exists():
    time.sleep(0.01)
"""
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    assert Crew(2).run([[python(wait.format(one, other))], [python(wait.format(other, one))]], jobs=2) == 0


def telling(number, begun, told):
    """A command that says in files that it has begun, and each signal of that number that it is told."""
    return python(f"""
import pathlib, signal, sys, time
def end(number, frame):
    with open({str(told)!r}, "a") as file:
        file.write(f"{{number}} ")
    time.sleep(0.2)
    sys.exit(143)
signal.signal({int(number)}, end)
pathlib.Path({str(begun)!r}).touch()
time.sleep(60)
""")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once_and_starts_nothing_more(number, tmp_path, capsys):
    begun, told, never = tmp_path / "begun", tmp_path / "told", tmp_path / "never"

    def interrupt():
        while not begun.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=interrupt).start()
    chain = [telling(number, begun, told), python(f"open({str(never)!r}, 'w')")]
    assert Crew(2).run([chain, chain[1:]], jobs=1) == 128 + number
    assert told.read_text() == f"{int(number)} "
    assert not never.exists()
    assert capsys.readouterr().err == "stopped; the same command continues\n"
    assert signal.getsignal(number) == before


def test_a_signal_comes_once_to_a_process_that_is_being_started(tmp_path):
    begun, told = tmp_path / "begun", tmp_path / "told"

    class Slow(set):
        """The signal is there by the time that a process is known."""

        def add(self, process):
            super().add(process)
            while not begun.exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)

    assert Crew(1, running=Slow()).run([[telling(signal.SIGTERM, begun, told)]], jobs=1) == 143
    assert told.read_text() == f"{int(signal.SIGTERM)} "


def test_ctrl_c_at_a_terminal_comes_to_a_command_from_here_alone():
    """A command is the leader of its own process group."""
    crew = Crew(1)
    assert crew.run([[python("import os; assert os.getpgrp() == os.getpid()")]], jobs=1) == 0


def test_a_grid_is_run_recorded_tabulated_and_not_run_again(tmp_path, monkeypatch, capsys):
    """But for the cell that is recorded, and the untrained network."""
    short = {"epochs": 2, "batch": 256, "pca": 8, "iterations": 2}
    few = [column for column in declared.probes("conv5") if column.task == "probes.knn"]
    monkeypatch.setattr(declared, "probes", lambda layer: few)
    tiny = Grid("tiny", "the number of clusters", DEEPCLUSTER.but(short), {"usual": {}, "k = 5": {"k": 5}})
    monkeypatch.setattr(ablate, "GRIDS", (tiny,))
    store = Store(tmp_path / "records")
    knn = {"task": "probes.knn", "protocol": "knn@1", "metrics": {"top1_k20": 90.0, "top1_k200": 80.0}}
    for record in [*recorded(tiny.usual, (0,)), probe("random-alexnet32@0", settings={"layer": "conv5"}, **knn)]:
        store.write(record)
    places = ["--store", store.root, "--runs", tmp_path / "runs", "--seeds", 0, "--threads", 1]
    assert run("tiny", *places) == 0
    said = capsys.readouterr()
    assert said.out == "all is recorded; python -m results.tables ablation_tiny\n"
    commands = [line.partition(" s: python -m ")[2].split()[0] for line in said.err.splitlines()]
    assert commands == ["pretrain.deepcluster", "probes.knn"]
    table, records = replace(tiny.table, seeds=(0,)), store.records()
    assert tiny.usual.but({"k": 5}).key(0) in {record.key for record in records}
    assert gaps.find(table, records) == []
    assert all(cell.n == 1 for cells in rows(table, records) for cell in cells if cell.applies)
    assert "k = 5,nmi_arithmetic,0,0." in tables.render(table, records)["ablation_tiny_epochs.csv"]
    assert run("all", *places) == 0
    assert capsys.readouterr() == (said.out, "")


def test_mmdc_is_scored_on_all_images():
    table = NAMED["rotation"].table
    assert {column.images for column in table.columns if column.of_training} == {"merged"}
    assert cells_of(table, "without rotation (preset)", recorded(MMDC))["NMI, labels"].n == 3


def test_an_unknown_grid_raises_before_anything_is_read():
    with pytest.raises(UserError, match="no grid 'x'"):
        ablate.choose(["x"], "digits")
