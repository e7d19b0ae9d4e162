"""The gate: whoever is inside ends what it does, whoever comes later is refused, nobody hangs."""

from __future__ import annotations

import os
import threading
import time

import pytest

from process_drill import end_of
from ris.engines.errors import EngineError
from ris.engines.gate import Gate

WAIT = 10.0  # seconds, far more than anything here takes


@pytest.fixture
def gate():
    return Gate("it is closed")


@pytest.fixture
def inside(gate):
    """A thread inside the gate, and the event that lets it leave."""
    entered, leave = threading.Event(), threading.Event()

    def stay():
        with gate:
            entered.set()
            leave.wait(WAIT)

    thread = threading.Thread(target=stay)
    thread.start()
    assert entered.wait(WAIT)
    yield leave
    leave.set()
    thread.join()


def test_closing_waits_for_those_inside_and_releases_once(gate, inside):
    released = []
    closing = [
        threading.Thread(target=gate.close, args=(lambda: released.append(time.monotonic()),))
        for _ in range(3)
    ]
    for thread in closing:
        thread.start()
    time.sleep(0.05)
    assert not released
    with pytest.raises(EngineError, match="it is closed"), gate:
        pass

    left = time.monotonic()
    inside.set()
    for thread in closing:
        thread.join(WAIT)
    assert len(released) == 1
    assert released[0] >= left
    gate.close(lambda: released.append(0.0))
    assert len(released) == 1


def test_a_thread_that_is_inside_may_enter_again_after_closing(gate):
    released = []
    with gate:
        gate.close(lambda: released.append(1))
        gate.close(lambda: released.append(2))
        with gate:
            assert not released
    assert released == [1]
    with pytest.raises(EngineError, match="it is closed"), gate:
        pass


def test_an_exception_leaves_the_gate_too(gate):
    with pytest.raises(ValueError, match="inside"), gate:
        raise ValueError("inside")
    released = []
    gate.close(lambda: released.append(1))
    assert released == [1]


def child(work) -> str:
    """What becomes of a fork that does nothing but `work`."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if work() else 2
        finally:
            os._exit(code)
    return end_of(pid)


def test_the_child_of_a_fork_does_not_wait_for_threads_that_it_lacks(gate, inside):
    released = []

    def work() -> bool:
        with gate:
            pass
        gate.close(lambda: released.append(1))
        return gate.abandoned and released == [1]

    assert child(work) == "well"
    assert not gate.abandoned
    assert not released


def test_the_child_of_a_fork_has_a_lock_of_its_own(gate):
    locked, leave = threading.Event(), threading.Event()

    def hold():
        with gate._changed:
            locked.set()
            leave.wait(WAIT)

    thread = threading.Thread(target=hold)
    thread.start()
    assert locked.wait(WAIT)

    def work() -> bool:
        with gate:
            return not gate.abandoned

    assert child(work) == "well"
    leave.set()
    thread.join()


def test_a_thread_that_forks_inside_stays_inside(gate):
    released = []

    def work() -> bool:
        gate.close(lambda: released.append(1))
        return not released and not gate.abandoned

    with gate:
        assert child(work) == "well"
