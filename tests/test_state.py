"""States: a run that is interrupted anywhere, any number of times, ends like one that was not."""

import errno
import os
import signal
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from results.errors import UserError
from zoo.signals import signals
from zoo.state import KEPT, RARELY, WORTH, State, give, held, remove, states


class Kill(Exception):
    """What a kill is within one process: nothing after it runs."""


class Clock:
    """Raises Kill at its tick `last`."""

    def __init__(self, last=None):
        self.ticks, self.last = 0, last

    def tick(self):
        if self.ticks == self.last:
            raise Kill
        self.ticks += 1


def filled(module, value):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)
    return module


def program(folder, clock, every=0.0, epochs=3):
    """A run with all that a state has: loops, a result, parts of every kind, random numbers between them."""
    model = filled(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 1)), 0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    history, last = [], {}
    state = State(folder, every)
    for name, part in {"model": model, "optimizer": optimizer, "history": history, "last": last}.items():
        state.part(name, part)
    for epoch in state.epochs("epochs", epochs):
        torch.manual_seed(epoch)
        clock.tick()
        found = state.part("found", {"sum": torch.zeros(3)})
        for number in state.steps("features", 3):
            clock.tick()
            found["sum"] += torch.rand(3) * number
        drawn = state.once("clustering", lambda: (clock.tick(), {"noise": torch.rand(3)})[1])
        clock.tick()
        head = state.part("head", filled(nn.Linear(1, 1), 1.0 + epoch))
        for _ in state.steps("training", 4):
            loss = (head(model(torch.rand(5, 3) + found["sum"])) - drawn["noise"].sum()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                head.weight -= 0.001 * head.weight.grad
            head.zero_grad()
            clock.tick()
        history.append({"epoch": epoch, "loss": loss.item()})
        last["head"] = head.weight.detach().clone()
    speeds = [values["momentum_buffer"] for values in optimizer.state_dict()["state"].values()]
    return [*model.state_dict().values(), *speeds, last["head"]], history


WHOLE_TICKS = 3 * (1 + 3 + 1 + 1 + 4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    clock = Clock()
    ended = program(tmp_path_factory.mktemp("whole"), clock)
    assert clock.ticks == WHOLE_TICKS
    return ended


def same(found, wanted):
    return all(torch.equal(a, b) for a, b in zip(found[0], wanted[0], strict=True)) and found[1] == wanted[1]


@settings(max_examples=40)
@given(st.lists(st.integers(0, WHOLE_TICKS - 1), max_size=6), st.sampled_from([0.0, 1e9]))
def test_a_run_killed_anywhere_ends_like_one_that_was_not(whole, kills, every):
    with TemporaryDirectory() as place:
        for last in kills:
            try:
                program(Path(place), Clock(last), every)
            except Kill:
                torch.rand(7)  # what happens to the global generator in between does not matter
        assert same(program(Path(place), Clock(), every), whole)


def test_nothing_finished_is_done_again(tmp_path):
    with pytest.raises(Kill):
        program(tmp_path, Clock(27))  # in the second step of the third epoch's training
    clock = Clock()
    program(tmp_path, clock)
    assert clock.ticks == 1 + 1 + WHOLE_TICKS - 27  # the two lines of an epoch that are no step, and what was left


def test_two_states_are_kept(tmp_path):
    program(tmp_path, Clock())
    numbers = [number for number, _ in states(tmp_path)]
    assert len(numbers) == KEPT
    assert numbers[1] == numbers[0] + 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"state-{n}.pt" for n in numbers]


def flip(data):
    at = len(data) // 3
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("damage", [flip, lambda data: data[:-100], lambda data: b"", lambda data: b"other" * 99])
def test_a_damaged_state_is_passed_over_for_the_one_before_it(tmp_path, damage, whole, capsys):
    with pytest.raises(Kill):
        program(tmp_path, Clock(17))
    (older, _), (newer, path) = states(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert State(tmp_path).number == older
    assert f"state-{newer}.pt is damaged" in capsys.readouterr().err
    assert same(program(tmp_path, Clock()), whole)


def test_where_all_states_are_damaged_the_run_starts_afresh(tmp_path, whole):
    with pytest.raises(Kill):
        program(tmp_path, Clock(17))
    for _, path in states(tmp_path):
        path.write_bytes(path.read_bytes()[:50])
    assert same(program(tmp_path, Clock()), whole)


def test_a_hostile_state_is_not_executed(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"root": Hostile(), "random": []}, tmp_path / "state-1.pt")
    with pytest.raises(UserError, match="--force"):
        State(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_a_part_that_does_not_fit_is_named(tmp_path):
    state = State(tmp_path)
    state.part("model", nn.Linear(2, 2))
    state.save()
    with pytest.raises(UserError, match="the saved model cannot be continued") as raised:
        State(tmp_path).part("model", nn.Linear(3, 2))
    assert "--force" in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_one_loop_has_one_name(tmp_path):
    state = State(tmp_path)
    assert list(state.steps("training", 2)) == [0, 1]
    with pytest.raises(ValueError, match="a second loop training"):
        list(state.steps("training", 2))


def test_work_done_once_has_loops_and_parts_of_its_own(tmp_path):
    """They are gone on with while it is not done, and forgotten with it."""

    def chosen(state, stop=None):
        found = state.part("found", [])
        for number in state.steps("steps", 4):
            if number == stop:
                raise Kill
            found.append(number)
        return sum(found)

    state = State(tmp_path, every=0)
    with pytest.raises(Kill):
        state.once("choice", lambda: chosen(state, stop=2))
    again = State(tmp_path, every=0)
    assert again.once("choice", lambda: chosen(again, stop=1)) == 6  # steps 0 and 1 are not done again
    assert again.part("found", ["other"]) == ["other"]
    assert list(again.steps("steps", 2)) == [0, 1]
    last = State(tmp_path, every=0)
    assert last.once("choice", lambda: pytest.fail("done again")) == 6
    assert set(last.root.saved) == {"found"}
    assert last.root.inner == {}


def test_what_is_dear_to_save_is_saved_rarely(tmp_path, monkeypatch):
    now, took = [0.0], 3.0
    monkeypatch.setattr("zoo.state.time.monotonic", lambda: now[0])
    state, save = State(tmp_path), torch.save

    def slow(*given):
        now[0] += took
        save(*given)

    monkeypatch.setattr("zoo.state.torch.save", slow)
    for name, seconds, saved in (("a", WORTH, 1), ("b", 0.99 * RARELY * took, 1), ("c", 0.01 * RARELY * took, 2)):
        now[0] += seconds
        assert list(state.steps(name, 1)) == [0]
        assert state.number == saved


def test_a_loop_that_is_forgotten_starts_again(tmp_path):
    state = State(tmp_path, every=0)
    steps = state.steps("features", 4)
    assert [next(steps), next(steps), next(steps)] == [0, 1, 2]
    again = State(tmp_path)
    assert again.done("features") == 2
    again.forget("features")
    assert list(again.steps("features", 4)) == [0, 1, 2, 3]


def test_a_full_disk_keeps_the_states_before(tmp_path, monkeypatch):
    state = State(tmp_path)
    state.part("values", {"x": torch.ones(3)})
    state.save()
    before = (tmp_path / "state-1.pt").read_bytes()

    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("results.files.sync", full)
    with pytest.raises(UserError, match="No space left"):
        state.save()
    assert [path.name for path in tmp_path.iterdir()] == ["state-1.pt"]
    assert (tmp_path / "state-1.pt").read_bytes() == before


def test_remove_leaves_what_is_no_state(tmp_path):
    program(tmp_path, Clock(), epochs=1)
    for name in ("state-x.pt", "log.jsonl"):
        (tmp_path / name).write_text("")
    remove(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "state-x.pt"]


def test_gradients_of_zero_are_told_from_none():
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "idle": nn.Linear(2, 1)})
    model["used"](torch.ones(1, 2)).sum().backward()
    other = nn.ModuleDict({"used": nn.Linear(2, 1), "idle": nn.Linear(2, 1)})
    other["idle"](torch.ones(1, 2)).sum().backward()
    give(other, held(model))
    assert not other["used"].weight.grad.any()
    assert other["idle"].weight.grad is None


def send(number, last):
    """A Kill of which the process is told by a signal, at a step."""

    class Sending(Clock):
        def tick(self):
            if self.ticks == last:
                os.kill(os.getpid(), number)
            self.ticks += 1

    return Sending()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("tick", [2, 8, 16])  # steps of the features and of the training
def test_a_signal_waits_for_the_end_of_the_step_and_the_state_is_saved(tmp_path, number, tick, whole, capsys):
    clock = send(number, tick)
    ending = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    with pytest.raises(ending), signals.handled():
        program(tmp_path, clock, every=1e9)
    assert clock.ticks == tick + 1
    assert "stopping after this step" in capsys.readouterr().err
    rest = Clock()
    assert same(program(tmp_path, rest, every=1e9), whole)
    assert rest.ticks < WHOLE_TICKS - tick + 2


def test_a_signal_between_steps_ends_the_run_at_once(tmp_path, whole):
    with pytest.raises(SystemExit) as raised, signals.handled():
        program(tmp_path, send(signal.SIGTERM, 4))  # in the clustering
    assert raised.value.code == 143
    assert same(program(tmp_path, Clock()), whole)


def test_a_second_signal_does_not_wait():
    with signals.handled(), signals.wait():
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.asked == signal.SIGTERM
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)


def test_signals_are_answered_as_before_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with signals.handled():
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] != before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_waits_for_the_outer_step_too():
    with signals.handled(), signals.wait():
        with signals.wait():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.asked == signal.SIGTERM


def test_a_thread_s_steps_do_not_make_signals_wait():
    def work():
        with signals.wait():
            begun.set()
            ended.wait(60)

    begun, ended = threading.Event(), threading.Event()
    thread = threading.Thread(target=work)
    with signals.handled():
        thread.start()
        assert begun.wait(60)
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)
        ended.set()
    thread.join()


def test_steps_of_a_run_that_failed_do_not_make_signals_wait():
    """They are left in any order, or never."""
    outer, inner, never = signals.wait(), signals.wait(), signals.wait()
    never.__enter__()
    with signals.handled():
        outer.__enter__()
        inner.__enter__()
        outer.__exit__(None, None, None)
        inner.__exit__(None, None, None)
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)
