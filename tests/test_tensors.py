"""The digest of groups of tensors, and what strictness finds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.tensors import content, flatten, mismatches, shorten, unflatten


def groups(values: list[float]) -> dict:
    return {"backbone": {"a": torch.tensor(values), "b": torch.tensor(3)}, "head": {"a": torch.eye(2)}}


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5), st.data())
def test_one_changed_bit_changes_the_content(values: list[float], data: st.DataObject) -> None:
    one = groups(values)
    assert content(one, {}) == content(groups(values), {})
    changed = groups(values)
    index = data.draw(st.integers(0, len(values) - 1))
    changed["backbone"]["a"].view(torch.int32)[index] ^= 1 << data.draw(st.integers(0, 30))
    assert content(changed, {}) != content(one, {})


@pytest.mark.parametrize(
    "change",
    [
        lambda g: g["backbone"].update(a=g["backbone"]["a"].double()),
        lambda g: g["backbone"].update(a=g["backbone"]["a"][None]),
        lambda g: g["backbone"].update(c=g["backbone"].pop("a")),
        lambda g: g.update(clustering=g.pop("head")),
        lambda g: g["head"].pop("a"),
    ],
)
def test_dtype_shape_name_and_group_are_content(change) -> None:
    changed = groups([1.0, 2.0])
    change(changed)
    assert content(changed, {}) != content(groups([1.0, 2.0]), {})


def test_order_and_memory_layout_are_no_content() -> None:
    x = torch.randn(2, 3, 4, 5)
    rows = {"g": {"x": x, "y": torch.ones(2)}}
    other = {"g": {"y": torch.ones(2), "x": x.contiguous(memory_format=torch.channels_last).requires_grad_()}}
    assert content(rows, {"a": 1, "b": (2,)}) == content(other, {"b": [2], "a": 1})
    assert content(rows, {"a": 1}) != content(rows, {"a": 2})


def test_flatten_and_unflatten_are_inverse() -> None:
    flat = flatten(groups([1.0]))
    assert list(flat) == ["backbone/a", "backbone/b", "head/a"]
    again = unflatten(flat)
    assert {group: set(tensors) for group, tensors in again.items()} == {"backbone": {"a", "b"}, "head": {"a"}}
    assert torch.equal(again["head"]["a"], torch.eye(2))


def test_mismatches_names_every_fault() -> None:
    given_ = {"a": torch.zeros(2, 3), "b": torch.zeros(1), "x": torch.zeros(1)}
    assert mismatches({"a": (3, 2), "b": (1,), "c": (1,), "d": ()}, given_) == [
        "missing c, d",
        "unexpected x",
        "a is (2, 3), not (3, 2)",
    ]
    assert mismatches({"a": (2, 3)}, {"a": torch.zeros(2, 3)}) == []


def test_mismatches_names_a_few_of_many_faults() -> None:
    wanted = {f"{kind}{number}": (2,) for kind in "ab" for number in range(5)}
    given_ = {f"{kind}{number}": torch.zeros(3) for kind in "bc" for number in range(5)}
    assert mismatches(wanted, given_) == [
        "missing a0, a1, a2 and 2 more",
        "unexpected c0, c1, c2 and 2 more",
        "b0 is (3,), not (2,), b1 is (3,), not (2,), b2 is (3,), not (2,) and 2 more",
    ]


def test_texts_are_shortened_where_there_are_more() -> None:
    assert [shorten(list("abcd"), most) for most in (2, 3, 4)] == [
        "a, b and 2 more",
        "a, b, c and 1 more",
        "a, b, c, d",
    ]
