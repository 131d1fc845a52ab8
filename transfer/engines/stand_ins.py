"""What stands in for what detectron2 0.6 and mmsegmentation 1.2.2 import and is not there.

Compiled parts are not installed, and Pillow, numpy and setuptools have dropped names since. What is there is left as it
is: an engine installed from its own repository runs on its own parts. The stand-ins are in place only while an engine
is imported: it keeps what it took, and nobody else sees them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
from PIL import Image

BUILTINS = {"str": str, "int": int, "float": float, "object": object}  # what numpy called so until 1.24


class Uncompiled(ModuleType):
    """A compiled module that is not installed: it has every function, and to call one is a NotImplementedError."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):  # Python itself asks
            raise AttributeError(name)

        def refuse(*arguments: Any, **options: Any) -> NoReturn:
            raise NotImplementedError(f"{name} is compiled code of {self.__name__}, which is not installed")

        return refuse


class OldPkgResources(ModuleType):
    """setuptools' pkg_resources, gone since its version 82, as far as detectron2 calls it."""

    @staticmethod
    def resource_filename(package: str, name: str) -> str:
        """The path of a file in the folder of an imported package."""
        return str(Path(sys.modules[package].__path__[0]) / name)


class OldNumpy(ModuleType):
    """numpy, with the names of Python's own types that it had until 1.24."""

    def __init__(self) -> None:
        super().__init__("numpy")
        vars(self).update(BUILTINS)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


@contextmanager
def standing_in(makers: Mapping[str, Callable[[str], ModuleType]]) -> Iterator[None]:
    """For the block, modules in place of those that are not installed: what `makers` makes of the name."""
    made = {name: make(name) for name, make in makers.items() if is_missing(name)}
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


def is_missing(name: str) -> bool:
    """Whether a module is neither imported nor to be found."""
    return name not in sys.modules and find_spec(name) is None


@contextmanager
def old_pillow() -> Iterator[None]:
    """For the block, Pillow's name LINEAR of bilinear sampling, gone since its version 10."""
    if hasattr(Image, "LINEAR"):
        yield
        return
    vars(Image)["LINEAR"] = Image.Resampling.BILINEAR
    try:
        yield
    finally:
        del vars(Image)["LINEAR"]


def give_old_numpy(modules: list[str]) -> None:
    """Let imported modules that call numpy `np` have the names back that it dropped; numpy itself stays as it is."""
    if not set(BUILTINS) <= set(vars(np)):
        for name in modules:
            vars(sys.modules[name])["np"] = OldNumpy()
