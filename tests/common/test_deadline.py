"""The threads behind the facade: calls with a deadline, the write queue, and the memory they use."""

import gc
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlingua.common.deadline import DeadlineWorker
from kvlingua.common.errors import StoreError, StoreTimeout
from kvlingua.common.job_queue import JobQueue
from kvlingua.common.metrics import MetricsFile
from kvlingua.common.scratch import ScratchPool


def fail(error: Exception) -> None:
    raise error


def test_a_call_gives_its_value_or_raises_its_error() -> None:
    worker = DeadlineWorker("test", {})
    assert worker.call("sum", lambda: 1 + 1, 10) == 2
    with pytest.raises(ZeroDivisionError):
        worker.call("sum", lambda: 1 / 0, 10)
    assert worker.call("name", lambda: threading.current_thread().name, 10) == "test"
    worker.close(10)
    with pytest.raises(StoreError, match="closed"):
        worker.call("sum", lambda: 1, 10)


def test_a_stuck_call_fails_all_until_it_returns() -> None:
    worker, release = DeadlineWorker("test", {}), threading.Event()
    with pytest.raises(StoreTimeout, match=r"didn't finish a read within 0\.05 s"):
        worker.call("read", lambda: release.wait(30), 0.05)
    assert worker.hanging
    began = time.monotonic()
    for _ in range(1000):
        with pytest.raises(StoreTimeout, match="a read hasn't returned"):
            worker.call("write", lambda: 1, 10)
    assert time.monotonic() - began < 5
    assert sum(thread.name == "test" for thread in threading.enumerate()) == 1
    release.set()
    deadline = time.monotonic() + 10
    while worker.hanging:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert worker.call("sum", lambda: 3, 10) == 3
    worker.close(10)


def test_a_call_behind_a_long_one_times_out_alone() -> None:
    worker, release, started = DeadlineWorker("test", {}), threading.Event(), threading.Event()
    ran: list[str] = []

    def long() -> None:
        started.set()
        release.wait(30)

    caller = threading.Thread(target=lambda: worker.call("load", long, 30))
    caller.start()
    assert started.wait(10)
    with pytest.raises(StoreTimeout):
        worker.call("lookup", lambda: ran.append("late"), 0.05)
    assert not worker.hanging  # the long call is within its own deadline
    release.set()
    caller.join(10)
    assert worker.call("sum", lambda: 1, 10) == 1
    assert ran == [], "a call that its caller gave up was made"
    worker.close(10)


def test_while_one_worker_is_stuck_its_fellow_asks_nothing() -> None:
    stuck: dict[str, str] = {}
    loads, lookups, release = DeadlineWorker("loads", stuck), DeadlineWorker("lookups", stuck), threading.Event()
    assert lookups.call("lookup", lambda: 1, 10) == 1
    with pytest.raises(StoreTimeout):
        loads.call("load", lambda: release.wait(30), 0.05)
    assert lookups.hanging
    with pytest.raises(StoreTimeout, match="a load hasn't returned yet; no lookup until it does"):
        lookups.call("lookup", lambda: 1, 10)
    release.set()
    deadline = time.monotonic() + 10
    while lookups.hanging:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert lookups.call("lookup", lambda: 1, 10) == 1
    for worker in (loads, lookups):
        worker.close(10)


def test_jobs_are_done_in_order_and_errors_stop_none() -> None:
    queue, done = JobQueue("test"), []
    for number in range(50):
        assert queue.submit("store", lambda number=number: done.append(number))  # type: ignore[misc]
        assert queue.submit("store", lambda: fail(ZeroDivisionError()))
    assert queue.flush(10)
    assert done == list(range(50))
    assert queue.close(1)
    assert not queue.submit("store", lambda: None)


def test_what_is_given_up_is_told() -> None:
    queue, release, told = JobQueue("test"), threading.Event(), []
    queue.submit("store", lambda: release.wait(30) and None, lambda: told.append("the one that runs"))
    for number in range(3):
        queue.submit("store", lambda: fail(AssertionError("given up")), lambda number=number: told.append(number))  # type: ignore[misc]
    while len(queue._jobs) > 3:
        time.sleep(0.001)
    assert not queue.close(0.05)
    assert told == [0, 1, 2]
    release.set()


def test_threads_that_could_not_start_are_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    worker, queue, file = DeadlineWorker("test", {}), JobQueue("test"), MetricsFile(Path("/nowhere"))
    with monkeypatch.context() as few:
        few.setattr(threading.Thread, "start", no_thread)
        for call in (
            lambda: worker.call("sum", lambda: 1, 1),
            lambda: queue.submit("store", lambda: None),
            file.update,
        ):
            with pytest.raises(RuntimeError, match="new thread"):
                call()
    assert worker.call("sum", lambda: 1, 10) == 1
    assert queue.submit("store", lambda: None)
    assert queue.flush(10)
    file.close(10)
    assert file._thread is not None
    worker.close(10)
    queue.close(1)


class Held:
    """What an engine's memory is to a load."""


def test_nothing_of_a_call_is_kept_behind_it() -> None:
    worker, queue, held = DeadlineWorker("test", {}), JobQueue("test"), Held()
    gone = weakref.ref(held)
    assert worker.call("name", lambda held=held: type(held).__name__, 10) == "Held"  # type: ignore[misc]
    with suppress(ZeroDivisionError):
        worker.call("divide", lambda held=held: 1 / 0, 10)  # type: ignore[misc]
    assert queue.submit("store", lambda held=held: None, lambda held=held: None)  # type: ignore[misc]
    assert queue.flush(10)
    gc.disable()  # cycles are let go of in whatever thread the collector runs
    try:
        del held
        deadline = time.monotonic() + 10
        while gone() is not None:
            assert time.monotonic() < deadline, "a thread that waits still holds it"
            time.sleep(0.005)
    finally:
        gc.enable()
    worker.close(10)
    queue.close(10)


def test_a_thread_may_close_what_it_works_for() -> None:
    worker, queue = DeadlineWorker("test", {}), JobQueue("test")
    worker.call("close", lambda: worker.close(10), 10)
    with pytest.raises(StoreError, match="closed"):
        worker.call("sum", lambda: 1, 10)
    queue.submit("close", lambda: queue.close(0) and None)
    assert queue.flush(10)
    assert not queue.submit("store", lambda: None)


def test_threads_have_ended_when_close_returns() -> None:
    before = set(threading.enumerate())
    for _ in range(50):
        worker, queue = DeadlineWorker("test", {}), JobQueue("test")
        worker.call("sum", lambda: 1, 10)
        queue.submit("store", lambda: None)
        worker.close(10)
        assert queue.close(10)
        assert not set(threading.enumerate()) - before


def test_close_waits_for_no_stuck_thread() -> None:
    worker, release = DeadlineWorker("test", {}), threading.Event()
    with pytest.raises(StoreTimeout):
        worker.call("read", lambda: release.wait(30), 0.05)
    began = time.monotonic()
    worker.close(20)
    assert time.monotonic() - began < 5
    release.set()


def test_flush_and_close_wait_no_longer_than_told() -> None:
    queue, release = JobQueue("test"), threading.Event()
    queue.submit("store", lambda: release.wait(30) and None)
    queue.submit("store", lambda: fail(AssertionError("given up")))
    began = time.monotonic()
    assert not queue.flush(0.05)
    assert not queue.close(0.05)
    assert time.monotonic() - began < 5
    release.set()
    assert queue.flush(10)


def test_jobs_without_memory_are_bounded_by_number() -> None:
    queue, release = JobQueue("test"), threading.Event()
    queue.submit("store", lambda: release.wait(30) and None)
    taken = sum(queue.submit("touch", lambda: None) for _ in range(10_000))
    assert 1000 < taken < 10_000
    release.set()
    assert queue.flush(30)
    assert queue.close(1)


@given(st.lists(st.tuples(st.integers(1, 50_000), st.booleans()), max_size=40))
def test_scratch_memory_stays_within_its_bound(steps: list[tuple[int, bool]]) -> None:
    bound = 1 << 16
    pool, held = ScratchPool(bound), []
    for nbytes, give_back in steps:
        room = pool.available()
        piece = pool.acquire(nbytes)
        if piece is None:
            assert room < nbytes or room < 2 * nbytes
        else:
            assert len(piece) >= nbytes
            assert all(piece is not other for other in held)
            held.append(piece)
        assert sum(map(len, held)) <= bound
        if give_back and held:
            pool.release(held.pop(0))
    assert pool.available() == bound - sum(map(len, held))


def test_scratch_memory_is_used_again() -> None:
    pool = ScratchPool(1 << 20)
    piece = pool.acquire(100_000)
    assert piece is not None
    pool.release(piece)
    assert pool.acquire(90_000) is piece
    assert pool.acquire(1 << 20) is None
