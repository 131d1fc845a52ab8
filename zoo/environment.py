"""What a record says of the software and hardware that produced it: no host, user or absolute path."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata

import torch

from results.files import ROOT
from zoo import processes

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "faiss-cpu", "faiss-gpu", "pillow")


def _git(*arguments: str) -> str:
    try:
        words = ["git", "--no-optional-locks", *arguments]  # nobody's commit is to find the index locked
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """The CPU's vector extensions, which decide how sums are rounded; its model name often is not to be had."""
    return torch.backends.cpu.get_cpu_capability()


def environment(device: torch.device, precision: str) -> dict:
    """Commit, dirty files, packages, device, precision and threads of this process."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    # Records are what runs produce: writing one must not make the next one "dirty".
    changed = _git("status", "--porcelain", "--", ".", ":!results/records", ":!results/rendered")
    return {
        "commit": _git("rev-parse", "--short=12", "HEAD") or None,
        "dirty": bool(changed),
        "python": platform.python_version(),
        "packages": _versions(),
        "device": device.type,
        "device_name": name,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "processes": processes.count(),
    }
