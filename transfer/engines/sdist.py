"""Make detectron2's source distribution installable without its C++ sources, which it lacks.

    python -m transfer.engines.sdist FOLDER      the unpacked pb1-detectron2-0.6; `make engines` calls it

Nothing of Faster or Fast R-CNN needs them: box alignment and non-maximum suppression are torchvision's.
"""

from __future__ import annotations

import sys
from pathlib import Path

from results.errors import UserError, ending
from results.files import write_text

CHANGES = (  # in setup.py: what stands there once, what replaces it
    ("ext_modules=get_extensions()", "ext_modules=[]"),
    ('        "black==21.4b2",\n', ""),  # a formatter, and one that newer packages exclude
    # it would link the configurations from a folder that the distribution lacks: they are in place
    ("get_model_zoo_configs()}", '["configs/**/*.yaml", "configs/**/*.py"]}'),
)


def patch(text: str) -> str:
    """detectron2's setup.py without extensions and black, the model zoo as it lies. UserError if it is another."""
    for old, new in CHANGES:
        if text.count(old) != 1:
            raise UserError(
                "this is not the setup.py of detectron2 0.6",
                f"{old.strip()!r} stands there {text.count(old)} times",
                "the version in transfer/engines/requirements/detectron2.txt",
            )
        text = text.replace(old, new)
    return text


def prepare(folder: Path) -> None:
    """Patch the setup.py of an unpacked source distribution. UserError if there is none."""
    path = folder / "setup.py"
    if not path.is_file():
        raise UserError("there is no source distribution", str(folder), "the folder that holds setup.py")
    write_text(path, patch(path.read_text(encoding="utf-8")))


def main(arguments: list[str] | None = None) -> int:
    """Patch the folder that the command line names; the exit code."""
    (folder,) = sys.argv[1:] if arguments is None else arguments
    return ending(lambda: prepare(Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
