"""Checkpoints: saved and loaded to the same bits, strict, found by name, file or seed; and the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from results.errors import UserError
from results.files import ROOT
from zoo import checkpoint as module
from zoo.backbones import BACKBONES, build, standard_preprocessing
from zoo.checkpoint import Checkpoint, available, describe, main, recipe, resolve
from zoo.header import ENTRY

DATASET = {"name": "digits", "protocol": "split", "fingerprint": "0123"}


def make(name: str = "small_vgg", key: str | None = "0123456789ab", seed: int = 0, **changed) -> Checkpoint:
    """A checkpoint of three groups as a training would make it."""
    model = build(name, sobel=True, seed=seed)
    values = {
        "name": f"mmdc-{name}-sobel-digits-s{seed}",
        "method": "mmdc",
        "backbone": model.arguments,
        "preprocessing": standard_preprocessing(name),
        "dataset": DATASET,
        "epoch": 3,
        "settings": {"k": 10, "crops": (28, 24), "lr": 0.05},
        "seed": seed,
        "key": key,
        "source": "trained here",
        "groups": {
            "backbone": model.state_dict(),
            "head": {"top_layer.weight": torch.ones(10, model.embedding_dim)},
            "clustering": {"means": torch.eye(10)},
        },
    }
    return Checkpoint(**values | changed)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "one.safetensors"
    make().save(path)
    return path


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of runs beside an empty zoo/reference."""
    monkeypatch.setattr(module, "REFERENCE", tmp_path / "reference")
    return tmp_path / "runs"


@pytest.mark.parametrize("name", ["alexnet32", "small_vgg"])
def test_a_checkpoint_comes_back_to_the_bit(name: str, tmp_path: Path) -> None:
    one = make(name)
    one.save(tmp_path / "one.safetensors")
    again = Checkpoint.load(tmp_path / "one.safetensors")
    assert again.sha256 == one.sha256
    assert {group: sorted(tensors) for group, tensors in again.groups.items()} == {
        group: sorted(tensors) for group, tensors in one.groups.items()
    }
    for group, tensors in one.groups.items():
        for key, tensor in tensors.items():
            assert torch.equal(again.groups[group][key], tensor)
            assert again.groups[group][key].dtype == tensor.dtype
    for field in ("name", "method", "backbone", "preprocessing", "dataset", "epoch", "seed", "recipe", "key", "source"):
        assert getattr(again, field) == getattr(one, field)
    assert again.settings == {"k": 10, "crops": [28, 24], "lr": 0.05}  # JSON knows no tuples
    again.save(tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["alexnet32", "small_vgg"])
def test_the_backbone_is_built_whole_and_apart(name: str) -> None:
    one = make(name)
    model = one.build_backbone()
    assert not model.training
    assert all(torch.equal(tensor, one.groups["backbone"][key]) for key, tensor in model.state_dict().items())
    assert {key for key, parameter in model.named_parameters() if not parameter.requires_grad} == {
        f"sobel.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")
    }
    before = one.sha256
    with torch.no_grad():
        model.features[0].weight.zero_()
    assert one.sha256 == before


def test_sha256_is_of_tensors_and_settings_alone() -> None:
    one = make().sha256
    told = dict(source="elsewhere", key="f" * 12, epoch=7, dataset=None, recipe="0" * 12, limit=5)
    renamed = make(**told)
    renamed.name = "other"
    assert renamed.sha256 == one
    assert make(settings={"k": 11, "crops": (28, 24), "lr": 0.05}).sha256 != one
    assert make(seed=1).sha256 != one
    changed = make()
    changed.groups["head"]["top_layer.weight"][0, 0] = 2
    assert changed.sha256 != one


def test_a_recipe_is_a_training_without_its_seed() -> None:
    assert make(seed=0).recipe == make(seed=1).recipe
    assert make().recipe == recipe("mmdc", make().backbone, DATASET, make().settings)
    others = [dict(method="other"), dict(dataset=None), dict(settings={}), dict(backbone=make("alexnet32").backbone)]
    assert len({make().recipe, *(make(**other).recipe for other in others)}) == 5
    assert len(make().recipe) == 12


def test_the_header_describes_without_torch(saved: Path) -> None:
    blocked = "import sys; sys.modules['torch'] = None\n"
    script = f"{blocked}import json; from zoo.header import describe; print(json.dumps(describe(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", script, saved], capture_output=True, text=True, cwd=ROOT, check=True)
    description = json.loads(done.stdout)
    one = make()
    assert description == describe(saved)
    assert description["sha256"] == one.sha256
    assert description["settings"] == {"k": 10, "crops": [28, 24], "lr": 0.05}
    assert description["dataset"] == DATASET
    assert description["preprocessing"]["size"] == 32
    assert description["groups"]["head"] == {"tensors": 1, "parameters": 10240}
    assert description["groups"]["backbone"]["tensors"] == len(one.groups["backbone"])


def break_backbone(path: Path) -> None:
    """Take a tensor away, add one and turn one, and leave the description as it was."""
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    del tensors["backbone/features.1.bias"]
    tensors["backbone/extra"] = torch.ones(1)
    tensors["backbone/features.4.weight"] = tensors["backbone/features.4.weight"].transpose(0, 1).contiguous()
    safetensors.torch.save_file(tensors, path, metadata)


def test_a_backbone_that_does_not_fit_is_an_error_that_lists_why(saved: Path) -> None:
    break_backbone(saved)
    with pytest.raises(UserError) as caught:
        Checkpoint.load(saved)
    said = str(caught.value)
    assert "missing features.1.bias;" in said
    assert "unexpected extra;" in said
    assert "features.4.weight is (32, 64, 3, 3), not (64, 32, 3, 3)" in said
    assert str(saved) in said


def test_a_group_that_is_missing_is_an_error() -> None:
    one = make(groups={"head": {"top_layer.weight": torch.ones(1)}})
    with pytest.raises(
        UserError, match=r"missing features\S+, \S+, \S+ and \d+ more\n  try: train it again, or "
    ) as caught:
        one.build_backbone()
    assert caught.value.looked == ""  # nowhere: its tensors are in memory


@pytest.mark.parametrize("share", [0.0, 1e-6, 1e-5, 1e-3, 0.1, 0.5, 0.999])
def test_a_truncated_file_is_an_error_that_names_it(saved: Path, share: float) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: int(len(data) * share)])
    for reader in (describe, Checkpoint.load, lambda path: resolve(str(path))):
        with pytest.raises(UserError, match=r"one\.safetensors is damaged") as caught:
            reader(saved)
        assert "again" in caught.value.fix


def test_a_header_of_other_bytes_is_damaged(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[20:30] = b"\xff" * 10
    saved.write_bytes(data)
    with pytest.raises(UserError, match="its header cannot be read"):
        describe(saved)


def test_a_file_with_something_appended_is_damaged(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(UserError, match="damaged"):
        describe(saved)


def test_a_flipped_bit_is_noticed(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[-100] ^= 1
    saved.write_bytes(data)
    with pytest.raises(UserError, match="not those that were saved"):
        Checkpoint.load(saved)


@pytest.mark.parametrize("content", [b"a text, and a long enough one\n", b"x" * 8 + b"{}", bytes(100)])
def test_a_file_that_is_no_safetensors_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"notes\.safetensors is"):
        Checkpoint.load(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {ENTRY: "no JSON"}, {ENTRY: "[]"}, {ENTRY: "{}"}])
def test_safetensors_of_others_are_an_error_that_says_so(tmp_path: Path, metadata: dict | None) -> None:
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"a": torch.ones(1)}, path, metadata)
    with pytest.raises(UserError, match="no checkpoint of ours") as caught:
        Checkpoint.load(path)
    assert "zoo.checkpoint import" in caught.value.fix


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 99}, "has schema 99"),
        ({"backbone": {"name": "alexnet33", "channels": 1, "sobel": True}}, "did you mean 'alexnet32'"),
        ({"backbone": {"channels": 1}}, "malformed"),
        ({"backbone": "alexnet"}, "malformed"),
        ({"preprocessing": {}}, "malformed"),
        ({"preprocessing": {"size": 1, "resize": 1, "channels": 3, "mean": [1, 2], "std": [1]}}, "malformed"),
        ({"name": "../../escaped"}, "is no name"),
        ({"settings": {"k": 11}}, "not those that were saved"),
        ({"sha256": "0" * 64}, "not those that were saved"),
    ],
)
def test_a_description_that_save_never_wrote_is_an_error(saved: Path, change: dict, said: str) -> None:
    with safetensors.safe_open(saved, "pt") as file:
        description = json.loads(file.metadata()[ENTRY])
    tensors = safetensors.torch.load_file(saved)
    safetensors.torch.save_file(tensors, saved, {ENTRY: json.dumps(description | change)})
    with pytest.raises(UserError, match=said):
        Checkpoint.load(saved)


def test_a_description_that_lacks_a_field_is_an_error(saved: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(1)}, saved, {ENTRY: json.dumps({"schema": 1, "name": "x"})})
    with pytest.raises(UserError, match="lacks method, backbone"):
        describe(saved)


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(UserError, match="cannot read"):
            describe(path)


def test_tensors_that_share_memory_or_order_are_saved(tmp_path: Path) -> None:
    table = torch.arange(12.0).reshape(3, 4)
    one = make()
    one.groups["clustering"] = {"whole": table, "turned": table.t(), "row": table[1]}
    one.save(tmp_path / "a.safetensors")
    again = Checkpoint.load(tmp_path / "a.safetensors").groups["clustering"]
    assert torch.equal(again["turned"], table.t())
    assert torch.equal(again["row"], table[1])


def test_a_failed_save_leaves_what_was_there(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        make(settings={"lr": float("nan")}).save(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize("sobel", ["", "-sobel"])
@pytest.mark.parametrize("name", ["alexnet32", "small_vgg"])
def test_a_random_checkpoint_needs_no_file(name: str, sobel: str, runs: Path) -> None:
    reference = f"random-{name}{sobel}@7"
    one = resolve(reference, runs)
    assert one.name == reference
    assert (one.method, one.dataset, one.settings, one.epoch, one.seed) == ("random", None, {}, 0, 7)
    assert one.backbone == {"name": name, "channels": BACKBONES[name].channels, "sobel": bool(sobel)}
    assert one.preprocessing == standard_preprocessing(name)
    assert one.sha256 == resolve(reference, runs).sha256
    assert one.sha256 != resolve(reference.replace("@7", "@8"), runs).sha256
    assert one.recipe == resolve(reference.replace("@7", "@8"), runs).recipe
    one.build_backbone()


@pytest.mark.parametrize(
    ("reference", "backbone", "sobel", "seed"),
    [
        ("random-resnet18@0", "resnet18", False, "0"),
        ("random-torchvision:densenet121@10", "torchvision:densenet121", False, "10"),
        ("random-torchvision:vit_b_16-sobel@1", "torchvision:vit_b_16", True, "1"),
        (
            "random-timm:vit_base_patch16_clip_224.openai_ft_in1k@2",
            "timm:vit_base_patch16_clip_224.openai_ft_in1k",
            False,
            "2",
        ),
        ("random-timm:resnet10t.c3_in1k-sobel@3", "timm:resnet10t.c3_in1k", True, "3"),
    ],
)
def test_the_name_of_a_random_checkpoint_holds_any_backbones(
    reference: str, backbone: str, sobel: bool, seed: str
) -> None:
    match = module.RANDOM.fullmatch(reference)
    assert match is not None
    assert (match["backbone"], bool(match["sobel"]), match["seed"]) == (backbone, sobel, seed)
    module.check_name(reference)  # records are kept under it


def test_a_network_of_torchvision_needs_no_file(runs: Path) -> None:
    one = resolve("random-torchvision:squeezenet1_1-sobel@3", runs)
    assert one.backbone == {"name": "torchvision:squeezenet1_1", "channels": 3, "sobel": True}
    assert one.layers("all") == ("stage1", "stage2", "stage3", "stage4")
    assert one.sha256 == resolve(one.name, runs).sha256
    assert not one.build_backbone().training


def test_the_checkpoints_of_networks_with_a_dot_in_the_name_are_found(runs: Path) -> None:
    make().save(runs / "k" / "deepcluster-timm:resnet10t.c3_in1k-digits-s0.safetensors")
    assert resolve("deepcluster-timm:resnet10t.c3_in1k-digits-s0", runs).epoch == 3


@pytest.mark.parametrize("reference", ["random-alexnet32", "random-alexnet32@", "random-alexnet32@x", "random-@1"])
def test_a_random_checkpoint_wants_a_backbone_and_a_seed(reference: str, runs: Path) -> None:
    with pytest.raises(UserError, match="does not say a backbone and a seed"):
        resolve(reference, runs)


def test_a_random_checkpoint_of_an_unknown_backbone_is_an_error(runs: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'alexnet32'"):
        resolve("random-alexnet23-sobel@0", runs)


def test_names_are_found_in_reference_and_runs(runs: Path) -> None:
    make(key="a" * 12).save(runs.parent / "reference" / "given.safetensors")
    make(key="b" * 12, seed=1).save(runs / ("b" * 12) / "made.safetensors")
    assert resolve("given", runs).key == "a" * 12
    assert resolve("made", runs).key == "b" * 12
    assert resolve("made@bbb", runs).seed == 1
    assert resolve(str(runs / ("b" * 12) / "made.safetensors"), runs).seed == 1
    found = [(name, description["key"][0]) for name, _, description in available(runs)]
    assert found == [("made", "b"), ("given", "a")]


def test_a_name_of_several_keys_is_an_error_that_lists_them(runs: Path) -> None:
    make(key="a" * 12, source="given").save(runs.parent / "reference" / "x.safetensors")
    make(key="a" * 12).save(runs / ("a" * 12) / "x.safetensors")
    assert resolve("x", runs).source == "trained here"  # one run, kept twice: the one made here is taken
    make(key="b" * 12, seed=1).save(runs / ("b" * 12) / "x.safetensors")
    imported = make(key=None, seed=2)
    imported.save(runs / "imported" / "x.safetensors")
    listed = f"x@{'a' * 12}, x@{'b' * 12}, x@{imported.sha256[:12]}"
    with pytest.raises(UserError, match="x is the name of 3 checkpoints") as caught:
        resolve("x", runs)
    assert caught.value.fix == f"one of {listed}"
    for reference, seed in zip(listed.split(", "), (0, 1, 2)):
        assert resolve(reference, runs).seed == seed
    with pytest.raises(UserError, match="there is no checkpoint x@c"):
        resolve("x@c", runs)


def test_an_unknown_name_is_an_error_with_a_near_one(runs: Path) -> None:
    make().save(runs / "k" / "deepcluster-alexnet32-digits-s0.safetensors")
    with pytest.raises(UserError, match="did you mean 'deepcluster-alexnet32-digits-s0'") as caught:
        resolve("deepcluster-alexnet32-digit-s0", runs)
    assert str(runs) in caught.value.looked
    with pytest.raises(UserError, match="did you mean 'random-alexnet32@0'"):
        resolve("randm-alexnet32@0", runs)
    with pytest.raises(UserError, match="there is no checkpoint zzz\n"):
        resolve("zzz", runs)


@pytest.mark.parametrize("reference", ["models/none", "none.pth.tar", "none.safetensors"])
def test_a_file_that_is_not_there_is_an_error(reference: str, runs: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        resolve(reference, runs)


def test_a_damaged_file_is_listed_and_does_not_hide_the_others(runs: Path) -> None:
    make().save(runs / "a" / "good.safetensors")
    (runs / "a" / "torn.safetensors").write_bytes(b"{")
    assert "damaged" in {name: description for name, _, description in available(runs)}["torn"]["error"]
    assert resolve("good", runs).epoch == 3
    with pytest.raises(UserError, match=r"torn\.safetensors is damaged"):
        resolve("torn", runs)


@pytest.mark.parametrize(
    ("choice", "layers"),
    [
        ("all", ("conv1", "conv2", "conv3", "conv4")),
        ("deepest", ("conv4",)),
        ("conv2", ("conv2",)),
        ("embedding", ("embedding",)),
    ],
)
def test_a_choice_of_layers(choice: str, layers: tuple[str, ...]) -> None:
    assert make().layers(choice) == layers


def test_an_unknown_layer_is_an_error() -> None:
    with pytest.raises(UserError, match="small_vgg has no layer 'conv9'"):
        make().layers("conv9")


@pytest.mark.parametrize("choice", ["all", "deepest"])
def test_a_network_without_maps_has_no_layers_to_choose(choice: str) -> None:
    held = make(backbone={"name": "torchvision:vit_b_16", "channels": 3, "sobel": False})
    with pytest.raises(UserError, match="vit_b_16 has no maps, only an embedding") as caught:
        held.layers(choice)
    assert caught.value.fix == "--layer embedding"
    assert held.layers("embedding") == ("embedding",)


def test_show_prints_what_a_checkpoint_is(saved: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["show", str(saved)]) == 0
    said = capsys.readouterr().out
    assert make().sha256 in said
    assert "head          1 tensors, 10,240 values" in said
    assert "mmdc-small_vgg-sobel-digits-s0" in said


def test_errors_of_the_command_go_to_stderr(runs: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["show", "nothing", "--runs", str(runs)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: there is no checkpoint nothing")


def test_the_command_runs_as_a_module(saved: Path) -> None:
    arguments = [sys.executable, "-m", "zoo.checkpoint", "show", str(saved)]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert make().recipe in done.stdout
