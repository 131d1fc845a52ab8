"""Tables hold what the records and the papers say: means by hand, gaps, blanks, and no mixtures."""

import csv
import io
import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from synthetic import probe, run_of

from results import gaps, published, tables
from results.cells import rows, stem
from results.declarations import TABLES, digits
from results.errors import UserError
from results.files import ROOT
from results.frame import build
from results.store import Store

DECLARED = TABLES["digits_linear"]
# of any one recipe, whoever made the checkpoints
LINEAR = replace(DECLARED, rows=tuple(replace(row, recipe=None, training=None) for row in DECLARED.rows))
MMDC = TABLES["mmdc_table"]
PAPER = [table for table in TABLES.values() if table.published]


def files_of(table):
    """The names of the files that a table is rendered to."""
    return [f"{table.name}{end}" for end in (".md", ".csv", ".tex", *((".svg", "_epochs.csv") if table.figure else ()))]


def markdown(table, records):
    return tables.render(table, records)[f"{table.name}.md"]


def printed(text):
    """The rows of every pipe table in a text: (first header after the name, name, cells by header)."""
    found = []
    for block in re.split(r"\n\n", text):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        if lines:
            header, _, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
            found += [dict(zip(header, cells, strict=True)) for cells in body]
    return found


def row(text, label, **where):
    """The one row of that label."""
    (found,) = [cells for cells in printed(text) if cells[""] == label and where.items() <= cells.items()]
    return found


def seeded(values, **more):
    return [probe(f"deepcluster-alexnet32-digits-s{seed}", value, **more) for seed, value in enumerate(values)]


def test_mean_and_std_by_hand():
    found = row(markdown(LINEAR, seeded([80.0, 82.0, 87.0])), "DeepCluster, alexnet32")
    mean = (80 + 82 + 87) / 3
    std = math.sqrt(((80 - mean) ** 2 + (82 - mean) ** 2 + (87 - mean) ** 2) / 2)
    assert found["conv1"] == f"{mean:.1f} ± {std:.1f}" == "83.0 ± 3.6"
    assert found["n"] == "3"
    assert found["conv2"] == "–"


def test_probe_seeds_count_as_runs_too():
    records = [probe(value=value, settings={"seed": seed}) for seed, value in enumerate([80.0, 81.0])]
    found = row(markdown(LINEAR, records), "DeepCluster, alexnet32")
    assert (found["conv1"], found["n"]) == ("80.5 ± 0.7", "2")


def test_one_run_has_no_spread():
    text = markdown(LINEAR, seeded([80.25]))
    assert (row(text, "DeepCluster, alexnet32")["conv1"], row(text, "DeepCluster, alexnet32")["n"]) == ("80.2", "1")
    assert "±" not in text


def test_a_cell_says_its_own_n_where_a_row_has_several():
    records = seeded([80.0, 82.0]) + seeded([70.0], settings={"layer": "conv2"})
    found = row(markdown(LINEAR, records), "DeepCluster, alexnet32")
    assert (found["conv1"], found["conv2"]) == ("81.0 ± 1.4 (n=2)", "70.0 (n=1)")
    assert "n" not in found  # no row of the table has one n


def test_gap_and_not_applicable():
    text = markdown(LINEAR, [])
    assert row(text, "random, alexnet32")["conv5"] == "–"
    assert row(text, "random, small_vgg")["conv4"] == "–"
    assert row(text, "random, small_vgg")["conv5"] == ""
    assert "python -m probes.linear --layer all --checkpoint random-small_vgg@0 --dataset digits\n" in text
    assert not any("conv5" in line for line in gaps.commands(gaps.find(LINEAR, []), []))


def test_the_csv_has_one_line_a_cell_with_keys():
    records = seeded([80.0, 82.0, 87.0])
    lines = list(csv.DictReader(io.StringIO(tables.render(LINEAR, records)["digits_linear.csv"])))
    assert len(lines) == 3 * 5 + 3 * 4
    first = lines[0]
    assert (first["row"], first["column"], first["n"]) == ("DeepCluster, alexnet32", "conv1", "3")
    assert first["keys"].split() == [record.key for record in records]
    assert float(first["value"]) == pytest.approx(83.0)
    assert float(first["standard_error"]) == pytest.approx(float(first["std"]) / math.sqrt(3))


def test_every_number_can_be_traced_to_its_records():
    text = markdown(LINEAR, seeded([80.0, 82.0]))
    for record in seeded([80.0, 82.0]):
        assert f"`probes.linear/{record.checkpoint['name']}/` `{record.key}`" in text


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"settings": {"epochs": 5}}, "settings.epochs"),
        ({"fingerprint": "other"}, "dataset.fingerprint"),
        ({"recipe": "ba9876543210"}, "checkpoint.recipe"),
        ({"epoch": 10}, "checkpoint.epoch"),
        ({"precision": "bf16"}, "environment.precision"),
    ],
)
def test_a_mixture_is_refused_and_its_fields_named(change, field):
    records = [probe("deepcluster-alexnet32-digits-s0"), probe("deepcluster-alexnet32-digits-s1", **change)]
    with pytest.raises(UserError) as caught:
        build(LINEAR, records)
    assert f"table digits_linear, row DeepCluster, alexnet32, column conv1: records differ in {field}" == str(
        caught.value.happened
    )
    for record in records:
        assert f"{record.key}.json" in caught.value.looked


def test_all_differing_fields_are_named():
    records = [probe("deepcluster-alexnet32-digits-s0"), probe("deepcluster-alexnet32-digits-s1", recipe="b", epoch=1)]
    with pytest.raises(UserError, match=r"differ in checkpoint\.epoch, checkpoint\.recipe$|recipe\n"):
        build(LINEAR, records)


def test_a_named_recipe_picks_its_records():
    records = [probe(value=80.0), probe(value=90.0, recipe="b" * 12)]
    pinned = replace(LINEAR, rows=(replace(LINEAR.rows[0], recipe="b" * 12),))
    assert row(markdown(pinned, records[:1]), "DeepCluster, alexnet32")["conv1"] == "–"
    assert row(markdown(pinned, records), "DeepCluster, alexnet32")["conv1"] == "90.0"


def test_two_checkpoints_of_the_same_seeds_are_no_two_runs():
    records = [probe(sha256="one"), probe(sha256="two")]
    with pytest.raises(UserError, match=r"checkpoint\.sha256 at the same seeds \(pretraining, probe\) \(0, 0\)"):
        build(LINEAR, records)


def test_one_record_stored_twice_counts_once():
    assert rows(LINEAR, [probe(), probe()])[0][0].n == 1


def test_a_record_without_the_metric_is_named():
    with pytest.raises(UserError, match=rf"{probe().key}\.json has no metric top1, only other"):
        build(LINEAR, [probe(metrics={"other": 1.0})])


@pytest.mark.parametrize(
    "change",
    [
        {"task": "probes.knn"},
        {"protocol": "small@1, 5 epochs"},
        {"protocol": "generic@1"},
        {"dataset": "mnist"},
        {"images": "merged"},
        {"settings": {"layer": "conv7"}},
        {"checkpoint": "deepcluster-alexnet32-mnist-s0"},
        {"checkpoint": "deepcluster-alexnet32-sobel-digits-s0"},
    ],
)
def test_records_of_another_cell_are_left_out(change):
    assert all(cell.n == 0 for cells in rows(LINEAR, [probe(**change)]) for cell in cells)


def test_another_version_of_the_task_is_counted_and_not_tabulated():
    old = seeded([10.0, 20.0], version=1, protocol="small@1")
    newer = replace(LINEAR, version=2, columns=tuple(replace(c, protocol="small@2") for c in LINEAR.columns))
    text = markdown(newer, [*old, probe(version=2, protocol="small@2", value=80.0)])
    assert row(text, "DeepCluster, alexnet32")["conv1"] == "80.0"
    assert "Records of another version of the task, or of the training, not tabulated: 2." in text
    assert "another version" not in markdown(LINEAR, old)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mmdc-small_vgg-digits-s0", "mmdc-small_vgg-digits"),
        ("mmdc-small_vgg-digits-s12-0123456789ab", "mmdc-small_vgg-digits"),
        ("mmdc-small_vgg-digits-s1@0123456789ab", "mmdc-small_vgg-digits"),
        ("random-alexnet32-sobel@3", "random-alexnet32-sobel"),
        ("deepcluster-alexnet-sobel-imagenet", "deepcluster-alexnet-sobel-imagenet"),
        ("x-s", "x-s"),
        ("", ""),
    ],
)
def test_a_name_without_its_seed(name, expected):
    assert stem(name) == expected


def mmdc(values):
    return [
        probe(
            f"mmdc-small_vgg-mnist-s{seed}",
            task="probes.clustering",
            protocol="clustering@1",
            dataset="mnist",
            images="merged",
            settings={"assignment": "head", "images": "merged", "layer": "embedding"},
            metrics={"acc": 100 * value, "nmi_arithmetic": value},
        )
        for seed, value in enumerate(values)
    ]


def test_the_mmdc_row_prints_fractions_and_its_standard_error():
    text = markdown(MMDC, mmdc([0.97, 0.98, 0.99]))
    for label, value in (("MMDC", "0.980 ± 0.010"), ("MMDC, standard error", "0.006")):
        ours = [cells for cells in printed(text) if cells[""] == label and cells["source"] == "ours"]
        assert [cells["MNIST"] for cells in ours] == [value, value]  # NMI, and ACC as a fraction
    assert {cells["CIFAR-10"] for cells in printed(text) if cells["source"] == "ours"} == {"–", ""}


def test_one_mmdc_run_has_no_standard_error():
    ours = [cells for cells in printed(markdown(MMDC, mmdc([0.97]))) if cells["source"] == "ours"]
    assert [(cells[""], cells["MNIST"], cells["n"]) for cells in ours] == [("MMDC", "0.970", "1")] * 2


def marked(line, value):
    return line[value] + "".join({"star": "*", "dagger": "†"}[note] for note in line.get("note", "").split(";") if note)


@pytest.mark.parametrize("table", PAPER, ids=lambda table: table.name)
def test_every_published_number_is_printed_once_and_as_it_is(table):
    block = table.published
    wanted = sorted(marked(line, block.value) for line in published.read(block.file))
    names = {column.header for column in table.columns}
    cells = [cells for cells in printed(markdown(table, [])) if cells["source"] == "paper"]
    assert sorted(cell for row in cells for name, cell in row.items() if name in names and cell) == wanted
    frame = build(table, [])
    assert sorted(frame[frame.source == "paper"].text) == wanted
    tex = tables.render(table, [])[f"{table.name}.tex"]
    assert all(
        re.search(rf"(?<![\d.]){re.escape(line[block.value])}(?!\d)", tex) for line in published.read(block.file)
    )


@pytest.mark.parametrize("table", PAPER, ids=lambda table: table.name)
def test_every_published_number_stands_in_its_own_cell(table):
    frame = build(table, []).set_index(["source", "row", "panel", "column"]).sort_index()
    for column in table.columns:
        for line in published.read(table.published.file):
            if column.published.items() <= line.items():
                place = ("paper", published.label(table.published, line), column.panel, column.header)
                assert frame.loc[place].value == line[table.published.value]


def test_some_published_cells_by_hand():
    table1, table2 = markdown(TABLES["deepcluster_table1"], []), markdown(TABLES["deepcluster_table2"], [])
    assert [cells["conv3"] for cells in printed(table1) if cells[""] == "DeepCluster"][::2] == ["38.2", "37.0"]
    assert row(table2, "Wang and Gupta [29]")["det. fc6-8"] == "32.8*†"
    assert row(table2, "Pathak et al. [27]")["cla. fc6-8"] == ""
    means = [cells for cells in printed(markdown(MMDC, [])) if cells[""] == "MMDC, standard error"]
    assert [cells["CIFAR-10"] for cells in means] == ["0.011", "0.019"]


@pytest.mark.parametrize("table", PAPER, ids=lambda table: table.name)
@pytest.mark.parametrize("change", [{"protocol": "generic@1"}, {"images": "other"}, {"dataset": "digits"}])
def test_published_numbers_stand_only_in_columns_of_their_data_set_and_protocol(table, change):
    first, *rest = table.columns
    frame = build(replace(table, columns=(replace(first, **change), *rest)), [])
    of_paper = frame[frame.source == "paper"]
    there = (of_paper.panel == first.panel) & (of_paper.column == first.header)
    assert not there.any()
    assert len(of_paper) == len(build(table, [])[lambda f: f.source == "paper"]) - sum(
        first.published.items() <= line.items() for line in published.read(table.published.file)
    )


def test_the_copies_of_the_published_numbers_are_well_formed():
    for path in sorted((ROOT / "results" / "published").glob("*.csv")):
        lines = published.read(path.name)
        assert lines
        assert all(None not in line and None not in line.values() for line in lines), path.name
    assert {table.published.file for table in PAPER} == {
        path.name for path in (ROOT / "results" / "published").glob("*.csv")
    }


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_declarations_name_each_column_once(table):
    assert len({(column.panel, column.header) for column in table.columns}) == len(table.columns)
    assert len({row.label for row in table.rows}) == len(table.rows)


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_texts_are_the_same_each_time_and_name_no_machine(table):
    records = [*seeded([80.0, 82.0]), *mmdc([0.9])]
    texts = tables.render(table, records)
    assert texts == tables.render(table, list(reversed(records)))
    assert set(texts) == set(files_of(table))
    for text in texts.values():
        assert str(ROOT) not in text
        assert text.endswith("\n")
        assert not any(re.search(r"\s+$", line) for line in text.splitlines() if not line.startswith("|"))


def test_latex_has_no_letters_it_cannot_set():
    for table in TABLES.values():
        body = [
            line
            for line in tables.render(table, seeded([80.0, 82.0]))[f"{table.name}.tex"].splitlines()
            if line[0] != "%"
        ]
        assert "\n".join(body).isascii()
        assert not any(re.search(r"(?<!\\)_", line) for line in body)


def test_the_columns_of_a_markdown_table_line_up():
    for table in TABLES.values():
        for one, other in pairwise(markdown(table, seeded([80.0, 82.0])).splitlines()):
            if one.startswith("|") and other.startswith("|"):
                assert len(one) == len(other)


def run(*words):
    """The exit code of `python -m results.tables`, called in this process."""
    import tyro

    return tables.ending(
        lambda: tyro.cli(tables.main, args=[str(word) for word in words], config=(tyro.conf.FlagCreatePairsOff,))
    )


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "records")
    for record in [*seeded([80.0, 82.0, 87.0]), *(run_of(digits.DEEPCLUSTER, seed) for seed in range(3))]:
        store.write(record)
    return store


def test_written_tables_pass_the_check(tmp_path, store, capsys):
    out = tmp_path / "out"
    assert run("--store", store.root, "--out", out) == 0
    assert capsys.readouterr().out.split() == [str(out / f"{name}.md") for name in TABLES]
    assert {path.name for path in out.iterdir()} == {file for table in TABLES.values() for file in files_of(table)}
    assert run("--store", store.root, "--out", out, "--check") == 0
    assert capsys.readouterr().out == ""


def test_a_table_that_differs_fails_the_check_and_is_left_alone(tmp_path, store, capsys):
    out = tmp_path / "out"
    run("--store", store.root, "--out", out)
    (out / "digits_linear.md").write_text((out / "digits_linear.md").read_text().replace("83.0 ±", "93.0 ±"))
    before = {path.name: path.read_text() for path in out.iterdir()}
    capsys.readouterr()
    assert run("--store", store.root, "--out", out, "--check") == 1
    said = capsys.readouterr()
    assert "digits_linear.md" in said.out
    assert "93.0 ±" in said.out
    assert "83.0 ±" in said.out
    assert len(said.out.splitlines()) < 20
    assert "python -m results.tables" in said.err
    assert before == {path.name: path.read_text() for path in out.iterdir()}


def test_a_missing_and_a_superfluous_table_fail_the_check(tmp_path, store, capsys):
    out = tmp_path / "out"
    assert run("--store", store.root, "--out", out, "--check") == 1
    assert not out.exists()
    assert "digits_knn.csv: missing" in capsys.readouterr().out
    run("--store", store.root, "--out", out)
    (out / "gone.md").write_text("")
    assert run("--store", store.root, "--out", out, "--check") == 1
    assert "gone.md: no table makes it" in capsys.readouterr().out
    assert run("--store", store.root, "--out", out, "--check", "digits_knn") == 0


def test_a_changed_record_fails_the_check(tmp_path, store):
    out = tmp_path / "out"
    run("--store", store.root, "--out", out)
    store.write(probe(value=81.0))
    assert run("--store", store.root, "--out", out, "--check") == 1


def test_names_restrict_and_print_prints(tmp_path, store, capsys):
    out = tmp_path / "out"
    assert run("digits_linear", "--print", "--store", store.root, "--out", out) == 0
    assert sorted(path.name for path in out.iterdir()) == [f"digits_linear.{end}" for end in ("csv", "md", "tex")]
    assert (out / "digits_linear.md").read_text() in capsys.readouterr().out
    assert f"--store {store.root}" in (out / "digits_linear.md").read_text()


def test_an_unknown_table_is_the_persons_to_fix(tmp_path, capsys):
    assert run("digits_linaer", "--out", tmp_path / "out") == 2
    assert "did you mean 'digits_linear'?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_mixture_exits_2_and_writes_nothing(tmp_path, store, capsys):
    store.write(probe("deepcluster-alexnet32-digits-s1", settings={"epochs": 3}))
    assert run("--store", store.root, "--out", tmp_path / "out") == 2
    assert "settings.epochs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_table_planned_for_fewer_seeds_misses_fewer_runs(tmp_path, capsys):
    assert run("digits_knn", "--store", tmp_path / "none", "--out", tmp_path / "out", "--seeds", "1", "--print") == 0
    said = capsys.readouterr().out
    assert "--checkpoint random-alexnet32@1" in said
    assert "@0" not in said
    assert "-s2" not in said
