"""A run's state: what it needs to go on where it was interrupted, to the same bits.

    state = State(folder)
    model = state.part("model", build())
    for epoch in state.epochs("epochs", 100):
        clusters = state.once("clustering", lambda: cluster(model))
        head = state.part("head", new_head())
        for number in state.steps("training", 500):
            ...

The program that continues runs the same lines again. A loop goes on after the last step that was saved, `once` gives
the result that was saved, a part is given what it held, and torch's random generator is set to where it was. What
belongs to a step of a loop, or to work done once, is forgotten with it.
"""

from __future__ import annotations

import os
import re
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from results.errors import RunFailed, UserError
from results.files import replacing
from zoo import processes
from zoo.device import check_stopped
from zoo.signals import signals

NAME = re.compile(r"state-(\d+)\.pt")
KEPT = 2  # states on disk: should the newest be damaged, there is the one before it
WORTH = 1.0  # seconds: the end of a loop is not worth saving where less was done
RARELY = 20  # nor where less was done than this many times what saving took
Part = TypeVar("Part")
Result = TypeVar("Result")


@dataclass
class Scope:
    """What a step of a loop holds: loops inside it, with the number of their finished steps, results and parts."""

    done: dict[str, int] = field(default_factory=dict)
    inner: dict[str, Scope] = field(default_factory=dict)  # of each loop's present step
    results: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)
    saved: dict[str, Any] = field(default_factory=dict)  # of parts that are not there yet in the run that continues
    restored: set[str] = field(default_factory=set)  # loops and results that this run has not come by yet
    come_by: set[str] = field(default_factory=set)  # loops that this run has begun

    def snapshot(self) -> dict[str, Any]:
        """All of it as plain values and tensors."""
        inner = {name: scope.snapshot() for name, scope in self.inner.items()}
        parts = self.saved | {name: held(part) for name, part in self.parts.items()}
        return {"done": self.done, "inner": inner, "results": self.results, "parts": parts}

    @classmethod
    def of(cls, snapshot: dict[str, Any]) -> Scope:
        """The scope that a snapshot was taken of, its parts waiting to be claimed."""
        inner = {name: cls.of(values) for name, values in snapshot["inner"].items()}
        done, results = snapshot["done"], snapshot["results"]
        return cls(done, inner, results, saved=snapshot["parts"], restored={*done, *inner, *results})


class State:
    """The state of the run in `directory`, saved every `every` minutes and where a phase ends."""

    def __init__(self, directory: Path, every: float = 10.0, device: str | torch.device = "cpu") -> None:
        self.directory, self.every, self.device = directory, every, torch.device(device)
        self.number, found = self._newest()
        self.scope = self.root = Scope.of(found["root"])
        self.random = found["random"]
        self.saved_at, self.cost = time.monotonic(), 0.0  # seconds that saving took

    def part(self, name: str, part: Part) -> Part:
        """The part, saved with the state from now on, and given what it held if this run is continued.

        A module, an optimizer, anything else with state_dict and load_state_dict, a dict or a list of plain values
        and tensors. UserError if what was saved does not fit it.
        """
        if name in self.scope.saved:
            try:
                give(part, self.scope.saved.pop(name))
            except Exception as error:  # what does not fit can fail anywhere in the part
                happened = f"the saved {name} cannot be continued from ({type(error).__name__})"
                raise UserError(happened, str(self.directory), "--force, to start afresh") from error
        self.scope.parts[name] = part
        return part

    def once(self, name: str, work: Callable[[], Result]) -> Result:
        """work()'s result: of plain values and tensors, for it is saved. Loops and parts in work are its own."""
        outer = self.scope
        self._come_by(name)
        if name not in outer.results:
            self.scope = outer.inner.setdefault(name, Scope())
            result = work()
            self.scope = outer
            del outer.inner[name]
            outer.results[name] = result
            self._save_if_worth()
        return outer.results[name]

    def epochs(self, name: str, count: int) -> Iterator[int]:
        """Numbers from 0 below count, from where the run goes on; the state is saved after each."""
        return self._loop(name, count, self.save, nullcontext)

    def steps(self, name: str, count: int) -> Iterator[int]:
        """The same for the steps inside an epoch, saved now and then and at the end.

        A signal waits for the end of a step, which is then saved.
        """
        yield from self._loop(name, count, self._after_step, signals.wait)
        self._save_if_worth()

    def done(self, name: str) -> int:
        """How many steps of the loop are finished."""
        return self.scope.done.get(name, 0)

    def forget(self, name: str) -> None:
        """Let the loop start from its first step: what its steps made is gone."""
        self.scope.done.pop(name, None)

    def save(self) -> None:
        """Write the state beside the one before it, and remove older ones."""
        random = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [])]
        self.number, began = self.number + 1, time.monotonic()
        with replacing(self.directory / f"state-{self.number}.pt") as temporary, temporary.open("wb") as file:
            torch.save({"root": self.root.snapshot(), "random": random}, file)
        for number, path in states(self.directory):
            if number <= self.number - KEPT:
                path.unlink()
        self.saved_at = time.monotonic()
        self.cost = self.saved_at - began

    def _loop(
        self, name: str, count: int, after: Callable[[], None], during: Callable[[], AbstractContextManager[None]]
    ) -> Iterator[int]:
        outer = self.scope
        if name in outer.come_by:
            raise ValueError(f"a second loop {name} in one step")
        outer.come_by.add(name)
        self._come_by(name)
        for number in range(self.done(name), count):
            self.scope = outer.inner.setdefault(name, Scope())
            with during():
                yield number
            self.scope = outer
            del outer.inner[name]
            outer.done[name] = number + 1
            after()

    def _after_step(self) -> None:
        try:
            check_stopped()
        except RunFailed:
            self.save()
            raise
        asked, due = processes.largest(signals.asked or 0, self._age() >= 60 * self.every)
        if asked or due:
            self.save()
        signals.obey(int(asked))

    def _save_if_worth(self) -> None:
        (due,) = processes.largest(self._age() >= min(max(WORTH, RARELY * self.cost), 60 * self.every))
        if due:
            self.save()

    def _age(self) -> float:
        """Seconds since the last state."""
        return time.monotonic() - self.saved_at

    def _come_by(self, name: str) -> None:
        """Where the run comes by what was restored, torch's generator is set to where it was then."""
        if name in self.scope.restored:
            self.scope.restored.remove(name)
            torch.set_rng_state(self.random[0])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state_all(self.random[1:])

    def _newest(self) -> tuple[int, dict[str, Any]]:
        """The newest state that is whole in each process, and its number; 0 and nothing if there is none."""
        whole = {number: path for number, path in states(self.directory) if is_whole(path)}
        number = max(set.intersection(*map(set, processes.told_each(list(whole)))), default=0)
        if number == 0:
            return 0, {"root": Scope().snapshot(), "random": []}
        try:
            return number, torch.load(whole[number], map_location="cpu", weights_only=True)
        except Exception as error:  # no state of ours
            happened = f"{whole[number].name} cannot be continued from ({type(error).__name__})"
            raise UserError(happened, str(self.directory), "--force, to start afresh") from error


class Unkept(State):
    """The state of a run that keeps none."""

    def __init__(self) -> None:
        super().__init__(Path(os.devnull))  # no folder: nothing is found in it

    def save(self) -> None:
        """Nothing is saved."""


def states(directory: Path) -> list[tuple[int, Path]]:
    """The files of states in a folder and their numbers, the oldest first."""
    found = [(NAME.fullmatch(path.name), path) for path in directory.glob("state-*.pt")]
    return sorted((int(match[1]), path) for match, path in found if match)


def is_whole(path: Path) -> bool:
    """Whether a state's checksums are those of its contents; if not, this is said."""
    try:
        with zipfile.ZipFile(path) as archive:
            torn = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        torn = type(error).__name__
    if torn is not None:
        before = "the state before it is continued from, if there is one"
        print(f"{path.name} is damaged ({torn}): {before}", file=sys.stderr)
    return torn is None


def remove(directory: Path) -> None:
    """Remove all states in a folder."""
    for _, path in states(directory):
        path.unlink()


def held(part: Any) -> Any:
    """What a part holds, as plain values and tensors."""
    if isinstance(part, dict):
        return dict(part)
    if isinstance(part, list):
        return list(part)
    if not isinstance(part, nn.Module):
        return part.state_dict()
    with_gradient = [name for name, parameter in part.named_parameters() if parameter.grad is not None]
    return {"tensors": part.state_dict(), "with_gradient": with_gradient}


def give(part: Any, values: Any) -> None:
    """Let a part hold what `held` gave.

    Gradients become zeros where there were some: an optimizer moves and decays a parameter that has a gradient, if
    only of zeros, and passes over one that has none.
    """
    if isinstance(part, dict):
        places = {name: value.device for name, value in part.items() if isinstance(value, torch.Tensor)}
        part.clear()
        part.update({name: value.to(places[name]) if name in places else value for name, value in values.items()})
    elif isinstance(part, list):
        part[:] = values
    elif not isinstance(part, nn.Module):
        part.load_state_dict(values)
    else:
        part.load_state_dict(values["tensors"])
        for name, parameter in part.named_parameters():
            parameter.grad = torch.zeros_like(parameter) if name in values["with_gradient"] else None
