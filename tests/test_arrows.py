"""The house stands as it was planned: who imports whom, sizes, names."""

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest

from results.files import ROOT

OURS = ("results", "zoo", "pretrain", "probes", "transfer", "benchmarks", "tests")
ARROWS = {  # folder: what it may import of ours, besides itself
    "results": set(),
    "zoo": {"results"},
    "pretrain": {"zoo", "results"},
    "probes": {"zoo", "results"},
    "transfer": {"zoo", "results"},
}
FORBIDDEN = {"utils", "helpers", "common", "core", "manager"}
FILES = sorted(path for folder in ARROWS for path in (ROOT / folder).rglob("*.py"))
HEAVY = ("torch", "torchvision", "faiss")


def name(path):
    return str(path.relative_to(ROOT))


def modules(text: str, package: str) -> set[str]:
    """Full names of what a file imports, anywhere in it; `package` is where relative imports start."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            found.add(".".join([*base, *([node.module] if node.module else [])]))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return found


def imported(path: Path) -> set[str]:
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return {module.partition(".")[0] for module in modules(path.read_text(encoding="utf-8"), package)}


def test_imports_are_found_wherever_they_stand():
    text = """
import zoo.run as run
def late():
    from probes.linear import Linear
    importlib.import_module("pretrain.mmdc")
from . import sibling
from ..other import thing
"""
    found = modules(text, "results.published")
    assert found == {"zoo.run", "probes.linear", "pretrain.mmdc", "results.published", "results.other"}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_arrows(path):
    folder = path.relative_to(ROOT).parts[0]
    foreign = imported(path) & set(OURS) - {folder}
    assert foreign <= ARROWS[folder], f"{name(path)} imports {', '.join(sorted(foreign - ARROWS[folder]))}"


@pytest.mark.parametrize("path", [path for path in FILES if path.is_relative_to(ROOT / "results")], ids=name)
def test_results_needs_no_torch(path):
    assert not imported(path) & set(HEAVY)


BLOCKED = f"""
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocker())
import results
names = ["results", *(found.name for found in pkgutil.walk_packages(results.__path__, "results."))]
for name in names:
    importlib.import_module(name)
assert not set({HEAVY!r}) & set(sys.modules)
print(len(names))
"""


def test_results_imports_with_torch_blocked():
    done = subprocess.run([sys.executable, "-c", BLOCKED], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 10


@pytest.mark.parametrize("path", FILES, ids=name)
def test_sizes(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 60, f"{node.name} in {name(path)}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_names(path):
    assert not FORBIDDEN & {part.strip("_") for part in path.relative_to(ROOT).with_suffix("").parts}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_every_package_is_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in FILES if path.name == "__init__.py"}
    assert set(setup["options"]["packages"].split()) == packages
