"""Import detectron2 and mmsegmentation, or say how to install them."""

from __future__ import annotations

import sys
import warnings
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

from results.errors import UserError
from transfer.engines.checkpoints import trusted
from transfer.engines.stand_ins import OldPkgResources, Uncompiled, give_old_numpy, old_pillow, standing_in

# Whatever takes a stand-in has to be imported while that is in place, so these are more than a task needs.
DETECTRON2 = ("checkpoint", "config", "data", "engine", "evaluation", "layers", "model_zoo", "modeling", "structures")
OLD_NUMPY = ("data.build", "data.datasets.pascal_voc", "evaluation.sem_seg_evaluation")
MMSEG = ("datasets", "engine", "evaluation", "models", "structures", "visualization")
PACKAGES = {  # distributions: upstream's, and those of `make engines`
    "detectron2": ("detectron2", "pb1-detectron2", "fvcore"),
    "mmseg": ("mmsegmentation", "mmengine", "mmcv", "mmcv-lite"),
}


@cache
def load_detectron2() -> ModuleType:
    """detectron2, with its parts for training and evaluation imported. UserError if it cannot be.

    Without its compiled parts, what needs them is a NotImplementedError when called: rotated boxes, deformable
    convolutions, the fast COCO evaluator (`use_fast_impl=False` is the other).
    """
    check_installed("detectron2")
    with standing_in({"detectron2._C": Uncompiled, "pkg_resources": OldPkgResources}), old_pillow():
        engine = import_parts("detectron2", DETECTRON2)
    give_old_numpy([f"detectron2.{part}" for part in OLD_NUMPY])
    return engine


@cache
def load_mmseg() -> ModuleType:
    """mmsegmentation, with its parts for training and evaluation imported. UserError if it cannot be.

    Without mmcv's compiled operators, what needs them is a NotImplementedError when called; FCN needs none.
    mmengine's own checkpoints can be read by `torch.load(weights_only=True)` from then on: it resumes from them so.
    """
    for name in ("mmengine", "mmcv", "mmseg"):
        check_installed(name)
    with standing_in({"mmcv._ext": Uncompiled}):
        engine = import_parts("mmseg", MMSEG)
    torch.serialization.add_safe_globals(trusted(import_module("mmengine.logging").HistoryBuffer))
    return engine


def check_installed(name: str) -> None:
    """UserError if a module is not installed."""
    if find_spec(name) is None:
        raise UserError(f"{name} is not installed", sys.prefix, "make engines")


def import_parts(name: str, parts: tuple[str, ...]) -> ModuleType:
    """A package, with those of its parts imported. UserError, with the cause, if one cannot be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that what it imports is deprecated is nothing to act upon
            for part in parts:
                import_module(f"{name}.{part}")
    except (ImportError, AssertionError) as error:  # mmseg asserts the versions of mmcv and mmengine
        raise UserError(f"{name} is installed, but cannot be imported: {error}", sys.prefix, "make engines") from error
    return sys.modules[name]


def details_of(engine: str) -> dict[str, Any]:
    """What a record's details say of the engine: its name, and its versions unless every record holds them."""
    return {"engine": engine} | ({"versions": versions(engine)} if engine in PACKAGES else {})


def versions(name: str) -> dict[str, str]:
    """What is installed of an engine, "detectron2" or "mmseg": {distribution: version}, for records."""
    found = {}
    for package in PACKAGES[name]:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
