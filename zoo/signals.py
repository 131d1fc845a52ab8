"""What SIGTERM and Ctrl-C do: end the run at once, or after the step that is being computed, which is then saved."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CONTINUES = "the same command, without --force, continues from what was saved"


class Signals:
    """The process's answer to signals; `asked` is the one that waits for the end of a step, or None."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self.left = CONTINUES
        self._steps: set[object] = set()  # that are being computed, some within others

    @contextmanager
    def handled(self, left: str = CONTINUES) -> Iterator[None]:
        """Answer SIGTERM and SIGINT while the block runs; only the main thread of a process can.

        left: what is said of the work that such an answer ends.
        """
        self.left = left
        self._steps.clear()  # what is there of a run that failed computes nothing any more
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            self.asked = None
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def wait(self) -> Iterator[None]:
        """Let a first signal wait: whoever runs the block looks at `asked` after it. A second one does not."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals come to the main thread, which is not in this block
            return
        step = object()
        self._steps.add(step)
        try:
            yield
        finally:  # in any order: those of a run that failed end where Python forgets them
            self._steps.discard(step)

    def obey(self, number: int) -> None:
        """End the process as the signal `number` asks for, if it is not 0."""
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if number:
            print(f"terminated; {self.left}", file=sys.stderr)
            raise SystemExit(143)

    def _handle(self, number: int, frame: Any) -> None:
        first, self.asked = self.asked is None, number
        if first and self._steps:
            print("stopping after this step (again: at once)", file=sys.stderr)
        else:
            self.obey(number)


signals = Signals()
