"""Released files in general: opened without running anything, taken whole or not at all."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from releases import FORMATS, mmdc, mmdc_network, write

from results.errors import UserError
from zoo import released
from zoo.checkpoint import resolve
from zoo.tensors import content


def test_the_recipe_of_an_import_is_its_own(tmp_path: Path) -> None:
    network = mmdc_network()
    one = released.read(mmdc(tmp_path, network))
    same = released.read(mmdc(tmp_path, network, epoch=12))  # a file of other bytes
    network.features[0].weight.data[0] += 1
    other = released.read(mmdc(tmp_path, network))
    assert (one.recipe, one.name) != (other.recipe, other.name)
    assert one.settings["released"] != other.settings["released"]
    assert one.settings["released"] == content(one.groups, {})[:12]
    assert one.epoch != same.epoch


class Call:
    """A pickle that calls a function when it is opened."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


@FORMATS
@pytest.mark.parametrize("how", ["system", "eval", "exec", "mkdir"])
def test_a_hostile_pickle_is_refused_and_not_run(how: str, zipped: bool, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    call = {
        "system": Call(os.system, f"touch {marker}"),
        "eval": Call(eval, f"open({str(marker)!r}, 'w')"),
        "exec": Call(exec, f"open({str(marker)!r}, 'w')"),
        "mkdir": Call(os.mkdir, str(marker)),
    }[how]
    path = mmdc(tmp_path, mmdc_network(), zipped, targets=call)
    for reader in (released.read, lambda path: resolve(str(path))):
        with pytest.raises(UserError, match=r"model\.pt is refused: it calls") as caught:
            reader(path)
    assert how in str(caught.value)
    assert not marker.exists()
    with open(path, "rb") as file:  # the trap is a real one
        assert how.encode() in file.read()


def test_the_trap_of_the_hostile_pickle_would_work(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pt", Call(os.mkdir, str(tmp_path / "marker")))
    torch.load(path, weights_only=False)
    assert (tmp_path / "marker").exists()


@pytest.fixture
def allowed_by_nobody():
    """torch trusts no types but its own: importing mmengine, where it is installed, makes it trust numpy's too."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.add_safe_globals(before)


@pytest.mark.usefixtures("allowed_by_nobody")
@pytest.mark.parametrize("value", [np.zeros(3, np.float32), np.array([{}], object), np.float64(1), Path("x")])
def test_nothing_but_float64_arrays_is_allowed_beside_tensors(value: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is refused"):
        released.read(mmdc(tmp_path, mmdc_network(), targets=value))


def test_reading_leaves_the_allow_list_as_it_was(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    released.read(mmdc(tmp_path, mmdc_network()))
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "model.pt", weights_only=True)


@FORMATS
def test_a_truncated_file_is_an_error(zipped: bool, tmp_path: Path) -> None:
    path = mmdc(tmp_path, mmdc_network(), zipped)
    data = path.read_bytes()
    for share in (0, 1e-5, 1e-3, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(UserError, match=r"model\.pt is damaged"):
            resolve(str(path))


@pytest.mark.parametrize("content", [b"", b"a text\n" * 20, b"PK\x03\x04" + bytes(60), pickle.dumps({"a": 1})])
def test_a_foreign_file_is_an_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "notes.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"notes\.pt is damaged, or not written by torch"):
        resolve(str(path))


@pytest.mark.parametrize("value", [[1, 2], {"a": torch.ones(1)}, torch.ones(2), {"state_dict": 3}])
def test_a_file_without_a_state_dict_is_an_error(value: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no state dict"):
        released.read(write(tmp_path / "x.pt", value))


def test_a_few_of_many_entries_that_are_no_tensors_are_named(tmp_path: Path) -> None:
    state = {"a.weight": torch.ones(1), **{f"b.{number}": number for number in range(9)}}
    with pytest.raises(UserError, match=r"x\.pt is malformed: no plain tensor: b\.0, b\.1, b\.2 and 6 more"):
        released.read(write(tmp_path / "x.pt", state))


@pytest.mark.parametrize(
    "state",
    [
        {"features.0.weight": torch.ones(1), "module.features.0.weight": torch.ones(1)},
        {"features.0.weight": [1.0]},
        {"features.0.weight": torch.ones(2, device="meta")},
        {"features.0.weight": torch.eye(2).to_sparse()},
        {"features.0.weight": torch.ones(2, dtype=torch.complex64)},
        {"features.0.weight": torch.ones(1), "top_layer.bias": torch.tensor(1.0)},
        {},
    ],
)
def test_a_malformed_state_dict_is_an_error(state: dict, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"malformed|does not fit"):
        released.read(write(tmp_path / "x.pt", {"state_dict": state}))
    with pytest.raises(UserError, match=r"malformed|does not fit"):
        released.read(write(tmp_path / "x.pt", {"model_state_dict": state}))
