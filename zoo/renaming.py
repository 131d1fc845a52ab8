"""Tensors under other names: the rules that say how, and a map of what became of each, for people to read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


class Rule(NamedTuple):
    """What `pattern` finds in a name becomes `to`; where `to` is None, the tensor is left out for the reason `why`."""

    pattern: str
    to: str | None
    why: str = ""


class Line(NamedTuple):
    """A line of the map: the tensor's old name, its new one or what else became of it, and its shape."""

    before: str
    after: str
    shape: tuple[int, ...] | None = None

    def __str__(self) -> str:
        shape = "" if self.shape is None else f"  {' × '.join(map(str, self.shape)) or 'one value'}"
        return f"{self.before} → {self.after}{shape}"


@dataclass
class Named:
    """Tensors by name, the names they had before, and the lines of those that were left out."""

    tensors: dict[str, Tensor]
    origins: dict[str, str]  # name -> the name before
    left: list[Line] = field(default_factory=list)

    @classmethod
    def take(cls, tensors: Mapping[str, Tensor]) -> Named:
        """Tensors under the names they have."""
        return cls(dict(tensors), {name: name for name in tensors})

    def rename(self, rules: Iterable[Rule]) -> Named:
        """The tensors after all rules, in their order. ValueError where two get one name."""
        renamed = Named({}, {}, list(self.left))
        for name, tensor in self.tensors.items():
            after, why = apply(rules, name)
            if after is None:
                renamed.left.append(Line(self.origins[name], f"left out: {why}", tuple(tensor.shape)))
            elif after in renamed.tensors:
                raise ValueError(f"{after} is there twice")
            else:
                renamed.tensors[after] = tensor
                renamed.origins[after] = self.origins[name]
        return renamed


def apply(rules: Iterable[Rule], name: str) -> tuple[str | None, str]:
    """(the name after all rules, ""), or (None, why) for a tensor that one of them leaves out."""
    for rule in rules:
        if rule.to is None and re.search(rule.pattern, name):
            return None, rule.why
        if rule.to is not None:
            name = re.sub(rule.pattern, rule.to, name)
    return name, ""


def render(lines: Iterable[Line]) -> str:
    """The map, one line a tensor, in columns."""
    lines = list(lines)
    width = max((len(line.before) for line in lines), default=0)
    return "\n".join(str(line._replace(before=line.before.ljust(width))) for line in lines)
