"""What loads and installs detectron2 and mmsegmentation, without either: on made-up modules, errors, lists."""

from __future__ import annotations

import importlib
import pickle
import re
import sys
import warnings
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from results.errors import UserError
from results.files import ROOT
from transfer.engines import loading, sdist
from transfer.engines.checkpoints import trusted
from transfer.engines.stand_ins import OldPkgResources, Uncompiled, give_old_numpy, old_pillow, standing_in

LISTS = ROOT / "transfer/engines/requirements"
SETUP = """setup(
    name="pb1-detectron2",
    package_data={"detectron2.model_zoo": get_model_zoo_configs()},
    install_requires=[
        "hydra-core>=1.1",
        "black==21.4b2",
    ],
    ext_modules=get_extensions(),
)
"""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes an importable package: its files by name, "" for __init__.py."""

    def write(name: str, **files: str) -> None:
        (tmp_path / name).mkdir()
        for file, text in {"__init__": "", **files}.items():
            (tmp_path / name / f"{file}.py").write_text(text)
        importlib.invalidate_caches()

    known = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for name in set(sys.modules) - known:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in sys.modules[name].__file__:
            del sys.modules[name]


# Errors


@pytest.mark.parametrize("load", [loading.load_detectron2, loading.load_mmseg])
def test_an_engine_that_is_not_installed_is_an_error_with_the_fix(load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="is not installed") as caught:
        load.__wrapped__()  # past the cache
    assert str(caught.value).endswith("try: make engines")
    assert sys.prefix in str(caught.value)


def test_mmsegmentation_says_which_part_of_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: None if name == "mmcv" else object())
    with pytest.raises(UserError, match=r"^mmcv is not installed"):
        loading.load_mmseg.__wrapped__()


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("import something_that_is_not_there", "No module named 'something_that_is_not_there'"),
        ("from os import gone", "cannot import name 'gone'"),
        ("assert False, 'mmcv 3 is used but incompatible'", "mmcv 3 is used but incompatible"),
    ],
)
def test_an_engine_that_cannot_be_imported_says_why(text: str, cause: str, library) -> None:
    library("madeup", part=text)
    with pytest.raises(UserError, match=f"^madeup is installed, but cannot be imported: {cause}") as caught:
        loading.import_parts("madeup", ("part",))
    assert caught.value.fix == "make engines"


def test_what_an_engine_is_warned_of_at_its_import_is_not_passed_on(library) -> None:
    library("madeup", part="import warnings\nfor kind in (DeprecationWarning, UserWarning): warnings.warn('old', kind)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loading.import_parts("madeup", ("part",)).__name__ == "madeup"


def test_versions_are_those_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package in ("detectron2", "mmcv"):
            raise metadata.PackageNotFoundError(package)
        return "1.2.3"

    monkeypatch.setattr(metadata, "version", version)
    assert loading.versions("detectron2") == {"pb1-detectron2": "1.2.3", "fvcore": "1.2.3"}
    assert loading.versions("mmseg") == dict.fromkeys(("mmsegmentation", "mmengine", "mmcv-lite"), "1.2.3")


# Stand-ins


def test_a_module_stands_in_only_while_it_is_asked_for(library) -> None:
    library("madeup", part="from madeup import _C\nimport madeup.other")
    library("madeup2")
    stand_ins = {"madeup._C": Uncompiled, "madeup.other": Uncompiled}
    with standing_in(stand_ins):
        part = importlib.import_module("madeup.part")
    assert isinstance(part._C, Uncompiled)
    assert not set(stand_ins) & set(sys.modules)
    with pytest.raises(ImportError):
        importlib.import_module("madeup._C")


def test_a_stand_in_goes_when_the_block_fails(library) -> None:
    library("madeup")

    def fail() -> None:
        with standing_in({"madeup._C": Uncompiled}):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "madeup._C" not in sys.modules


def test_what_is_installed_is_left_as_it_is(library) -> None:
    library("madeup", _C="def nms(): return 'compiled'", part="from madeup import _C")
    with standing_in({"madeup._C": Uncompiled, "json": Uncompiled}):
        part = importlib.import_module("madeup.part")
    assert part._C.nms() == "compiled"
    assert not isinstance(sys.modules["json"], Uncompiled)
    assert sys.modules["madeup._C"] is part._C


def test_calling_what_is_not_compiled_says_so() -> None:
    module = Uncompiled("mmcv._ext")
    assert hasattr(module, "deform_conv_forward")  # mmcv asserts it at its import
    with pytest.raises(NotImplementedError, match=r"deform_conv_forward is compiled code of mmcv\._ext, .* not inst"):
        module.deform_conv_forward(1, groups=2)
    assert not hasattr(module, "__path__")


def test_pkg_resources_finds_a_packages_files(library, tmp_path: Path) -> None:
    library("madeup")
    importlib.import_module("madeup")
    found = OldPkgResources("pkg_resources").resource_filename("madeup", "configs/a.yaml")
    assert found == str(tmp_path / "madeup/configs/a.yaml")


def test_pillow_has_its_old_name_only_in_the_block() -> None:
    assert not hasattr(Image, "LINEAR")
    with old_pillow():
        assert Image.LINEAR == Image.BILINEAR
    assert not hasattr(Image, "LINEAR")


def test_pillows_own_name_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "LINEAR", "its own", raising=False)
    with old_pillow():
        assert Image.LINEAR == "its own"
    assert Image.LINEAR == "its own"


def test_old_names_of_numpy_are_given_to_a_module_alone(library) -> None:
    library("madeup", part="import numpy as np\ndef zeros(): return np.zeros(2, dtype=np.int), np.array(['a'], np.str)")
    part = importlib.import_module("madeup.part")
    with pytest.raises(AttributeError):
        part.zeros()
    give_old_numpy(["madeup.part"])
    numbers, words = part.zeros()
    assert (numbers.dtype, words[0]) == (np.dtype(int), "a")
    assert part.np.float is float
    assert part.np.linalg is np.linalg
    assert part.np.bool is np.bool
    assert not {"str", "int", "float", "object"} & set(vars(np))
    with pytest.raises(AttributeError):
        _ = part.np.no_such_thing


# mmengine's checkpoints


class Buffer:
    """Like mmengine's HistoryBuffer: it writes references to its own methods."""

    methods: dict = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.history = np.array([1.5, 2.5])

    def mean(self) -> float:
        return self.history.mean()

    def other(self) -> float:
        return 0.0

    def __getstate__(self) -> dict:
        return {"history": self.history, "methods": {name: getattr(Buffer, name) for name in self.methods}}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)


class Getattr:
    """Pickled as a call of getattr with these arguments."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple:
        return getattr, self.arguments


@pytest.fixture(autouse=True)
def _nothing_else_is_trusted():
    """Whatever else the process imported (mmengine may have been)."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


def reread(value: object, path: Path) -> object:
    torch.save(value, path)
    with torch.serialization.safe_globals(trusted(Buffer)):
        return torch.load(path, weights_only=True)


def test_a_history_and_numpys_scalars_are_read_from_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Buffer, "methods", ("mean",))
    scalars = [np.float32(0.5), np.float64(0.25), np.int64(7), np.int32(3), np.True_]
    held = reread({"loss": Buffer(), "scalars": scalars, "weight": torch.ones(2)}, tmp_path / "a.pth")
    assert held["loss"].history.tolist() == [1.5, 2.5]
    assert held["loss"].methods == {"mean": Buffer.mean}
    assert held["scalars"] == scalars
    assert [type(one) for one in held["scalars"]] == [type(one) for one in scalars]


@pytest.mark.parametrize(
    "arguments", [(Buffer, "other"), (Buffer, "__init__"), (np.ndarray, "mean"), (Buffer, "mean", None)]
)
def test_no_other_attribute_is_read(arguments: tuple, tmp_path: Path) -> None:
    with pytest.raises((pickle.UnpicklingError, TypeError)):
        reread(Getattr(*arguments), tmp_path / "a.pth")


def test_without_it_none_of_it_is_read(tmp_path: Path) -> None:
    torch.save(Buffer(), tmp_path / "a.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pth", weights_only=True)


# Installation


def test_detectron2s_setup_is_patched() -> None:
    assert sdist.patch(SETUP) == (
        "setup(\n"
        '    name="pb1-detectron2",\n'
        '    package_data={"detectron2.model_zoo": ["configs/**/*.yaml", "configs/**/*.py"]},\n'
        "    install_requires=[\n"
        '        "hydra-core>=1.1",\n'
        "    ],\n"
        "    ext_modules=[],\n"
        ")\n"
    )


@pytest.mark.parametrize("text", [SETUP.replace("black==21.4b2", "black==22"), sdist.patch(SETUP), SETUP * 2])
def test_another_setup_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"not the setup\.py of detectron2 0\.6\n.* stands there [02] times"):
        sdist.patch(text)


def test_the_command_patches_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "setup.py").write_text(SETUP)
    assert sdist.main([str(tmp_path)]) == 0
    assert (tmp_path / "setup.py").read_text() == sdist.patch(SETUP)
    assert sdist.main([str(tmp_path)]) == 2
    assert sdist.main([str(tmp_path / "gone")]) == 2
    assert "there is no source distribution" in capsys.readouterr().err


def pinned(name: str) -> dict[str, tuple[str, int]]:
    """{package: (version, number of hashes)} of a list; each of its lines is one or the other."""
    found: dict[str, tuple[str, int]] = {}
    for line in (LISTS / name).read_text().replace("\\\n", "\n").split("\n"):
        if match := re.fullmatch(r"([a-z0-9-]+)==([\w.]+) *", line):
            found[match[1]] = (match[2], 0)
        elif match := re.fullmatch(r" +--hash=sha256:[0-9a-f]{64} *", line):
            last = [*found][-1]
            found[last] = (found[last][0], found[last][1] + 1)
        else:
            assert not line, line
    return found


@pytest.mark.parametrize("name", sorted(path.name for path in LISTS.glob("*.txt")))
def test_every_package_is_pinned_and_hashed(name: str) -> None:
    held = pinned(name)
    assert held
    assert all(hashes for _, hashes in held.values())


def test_the_lists_leave_alone_what_the_suite_itself_needs() -> None:
    listed = [package for path in LISTS.glob("*.txt") for package in pinned(path.name)]
    assert len(listed) == len(set(listed))
    assert not {"torch", "torchvision", "numpy", "scipy", "pandas", "pillow", "tqdm", "tabulate"} & set(listed)
    assert [package for package in listed if package.startswith("opencv")] == ["opencv-contrib-python-headless"]
    assert int(pinned("setuptools.txt")["setuptools"][0].partition(".")[0]) < 81
