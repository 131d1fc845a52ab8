"""The two ways a command ends badly: what the person can fix (exit 2), and a run that failed (exit 1)."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """What the person can fix: what happened, where we looked, what to type. Exit code 2, no traceback."""

    exit_code = 2

    def __init__(self, happened: str, looked: str = "", fix: str = "") -> None:
        super().__init__(happened, looked, fix)  # all three, so that the error survives pickling
        self.happened = happened
        self.looked = looked
        self.fix = fix

    def __str__(self) -> str:
        looked = f"\n  looked in: {self.looked}" if self.looked else ""
        fix = f"\n  try: {self.fix}" if self.fix else ""
        return f"{self.happened}{looked}{fix}"


class RunFailed(Exception):
    """A run that started and could not end well (a NaN loss, say). Exit code 1, never a record."""

    exit_code = 1


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ " (did you mean 'x'?)" for the known name nearest to `name`, or "" where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def ending(command: Callable[[], int | None]) -> int:
    """Run a command; its exit code. The two errors become a message on stderr, without a traceback."""
    try:
        code = command() or 0
        sys.stdout.flush()  # here, where a closed pipe is caught
        return code
    except (UserError, RunFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader (head, less) has seen enough: say no more, at the interpreter's end neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
