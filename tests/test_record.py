"""A record survives its file to the last bit; its key tells contents apart; what is not whole is refused."""

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import pretraining, probe

from results.record import Record, cell_key

names = st.text(min_size=1, max_size=8)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | numbers | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
tables = st.dictionaries(names, plain, max_size=4)


@given(settings=tables, metrics=st.dictionaries(names, numbers, max_size=4), details=tables)
def test_a_record_survives_its_file(settings, metrics, details):
    record = replace(probe(settings=settings), metrics=metrics, details=details)
    again = Record.from_json(record.to_json())
    assert again == record
    assert again.to_json() == record.to_json()


def test_a_pretraining_record_survives_its_file():
    record = pretraining()
    assert Record.from_json(record.to_json()) == record
    assert record.checkpoint_name == "deepcluster-alexnet32-digits-s0"
    assert probe("random-alexnet32@2").checkpoint_name == "random-alexnet32@2"


def test_the_file_is_sorted_json_that_ends_with_a_newline():
    text = probe().to_json()
    assert text == json.dumps(asdict(probe()), sort_keys=True, indent=1) + "\n"
    assert list(json.loads(text)) == sorted(json.loads(text))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), "85", None, True, [1.0]])
def test_metrics_are_finite_numbers(bad):
    record = probe(metrics={"top1": 1.0, "top5": bad})
    with pytest.raises(ValueError, match="metric top5 is no finite number"):
        record.to_json()
    with pytest.raises(ValueError, match="metric top5 is no finite number"):
        Record.from_json(json.dumps(asdict(record)))


def test_details_that_json_cannot_hold_are_refused():
    with pytest.raises(ValueError, match="JSON compliant"):
        replace(probe(), details={"history": [{"loss": float("nan")}]}).to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2, and this version reads 1"),
        ({"schema": None}, "schema None"),
        ({"settings": []}, "field settings is of type list"),
        ({"version": True}, "field version is of type bool"),
        ({"seconds": "1"}, "field seconds is of type str"),
        ({"dataset": {"name": "digits"}}, "dataset lacks protocol, fingerprint"),
        ({"checkpoint": {"name": "x"}}, "checkpoint lacks sha256, recipe"),
        ({"checkpoint": None}, "details.checkpoint lacks name"),
        ({"more": 1}, "unknown fields: more"),
        ({"settings": {"layer": "conv2", "seed": 0}}, "it was edited"),
        ({"version": 2}, "it was edited"),
        ({"key": "0" * 12}, "it was edited"),
    ],
)
def test_what_is_no_record_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Record.from_json(json.dumps({**asdict(probe()), **change}))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"schema": 1}'])
def test_what_is_no_json_object_of_records_is_refused(text):
    with pytest.raises(ValueError):
        Record.from_json(text)


def test_a_missing_field_is_named():
    values = asdict(probe())
    del values["command"]
    with pytest.raises(ValueError, match="fields: command"):
        Record.from_json(json.dumps(values))


KEY = dict(
    task="probes.linear", version=1, settings={"a": 1, "b": [2]}, checkpoint_sha256="c", fingerprint="f", limit=None
)


def test_a_key_is_12_hex_digits_and_does_not_depend_on_the_order_of_settings():
    key = cell_key(**KEY)
    assert len(key) == 12
    assert set(key) <= set("0123456789abcdef")
    assert key == cell_key(**{**KEY, "settings": {"b": (2,), "a": 1}})


@pytest.mark.parametrize(
    "change",
    [
        {"task": "probes.knn"},
        {"version": 2},
        {"settings": {"a": 1, "b": [3]}},
        {"settings": {"a": 1}},
        {"checkpoint_sha256": None},
        {"checkpoint_sha256": "d"},
        {"fingerprint": "g"},
        {"limit": 64},
    ],
)
def test_whatever_makes_a_number_makes_its_key(change):
    assert cell_key(**{**KEY, **change}) != cell_key(**KEY)
