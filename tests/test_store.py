"""Records are found by task and key, read strictly, written whole."""

import json
from dataclasses import replace

import pytest
from synthetic import pretraining, probe

from results.errors import UserError
from results.files import ROOT
from results.store import DEFAULT_STORE, Store


def test_the_default_store_is_in_the_clone():
    assert Store().root == DEFAULT_STORE == ROOT / "results" / "records"


def test_an_empty_or_absent_store_has_no_records(tmp_path):
    store = Store(tmp_path / "not there")
    assert store.records() == []
    assert store.find("probes.linear", "0" * 12) is None
    assert not store.root.exists()


def test_a_record_lies_under_task_checkpoint_and_key(tmp_path):
    store, record = Store(tmp_path), probe()
    path = store.write(record)
    assert path == tmp_path / "probes.linear" / "deepcluster-alexnet32-digits-s0" / f"{record.key}.json"
    assert path == store.path(record)
    assert store.find("probes.linear", record.key) == record
    assert store.find("probes.knn", record.key) is None
    assert store.records() == [record]


def test_pretraining_lies_under_the_checkpoint_it_made(tmp_path):
    store, record = Store(tmp_path), pretraining("mmdc-small_vgg-digits-s1")
    assert store.write(record).parent == tmp_path / "pretrain.mmdc" / "mmdc-small_vgg-digits-s1"
    assert store.find("pretrain.mmdc", record.key) == record


def test_records_come_sorted_by_path_and_by_task(tmp_path):
    store = Store(tmp_path)
    written = [probe(f"random-alexnet32@{seed}") for seed in (2, 0, 1)] + [pretraining()]
    for record in written:
        store.write(record)
    found = store.records()
    paths = [store.path(record) for record in found]
    assert paths == sorted(paths)
    assert len(found) == 4
    assert store.records("pretrain.deepcluster") == [pretraining()]


def test_writing_again_replaces(tmp_path):
    store = Store(tmp_path)
    store.write(probe(value=50.0))
    store.write(probe(value=60.0))
    assert [record.metrics["top1"] for record in store.records()] == [60.0]


def test_a_record_that_is_not_finite_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="no finite number"):
        Store(tmp_path).write(probe(value=float("nan")))
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("name", ["../../up", "/root", "..", ".", "a/b", "n" * 300, "sp ace: ü|", ".hidden"])
def test_any_checkpoint_name_stays_inside_the_store(tmp_path, name):
    store = Store(tmp_path)
    path = store.write(probe(name))
    assert path.parent.parent == tmp_path / "probes.linear"
    assert path.resolve().is_relative_to(tmp_path.resolve())
    assert [record.checkpoint["name"] for record in store.records()] == [name]


def corrupt(text):
    def write(path):
        path.write_text(text)

    return write


def edited(**change):
    def write(path):
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    return write


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (corrupt(""), "Expecting value"),
        (corrupt('{"schema": 1'), "Expecting"),
        (corrupt("[1]"), "no JSON object"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "decode"),
        (edited(schema=7), "schema 7"),
        (edited(settings={}), "it was edited"),
        (lambda path: path.rename(path.with_stem("0" * 12)), "it holds the record"),
    ],
)
def test_a_spoilt_record_is_a_user_error_that_names_it(tmp_path, spoil, said):
    store = Store(tmp_path)
    store.write(probe("random-alexnet32@1"))
    path = store.write(probe())
    spoil(path)
    with pytest.raises(UserError) as caught:
        store.records()
    assert said in caught.value.happened
    assert str(path.parent) in caught.value.happened
    assert "git checkout" in caught.value.fix


def test_a_record_moved_to_another_task_is_refused(tmp_path):
    store = Store(tmp_path)
    path = store.write(probe())
    wrong = tmp_path / "probes.knn" / path.parent.name / path.name
    wrong.parent.mkdir(parents=True)
    path.rename(wrong)
    with pytest.raises(UserError, match=r"it holds the record probes\.linear"):
        store.find("probes.knn", probe().key)


def test_an_interrupted_write_is_not_a_record(tmp_path):
    store = Store(tmp_path)
    path = store.write(probe())
    (path.parent / ".abc.0123.json").write_text("{")
    assert store.records() == [probe()]


def test_a_store_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="no folder of records"):
        Store(tmp_path / "file").records()
    with pytest.raises(UserError, match="folder is needed"):
        Store(tmp_path / "file").check_writable()
    with pytest.raises(UserError, match="folder is needed"):
        Store(tmp_path / "file").write(probe())


def test_check_writable_leaves_nothing_but_the_folder(tmp_path):
    Store(tmp_path / "new").check_writable()
    assert list((tmp_path / "new").iterdir()) == []


def test_two_names_of_one_checkpoint_are_found_by_key(tmp_path):
    store, record = Store(tmp_path), probe()
    renamed = replace(record, checkpoint={**record.checkpoint, "name": "copy"})
    store.write(renamed)
    assert store.find("probes.linear", record.key) == renamed
