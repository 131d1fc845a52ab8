"""A run over parts of a task that has not ended yet: the folder of its states, and which parts are not recorded yet.

The folder is named by the parts' keys: the same command finds it again, another has its own.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from results.errors import RunFailed, UserError
from results.files import check_writable, digest, remove_torn
from zoo import processes
from zoo.state import remove, states

PENDING = ".pending"  # ending of an empty file that is named by the key of a part which is not recorded yet


class Unfinished:
    """The run over the parts `keys`, in a folder of `runs`."""

    def __init__(self, runs: Path, keys: Sequence[str]) -> None:
        self.directory = runs / (keys[0] if len(keys) == 1 else digest(sorted(keys))[:12])

    def pending(self) -> set[str]:
        """The keys that a run which was stopped has still to record; none where there is no such run."""
        return {path.stem for path in self.directory.glob(f"*{PENDING}")}

    def continues(self, keys: Collection[str]) -> bool:
        """Whether there is a state to continue these parts from."""
        return set(keys) <= self.pending() and self._has_states()

    @contextmanager
    def begun(self, keys: Collection[str], afresh: bool = False) -> Iterator[None]:
        """Run these parts in the block, which keeps its states in sub-folders. UserError if another run does.

        States are removed before it if they are not of these parts, or with `afresh`; and after it, unless it was
        stopped. A RunFailed would come again. Of processes that run them together, the first does this for all.
        """
        with self._begun(keys, afresh) if processes.rank() == 0 else nullcontext():
            processes.meet()
            yield
            processes.meet()

    @contextmanager
    def _begun(self, keys: Collection[str], afresh: bool) -> Iterator[None]:
        check_writable(self.directory)
        with alone(self.directory):
            if afresh or not self.continues(keys):
                self._clear()
            for key in keys:
                self._mark(key).touch()
            try:
                yield
            except BaseException as error:
                if isinstance(error, RunFailed) or not self._has_states():
                    self.end()
                raise
            self.end()

    def recorded(self, key: str) -> None:
        """Note that the part is done."""
        self._mark(key).unlink(missing_ok=True)

    def end(self) -> None:
        """Remove what the run has in its folder, and the folder if it has nothing else."""
        self._clear()
        with suppress(OSError):
            self.directory.rmdir()

    def _mark(self, key: str) -> Path:
        return self.directory / f"{key}{PENDING}"

    def _has_states(self) -> bool:
        return any(states(folder) for folder in self._folders())

    def _clear(self) -> None:
        remove_torn(self.directory)
        for folder in self._folders():
            remove(folder)
            remove_torn(folder)
            with suppress(OSError):
                folder.rmdir()
        for key in self.pending():
            self.recorded(key)  # last: while states are there, they are of these parts

    def _folders(self) -> list[Path]:
        return [path for path in self.directory.glob("*") if path.is_dir()]


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Let no other process be in such a block for the same folder: UserError in that one. A kill ends it too."""
    with ExitStack() as stack:
        while not _lock(directory, stack):  # a run that ended just now has removed it
            directory.mkdir(parents=True, exist_ok=True)
        yield


def _lock(directory: Path, stack: ExitStack) -> bool:
    """Lock the folder until the stack ends; False if it is not there any more."""
    try:
        handle = os.open(directory, os.O_RDONLY)
        stack.callback(os.close, handle)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError as error:
        raise UserError("another process is running this", str(directory), "wait for it") from error
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOTSUP):  # some network disks lock no folders
            raise
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), directory.stat())
    return False
