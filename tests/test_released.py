"""Released DeepCluster and MMDC files, made here in the layouts that their protocols describe."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from results.errors import UserError
from zoo import released
from zoo.backbones import build, empty
from zoo.backbones.sobel import constants
from zoo.checkpoint import Checkpoint, main, resolve
from zoo.preprocessing import Preprocessing
from zoo.tensors import content

K = 7
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def alexnet_state(sobel: bool = True) -> dict[str, Tensor]:
    """DeepCluster's tensors without the counters: random convolutions, and linear layers that take no room."""
    torch.manual_seed(0)
    state: dict[str, Tensor] = OrderedDict()
    for name, tensor in empty("alexnet", sobel=sobel).state_dict().items():
        if name.startswith("features") and not name.endswith("tracked"):
            state[name] = torch.rand(tensor.shape) if name.endswith("running_var") else torch.randn(tensor.shape)
        if name.startswith("classifier"):
            state[name] = torch.full((), 0.5).expand(tensor.shape)
    state["top_layer.weight"] = torch.randn(K, 4096)
    state["top_layer.bias"] = torch.randn(K)
    if sobel:
        state |= {f"sobel.{name}": tensor for name, tensor in constants(3).items()}
    return state


def spell(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    """The same tensors under the keys of one of the released programs."""
    rename = {
        "features.module.": lambda key: key.replace("features.", "features.module."),
        "module.": lambda key: f"module.{key}",
        "none": lambda key: key,
        "DeeperCluster": lambda key: (
            f"module.{key}".replace("top_layer", "pred_layer") if key.startswith("top") else f"module.body.{key}"
        ),
    }[how]
    return OrderedDict((rename(key), tensor) for key, tensor in state.items())


def write(path: Path, value: object, zipped: bool = True, **options: object) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped, **options)
    return path


def deepcluster(path: Path, how: str = "features.module.", zipped: bool = True, **changed: object) -> Path:
    held = {"epoch": 200, "arch": "alexnet", "state_dict": spell(alexnet_state(), how)}
    return write(path / "checkpoint.pth.tar", held | changed, zipped)


def mmdc_network(channels: int = 1, heads: tuple[str, ...] = ("top_layer",)) -> nn.Module:
    """small_vgg with its heads as one module, so that torch writes its state dict and optimiser as released."""
    network = build("small_vgg", channels=channels, seed=4)
    del network.classifier, network.sobel
    for head in heads:
        setattr(network, head, nn.Linear(1024, 4 if head == "rotnet_head" else K))
    return network


def mmdc(path: Path, network: nn.Module, zipped: bool = True, prefix: str = "", **changed: object) -> Path:
    targets = np.eye(K)[np.random.default_rng(0).integers(0, K, 50)]
    thin = [parameter for parameter in network.parameters() if parameter.ndim == 1]
    thick = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    optimizer = torch.optim.SGD(
        [{"params": thin, "weight_decay": 0}, {"params": thick, "weight_decay": 5e-4}], lr=0.05, momentum=0.9
    )
    sum(parameter.sum() for parameter in network.parameters()).backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [40])
    held = {
        "epoch": 49,
        "targets": targets,
        "model_state_dict": {f"{prefix}{key}": tensor for key, tensor in network.state_dict().items()},
        "optimizer_state_dict": optimizer.state_dict(),
        "lr_scheduler_state_dict": schedule.state_dict(),
    }
    return write(path / "model.pt", held | changed, zipped)


@pytest.mark.parametrize("how", ["features.module.", "module.", "none", "DeeperCluster"])
def test_deepcluster_is_read_in_every_spelling(how: str, tmp_path: Path) -> None:
    one = released.read(deepcluster(tmp_path, how))
    expected = alexnet_state()
    assert (one.method, one.epoch, one.seed, one.dataset) == ("deepcluster", 200, None, None)
    assert one.backbone == {"name": "alexnet", "channels": 3, "sobel": True}
    assert one.preprocessing == Preprocessing(224, 256, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert one.settings["k"] == K
    assert set(one.groups) == {"backbone", "head"}
    assert set(one.groups["head"]) == {"top_layer.weight", "top_layer.bias"}
    flat = one.groups["backbone"] | one.groups["head"]
    for key, tensor in expected.items():
        assert torch.equal(flat[key], tensor)
    counters = set(flat) - set(expected)
    assert counters == {f"features.{i}.num_batches_tracked" for i in (1, 5, 9, 12, 15)}
    assert all(flat[key].dtype == torch.int64 and flat[key] == 0 for key in counters)
    assert "num_batches_tracked set to 0" in one.source
    assert ("border" in one.source) == (how == "DeeperCluster")


@FORMATS
def test_both_of_torchs_formats_are_read_alike(zipped: bool, tmp_path: Path) -> None:
    network = mmdc_network()
    one = released.read(mmdc(tmp_path, network, zipped))
    assert all(torch.equal(one.groups["backbone"][key], network.state_dict()[key]) for key in one.groups["backbone"])
    assert one.sha256 == resolve(str(tmp_path / "model.pt")).sha256


def test_deepcluster_as_python_2_pickled_it(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth.tar"
    held = {"epoch": 200, "arch": "alexnet", "state_dict": spell(alexnet_state(sobel=False), "features.module.")}
    old = SimpleNamespace(
        __name__="pickle of Python 2",
        Pickler=Python2Pickler,
        dump=lambda value, file, protocol: Python2Pickler(file, protocol).dump(value),
    )
    write(path, held, zipped=False, pickle_module=old)
    assert b"U\x04arch" in path.read_bytes()
    one = released.read(path)
    assert one.backbone == {"name": "alexnet", "channels": 3, "sobel": False}
    assert torch.equal(one.groups["backbone"]["features.0.weight"], held["state_dict"]["features.module.0.weight"])


class Python2Pickler(pickle._Pickler):
    """Writes text as Python 2 wrote its `str`."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012 (as its parent has it)

    def save_str(self, text: str) -> None:
        self.write(b"U" + bytes([len(text)]) + text.encode("ascii"))
        self.memoize(text)

    dispatch[str] = save_str


def test_an_imported_checkpoint_is_saved_and_works(tmp_path: Path) -> None:
    one = released.read(mmdc(tmp_path, mmdc_network()))
    one.save(tmp_path / "ours.safetensors")
    again = Checkpoint.load(tmp_path / "ours.safetensors")
    assert (again.sha256, again.recipe, again.source) == (one.sha256, one.recipe, one.source)
    assert one.source.startswith("imported from model.pt (sha256 ")
    assert str(tmp_path) not in one.source
    x = torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        features = mmdc_network().eval().features
        features.load_state_dict({key.removeprefix("features."): t for key, t in one.groups["backbone"].items()})
        assert torch.equal(again.build_backbone().embed(x), features(x).flatten(1))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("channels", [1, 3])
def test_mmdc_is_read(channels: int, prefix: str, tmp_path: Path) -> None:
    network = mmdc_network(channels, ("top_layer", "rotnet_head"))
    path = mmdc(tmp_path, network, prefix=prefix)
    one = released.read(path)
    assert (one.method, one.epoch, one.seed, one.dataset) == ("mmdc", 50, None, None)  # 49 is the last, from 0
    assert one.backbone == {"name": "small_vgg", "channels": channels, "sobel": False}
    assert one.settings["k"] == K
    assert set(one.groups["head"]) == {f"{h}.{k}" for h in ("top_layer", "rotnet_head") for k in ("weight", "bias")}
    flat = one.groups["backbone"] | one.groups["head"]
    assert set(flat) == set(network.state_dict())
    assert all(torch.equal(flat[key], tensor) for key, tensor in network.state_dict().items())
    assert torch.equal(one.groups["clustering"]["means"], torch.eye(K))
    assert one.groups["clustering"]["sizes"].sum() == 50


def test_mmdc_sees_the_crop_that_it_was_evaluated_on(tmp_path: Path) -> None:
    grey = released.read(mmdc(tmp_path, mmdc_network(1))).preprocessing
    assert (grey.size, grey.channels, grey.mean, grey.std) == (32, 1, (0.0,), (1.0,))
    assert round(28 * grey.size / grey.resize) == 24
    colour = released.read(mmdc(tmp_path, mmdc_network(3))).preprocessing
    assert (colour.size, colour.channels) == (32, 3)
    assert round(32 * colour.size / colour.resize) == 20


@pytest.mark.parametrize("targets", [np.full((4, K), K**-0.5), None, np.zeros((3, K)), np.ones(4)])
def test_targets_that_are_not_one_hot_leave_no_means(targets: object, tmp_path: Path) -> None:
    one = released.read(mmdc(tmp_path, mmdc_network(), targets=targets))
    assert "clustering" not in one.groups
    assert "means" in one.source


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


def test_arrays_under_numpy_1s_name_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy 1 pickled `numpy.core.multiarray._reconstruct`: the legacy format lets us rewrite the name."""
    path = mmdc(tmp_path, mmdc_network(), zipped=False)
    data = path.read_bytes()
    assert b"cnumpy._core.multiarray\n_reconstruct" in data
    path.write_bytes(data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert "means" in released.read(path).groups["clustering"]


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


def test_architectures_that_we_lack_are_named(tmp_path: Path) -> None:
    vgg = write(tmp_path / "vgg.pth.tar", {"epoch": 1, "arch": "vgg16", "state_dict": {}})
    with pytest.raises(UserError, match="vgg16, which is not among the backbones yet"):
        released.read(vgg)
    resnet = write(tmp_path / "model.pt", {"model_state_dict": {"module.conv1.weight": torch.ones(64, 3, 3, 3)}})
    with pytest.raises(UserError, match="ResNet, which is not among the backbones yet"):
        released.read(resnet)


def test_missing_unexpected_and_odd_tensors_are_listed(tmp_path: Path) -> None:
    state = alexnet_state()
    del state["features.8.weight"], state["top_layer.bias"]
    state["features.20.weight"] = torch.ones(1)
    state["classifier.4.bias"] = torch.ones(3)
    with pytest.raises(UserError) as caught:
        released.read(deepcluster(tmp_path, state_dict=state))
    said = str(caught.value)
    assert "missing features.8.weight, top_layer.bias;" in said
    assert "unexpected features.20.weight;" in said
    assert "classifier.4.bias is (3,), not (4096,)" in said


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    network = mmdc_network()
    network.features[1].running_var[3] = float("nan")
    with pytest.raises(UserError, match=r"features\.1\.running_var is not finite"):
        released.read(mmdc(tmp_path, network))


@pytest.mark.parametrize("key", ["sobel.0.weight", "sobel.0.bias", "sobel.1.weight", "sobel.1.bias"])
def test_another_sobel_filter_is_an_error(key: str, tmp_path: Path) -> None:
    state = alexnet_state()
    state[key] = state[key] + 0.01
    with pytest.raises(UserError, match=f"{key} is not ours"):
        released.read(deepcluster(tmp_path, state_dict=state))


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


def test_import_writes_a_checkpoint_that_its_name_finds(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = mmdc(tmp_path, mmdc_network())
    runs = tmp_path / "runs"
    assert main(["import", str(path), "--runs", str(runs)]) == 0
    said = capsys.readouterr().out
    one = released.read(path)
    assert resolve(one.name, runs).sha256 == one.sha256
    assert (runs / "imported" / f"{one.name}.safetensors").is_file()
    assert one.sha256 in said
    assert "backbone      24 tensors" in said
    assert "python -m probes.linear --layer conv3 --checkpoint" in said
    assert main(["import", str(path), "--runs", str(runs)]) == 0  # again: the same file


def test_import_under_a_name_never_replaces_another(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    network = mmdc_network()
    command = ["import", str(mmdc(tmp_path, network)), "--runs", str(tmp_path / "runs"), "--name", "mine"]
    assert main(command) == 0
    first = resolve("mine", tmp_path / "runs").sha256
    network.features[0].weight.data[0] += 1
    mmdc(tmp_path, network)
    assert main(command) == 2
    assert "mine.safetensors exists and holds something else" in capsys.readouterr().err
    assert resolve("mine", tmp_path / "runs").sha256 == first
    assert main([*command[:-1], "other", "--out", str(tmp_path / "o.safetensors")]) == 0
    assert Checkpoint.load(tmp_path / "o.safetensors").name == "other"


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "a@b", "random-x"])
def test_import_refuses_names_that_could_not_be_found(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = mmdc(tmp_path, mmdc_network())
    assert main(["import", str(path), "--runs", str(tmp_path / "runs"), "--name", name]) == 2
    assert name in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
