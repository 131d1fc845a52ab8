"""Classes from what is written beside images: in the lines of a list, in the members of a shard."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from results.errors import UserError


def number_classes(
    texts: dict[str, np.ndarray], called: Callable[[str, int], str]
) -> tuple[dict[str, np.ndarray | None], tuple[str, ...]]:
    """Per split the class of each image, int64 (N,), and the names of the classes: those of the first split.

    texts: per split what is written of each image, bytes (N,), b"" for nothing. If nothing is written of any image:
    None and (). Labels are numbers all of them (there may be gaps), or names all of them, and sorted as such.
    called: what messages call an image, by split and number. UserError naming one whose label is missing, of the
    other kind, or not among those of the first split.
    """
    if not any((values != b"").any() for values in texts.values()):
        return dict.fromkeys(texts), ()
    # per split: the different words, where each stands first, and which of them each image has
    found = {split: np.unique(values, return_index=True, return_inverse=True) for split, values in texts.items()}
    words = [(word, called(split, at)) for split, (w, first, _) in found.items() for word, at in zip(w.tolist(), first)]
    check_words(words)
    training = next(iter(found))
    ranks = {value: rank for rank, value in enumerate(sorted({to_value(w) for w in found[training][0].tolist()}))}
    for word, image in words:
        if to_value(word) not in ranks:
            happened = f"{image} has the label '{os.fsdecode(word)}', which no image of {training} has"
            raise UserError(happened, fix=f"the same classes in {' and '.join(found)}")
    labels: dict[str, np.ndarray | None] = {
        split: np.array([ranks[to_value(word)] for word in w.tolist()], dtype=np.int64)[inverse]
        for split, (w, _, inverse) in found.items()
    }
    return labels, tuple(map(str, ranks))


def check_words(words: list[tuple[bytes, str]]) -> None:
    """UserError unless every image has a label, and all labels are numbers or all are names."""
    missing = [image for word, image in words if not word]
    if missing:
        raise UserError(f"{missing[0]} has no label, and others have one", fix="a label for each image, or for none")
    (first, one), *_ = words
    for word, other in words:
        if word.isdigit() != first.isdigit():
            happened = f"{one} has the label '{os.fsdecode(first)}', and {other} has '{os.fsdecode(word)}'"
            raise UserError(happened, fix="labels that are numbers from 0 on all of them, or names all of them")


def to_value(word: bytes) -> int | str:
    """What a label is sorted by: numbers as such."""
    return int(word) if word.isdigit() else os.fsdecode(word)
