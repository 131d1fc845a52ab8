"""Where a run computes."""

from threading import Barrier
from time import sleep
from typing import get_args, get_type_hints

import pytest
import torch

from results.errors import RunFailed, UserError
from zoo.device import PRECISIONS, autocast, check_stopped, pick, prepare, side_by_side
from zoo.run import Method, Task

CPU = torch.device("cpu")


@pytest.fixture
def gpus(monkeypatch):
    """A function that sets how many GPUs torch sees."""

    def see(count):
        monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
        monkeypatch.setattr("torch.cuda.device_count", lambda: count)

    return see


def test_auto_is_the_gpu_where_there_is_one(gpus):
    gpus(0)
    assert pick("auto") == pick("cpu") == CPU
    gpus(2)
    assert pick("auto") == torch.device("cuda:0")  # of this host, the one of this process
    assert pick("cuda:1") == torch.device("cuda:1")
    assert pick("cpu") == CPU


@pytest.mark.parametrize(
    ("count", "name", "told"),
    [
        (0, "cuda", "no CUDA device"),
        (0, "cuda:1", "no CUDA device"),
        (2, "cuda:2", "2 CUDA devices, and no cuda:2"),
        (2, "gpu", "'gpu' is not a device"),
        (2, "", "'' is not a device"),
        (2, "cuda:x", "'cuda:x' is not a device"),
        (2, "meta", "nothing here runs on the device 'meta'"),
    ],
)
def test_a_device_that_is_not_there(gpus, count, name, told):
    gpus(count)
    with pytest.raises(UserError, match=told) as raised:
        pick(name)
    assert "--device" in raised.value.fix


@pytest.fixture
def threads():
    """A function that sets torch's threads until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_items_meet_side_by_side_each_on_one_thread(threads):
    threads(3)
    meeting = Barrier(3, timeout=60)  # breaks unless three are there at once

    def work(item):
        meeting.wait()
        return item, torch.get_num_threads()

    assert list(side_by_side(work, range(6), CPU)) == [(item, 1) for item in range(6)]
    assert torch.get_num_threads() == 3
    assert list(side_by_side(lambda item: torch.get_num_threads(), range(2), torch.device("meta"))) == [3, 3]


def test_work_that_fails_ends_the_rest(threads):
    threads(2)
    begun, stopped = [], []

    def work(item):
        begun.append(item)
        if item == 1:
            raise UserError("broken")
        for _ in range(60_000 if item > 1 else 0):  # long work, a minute unless it is told to stop
            try:
                check_stopped()
            except RunFailed:
                stopped.append(item)
                raise
            sleep(0.001)
        return item

    found = side_by_side(work, range(1000), CPU)
    assert next(found) == 0
    with pytest.raises(UserError, match="broken"):
        next(found)
    assert {0, 1} <= set(begun) <= {0, 1, 2, 3}  # two threads: no item begins once the error is out
    assert sorted(begun) == [0, 1, *sorted(stopped)]
    assert torch.get_num_threads() == 2


def test_threads():
    before = torch.get_num_threads()
    try:
        prepare(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_precisions():
    assert all(get_args(get_type_hints(kind)["precision"]) == PRECISIONS for kind in (Method, Task))
    layer, x = torch.nn.Linear(4, 4), torch.rand(2, 4)
    with autocast(CPU, "fp32"):
        assert layer(x).dtype == torch.float32
    with autocast(CPU, "bf16"):
        assert layer(x).dtype == torch.bfloat16
