"""Processes that die at a certain call of a function, and save their states by a clock that counts."""

import itertools
import multiprocessing
import pkgutil
import signal
from types import SimpleNamespace
from unittest.mock import patch

# Processes that are forked from one where all that takes long is imported and nothing has run.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    ["zoo.run", "probes.clustering", "sklearn.datasets", "faiss", "torch.fx.experimental.symbolic_shapes"]
)
EVERY = ("--save-every", "0.03")  # minutes of `clock`: at every second step or so


def clock():
    """In the block, states are saved by a clock that goes on by a second whenever it is read, on any machine."""
    return patch("zoo.state.time", SimpleNamespace(monotonic=itertools.count().__next__))


def dying(moment, calls, number=signal.SIGKILL):
    """In the block, this process is sent a signal at that call, from 0 up, of the function of that dotted name."""
    function, left = pkgutil.resolve_name(moment), [calls]

    def called(*values, **more):
        if left[0] == 0:
            signal.raise_signal(number)  # not os.kill, which any thread may get, a little later
        left[0] -= 1
        return function(*values, **more)

    return patch(moment, called)


def exit_code(work, *given, **more):
    """That of work(*given, **more) in a process of its own."""
    process = FORKED.Process(target=work, args=given, kwargs=more)
    process.start()
    process.join()
    return process.exitcode
