"""A run that was stopped is found again by the same choice of parts, and by one process at a time."""

import multiprocessing
import pkgutil

import pytest
from deaths import FORKED

from results.errors import RunFailed, UserError
from results.files import new_sibling
from zoo.state import State
from zoo.unfinished import Unfinished, alone

KEYS = ["0a1b2c3d4e5f", "123456789abc", "fedcba987654"]


def left(folder):
    """Everything below a folder, empty folders too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def stop(run, keys, save=True, error=KeyboardInterrupt, recorded=(), **more):
    """Begin the run, save a state or none, record some parts, and be interrupted."""

    def begin():
        with run.begun(keys, **more):
            assert run.pending() == set(keys)
            if save:
                State(run.directory / "work").save()
            for key in recorded:
                run.recorded(key)
            raise error

    with pytest.raises(error):
        begin()


def test_one_part_has_the_folder_of_its_key_and_more_have_one_of_their_own(tmp_path):
    assert Unfinished(tmp_path, KEYS[:1]).directory == tmp_path / KEYS[0]
    both = Unfinished(tmp_path, KEYS[:2]).directory
    assert both == Unfinished(tmp_path, KEYS[1::-1]).directory
    every = {Unfinished(tmp_path, KEYS[:count]).directory for count in (1, 2, 3)} | {both}
    assert len(every) == 3
    assert all(len(path.name) == 12 for path in every)


def test_a_run_that_was_stopped_continues_with_what_is_not_recorded(tmp_path):
    run = Unfinished(tmp_path, KEYS)
    assert not run.continues(KEYS)
    stop(run, KEYS, error=SystemExit, recorded=KEYS[1:2])
    again = Unfinished(tmp_path, KEYS)
    assert again.pending() == {KEYS[0], KEYS[2]}
    assert again.continues([KEYS[0], KEYS[2]])
    with again.begun([KEYS[0], KEYS[2]]):
        assert State(again.directory / "work").number == 1
    assert left(tmp_path) == []


@pytest.mark.parametrize(("wanted", "afresh"), [(KEYS, False), (KEYS[:2], True)])
def test_states_of_other_parts_are_not_continued_from(tmp_path, wanted, afresh):
    """A part's record may have been removed since: the states know nothing of that part."""
    run = Unfinished(tmp_path, KEYS)
    stop(run, KEYS[:2])
    assert run.continues(wanted) == afresh
    with run.begun(wanted, afresh=afresh):
        assert State(run.directory / "work").number == 0
        assert run.pending() == set(wanted)


def test_nothing_is_left_of_a_run_without_a_state_or_that_would_fail_again(tmp_path):
    run = Unfinished(tmp_path, KEYS)
    stop(run, KEYS, save=False)
    assert left(tmp_path) == []
    stop(run, KEYS, error=RunFailed)
    assert left(tmp_path) == []


def test_what_a_kill_left_at_the_end_is_removed(tmp_path):
    run = Unfinished(tmp_path, KEYS)
    run.end()  # there is nothing
    stop(run, KEYS)
    new_sibling(run.directory / "work" / "state-2.pt")  # torn
    new_sibling(run.directory / "torn.txt")
    run.end()
    assert left(tmp_path) == []


def test_what_is_not_its_own_stays(tmp_path):
    run = Unfinished(tmp_path, KEYS[:1])
    stop(run, KEYS[:1])
    (run.directory / "error.txt").write_text("")
    (run.directory / "work" / "notes.txt").write_text("")
    run.end()
    assert left(run.directory) == ["error.txt", "work", "work/notes.txt"]


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "runs").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"), Unfinished(tmp_path / "runs", KEYS).begun(KEYS):
        pytest.fail("ran")


def hold(folder, pipe):
    with alone(folder):
        pipe.send("in")
        pipe.recv()


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    run = Unfinished(tmp_path, KEYS)
    stop(run, KEYS)
    ours, theirs = multiprocessing.Pipe()
    process = FORKED.Process(target=hold, args=(run.directory, theirs))
    process.start()
    assert ours.recv() == "in"
    with pytest.raises(UserError, match="another process is running this") as raised, run.begun(KEYS):
        pytest.fail("ran")
    assert str(run.directory) in str(raised.value)
    assert run.continues(KEYS)  # nothing was touched
    process.kill()
    process.join()
    with run.begun(KEYS):
        assert State(run.directory / "work").number == 1


@pytest.mark.parametrize("moment", ["results.files.new_sibling", "zoo.unfinished.check_writable", "fcntl.flock"])
def test_another_run_that_ends_meanwhile_is_no_hindrance(moment, tmp_path, monkeypatch):
    """It removes the folder, the first time that this one has come so far."""
    run, function = Unfinished(tmp_path, KEYS), pkgutil.resolve_name(moment)
    ends = [run.end]

    def called(*given):
        if moment == "fcntl.flock" and ends:  # of the folder as it was
            ends.pop()()
        found = function(*given)
        if ends:
            ends.pop()()
        return found

    monkeypatch.setattr(moment, called)
    with run.begun(KEYS):
        assert run.pending() == set(KEYS)
        with pytest.raises(UserError, match="another process is running this"), run.begun(KEYS):
            pytest.fail("ran")
    assert ends == []


def test_a_disk_that_locks_no_folders_is_no_hindrance(tmp_path, monkeypatch):
    def flock(handle, how):
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr("zoo.unfinished.fcntl.flock", flock)
    ran = []
    with alone(tmp_path):
        ran.append("alone")
    assert ran
