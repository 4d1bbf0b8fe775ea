import os
import signal
import sys
import time

import pytest

from medseg.errors import DatasetError, MedsegError
from medseg.io.processes import Limits, Lost, run_apart


def build(offset):
    """What the worker processes run: numbers are added to `offset`, words are disasters."""

    def act(item):
        if item == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if item == "hang":
            time.sleep(60)
        if item == "raise":
            raise ValueError("bad item")
        if item == "eat":
            return len(bytearray(3 << 30))
        if item == "pid":
            return os.getpid()
        os.write(1, b"noise between the replies")
        return item + offset

    return act


def refuses():
    raise DatasetError("nothing to do", hint="give something")


def dies():
    os._exit(3)


def outcome(items, **limits):
    return dict(run_apart(build, (100,), items, Limits(**limits)))


def test_every_item_is_answered_once():
    found = list(run_apart(build, (100,), list(range(50)), Limits(workers=2, ahead=8)))
    assert sorted(found) == [(i, i + 100) for i in range(50)]
    assert outcome([]) == {}


@pytest.mark.parametrize("ahead", [1, 4])
def test_a_disaster_costs_its_own_item(ahead):
    items = [0, "crash", 2, "raise", 4, "hang", 6]
    found = outcome(items, workers=2, seconds=2, ahead=ahead)
    assert [found[i] for i in (0, 2, 4, 6)] == [100, 102, 104, 106]
    assert "SIGSEGV" in found[1].reason
    assert "ValueError" in found[3].reason
    assert "longer than 2 s" in found[5].reason


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux")
def test_memory_is_bounded():
    found = outcome([1, "eat", 3], memory_bytes=2 << 30)
    assert found[0] == 101 and found[2] == 103
    assert isinstance(found[1], Lost) and "MemoryError" in found[1].reason


def test_processes_that_cannot_start_are_an_error_at_once():
    with pytest.raises(MedsegError, match="nothing to do"):
        list(run_apart(refuses, (), [1], Limits()))
    with pytest.raises(MedsegError, match="exit code 3"):
        list(run_apart(dies, (), [1], Limits()))


def test_stopping_early_leaves_no_process():
    results = run_apart(build, (0,), ["pid", "hang"], Limits())
    _, pid = next(results)
    os.kill(pid, 0)
    results.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
